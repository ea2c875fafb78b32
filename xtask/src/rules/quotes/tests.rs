use super::*;

const SOURCE: &str = "fn main() {\n    let a = 1;\n\n    let b = 2;\n    print(a, b);\n}\n";

fn violations_of(source_path: &str, block: &str) -> Vec<(usize, String)> {
    let page = format!("# Page\n\n<!-- quoted from {source_path} -->\n```rust\n{block}\n```\n");
    let other = vec![
        ("README.md".to_owned(), page),
        ("a/main.rs".to_owned(), SOURCE.to_owned()),
    ];
    let violations = check(&Sources {
        rust: Vec::new(),
        other,
    });
    violations
        .into_iter()
        .map(|violation| (violation.line, violation.message))
        .collect()
}

#[test]
fn a_quote_that_stands_in_the_file_passes() {
    for block in [
        SOURCE,
        "let a = 1;\nlet b = 2;",
        "let a = 1;\n\n\nlet b = 2;",
        "let a = 1;\n// ..\nprint(a, b);",
        "// ..\n}",
        "print(\n    a,\n    b\n);",
    ] {
        assert_eq!(violations_of("a/main.rs", block), [], "{block}");
    }
}

#[test]
fn a_quote_that_changed_order_or_content_fails_at_its_marker() {
    for block in [
        "let a = 2;",
        "let b = 2;\nlet a = 1;",
        "let a = 1;\nprint(a, b);",
        "print(a, b);\n// ..\nlet a = 1;",
    ] {
        let violations = violations_of("a/main.rs", block);
        assert_eq!(
            violations,
            [(3, "the code is no longer in a/main.rs".to_owned())],
            "{block}"
        );
    }
}

#[test]
fn a_quote_from_a_file_that_is_gone_fails() {
    let violations = violations_of("a/gone.rs", "let a = 1;");
    assert_eq!(
        violations,
        [(3, "quotes a/gone.rs, which does not exist".to_owned())]
    );
}

#[test]
fn unmarked_code_is_free() {
    let other = vec![(
        "README.md".to_owned(),
        "```rust\nlet z = 1;\n```\n".to_owned(),
    )];
    assert_eq!(
        check(&Sources {
            rust: Vec::new(),
            other
        }),
        []
    );
}

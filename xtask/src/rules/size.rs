//! Functions of at most 100 lines, files of at most 600 lines of code.

use syn::spanned::Spanned;

use super::Violation;
use super::signatures::{Function, functions};
use super::source::SourceFile;

const FUNCTION_RULE: &str = "function-length";
const FILE_RULE: &str = "file-length";
const MAX_FUNCTION_LINES: usize = 100;
const MAX_FILE_CODE_LINES: usize = 600;

/// Lists every function and file that is too long.
pub(super) fn check(file: &SourceFile) -> Vec<Violation> {
    let mut violations: Vec<Violation> = functions(file)
        .iter()
        .filter_map(|function| check_function(file, function))
        .collect();
    let code_lines = count_code_lines(&file.text);
    if code_lines > MAX_FILE_CODE_LINES {
        violations.push(Violation {
            path: file.path.clone(),
            line: 0,
            rule: FILE_RULE,
            item: String::new(),
            message: format!("{code_lines} lines of code; at most {MAX_FILE_CODE_LINES}"),
        });
    }
    violations
}

fn check_function(file: &SourceFile, function: &Function<'_>) -> Option<Violation> {
    let body = function.body?;
    let start = function.signature.span().start().line;
    let lines = body.span().end().line + 1 - start;
    (lines > MAX_FUNCTION_LINES).then(|| Violation {
        path: file.path.clone(),
        line: start,
        rule: FUNCTION_RULE,
        item: function.name.clone(),
        message: format!(
            "`{}` has {lines} lines; at most {MAX_FUNCTION_LINES}",
            function.name
        ),
    })
}

/// Lines that are neither blank nor wholly a comment.
fn count_code_lines(text: &str) -> usize {
    text.lines()
        .map(str::trim_start)
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::samples::sample;

    fn function_of(lines: usize) -> String {
        format!(
            "impl S {{\nfn long() {{\n{}}}\n}}\n",
            "f();\n".repeat(lines - 2)
        )
    }

    #[test]
    fn a_function_of_100_lines_passes_and_of_101_fails() {
        assert_eq!(check(&sample(&function_of(100))), []);
        let violations = check(&sample(&function_of(101)));
        assert_eq!(violations.len(), 1);
        assert_eq!(
            (violations[0].rule, violations[0].item.as_str()),
            (FUNCTION_RULE, "S::long")
        );
        assert!(
            violations[0].message.contains("101 lines"),
            "{}",
            violations[0].message
        );
    }

    #[test]
    fn a_file_of_600_code_lines_passes_and_of_601_fails() {
        let comments = "// comment\n\n    /// doc\nstruct D;\n";
        let passing = format!("{comments}{}", "struct S;\n".repeat(599));
        assert_eq!(check(&sample(&passing)), []);
        let failing = format!("{comments}{}", "struct S;\n".repeat(600));
        let violations = check(&sample(&failing));
        assert_eq!(violations.len(), 1);
        assert_eq!((violations[0].rule, violations[0].line), (FILE_RULE, 0));
    }
}

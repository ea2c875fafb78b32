//! No file holds a path of the machine it was written on.

use super::Violation;

const RULE: &str = "machine-path";

/// Directories that exist on one machine only. Written in pieces, since this file is under check too.
const DIRECTORIES: [&str; 5] = [
    concat!("/", "work", "/"),
    concat!("/", "tmp", "/"),
    concat!("/", "root", "/"),
    concat!("/", "home", "/"),
    concat!("/", "Users", "/"),
];

/// Lists every line with an absolute path of a machine.
pub(super) fn check(path: &str, text: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for directory in DIRECTORIES {
            if line
                .match_indices(directory)
                .any(|(at, _)| starts_a_path(line, at))
            {
                violations.push(Violation {
                    path: path.to_owned(),
                    line: index + 1,
                    rule: RULE,
                    item: String::new(),
                    message: format!("absolute path of one machine ({directory}..)"),
                });
            }
        }
    }
    violations
}

/// Whether the slash at `at` begins an absolute path instead of continuing a relative one or a web address.
fn starts_a_path(line: &str, at: usize) -> bool {
    let before = line[..at].chars().next_back();
    before.is_none_or(|character| !(character.is_alphanumeric() || "._-/}*~)".contains(character)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_and_web_addresses_pass() {
        for text in [
            "docs/work/page.md",
            "https://example.org/home/page",
            "$dir/tmp/x",
            "./root/x",
            "a tmp / b",
        ] {
            let text = text.replace("$dir", "${dir}");
            assert_eq!(check("a.md", &text), [], "{text}");
        }
    }

    #[test]
    fn absolute_paths_of_a_machine_fail_with_their_line() {
        for directory in DIRECTORIES {
            for before in ["", "see ", "\"", "`", "=", "("] {
                let text = format!("first line\n{before}{directory}file");
                let violations = check("a.md", &text);
                assert_eq!(violations.len(), 1, "{text}");
                assert_eq!(violations[0].line, 2);
            }
        }
    }
}

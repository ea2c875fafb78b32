//! Relative links in Markdown files lead somewhere, and the book's summary lists every page.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::Violation;
use super::source::Sources;

const LINK_RULE: &str = "dead-link";
const SUMMARY_RULE: &str = "page-not-in-summary";
const SUMMARY: &str = "docs/SUMMARY.md";

/// Checks every Markdown file.
pub(super) fn check(sources: &Sources) -> Vec<Violation> {
    let files: BTreeSet<&str> = sources.texts().map(|(path, _)| path).collect();
    let mut violations = Vec::new();
    let mut listed = BTreeSet::new();
    for (path, text) in sources.other.iter().filter(|(path, _)| is_markdown(path)) {
        for (line, target) in links(text) {
            let resolved = resolve(path, target);
            let is_directory = files
                .iter()
                .any(|file| Path::new(file).starts_with(&resolved));
            if !is_directory {
                violations.push(violation(
                    path,
                    line,
                    LINK_RULE,
                    format!("no file `{target}`"),
                ));
            }
            if path == SUMMARY {
                listed.insert(resolved);
            }
        }
    }
    let pages = files
        .iter()
        .filter(|path| path.starts_with("docs/") && is_markdown(path));
    for page in pages.filter(|page| **page != SUMMARY && !listed.contains(Path::new(page))) {
        violations.push(violation(
            page,
            0,
            SUMMARY_RULE,
            format!("{SUMMARY} does not list the page"),
        ));
    }
    violations
}

fn violation(path: &str, line: usize, rule: &'static str, message: String) -> Violation {
    Violation {
        path: path.to_owned(),
        line,
        rule,
        item: String::new(),
        message,
    }
}

/// Whether the path names a Markdown file.
pub(super) fn is_markdown(path: &str) -> bool {
    Path::new(path)
        .extension()
        .is_some_and(|extension| extension == "md")
}

/// The line and target of every inline link to a file, outside code blocks.
fn links(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    let lines = text.lines().enumerate().filter(move |(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    });
    lines.flat_map(|(index, line)| {
        let targets = line
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split_once(')'));
        let files = targets.map(|(target, _)| target.split('#').next().unwrap_or_default());
        files
            .filter(|target| {
                !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:")
            })
            .map(move |target| (index + 1, target))
    })
}

/// The target of a link in the file `from`, relative to the workspace root.
fn resolve(from: &str, target: &str) -> PathBuf {
    let mut resolved = Path::new(from)
        .parent()
        .unwrap_or(Path::new(""))
        .to_path_buf();
    for component in Path::new(target).components() {
        match component {
            Component::ParentDir => {
                resolved.pop();
            }
            Component::Normal(name) => resolved.push(name),
            _ => {}
        }
    }
    resolved
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(files: &[(&str, &str)]) -> Vec<(&'static str, usize)> {
        let other = files
            .iter()
            .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()))
            .collect();
        let violations = check(&Sources {
            rust: Vec::new(),
            other,
        });
        violations
            .into_iter()
            .map(|violation| (violation.rule, violation.line))
            .collect()
    }

    #[test]
    fn links_to_files_directories_and_the_web_pass() {
        let text = "[a](docs/a.md) [b](docs/a.md#part) [c](docs/) [d](#here) [e](https://x.org/y)\n\
                    ```rust\nlet x = table[0](missing);\n```\n";
        let files = [
            ("README.md", text),
            ("docs/SUMMARY.md", "[a](a.md)\n[b](decisions/b.md)"),
            ("docs/a.md", "[root](../README.md)"),
            ("docs/decisions/b.md", "[a](../a.md)"),
        ];
        assert_eq!(rules(&files), []);
    }

    #[test]
    fn a_link_to_nothing_fails_at_its_line() {
        assert_eq!(
            rules(&[("README.md", "text\n[a](docs/gone.md)")]),
            [(LINK_RULE, 2)]
        );
    }

    #[test]
    fn a_page_that_the_summary_does_not_list_fails() {
        let files = [("docs/SUMMARY.md", "# Summary"), ("docs/a.md", "text")];
        assert_eq!(rules(&files), [(SUMMARY_RULE, 0)]);
    }
}

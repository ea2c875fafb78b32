//! The list of exceptions, each with its reason.
//!
//! One exception a line: `rule  path[::item]  reason in words`. Lines that start with `#` are comments.

use std::fs;

use anyhow::{Context, Result, bail};

use super::Violation;
use crate::workspace::Workspace;

/// The list, relative to the workspace root.
pub(super) const FILE: &str = "xtask/house-rules.allow";

/// The parsed list.
#[derive(Debug)]
pub(super) struct AllowList {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    line: usize,
    rule: String,
    /// `path` for a whole file, `path::item` for one item.
    subject: String,
}

impl AllowList {
    /// Reads the list of the workspace.
    pub(super) fn read(workspace: &Workspace) -> Result<Self> {
        let text = fs::read_to_string(workspace.root().join(FILE))
            .with_context(|| format!("could not read {FILE}"))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut entries = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line_number = index + 1;
            let mut words = line.split_whitespace();
            let Some(rule) = words.next().filter(|word| !word.starts_with('#')) else {
                continue;
            };
            let Some(subject) = words.next() else {
                bail!("{FILE}:{line_number}: an exception is `rule path[::item] reason`");
            };
            if words.count() < 3 {
                bail!("{FILE}:{line_number}: the exception for {subject} gives no reason");
            }
            entries.push(Entry {
                line: line_number,
                rule: rule.to_owned(),
                subject: subject.to_owned(),
            });
        }
        Ok(Self { entries })
    }

    /// Removes what the list accepts; returns how many that were, and a violation for each unused entry.
    pub(super) fn apply(&self, violations: &mut Vec<Violation>) -> (usize, Vec<Violation>) {
        let before = violations.len();
        let mut used = vec![false; self.entries.len()];
        violations.retain(|violation| {
            let matching = self
                .entries
                .iter()
                .position(|entry| entry.accepts(violation));
            if let Some(index) = matching {
                used[index] = true;
            }
            matching.is_none()
        });
        let unused = self
            .entries
            .iter()
            .zip(&used)
            .filter(|(_, used)| !**used)
            .map(|(entry, _)| Violation {
                path: FILE.to_owned(),
                line: entry.line,
                rule: "allow-list",
                item: String::new(),
                message: format!(
                    "the exception from {} for {} matches nothing; remove it",
                    entry.rule, entry.subject
                ),
            });
        (before - violations.len(), unused.collect())
    }
}

impl Entry {
    fn accepts(&self, violation: &Violation) -> bool {
        let item = self
            .subject
            .strip_prefix(&violation.path)
            .and_then(|rest| match rest {
                "" => Some(None),
                rest => rest.strip_prefix("::").map(Some),
            });
        self.rule == violation.rule
            && item.is_some_and(|item| item.is_none_or(|item| item == violation.item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violation(path: &str, item: &str) -> Violation {
        Violation {
            path: path.into(),
            line: 1,
            rule: "size",
            item: item.into(),
            message: "too long".into(),
        }
    }

    #[test]
    fn an_entry_accepts_a_whole_file_or_one_item() {
        let rows = [
            ("size a.rs it is a table", true),
            ("size a.rs::Map::walk it is a table", true),
            ("size a.rs::Map::other it is a table", false),
            ("size b.rs it is a table", false),
            ("names a.rs it is a table", false),
            ("size a it is a table", false),
        ];
        for (line, accepted) in rows {
            let mut violations = vec![violation("a.rs", "Map::walk")];
            let (count, unused) = AllowList::parse(line).unwrap().apply(&mut violations);
            assert_eq!(
                (count == 1, violations.is_empty(), unused.is_empty()),
                (accepted, accepted, accepted),
                "{line}"
            );
        }
    }

    #[test]
    fn an_unused_entry_is_a_violation_at_its_line() {
        let list = AllowList::parse("# heading\n\nsize gone.rs it was a table\n").unwrap();
        let (_, unused) = list.apply(&mut Vec::new());
        assert_eq!(unused.len(), 1);
        assert_eq!(unused[0].line, 3);
    }

    #[test]
    fn an_entry_without_a_reason_is_refused() {
        for line in [
            "size",
            "size a.rs",
            "size a.rs because",
            "size a.rs table of",
        ] {
            assert!(AllowList::parse(line).is_err(), "{line}");
        }
    }
}

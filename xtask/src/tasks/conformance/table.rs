//! The table: a row for each check, a column for each engine, and below it the reasons for what could not run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Everything that was reported.
#[derive(Debug, Default)]
pub(super) struct Table {
    columns: Vec<Column>,
}

#[derive(Debug)]
struct Column {
    name: &'static str,
    outcomes: BTreeMap<String, Outcome>,
    /// What the engine is known to do otherwise, and why.
    quirks: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed(String),
    NotHere(String),
}

impl Table {
    /// Adds an engine's column from the lines of its suite.
    pub(super) fn add(&mut self, name: &'static str, lines: &[String]) {
        let outcomes = lines.iter().filter_map(|line| parse(line)).collect();
        let quirks = lines
            .iter()
            .filter_map(|line| line.split_once("quirk="))
            .map(|(_, quirk)| quirk.to_owned())
            .collect();
        self.columns.push(Column {
            name,
            outcomes,
            quirks,
        });
    }

    /// How many checks failed, on all engines. A check that an engine did not report has failed: the engine died.
    pub(super) fn failed(&self) -> usize {
        let checks = self.checks();
        let columns = self.columns.iter();
        columns
            .map(|column| {
                checks
                    .iter()
                    .filter(|check| {
                        matches!(
                            column.outcomes.get(**check),
                            None | Some(Outcome::Failed(_))
                        )
                    })
                    .count()
            })
            .sum()
    }

    /// Every check that any engine reported, in order.
    fn checks(&self) -> Vec<&str> {
        let mut checks: Vec<&str> = self
            .columns
            .iter()
            .flat_map(|column| column.outcomes.keys().map(String::as_str))
            .collect();
        checks.sort_unstable();
        checks.dedup();
        checks
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut reasons = Reasons::default();
        write!(f, "{:<80}", "check")?;
        for column in &self.columns {
            write!(f, " {:<1$}", column.name, column.width())?;
        }
        writeln!(f)?;
        for check in self.checks() {
            write!(f, "{check:<80}")?;
            for column in &self.columns {
                let cell = match column.outcomes.get(check) {
                    Some(Outcome::Passed) => "pass".to_owned(),
                    Some(Outcome::Failed(_)) => "FAIL".to_owned(),
                    Some(Outcome::NotHere(reason)) => {
                        format!("not here {}", reasons.number(reason))
                    }
                    None => "NO RESULT".to_owned(),
                };
                write!(f, " {cell:<0$}", column.width())?;
            }
            writeln!(f)?;
        }
        for (number, reason) in (1..).zip(&reasons.seen) {
            writeln!(f, "not here {number}: {reason}")?;
        }
        for column in &self.columns {
            for quirk in &column.quirks {
                writeln!(f, "known of {}: {quirk}", column.name)?;
            }
        }
        for column in &self.columns {
            for (check, outcome) in &column.outcomes {
                if let Outcome::Failed(message) = outcome {
                    writeln!(f, "FAIL on {}: {check}: {message}", column.name)?;
                }
            }
        }
        for column in &self.columns {
            writeln!(f, "{}: {}", column.name, column.totals())?;
        }
        Ok(())
    }
}

impl Column {
    /// Wide enough for its heading and for every outcome.
    fn width(&self) -> usize {
        self.name.len().max("not here 99".len())
    }

    fn totals(&self) -> String {
        let count = |wanted: fn(&Outcome) -> bool| {
            self.outcomes
                .values()
                .filter(|outcome| wanted(outcome))
                .count()
        };
        format!(
            "{} passed, {} failed, {} not here",
            count(|outcome| *outcome == Outcome::Passed),
            count(|outcome| matches!(outcome, Outcome::Failed(_))),
            count(|outcome| matches!(outcome, Outcome::NotHere(_)))
        )
    }
}

/// Reasons in the order in which they are first used.
#[derive(Debug, Default)]
struct Reasons {
    seen: Vec<String>,
}

impl Reasons {
    fn number(&mut self, reason: &str) -> usize {
        let known = self.seen.iter().position(|seen| seen == reason);
        known.map_or_else(
            || {
                self.seen.push(reason.to_owned());
                self.seen.len()
            },
            |index| index + 1,
        )
    }
}

/// A line such as `engine=kvm check=halts::halts_in_flat_mode pass`.
fn parse(line: &str) -> Option<(String, Outcome)> {
    let (_, rest) = line.split_once("check=")?;
    let (check, outcome) = rest.split_once(' ')?;
    let outcome = match outcome.split_once(": ") {
        Some(("FAIL", message)) => Outcome::Failed(message.to_owned()),
        Some(("not here", reason)) => Outcome::NotHere(reason.to_owned()),
        _ if outcome == "pass" => Outcome::Passed,
        _ => return None,
    };
    Some((check.to_owned(), outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_check_has_a_row_and_an_engine_a_column() {
        let mut table = Table::default();
        table.add(
            "one",
            &lines(
                "engine=kvm quirk=Odd it is old\nengine=kvm check=a::x pass\n\
                 engine=kvm check=a::y not here: too small",
            ),
        );
        table.add(
            "two",
            &lines(
                "engine=kvm check=a::x FAIL: it broke: twice\nengine=kvm check=a::y not here: too small",
            ),
        );
        let text = table.to_string();
        let row = |check: &str| {
            let line = text.lines().find(|line| line.starts_with(check));
            line.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        };
        assert_eq!(row("check"), Some("check one two".to_owned()));
        assert_eq!(row("a::x"), Some("a::x pass FAIL".to_owned()));
        assert_eq!(row("a::y"), Some("a::y not here 1 not here 1".to_owned()));
        assert!(text.contains("not here 1: too small"), "{text}");
        assert!(text.contains("known of one: Odd it is old"), "{text}");
        assert!(
            text.contains("FAIL on two: a::x: it broke: twice"),
            "{text}"
        );
        assert!(
            text.contains("one: 1 passed, 0 failed, 1 not here"),
            "{text}"
        );
        assert_eq!(table.failed(), 1);
    }

    #[test]
    fn a_check_without_a_result_has_failed() {
        let mut table = Table::default();
        table.add(
            "one",
            &lines("engine=a check=x pass\nengine=a check=y pass"),
        );
        table.add("two", &lines("engine=b check=x pass\nnoise"));
        assert_eq!(table.failed(), 1);
        assert!(table.to_string().contains("NO RESULT"));
    }
}

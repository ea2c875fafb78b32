//! Which engines and copy-on-write modes the VM tests ran on, as the tests themselves report it.
//!
//! A VM test suite appends one line to the file named by `VELLUM_TEST_REPORT`, or prints it after the word
//! `ENGINE`: `engine=kvm cow=host suite=sandbox tests=31`, or for what it could not run
//! `engine=kvm cow=guest suite=sandbox skipped=ring 0 is emulated on this host` (the reason takes the rest of
//! the line).

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The environment variable that names the file.
pub(crate) const REPORT_VARIABLE: &str = "VELLUM_TEST_REPORT";

/// The report in a line of a test's output, which is what follows the word `ENGINE`.
pub(crate) fn printed_report(line: &str) -> Option<&str> {
    line.trim().strip_prefix("ENGINE ").map(str::trim)
}

/// The engine that a complete run covers unless it is told another one.
pub(crate) const DEFAULT_ENGINE: &str = "kvm";
/// The modes of copy-on-write that it covers.
const EXPECTED_MODES: [&str; 2] = ["guest", "host"];

/// Collected lines, one row for each engine, mode and suite.
#[derive(Debug, Default)]
pub(crate) struct EngineReport {
    rows: BTreeMap<Key, Outcome>,
    malformed: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    engine: String,
    cow: String,
    suite: String,
}

#[derive(Debug, Default)]
struct Outcome {
    tests: u64,
    skipped: Vec<String>,
}

impl EngineReport {
    /// Reads the report file and the lines that the tests printed. A suite may do both: a printed line that is in the
    /// file, too, counts once.
    pub(crate) fn new(file: &str, printed: &[String]) -> Self {
        let mut report = Self::default();
        let in_file: Vec<&str> = file
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        let only_printed = printed
            .iter()
            .map(String::as_str)
            .filter(|line| !in_file.contains(line));
        for line in in_file.iter().copied().chain(only_printed) {
            report.add_line(line);
        }
        report
    }

    fn add_line(&mut self, line: &str) {
        match parse(line) {
            Some((key, Ok(tests))) => self.rows.entry(key).or_default().tests += tests,
            Some((key, Err(reason))) => {
                let skipped = &mut self.rows.entry(key).or_default().skipped;
                if !skipped.contains(&reason) {
                    skipped.push(reason);
                }
            }
            None => self.malformed.push(line.to_owned()),
        }
    }

    /// Whether any test ran on an engine.
    pub(crate) fn has_run(&self, engine: &str) -> bool {
        let mut rows = self.rows.iter();
        rows.any(|(key, outcome)| key.engine == engine && outcome.tests > 0)
    }

    /// The table: what ran, what was skipped and why, and what nobody reported of the engine that was asked for.
    pub(crate) fn table(&self, engine: Option<&str>, why_nothing: Option<&str>) -> String {
        let mut table = format!(
            "{:<8} {:<8} {:<22} {:>6}  {}\n",
            "engine", "cow", "suite", "tests", ""
        );
        for (key, outcome) in &self.rows {
            if outcome.tests > 0 {
                let _ = writeln!(
                    table,
                    "{:<8} {:<8} {:<22} {:>6}  ran",
                    key.engine, key.cow, key.suite, outcome.tests
                );
            }
            for reason in &outcome.skipped {
                let _ = writeln!(
                    table,
                    "{:<8} {:<8} {:<22} {:>6}  SKIPPED: {reason}",
                    key.engine, key.cow, key.suite, "-"
                );
            }
        }
        let engine = engine.unwrap_or(DEFAULT_ENGINE);
        for cow in EXPECTED_MODES {
            if !self
                .rows
                .keys()
                .any(|key| key.engine == engine && key.cow == cow)
            {
                let reason = why_nothing.unwrap_or("no test suite reported it");
                let _ = writeln!(
                    table,
                    "{engine:<8} {cow:<8} {:<22} {:>6}  NOT RUN: {reason}",
                    "-", "-"
                );
            }
        }
        for line in &self.malformed {
            let _ = writeln!(table, "unreadable report line: {line}");
        }
        table
    }
}

/// A report line as its key and either a number of tests or the reason for a skip.
fn parse(line: &str) -> Option<(Key, Result<u64, String>)> {
    let (fields, skipped) = match line.split_once("skipped=") {
        Some((fields, reason)) => (fields, Some(reason.trim().trim_matches('"').to_owned())),
        None => (line, None),
    };
    let fields: BTreeMap<&str, &str> = fields
        .split_whitespace()
        .map(|field| field.split_once('='))
        .collect::<Option<_>>()?;
    let text = |name: &str| fields.get(name).map(|value| (*value).to_owned());
    let key = Key {
        engine: text("engine")?,
        cow: fields
            .get("cow")
            .map_or("-", |cow| cow.trim_end_matches("-side"))
            .to_owned(),
        suite: text("suite")?,
    };
    match skipped {
        Some(reason) => Some((key, Err(reason))),
        None => Some((key, Ok(fields.get("tests")?.parse().ok()?))),
    }
}

#[cfg(test)]
mod tests;

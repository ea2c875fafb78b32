//! What came of all checks on one engine, and the lines by which test runs tell of it.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::sync::Once;

use crate::check::Outcome;
use crate::subject::{Difference, Quirk, Subject};
use crate::table::checks;

/// The environment variable that names a file for one line for each engine of a suite.
const SUITE_VARIABLE: &str = "VELLUM_TEST_REPORT";
/// The environment variable that names a file for one line for each check.
const CHECK_VARIABLE: &str = "VELLUM_CONFORMANCE_REPORT";

/// The outcome of every check.
#[derive(Clone, Debug)]
pub struct Report {
    engine: String,
    differences: Vec<Difference>,
    rows: Vec<(&'static str, Outcome)>,
}

/// Runs every check.
pub fn report(subject: &Subject) -> Report {
    Report {
        engine: subject.name().to_owned(),
        differences: subject.differences().to_vec(),
        rows: checks()
            .iter()
            .map(|check| (check.name, check.on(subject)))
            .collect(),
    }
}

impl Report {
    /// Whether no check failed.
    pub fn has_passed(&self) -> bool {
        !self
            .rows
            .iter()
            .any(|(_, outcome)| matches!(outcome, Outcome::Failed(_)))
    }

    /// Every check's name and outcome.
    pub fn rows(&self) -> &[(&'static str, Outcome)] {
        &self.rows
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, outcome) in &self.rows {
            writeln!(f, "{:<12} {name:<72} {outcome}", self.engine)?;
        }
        for known in &self.differences {
            writeln!(f, "{:<12} {:?}: {}", self.engine, known.quirk, known.reason)?;
        }
        Ok(())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("pass"),
            Self::Failed(failure) => write!(f, "FAIL: {failure}"),
            Self::NotHere(reason) => write!(f, "not here: {reason}"),
        }
    }
}

/// A process tests one engine, and tells once in what it is known to differ.
static TOLD: Once = Once::new();

/// Runs one check as a test: panics if it fails, and says visibly if it cannot run. `conformance_tests!` calls it.
///
/// # Panics
/// When the check fails, or when no check has this name.
pub fn test(subject: &Subject, name: &str) {
    let check = checks()
        .iter()
        .find(|check| check.name == name)
        .expect("the tests are made from the table");
    let outcome = check.on(subject);
    TOLD.call_once(|| tell_differences(subject));
    tell(subject.name(), name, &outcome);
    if let Outcome::Failed(failure) = outcome {
        // At once, because the harness prints it only at the end, which an engine that takes the machine down does not reach.
        let _ = writeln!(
            io::stderr(),
            "FAIL on {}: {name}: {failure}",
            subject.name()
        );
        panic!("{name} on {}: {failure}", subject.name());
    }
}

/// Reports what the engine is known to do otherwise; what it cannot run is told check by check.
fn tell_differences(subject: &Subject) {
    for known in subject.differences() {
        if !matches!(known.quirk, Quirk::NotHere(_) | Quirk::Lacks(_)) {
            append(
                CHECK_VARIABLE,
                &format!(
                    "engine={} quirk={:?} {}",
                    subject.name(),
                    known.quirk,
                    known.reason
                ),
            );
        }
    }
}

/// Reports an outcome to whoever started the test run.
fn tell(engine: &str, check: &str, outcome: &Outcome) {
    let suite = match outcome {
        Outcome::NotHere(reason) => {
            // Written directly, because the harness hides what a passing test prints.
            let _ = writeln!(io::stderr(), "NOT HERE on {engine}: {check}: {reason}");
            format!("skipped={reason}")
        }
        Outcome::Passed | Outcome::Failed(_) => "tests=1".to_owned(),
    };
    append(
        SUITE_VARIABLE,
        &format!("engine={engine} suite=conformance {suite}"),
    );
    append(
        CHECK_VARIABLE,
        &format!(
            "engine={engine} check={check} {}",
            outcome.to_string().replace('\n', " ")
        ),
    );
}

fn append(variable: &str, line: &str) {
    let Some(path) = std::env::var_os(variable) else {
        return;
    };
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
        .expect("the report can be written");
}

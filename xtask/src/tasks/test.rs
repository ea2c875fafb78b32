//! `cargo xtask test`: every test, and at the end which engines and modes ran.

use std::fs;

use anyhow::{Context, Error, Result, anyhow, bail};

use crate::engine_report::{DEFAULT_ENGINE, EngineReport, REPORT_VARIABLE, printed_report};
use crate::host::{GCC, Kvm};
use crate::process::{self, heading, progress};
use crate::rules;
use crate::tasks::mshv;
use crate::workspace::Workspace;

/// Crates that guests use too, so they must build without their default features. That they link into a guest shows when
/// the tests build the Rust guest, which uses all three.
const STANDALONE: [&str; 3] = ["vellum-layout", "vellum-abi", "vellum-vmem"];

/// Runs the quick checks, then all tests, then prints the summary. A failed part does not keep the next from running.
pub(crate) fn run(workspace: &Workspace, engine: Option<&str>) -> Result<()> {
    let kvm_problem = Kvm::probe().problem();
    print_environment(kvm_problem.as_deref());

    heading("house rules");
    let rules = rules::check(workspace);
    heading("crates that build alone");
    let standalone = build_standalone(workspace);
    heading("tests");
    let outcome = run_tests(workspace, kvm_problem.as_deref(), engine)?;

    heading("summary");
    print!("{}", outcome.engines.table(engine, kvm_problem.as_deref()));
    println!("{}", outcome.totals);
    let error = outcome.error();
    // A backend that is broken may look like a machine that has none.
    let is_kvm_wanted = engine.is_none() && kvm_problem.is_none();
    let engines = (is_kvm_wanted && !outcome.engines.has_run(DEFAULT_ENGINE))
        .then(|| anyhow!("/dev/kvm is usable, and no test ran on it"));
    let parts = [
        ("house rules", rules.err()),
        ("crates alone", standalone.err()),
        ("tests", error),
        ("tests over mshv", outcome.over_mshv.err()),
        ("engines", engines),
    ];
    let mut failed = Vec::new();
    for (name, error) in parts {
        if let Some(error) = error {
            println!("FAILED {name}: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn build_standalone(workspace: &Workspace) -> Result<()> {
    for package in STANDALONE {
        process::run(workspace.cargo().args([
            "build",
            "--package",
            package,
            "--no-default-features",
        ]))?;
    }
    Ok(())
}

/// What `cargo test` did.
struct Outcome {
    passed: bool,
    over_mshv: Result<()>,
    totals: Totals,
    engines: EngineReport,
}

impl Outcome {
    fn error(&self) -> Option<Error> {
        let failures = &self.totals.failures;
        match self.passed {
            false if failures.is_empty() => Some(anyhow!("cargo test failed; see above")),
            false => Some(anyhow!("{}", failures.join(", "))),
            true if self.totals.passed == 0 => Some(anyhow!("no test ran")),
            true => None,
        }
    }
}

fn run_tests(
    workspace: &Workspace,
    kvm_problem: Option<&str>,
    engine: Option<&str>,
) -> Result<Outcome> {
    let report_file = workspace.target_dir().join("vellum-test-report.txt");
    fs::create_dir_all(workspace.target_dir()).context("could not create the target directory")?;
    fs::write(&report_file, "")
        .with_context(|| format!("could not create {}", report_file.display()))?;
    let mut totals = Totals::default();
    let mut printed = Vec::new();
    // Doc tests of the libraries are part of this command.
    let mut command = workspace.cargo();
    command
        .args(["test", "--workspace", "--no-fail-fast"])
        .env(REPORT_VARIABLE, &report_file);
    if let Some(engine) = engine {
        command.env(super::demo::ENGINE_VARIABLE, engine);
    }
    let passed = process::run_inspected(&mut command, |line| {
        totals.add_line(line);
        printed.extend(printed_report(line).map(str::to_owned));
    })?;
    let over_mshv = match (kvm_problem, engine) {
        // The double has nothing to run guests on, which the table says; or another engine was asked for.
        (Some(_), _) | (_, Some(_)) => Ok(()),
        (None, None) => mshv::run_on_double(workspace, Some(&report_file)).and_then(|over_mshv| {
            println!("over mshv, on the double: {over_mshv}");
            over_mshv.verdict()
        }),
    };
    let file =
        fs::read_to_string(&report_file).context("could not read the report of the VM tests")?;
    Ok(Outcome {
        passed,
        over_mshv,
        totals,
        engines: EngineReport::new(&file, &printed),
    })
}

fn print_environment(kvm_problem: Option<&str>) {
    heading("environment");
    progress(&format!("/dev/kvm: {}", kvm_problem.unwrap_or("usable")));
    if GCC.is_present() {
        progress("gcc: present");
    } else {
        progress(&GCC.missing());
    }
}

/// Sums of the result lines that the test harness prints, and the names of failed tests.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) binaries: u64,
    pub(crate) passed: u64,
    failed: u64,
    ignored: u64,
    pub(crate) failures: Vec<String>,
}

impl Totals {
    /// An error unless there were tests and all of them passed.
    pub(crate) fn verdict(&self) -> Result<()> {
        if self.passed == 0 {
            bail!("no test passed");
        }
        if self.failed > 0 || !self.failures.is_empty() {
            bail!("failed: {}", self.failures.join(", "));
        }
        Ok(())
    }

    pub(crate) fn add_line(&mut self, line: &str) {
        if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(name.to_owned());
        }
        let Some(rest) = line.strip_prefix("test result: ") else {
            return;
        };
        self.binaries += 1;
        for part in rest.split([';', '.']) {
            let mut words = part.split_whitespace();
            let (Some(count), Some(name)) = (words.next(), words.next()) else {
                continue;
            };
            let Ok(count) = count.parse::<u64>() else {
                continue;
            };
            match name {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} ignored in {} test binaries",
            self.passed, self.failed, self.ignored, self.binaries
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_add_up_and_other_lines_do_not_count() {
        let mut totals = Totals::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.02s",
            "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.00s",
            "note: test result: 9 passed",
            "test walk::tests::a_loop_ends ... FAILED",
            "test walk::tests::a_tree_is_walked ... ok",
        ] {
            totals.add_line(line);
        }
        assert_eq!(
            totals,
            Totals {
                binaries: 2,
                passed: 7,
                failed: 2,
                ignored: 1,
                failures: vec!["walk::tests::a_loop_ends".to_owned()],
            }
        );
    }
}

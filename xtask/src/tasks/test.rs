//! `cargo xtask test`: every test, and at the end which engines and modes ran.

mod standalone;

use std::fs;

use anyhow::{Context, Result, bail};

use crate::engine_report::{EngineReport, REPORT_VARIABLE, printed_report};
use crate::host::{GCC, Kvm, STRACE};
use crate::process::{self, heading, progress};
use crate::rules;
use crate::workspace::Workspace;

/// Runs the quick checks, then all tests, then prints the summary.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let problem = Kvm::probe().problem();
    print_environment(problem.as_deref());

    heading("house rules");
    // A broken rule fails the task at the end; it does not keep the tests from running.
    let rules = rules::check(workspace);

    heading("crates that build alone and as part of a guest");
    standalone::check(workspace)?;

    heading("tests");
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
    let passed = process::run_inspected(&mut command, |line| {
        totals.add_line(line);
        printed.extend(printed_report(line).map(str::to_owned));
    })?;
    let file =
        fs::read_to_string(&report_file).context("could not read the report of the VM tests")?;
    let engines = EngineReport::new(&file, &printed);

    heading("summary");
    print!("{}", engines.table(problem.as_deref()));
    println!("{totals}");
    if !passed {
        bail!("tests failed; the failures are listed above");
    }
    if totals.passed == 0 {
        bail!("no test ran");
    }
    rules
}

fn print_environment(kvm_problem: Option<&str>) {
    heading("environment");
    progress(&format!("/dev/kvm: {}", kvm_problem.unwrap_or("usable")));
    for tool in [GCC, STRACE] {
        if tool.is_present() {
            progress(&format!("{}: present", tool.program));
        } else {
            progress(&tool.missing());
        }
    }
}

/// Sums of the result lines that the test harness prints.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    binaries: u64,
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Totals {
    fn add_line(&mut self, line: &str) {
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
        ] {
            totals.add_line(line);
        }
        assert_eq!(
            totals,
            Totals {
                binaries: 2,
                passed: 7,
                failed: 2,
                ignored: 1
            }
        );
    }
}

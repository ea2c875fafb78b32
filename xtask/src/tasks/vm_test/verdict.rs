//! What a boot amounts to: the problems, and for all boots the table of tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::boots::{Boot, Expected, Step};
use super::counts;
use super::programs::Kind;
use super::qemu::Ending;
use super::transcript::{StepResult, TestResult, Transcript};

/// What the tests must report of a machine with a hypervisor.
const MODES: [&str; 2] = ["engine=kvm cow=guest", "engine=kvm cow=host"];
/// And where the double of MSHV is preloaded.
const OVER_MSHV: &str = "engine=mshv-double cow=host";

/// Tests of the emulator itself run in every boot, and say nothing of hypervisors.
const EMULATOR: &str = "engine=emulator ";

/// Parts of the reasons for which tests may skip themselves.
const PERMITTED: [&str; 5] = [
    // There was none for their guest when it was to be built.
    "no compiler",
    "no C compiler",
    // The emulated machine itself is wrong, and the suite that every engine must pass knows it.
    "QEMU",
    // The machine has one.
    "one processor",
    // MSHV lacks something on every machine.
    "skipped=MSHV",
];

/// A boot that ended.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) boot: Boot,
    pub(super) steps: Vec<Step>,
    pub(super) transcript: Transcript,
    pub(super) ending: Ending,
}

impl Outcome {
    /// Everything that is wrong with the boot; nothing if it passed.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        match &self.ending {
            Ending::TimeLimit { unfinished_line } => problems.push(format!(
                "the time was over; the last line was {unfinished_line:?}"
            )),
            Ending::Ended { status } if !self.transcript.done => problems.push(format!(
                "the machine ended ({status}) before all was done; see the kernel's log"
            )),
            Ending::Ended { .. } => {}
        }
        let npt = self.transcript.npt.as_deref().unwrap_or("unknown");
        if npt != self.boot.expected_npt() {
            problems.push(format!(
                "nested paging of kvm_amd is {npt}, not {}; see the kernel's log",
                self.boot.expected_npt()
            ));
        }
        for (index, step) in self.steps.iter().enumerate() {
            match self.transcript.steps.get(&index) {
                None => problems.push(format!("{}: did not start", step.title)),
                Some(result) => problems.extend(step_problems(step, result)),
            }
        }
        if self
            .transcript
            .steps
            .values()
            .all(|step| step.tests.is_empty())
        {
            problems.push("no test ran".into());
        }
        problems.extend(self.engine_problems());
        problems.extend(self.count_problems());
        problems
    }

    /// A test that skips itself succeeds. Here it may do so only without a hypervisor, and must then.
    fn engine_problems(&self) -> Vec<String> {
        let ran = |text: &str| {
            self.transcript
                .engines
                .iter()
                .filter(|line| !line.starts_with(EMULATOR))
                .any(|line| line.contains(text) && line.contains(" tests="))
        };
        if !self.boot.has_hypervisor() {
            return ran("")
                .then(|| "a test ran on a hypervisor where there is none".into())
                .into_iter()
                .collect();
        }
        let mut problems = self.skips();
        if !self.is_filtered() {
            let missing = self.wanted_modes().iter().filter(|mode| !ran(mode));
            problems
                .extend(missing.map(|mode| format!("no test reported that it ran with {mode}")));
        }
        problems
    }

    /// Each reason for which tests skipped themselves, once: the machine inside can run all of them, if their guests could be built.
    fn skips(&self) -> Vec<String> {
        let lines = self.transcript.engines.iter();
        let skips: BTreeSet<&String> = lines
            .filter(|line| line.contains(" skipped="))
            .filter(|line| !PERMITTED.iter().any(|reason| line.contains(reason)))
            .collect();
        skips
            .into_iter()
            .map(|line| format!("tests skipped themselves: {line}"))
            .collect()
    }

    /// A benchmark that ran says what it counted.
    fn count_problems(&self) -> Vec<String> {
        let steps = self.steps.iter().enumerate();
        steps
            .filter(|(_, step)| step.program.kind == Kind::Benchmark)
            .filter(|(index, _)| {
                let result = self.transcript.steps.get(index);
                result.is_some_and(|result| counts::of(&result.output).next().is_none())
            })
            .map(|(_, step)| format!("{}: no exact counts", step.title))
            .collect()
    }

    /// Only the tests of the sandbox have modes of copy-on-write.
    fn wanted_modes(&self) -> &'static [&'static str] {
        let mut of_sandbox = self
            .steps
            .iter()
            .filter(|step| step.program.name.starts_with("sandbox/"));
        match of_sandbox.next() {
            None => &[],
            Some(step) if step.environment.is_empty() => &MODES,
            Some(_) => &[OVER_MSHV],
        }
    }

    /// What runs over MSHV is always a choice.
    fn is_filtered(&self) -> bool {
        let mut steps = self.steps.iter();
        steps.any(|step| {
            step.program.kind == Kind::Tests
                && step.environment.is_empty()
                && !step.arguments.is_empty()
        })
    }
}

fn step_problems(step: &Step, result: &StepResult) -> Vec<String> {
    let mut problems = Vec::new();
    let title = &step.title;
    for name in result.failed() {
        problems.push(format!("{title}: {name} failed"));
    }
    let unfinished = result.unfinished();
    if let Some(first) = unfinished.first() {
        problems.push(format!(
            "{title}: {} tests have no result, the first is {first}",
            unfinished.len()
        ));
    }
    if step.program.kind == Kind::Tests && step.arguments.is_empty() && result.tests.is_empty() {
        problems.push(format!("{title}: it lists no test"));
    }
    match (step.expected, result.status) {
        (_, None) => problems.push(format!("{title}: did not end")),
        (Expected::Success, Some(0)) => {}
        (Expected::Success, Some(status)) if problems.is_empty() => {
            problems.push(format!("{title}: exit status {status}"));
        }
        (Expected::Success, Some(_)) => {}
        (Expected::Failure(_), Some(0)) => {
            problems.push(format!("{title}: succeeded, which it must not"));
        }
        (Expected::Failure(text), Some(_)) => {
            if !result.output.iter().any(|line| line.contains(text)) {
                problems.push(format!("{title}: does not say {text:?}"));
            }
        }
    }
    problems
}

/// Every test with its result in each boot.
pub(super) fn table(outcomes: &[Outcome]) -> String {
    let mut rows: BTreeMap<(&str, &str), BTreeMap<Boot, &str>> = BTreeMap::new();
    for outcome in outcomes {
        for (index, step) in outcome.steps.iter().enumerate() {
            let Some(result) = outcome.transcript.steps.get(&index) else {
                continue;
            };
            if step.program.kind != Kind::Tests {
                let word = if step_problems(step, result).is_empty() {
                    "ok"
                } else {
                    "FAILED"
                };
                rows.entry((&step.title, ""))
                    .or_default()
                    .insert(outcome.boot, word);
            }
            for (name, test) in &result.tests {
                rows.entry((&step.title, name))
                    .or_default()
                    .insert(outcome.boot, word(outcome.boot, *test));
            }
        }
    }
    let mut table = String::new();
    for outcome in outcomes {
        let _ = write!(table, "{:<9}", outcome.boot.name());
    }
    let _ = writeln!(table, "test");
    for ((title, name), results) in rows {
        for outcome in outcomes {
            let _ = write!(table, "{:<9}", results.get(&outcome.boot).unwrap_or(&"-"));
        }
        let _ = writeln!(table, "{title} {name}");
    }
    table
}

/// What the benchmarks counted in each boot.
pub(super) fn counted(outcomes: &[Outcome]) -> String {
    let mut table = String::new();
    for outcome in outcomes {
        for result in outcome.transcript.steps.values() {
            for count in counts::of(&result.output) {
                let _ = writeln!(
                    table,
                    "{:<9}{:<11} {:<28} {:>8}",
                    outcome.boot.name(),
                    count.mode,
                    count.name,
                    count.value
                );
            }
        }
    }
    table
}

/// A test that passes without a hypervisor says no more than that it did not fall over.
fn word(boot: Boot, result: Option<TestResult>) -> &'static str {
    match result {
        Some(TestResult::Passed) if !boot.has_hypervisor() => "no VM",
        Some(TestResult::Passed) => "ok",
        Some(TestResult::Failed) => "FAILED",
        Some(TestResult::Ignored) => "ignored",
        None => "NO END",
    }
}

/// One line about a boot's tests.
pub(super) fn totals(outcome: &Outcome) -> String {
    let count = |wanted| -> usize {
        outcome
            .transcript
            .steps
            .values()
            .map(|step| step.count(wanted))
            .sum()
    };
    let unfinished: usize = outcome
        .transcript
        .steps
        .values()
        .map(|step| step.unfinished().len())
        .sum();
    format!(
        "{}: kernel {}, {} passed, {} failed, {} ignored, {unfinished} without result",
        outcome.boot.name(),
        outcome.transcript.kernel.as_deref().unwrap_or("unknown"),
        count(TestResult::Passed),
        count(TestResult::Failed),
        count(TestResult::Ignored),
    )
}

#[cfg(test)]
mod tests;

//! What the machine inside says on its second serial port, as results.
//!
//! Lines that begin with [`MARK`] come from the first process and frame the output of each step:
//!
//! ```text
//! @vellum kernel 6.1.0-56-cloud-amd64
//! @vellum npt Y
//! @vellum list 0          then the names of the tests, as the harness lists them
//! @vellum start 0         then the output of the step
//! @vellum end 0 101       its exit status
//! @vellum engine engine=kvm suite=backend tests=1
//! @vellum check engine=kvm check=halts::halts_in_flat_mode pass
//! @vellum done
//! ```

use std::collections::BTreeMap;

/// Begins a line of the first process.
pub(super) const MARK: &str = "@vellum";

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TestResult {
    Passed,
    Failed,
    Ignored,
}

/// What is known of one step.
#[derive(Debug, Default)]
pub(super) struct StepResult {
    /// Every test that was to run, with its result if it had one.
    pub(super) tests: BTreeMap<String, Option<TestResult>>,
    pub(super) output: Vec<String>,
    pub(super) status: Option<i32>,
}

/// Everything said so far.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    pub(super) kernel: Option<String>,
    pub(super) npt: Option<String>,
    pub(super) steps: BTreeMap<usize, StepResult>,
    pub(super) engines: Vec<String>,
    /// What the checks of every engine came to, a line each.
    pub(super) checks: Vec<String>,
    pub(super) done: bool,
    current: Current,
}

#[derive(Clone, Copy, Debug, Default)]
enum Current {
    #[default]
    Nothing,
    List(usize),
    Output(usize),
}

/// Whether a line is worth showing to a person who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Shown,
    Hidden,
}

impl Transcript {
    /// Reads the next line.
    pub(super) fn add_line(&mut self, line: &str) -> Line {
        if let Some(rest) = line.strip_prefix(MARK) {
            self.mark(rest.trim());
            return Line::Hidden;
        }
        match self.current {
            Current::List(step) => {
                if let Some(name) = line.strip_suffix(": test") {
                    self.step(step).tests.insert(name.to_owned(), None);
                }
                Line::Hidden
            }
            Current::Output(step) => {
                let result = self.step(step);
                result.add_test_line(line);
                result.output.push(line.to_owned());
                shown_unless_empty(line)
            }
            Current::Nothing => shown_unless_empty(line),
        }
    }

    fn step(&mut self, index: usize) -> &mut StepResult {
        self.steps.entry(index).or_default()
    }

    fn mark(&mut self, rest: &str) {
        let (word, value) = rest.split_once(' ').unwrap_or((rest, ""));
        let mut numbers = value.split_whitespace().map(str::parse::<i32>);
        let index = || -> Option<usize> { value.split_whitespace().next()?.parse().ok() };
        match word {
            "kernel" => self.kernel = Some(value.to_owned()),
            "npt" => self.npt = Some(value.to_owned()),
            "list" => self.current = index().map_or(Current::Nothing, Current::List),
            "start" => {
                self.current = index().map_or(Current::Nothing, Current::Output);
                if let Some(index) = index() {
                    self.step(index);
                }
            }
            "end" => {
                self.current = Current::Nothing;
                if let (Some(index), Some(Ok(status))) = (index(), numbers.nth(1)) {
                    self.step(index).status = Some(status);
                }
            }
            "engine" => self.engines.push(value.to_owned()),
            "check" => self.checks.push(value.to_owned()),
            "done" => self.done = true,
            _ => {}
        }
    }
}

impl StepResult {
    /// Finds a result in a line of the harness. The line may begin with what a child process of another test left there,
    /// so the last name in it counts, and only listed names do.
    fn add_test_line(&mut self, line: &str) {
        let Some((before, ending)) = line.rsplit_once(" ... ") else {
            return;
        };
        let result = match ending {
            "ok" => TestResult::Passed,
            "FAILED" => TestResult::Failed,
            "ignored" => TestResult::Ignored,
            _ if ending.starts_with("ignored,") => TestResult::Ignored,
            _ => return,
        };
        let Some((_, name)) = before.rsplit_once("test ") else {
            return;
        };
        // The harness adds this to tests that must panic.
        let name = name.trim_end_matches(" - should panic");
        if let Some(slot) = self.tests.get_mut(name) {
            *slot = Some(result);
        }
    }

    /// How many tests ended so.
    pub(super) fn count(&self, wanted: TestResult) -> usize {
        self.tests
            .values()
            .filter(|result| **result == Some(wanted))
            .count()
    }

    /// The tests that failed.
    pub(super) fn failed(&self) -> Vec<&str> {
        self.with_result(Some(TestResult::Failed))
    }

    /// The tests that began or were to begin, and did not end.
    pub(super) fn unfinished(&self) -> Vec<&str> {
        self.with_result(None)
    }

    fn with_result(&self, wanted: Option<TestResult>) -> Vec<&str> {
        self.tests
            .iter()
            .filter(|(_, result)| **result == wanted)
            .map(|(name, _)| name.as_str())
            .collect()
    }
}

fn shown_unless_empty(line: &str) -> Line {
    if line.trim().is_empty() {
        Line::Hidden
    } else {
        Line::Shown
    }
}

#[cfg(test)]
mod tests;

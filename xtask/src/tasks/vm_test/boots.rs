//! The boots: one machine each, and what must happen in it.

use clap::ValueEnum;

use super::programs::{Kind, Program};

/// One way to boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Boot {
    /// SVM with nested paging: the tests, the demo and a short benchmark.
    Nested,
    /// SVM with shadow paging (`npt=0`): the tests, and what the benchmark counts.
    Shadow,
    /// A processor without SVM: every test must say that it cannot run, and the demo what to do.
    NoSvm,
}

/// A program and how it must end.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// What the results call it.
    pub(super) title: String,
    pub(super) program: Program,
    pub(super) arguments: Vec<String>,
    pub(super) expected: Expected,
}

/// How a step must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Success,
    /// A failure whose output contains the text.
    Failure(&'static str),
}

impl Step {
    /// The benchmark with these arguments, which must succeed.
    pub(super) fn benchmark(program: &Program, arguments: &[&str]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(|&word| word.to_owned()).collect();
        Self {
            title: [&[program.name.clone()][..], &arguments].concat().join(" "),
            program: program.clone(),
            arguments,
            expected: Expected::Success,
        }
    }
}

/// What a program says without a hypervisor: the cause, and one of the remedies.
const NO_HYPERVISOR: &str = "/dev/kvm does not exist; load the kvm_intel or kvm_amd module";

impl Boot {
    pub(super) const ALL: [Self; 3] = [Self::Nested, Self::Shadow, Self::NoSvm];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nested => "nested",
            Self::Shadow => "shadow",
            Self::NoSvm => "no-svm",
        }
    }

    /// The processor model of QEMU. Without 5-level paging, since with it programs of the machine inside have died of wrong results of
    /// `readlink` (QEMU 7.2, `max,-svm`).
    pub(super) fn cpu(self) -> &'static str {
        match self {
            Self::Nested | Self::Shadow => "max,-la57",
            Self::NoSvm => "max,-la57,-svm",
        }
    }

    /// Parameters of `kvm_amd`.
    pub(super) fn module_parameters(self) -> &'static str {
        match self {
            Self::Shadow => "npt=0",
            Self::Nested | Self::NoSvm => "npt=1",
        }
    }

    /// What the loaded `kvm_amd` says about nested paging.
    pub(super) fn expected_npt(self) -> &'static str {
        match self {
            Self::Nested => "Y",
            Self::Shadow => "N",
            Self::NoSvm => "absent",
        }
    }

    pub(super) fn has_hypervisor(self) -> bool {
        self != Self::NoSvm
    }

    /// What runs, in order. With a filter only tests do.
    pub(super) fn steps(self, programs: &[Program], filter: Option<&str>) -> Vec<Step> {
        let mut steps = Vec::new();
        for program in programs {
            let runs = match program.kind {
                Kind::Tests => vec![filter.map(str::to_owned).into_iter().collect()],
                _ if filter.is_some() => Vec::new(),
                Kind::Demo if self == Self::NoSvm => vec![words("")],
                Kind::Demo if self == Self::Nested => {
                    vec![words("--cow guest"), words("--cow host")]
                }
                Kind::Benchmark if self == Self::Nested => {
                    vec![words("--quick"), words("--counts --cow host")]
                }
                Kind::Benchmark if self == Self::Shadow => {
                    vec![words("--counts --cow guest"), words("--counts --cow host")]
                }
                Kind::Demo | Kind::Benchmark => Vec::new(),
            };
            steps.extend(
                runs.into_iter()
                    .map(|arguments| self.step(program, arguments)),
            );
        }
        steps
    }

    fn step(self, program: &Program, arguments: Vec<String>) -> Step {
        let expected = if self == Self::NoSvm && program.kind == Kind::Demo {
            Expected::Failure(NO_HYPERVISOR)
        } else {
            Expected::Success
        };
        let title = match program.kind {
            Kind::Tests => program.name.clone(),
            _ => [&[program.name.clone()][..], &arguments].concat().join(" "),
        };
        Step {
            title,
            program: program.clone(),
            arguments,
            expected,
        }
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs() -> Vec<Program> {
        [Kind::Tests, Kind::Demo, Kind::Benchmark]
            .map(|kind| Program {
                name: format!("sandbox/{kind:?}"),
                kind,
                executable: "p".into(),
            })
            .to_vec()
    }

    fn titles(boot: Boot, filter: Option<&str>) -> Vec<String> {
        boot.steps(&programs(), filter)
            .into_iter()
            .map(|step| step.title)
            .collect()
    }

    #[test]
    fn every_boot_runs_the_tests_and_only_one_runs_everything() {
        assert_eq!(
            titles(Boot::Nested, None),
            [
                "sandbox/Tests",
                "sandbox/Demo --cow guest",
                "sandbox/Demo --cow host",
                "sandbox/Benchmark --quick",
                "sandbox/Benchmark --counts --cow host"
            ]
        );
        assert_eq!(
            titles(Boot::Shadow, None),
            [
                "sandbox/Tests",
                "sandbox/Benchmark --counts --cow guest",
                "sandbox/Benchmark --counts --cow host"
            ]
        );
        assert_eq!(titles(Boot::NoSvm, None), ["sandbox/Tests", "sandbox/Demo"]);
    }

    #[test]
    fn a_filter_selects_tests_only() {
        for boot in Boot::ALL {
            assert_eq!(titles(boot, Some("loop")), ["sandbox/Tests"]);
        }
        let steps = Boot::Nested.steps(&programs(), Some("loop"));
        assert_eq!(steps[0].arguments, ["loop"]);
    }

    #[test]
    fn without_a_hypervisor_the_demo_must_fail_with_the_remedy() {
        let steps = Boot::NoSvm.steps(&programs(), None);
        assert_eq!(steps[0].expected, Expected::Success);
        assert_eq!(steps[1].expected, Expected::Failure(NO_HYPERVISOR));
    }
}

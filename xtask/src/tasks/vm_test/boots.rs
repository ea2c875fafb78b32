//! The boots: one machine each, and what must happen in it.

use clap::ValueEnum;

use super::programs::{Kind, Program};
use crate::tasks::mshv::{self, DOUBLE_TESTS, Tier};

/// One way to boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Boot {
    /// SVM with nested paging: the tests, the demo and a short benchmark.
    Nested,
    /// SVM with shadow paging (`npt=0`): the tests, and what the benchmark counts.
    Shadow,
    /// SVM with nested paging: the tests of the double of MSHV, and those of the sandbox over it.
    Mshv,
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
    /// Variables that are set for it alone.
    pub(super) environment: Vec<(&'static str, String)>,
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
            environment: Vec::new(),
            expected: Expected::Success,
        }
    }
}

/// What a program says without a hypervisor: the cause, and one of the remedies.
const NO_HYPERVISOR: &str = "/dev/kvm does not exist; load the kvm_intel or kvm_amd module";

/// How the names of the double's programs begin.
const DOUBLE_PREFIX: &str = "mshv-double/";

impl Boot {
    pub(super) const ALL: [Self; 4] = [Self::Nested, Self::Shadow, Self::Mshv, Self::NoSvm];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nested => "nested",
            Self::Shadow => "shadow",
            Self::Mshv => "mshv",
            Self::NoSvm => "no-svm",
        }
    }

    /// The processor model of QEMU. Without 5-level paging, since with it programs of the machine inside have died of wrong results of
    /// `readlink` (QEMU 7.2, `max,-svm`).
    pub(super) fn cpu(self) -> &'static str {
        match self {
            Self::Nested | Self::Shadow | Self::Mshv => "max,-la57",
            Self::NoSvm => "max,-la57,-svm",
        }
    }

    /// Parameters of `kvm_amd`.
    pub(super) fn module_parameters(self) -> &'static str {
        match self {
            Self::Shadow => "npt=0",
            Self::Nested | Self::Mshv | Self::NoSvm => "npt=1",
        }
    }

    /// What the loaded `kvm_amd` says about nested paging.
    pub(super) fn expected_npt(self) -> &'static str {
        match self {
            Self::Nested | Self::Mshv => "Y",
            Self::Shadow => "N",
            Self::NoSvm => "absent",
        }
    }

    pub(super) fn has_hypervisor(self) -> bool {
        self != Self::NoSvm
    }

    /// Why no test of the sandbox runs on KVM, where none is meant to.
    pub(super) fn why_not_on_kvm(self) -> Option<&'static str> {
        match self {
            Self::Nested | Self::Shadow => None,
            Self::Mshv => Some("this machine is for mshv"),
            Self::NoSvm => Some("no hypervisor, as intended"),
        }
    }

    /// What runs, in order. With a filter only tests do.
    pub(super) fn steps(self, programs: &[Program], filter: Option<&str>) -> Vec<Step> {
        let mut steps = Vec::new();
        for program in programs.iter().filter(|program| self.runs(program)) {
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
                Kind::Demo | Kind::Benchmark | Kind::Double => Vec::new(),
            };
            steps.extend(
                runs.into_iter()
                    .map(|arguments| self.step(program, arguments)),
            );
        }
        if self == Self::Mshv {
            steps.extend(over_mshv(programs, filter));
        }
        steps
    }

    /// The tests of the double have a machine of their own; without a hypervisor all are together.
    fn runs(self, program: &Program) -> bool {
        let is_of_double = program.name.starts_with(DOUBLE_PREFIX);
        match self {
            Self::Nested | Self::Shadow => !is_of_double,
            Self::Mshv => is_of_double,
            Self::NoSvm => true,
        }
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
            environment: Vec::new(),
            expected,
        }
    }
}

/// The sandbox's tests over MSHV, with the double preloaded: those that are chosen for it, or those that `filter` selects.
fn over_mshv(programs: &[Program], filter: Option<&str>) -> Vec<Step> {
    let Some(double) = programs.iter().find(|it| it.kind == Kind::Double) else {
        return Vec::new();
    };
    let library = [("LD_PRELOAD", double.inner_path())];
    let variables = Tier::Double.environment();
    let environment: Vec<_> = variables
        .into_iter()
        .map(|(name, value)| (name, value.to_owned()))
        .chain(library)
        .collect();
    DOUBLE_TESTS
        .iter()
        .filter_map(|(suite, chosen)| {
            let name = format!("sandbox/{suite}");
            let program = programs.iter().find(|program| program.name == name)?;
            let filter = filter.as_ref().map(std::slice::from_ref);
            let arguments = mshv::arguments(filter.unwrap_or(chosen));
            Some(Step {
                title: format!("{name} over mshv"),
                program: program.clone(),
                arguments: arguments.into_iter().map(str::to_owned).collect(),
                environment: environment.clone(),
                expected: Expected::Success,
            })
        })
        .collect()
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
    fn tests_run_over_mshv_with_the_double_preloaded() {
        let program = |name: &str, kind| Program {
            name: name.into(),
            kind,
            executable: "p".into(),
        };
        let tests = program("sandbox/vm", Kind::Tests);
        let double = program("mshv-double/library", Kind::Double);
        let rules = program("mshv-double/rules", Kind::Tests);
        let programs = [tests.clone(), rules, double];
        let titles = |boot: Boot| -> Vec<String> {
            let steps = boot.steps(&programs, None);
            steps.into_iter().map(|step| step.title).collect()
        };
        assert_eq!(titles(Boot::Nested), ["sandbox/vm"]);
        assert_eq!(
            titles(Boot::Mshv),
            ["mshv-double/rules", "sandbox/vm over mshv"]
        );
        assert!(Boot::Mshv.steps(&[tests], None).is_empty(), "no double");
        let step = &Boot::Mshv.steps(&programs, Some("loop"))[1];
        assert_eq!(step.arguments[..2], ["loop", "--skip"]);
        let preload = ("LD_PRELOAD", "/tests/mshv-double/library".to_owned());
        assert!(step.environment.contains(&preload));
    }

    #[test]
    fn a_filter_selects_tests_only() {
        for boot in [Boot::Nested, Boot::Shadow, Boot::NoSvm] {
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

//! Every check and task of the Vellum workspace: `cargo xtask <task>`.
//!
//! Continuous integration calls nothing but these tasks, so what passes here passes there.

mod engine_report;
mod hiding;
mod host;
mod process;
mod rules;
mod tasks;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Checks and tasks of the Vellum workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    /// Run the task as on a machine without a hypervisor, in a mount namespace without its device.
    #[arg(long, global = true)]
    hide_kvm: bool,
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build what is needed and run the demonstration on the real guest.
    Demo {
        /// The engine to run on, such as `emulator`, instead of the first that works.
        #[arg(long)]
        engine: Option<String>,
        /// Passed through to the example, for instance `--cow guest`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run every test and print which engines and copy-on-write modes ran.
    Test {
        /// The engine that tests of guests run on, such as `emulator`, instead of the first that works.
        #[arg(long)]
        engine: Option<String>,
    },
    /// Run the suite that every engine must pass on every engine that can be had, and print the table.
    Conformance(tasks::conformance::Options),
    /// Run the benchmark table in release mode.
    Bench {
        /// Also write the figures as a flat JSON object of numbers.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Passed through to the benchmark.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Build the guest programs and copy their ELF files to target/guests.
    BuildGuests,
    /// Format, clippy, documentation and house rules, with warnings as errors.
    Lint,
    /// Run the VM tests inside an emulated machine with a hardware-style KVM.
    VmTest(tasks::vm_test::Options),
    /// Run the sandbox's tests over the MSHV backend, on the test double or on this machine's own hypervisor.
    MshvTest(tasks::mshv::Options),
    /// Run the own tests of mshv-ioctls against the test double of /dev/mshv.
    MshvDoubleCheck,
    /// Run random instructions on the processor and in the emulator, and compare.
    DiffEmulator(tasks::diff_emulator::Options),
    /// Everything that continuous integration runs: lint, test, demo, short bench, vm-test.
    Ci,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nxtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let workspace = Workspace::find()?;
    if cli.hide_kvm && hiding::is_needed() {
        return hiding::run_again(&workspace, std::env::args_os().skip(1));
    }
    match &cli.task {
        Task::Demo { engine, args } => tasks::demo::run(&workspace, engine.as_deref(), args),
        Task::Test { engine } => tasks::test::run(&workspace, engine.as_deref()),
        Task::Conformance(options) => tasks::conformance::run(&workspace, options),
        Task::Bench { json, args } => tasks::bench::run(&workspace, json.as_deref(), args),
        Task::BuildGuests => tasks::build_guests::run(&workspace),
        Task::Lint => tasks::lint::run(&workspace),
        Task::VmTest(options) => tasks::vm_test::run(&workspace, options),
        Task::MshvTest(options) => tasks::mshv::run(&workspace, options),
        Task::MshvDoubleCheck => tasks::mshv::check_double(&workspace),
        Task::DiffEmulator(options) => tasks::diff_emulator::run(&workspace, options),
        Task::Ci => tasks::ci::run(&workspace),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Task {
        Cli::try_parse_from(line.split(' '))
            .expect("the line parses")
            .task
    }

    #[test]
    fn the_demo_takes_its_engine_and_passes_the_rest_through() {
        let Task::Demo { engine, args } = parse("xtask demo --engine emulator --cow guest") else {
            panic!("not the demo")
        };
        assert_eq!(engine.as_deref(), Some("emulator"));
        assert_eq!(args, ["--cow", "guest"]);
    }

    #[test]
    fn a_hypervisor_can_be_hidden_from_every_task() {
        for line in ["xtask --hide-kvm test", "xtask demo --hide-kvm --cow guest"] {
            let cli = Cli::try_parse_from(line.split(' ')).expect("the line parses");
            assert!(cli.hide_kvm, "{line}");
        }
    }

    #[test]
    fn options_of_the_demo_go_through() {
        let Task::Demo { args, .. } = parse("xtask demo --cow guest") else {
            panic!("not the demo")
        };
        assert_eq!(args, ["--cow", "guest"]);
    }

    #[test]
    fn the_benchmark_takes_its_file_and_passes_the_rest_through() {
        let Task::Bench { json, args } = parse("xtask bench --json a.json --quick") else {
            panic!("not the benchmark")
        };
        assert_eq!(json, Some(PathBuf::from("a.json")));
        assert_eq!(args, ["--quick"]);
    }
}

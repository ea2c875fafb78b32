//! `cargo xtask vm-test`: the VM tests inside an emulated machine with a hypervisor of hardware's kind.
//!
//! QEMU emulates an AMD processor with SVM; a distribution's kernel runs on it with its `kvm_amd`, and the tests of this workspace
//! run there as on any machine with `/dev/kvm`, whatever this machine has.

mod baseline;
mod boots;
mod counts;
mod cpio;
mod exact;
mod initramfs;
mod loaded;
mod modules;
mod packages;
mod programs;
mod qemu;
mod script;
mod transcript;
mod verdict;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

pub(crate) use self::boots::Boot;
use self::initramfs::Contents;
use self::packages::Platform;
use self::qemu::{Clock, Machine};
use self::transcript::{Line, Transcript};
use self::verdict::Outcome;
use crate::engine_report::EngineReport;
use crate::process::{heading, progress};
use crate::workspace::Workspace;

/// Time for a boot with all its steps, about three times what the longest takes on two processors.
const TIME_LIMIT_SECONDS: u64 = 1200;

/// The test program that holds an engine to what every engine must do.
const SUITE: &str = "conformance";

/// What to run inside.
#[derive(Args, Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "flags of a command line are independent"
)]
pub(crate) struct Options {
    /// Only this way to boot; may be given more than once.
    #[arg(long, value_enum, value_name = "NAME")]
    only: Vec<Boot>,
    /// Only tests whose name contains the text, and neither demo nor benchmark.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Only the tests of this package, and neither demo nor benchmark; may be given more than once.
    #[arg(long, value_name = "NAME", conflicts_with = "bench")]
    package: Vec<String>,
    /// Only the test program of this name, and neither demo nor benchmark.
    #[arg(long, value_name = "NAME", conflicts_with = "bench")]
    suite: Option<String>,
    /// Not the tests, but the benchmark, on a machine that counts instructions: prints how many each operation takes.
    #[arg(long, conflicts_with_all = ["only", "filter"])]
    bench: bool,
    /// Fail where a count is more than 2 % above the recorded one.
    #[arg(long, requires = "bench")]
    check: bool,
    /// Record the counts, for later checks.
    #[arg(long, requires = "bench", conflicts_with = "check")]
    bless: bool,
    /// Keep the file systems that the machines booted from.
    #[arg(long)]
    keep: bool,
    /// Seconds after which a machine is ended.
    #[arg(long, value_name = "SECONDS", default_value_t = TIME_LIMIT_SECONDS)]
    time_limit: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            only: Vec::new(),
            filter: None,
            package: Vec::new(),
            suite: None,
            bench: false,
            check: false,
            bless: false,
            keep: false,
            time_limit: TIME_LIMIT_SECONDS,
        }
    }
}

/// Runs everything; an error where something fails or cannot be had.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let platform = obtain(workspace)?;
    if options.bench {
        return exact::run(workspace, &platform, options);
    }
    run_on(workspace, &platform, options)
}

/// Runs everything; where QEMU or the packages cannot be had, says so and goes on.
pub(crate) fn run_if_possible(workspace: &Workspace) -> Result<()> {
    match obtain(workspace) {
        Ok(platform) => run_on(workspace, &platform, &Options::default()),
        Err(error) => {
            progress(&format!("SKIPPED: {error:#}"));
            Ok(())
        }
    }
}

/// Compares the exact counts with the recorded ones; where QEMU or the packages cannot be had, says so and goes on.
pub(crate) fn check_counts_if_possible(workspace: &Workspace) -> Result<()> {
    let options = Options {
        bench: true,
        check: true,
        ..Options::default()
    };
    match obtain(workspace) {
        Ok(platform) => exact::run(workspace, &platform, &options),
        Err(error) => {
            progress(&format!("SKIPPED: {error:#}"));
            Ok(())
        }
    }
}

fn obtain(workspace: &Workspace) -> Result<Platform> {
    packages::obtain(&workspace.target_dir().join("vm-test")).context("vm-test cannot run here")
}

/// Runs the suite that every engine must pass, as `package` has it, in one boot, and returns a line for each of its checks.
pub(crate) fn checks(workspace: &Workspace, boot: Boot, package: &str) -> Result<Vec<String>> {
    let platform = obtain(workspace)?;
    let options = Options {
        only: vec![boot],
        package: vec![package.to_owned()],
        suite: Some(SUITE.to_owned()),
        ..Options::default()
    };
    let outcomes = boot_all(workspace, &platform, &options)?;
    Ok(outcomes
        .into_iter()
        .flat_map(|outcome| outcome.transcript.checks)
        .collect())
}

fn run_on(workspace: &Workspace, platform: &Platform, options: &Options) -> Result<()> {
    let outcomes = boot_all(workspace, platform, options)?;
    summary(&outcomes, &logs(workspace))
}

fn logs(workspace: &Workspace) -> PathBuf {
    workspace.target_dir().join("vm-test/logs")
}

fn boot_all(workspace: &Workspace, platform: &Platform, options: &Options) -> Result<Vec<Outcome>> {
    let programs = programs::build(workspace, &options.package, options.suite.as_deref())?;
    let contents = Contents::collect(platform, &programs)?;
    let directory = workspace.target_dir().join("vm-test");
    let logs = logs(workspace);
    fs::create_dir_all(&logs).with_context(|| format!("could not create {}", logs.display()))?;
    let mut outcomes = Vec::new();
    for boot in Boot::ALL {
        if !options.only.is_empty() && !options.only.contains(&boot) {
            continue;
        }
        let steps = boot.steps(&programs, options.filter.as_deref());
        if steps.is_empty() {
            continue;
        }
        heading(&format!("vm-test: {}", boot.name()));
        let initramfs = directory.join(format!("{}.cpio", boot.name()));
        fs::write(&initramfs, contents.initramfs(boot, &steps))
            .with_context(|| format!("could not write {}", initramfs.display()))?;
        let machine = Machine {
            qemu: &platform.qemu,
            cpu: boot.cpu(),
            clock: Clock::Host,
            kernel: &platform.kernel,
            initramfs: initramfs.clone(),
            kernel_log: logs.join(format!("{}-kernel.log", boot.name())),
            qemu_log: logs.join(format!("{}-qemu.log", boot.name())),
            time_limit: Duration::from_secs(options.time_limit),
        };
        let outcome = boot_once(&machine, boot, boot.name(), steps, &logs)?;
        if !options.keep {
            fs::remove_file(&initramfs)?;
        }
        outcomes.push(outcome);
    }
    ensure!(!outcomes.is_empty(), "there is nothing to run");
    Ok(outcomes)
}

/// Boots a machine, shows what it says, and keeps all of it in a log.
fn boot_once(
    machine: &Machine<'_>,
    boot: Boot,
    name: &str,
    steps: Vec<boots::Step>,
    logs: &Path,
) -> Result<Outcome> {
    let path = logs.join(format!("{name}-output.log"));
    let mut log =
        fs::File::create(&path).with_context(|| format!("could not create {}", path.display()))?;
    let mut transcript = Transcript::default();
    let started = Instant::now();
    progress(&format!("booting with -cpu {}", machine.cpu));
    let ending = machine.run(|line| {
        // A full disk must not end the run; the results are on the screen as well.
        let _ = writeln!(log, "{line}");
        if transcript.add_line(line) == Line::Shown {
            println!("{:>6.1} {line}", started.elapsed().as_secs_f64());
        }
    })?;
    progress(&format!(
        "ended after {:.1} s",
        started.elapsed().as_secs_f64()
    ));
    Ok(Outcome {
        boot,
        steps,
        transcript,
        ending,
    })
}

fn summary(outcomes: &[Outcome], logs: &Path) -> Result<()> {
    heading("vm-test: tests that ran inside");
    print!("{}", verdict::table(outcomes));
    let counted = verdict::counted(outcomes);
    if !counted.is_empty() {
        heading("vm-test: exact counts");
        print!("{counted}");
    }
    let mut failed = Vec::new();
    for outcome in outcomes {
        heading(&format!("vm-test: summary of {}", outcome.boot.name()));
        let engines = EngineReport::new("", &outcome.transcript.engines);
        print!("{}", engines.table(None, outcome.boot.why_not_on_kvm()));
        println!("{}", verdict::totals(outcome));
        let problems = outcome.problems();
        for problem in &problems {
            println!("FAILED {problem}");
        }
        if !problems.is_empty() {
            failed.push(outcome.boot.name());
        }
    }
    progress(&format!("logs are in {}", logs.display()));
    if !failed.is_empty() {
        bail!("vm-test failed: {}", failed.join(", "));
    }
    Ok(())
}

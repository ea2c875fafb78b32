//! `cargo xtask vm-test --bench`: how many instructions each operation takes, exactly.
//!
//! The same benchmark program as `cargo xtask bench`, optimised, on a machine whose time is the number of instructions that it has
//! executed. What it prints repeats to the digit, whatever else this machine is doing.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::baseline::{self, Baseline, Counts};
use super::boots::{Boot, Step};
use super::initramfs::Contents;
use super::packages::Platform;
use super::programs;
use super::qemu::{Clock, Ending, Machine};
use super::verdict::Outcome;
use super::{Options, boot_once};
use crate::process::{heading, progress};
use crate::workspace::Workspace;

/// Without the instructions that copy memory in one go where a processor is said to have them: each byte would count as an instruction.
const CPU: &str = "max,-la57,-erms,-fsrm";
/// What the benchmark counts: the engine that hardware gets, copies by the guest.
const ARGUMENTS: [&str; 3] = ["--exact", "--cow", "guest"];
/// Begins the lines of the benchmark that are for programs.
const LINE: &str = "exact ";

/// Boots, shows the table, and records or checks the counts as the options say.
pub(super) fn run(workspace: &Workspace, platform: &Platform, options: &Options) -> Result<()> {
    heading("vm-test: exact counts");
    let program = programs::build_benchmark(workspace)?;
    let programs = [program];
    let contents = Contents::collect(platform, &programs)?;
    let step = Step::benchmark(&programs[0], &ARGUMENTS);
    let directory = workspace.target_dir().join("vm-test");
    let logs = directory.join("logs");
    fs::create_dir_all(&logs).with_context(|| format!("could not create {}", logs.display()))?;
    let steps = vec![step];
    let initramfs = directory.join("exact.cpio");
    fs::write(&initramfs, contents.initramfs(Boot::Nested, &steps))
        .with_context(|| format!("could not write {}", initramfs.display()))?;
    let machine = Machine {
        qemu: &platform.qemu,
        cpu: CPU,
        clock: Clock::Instructions,
        kernel: &platform.kernel,
        initramfs: initramfs.clone(),
        kernel_log: logs.join("exact-kernel.log"),
        qemu_log: logs.join("exact-qemu.log"),
        time_limit: Duration::from_secs(options.time_limit),
    };
    let outcome = boot_once(&machine, Boot::Nested, "exact", steps, &logs)?;
    if !options.keep {
        fs::remove_file(&initramfs)?;
    }
    let counts = counts(&outcome)?;
    fs::write(directory.join("exact.json"), counts.json()?)?;
    let platform = baseline::Platform {
        kernel: outcome.transcript.kernel.unwrap_or_default(),
        qemu: platform.qemu.version()?,
    };
    judge(
        &workspace.root().join(baseline::FILE),
        &Baseline { platform, counts },
        options,
    )
}

/// What the benchmark counted; an error if it did not end well.
fn counts(outcome: &Outcome) -> Result<Counts> {
    if let Ending::TimeLimit { unfinished_line } = &outcome.ending {
        bail!("the time was over; the last line was {unfinished_line:?}");
    }
    let result = outcome
        .transcript
        .steps
        .get(&0)
        .context("the benchmark did not start; see the kernel's log")?;
    match result.status {
        Some(0) => {}
        Some(status) => bail!("the benchmark ended with status {status}"),
        None => bail!("the benchmark did not end; see the kernel's log"),
    }
    let lines = result.output.iter();
    Counts::parse(lines.filter_map(|line| line.strip_prefix(LINE)))
}

/// Records the counts, or compares them with those that are recorded.
fn judge(file: &Path, current: &Baseline, options: &Options) -> Result<()> {
    if options.bless {
        fs::write(file, current.json()?)
            .with_context(|| format!("could not write {}", file.display()))?;
        progress(&format!(
            "recorded {} operations in {}",
            current.counts.len(),
            baseline::FILE
        ));
        return Ok(());
    }
    let text = fs::read_to_string(file)
        .with_context(|| format!("could not read {}", file.display()))
        .context("nothing is recorded (to record: cargo xtask vm-test --bench --bless)")?;
    let recorded = Baseline::parse(&text).with_context(|| format!("in {}", baseline::FILE))?;
    if recorded.platform != current.platform {
        progress(&format!(
            "the recorded counts are of {}, these of {}: a difference may be theirs",
            recorded.platform, current.platform
        ));
    }
    let comparison = recorded.counts.compare(&current.counts);
    for line in &comparison.better {
        progress(line);
    }
    for line in &comparison.worse {
        progress(&format!("WORSE {line}"));
    }
    if !comparison.better.is_empty() {
        progress("to record what is better: cargo xtask vm-test --bench --bless");
    }
    if options.check && !comparison.worse.is_empty() {
        bail!("{} counts are worse than recorded", comparison.worse.len());
    }
    progress(&format!(
        "{} counts are within the tolerance",
        comparison.same
    ));
    Ok(())
}

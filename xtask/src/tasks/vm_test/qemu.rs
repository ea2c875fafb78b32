//! Running QEMU with a time limit, and its second serial port line by line.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::packages::QemuProgram;

/// Memory of the machine inside: the benchmark's largest heap is a gibibyte, and the first file system is in memory, too.
const MEMORY_MIB: u32 = 3072;

/// What drives the time of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clock {
    /// The time of the machine that emulates.
    Host,
    /// The instructions that it executes, of which each takes a nanosecond. So a program that reads its time-stamp counter reads how
    /// many there were, and reads the same in every run. Nothing else may then come from outside: not the date, not the seed of random
    /// numbers.
    Instructions,
}

/// A machine to boot.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    pub(super) qemu: &'a QemuProgram,
    pub(super) cpu: &'a str,
    pub(super) clock: Clock,
    pub(super) kernel: &'a Path,
    pub(super) initramfs: PathBuf,
    /// Takes what the kernel prints.
    pub(super) kernel_log: PathBuf,
    /// Takes QEMU's own messages.
    pub(super) qemu_log: PathBuf,
    pub(super) time_limit: Duration,
}

/// How a machine ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// QEMU ended by itself, after the machine was switched off or because it could not start.
    Ended { status: String },
    /// The time was over. What the last line had so far.
    TimeLimit { unfinished_line: String },
}

/// A line, or what there is of one when the output ends.
enum Output {
    Line(String),
    Partial(Vec<u8>),
}

impl Clock {
    /// Arguments of QEMU.
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Host => &["-accel", "tcg,thread=multi"],
            Self::Instructions => &[
                "-accel",
                "tcg,thread=single",
                "-icount",
                "shift=0,sleep=off",
                "-rtc",
                "base=2026-01-01T00:00:00,clock=vm",
                "-seed",
                "1",
            ],
        }
    }

    /// Parameters of the kernel inside: the time-stamp counter is trusted without being compared with other clocks, and programs lie at
    /// the same addresses in every run.
    fn kernel_parameters(self) -> &'static str {
        match self {
            Self::Host => "",
            Self::Instructions => "tsc=reliable clocksource=tsc nokaslr norandmaps",
        }
    }
}

impl Machine<'_> {
    /// Boots, and passes each line of the second serial port on.
    pub(super) fn run(&self, mut on_line: impl FnMut(&str)) -> Result<Ending> {
        let mut child = self.start()?;
        let stdout = child.stdout.take().context("QEMU has no standard output")?;
        let lines = lines_of(stdout);
        let deadline = Instant::now() + self.time_limit;
        let in_time = pass_on(&lines, deadline, &mut on_line);
        if in_time {
            let status = child.wait().context("could not wait for QEMU")?;
            return Ok(Ending::Ended {
                status: status.to_string(),
            });
        }
        child.kill().context("could not end QEMU")?;
        child.wait().context("could not wait for QEMU")?;
        let mut unfinished_line = String::new();
        for output in &lines {
            match output {
                Output::Line(line) => on_line(&line),
                Output::Partial(bytes) => {
                    unfinished_line = String::from_utf8_lossy(&bytes).into_owned();
                }
            }
        }
        Ok(Ending::TimeLimit { unfinished_line })
    }

    fn start(&self) -> Result<Child> {
        let mut command = self.qemu.command();
        command
            // One processor: two have hung in RCU stalls of the kernel inside.
            .args(["-smp", "1", "-cpu", self.cpu])
            .args(self.clock.arguments())
            .args(["-m", &MEMORY_MIB.to_string()])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            // The kernel restarts after a panic, at which QEMU ends.
            .args(["-no-reboot", "-append"])
            .arg(format!(
                "console=ttyS0 panic=-1 mitigations=off {}",
                self.clock.kernel_parameters()
            ))
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(&self.initramfs)
            .arg("-serial")
            .arg(format!("file:{}", self.kernel_log.display()))
            .args(["-serial", "stdio"]);
        let qemu_log = fs::File::create(&self.qemu_log)
            .with_context(|| format!("could not create {}", self.qemu_log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(qemu_log)
            .spawn()
            .context("could not start QEMU")
    }
}

/// Passes lines on until the output ends; false if the deadline comes first.
fn pass_on(lines: &Receiver<Output>, deadline: Instant, on_line: &mut impl FnMut(&str)) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(Output::Line(line)) => on_line(&line),
            Ok(Output::Partial(_)) => {}
            Err(RecvTimeoutError::Disconnected) => return true,
            Err(RecvTimeoutError::Timeout) => return false,
        }
    }
}

/// Reads on a thread, which ends with the output.
fn lines_of(stdout: ChildStdout) -> Receiver<Output> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        loop {
            let mut bytes = Vec::new();
            let Ok(count) = reader.read_until(b'\n', &mut bytes) else {
                break;
            };
            let output = if bytes.ends_with(b"\n") {
                Output::Line(String::from_utf8_lossy(&bytes).trim_end().to_owned())
            } else {
                Output::Partial(bytes)
            };
            // Nobody listens any more once the machine was given up.
            if sender.send(output).is_err() || count == 0 {
                break;
            }
        }
    });
    receiver
}

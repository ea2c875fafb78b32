//! `cargo xtask conformance`: the suite that every engine must pass, on every engine that can be had, as one table.
//!
//! Each engine has a test program named `conformance` in some package; the suite writes a line for each check to the file that
//! `VELLUM_CONFORMANCE_REPORT` names.

mod table;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use self::table::Table;
use super::mshv;
use super::vm_test::{self, Boot};
use crate::process::{self, heading, progress};
use crate::workspace::Workspace;

/// The environment variable that names the file.
const REPORT_VARIABLE: &str = "VELLUM_CONFORMANCE_REPORT";

/// Which engines to ask.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Options {
    /// Only this engine; may be given more than once.
    #[arg(long, value_enum, value_name = "NAME")]
    engine: Vec<Engine>,
}

/// A column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// The machine's own `/dev/kvm`.
    Kvm,
    /// KVM on an emulated machine with SVM.
    KvmInQemu,
    /// The machine's own `/dev/mshv`.
    Mshv,
    /// The MSHV backend on the double of its device.
    MshvDouble,
    /// The same on KVM on an emulated machine with SVM.
    MshvDoubleInQemu,
    /// The emulator.
    Emulator,
}

impl Engine {
    const ALL: [Self; 6] = [
        Self::Kvm,
        Self::KvmInQemu,
        Self::Mshv,
        Self::MshvDouble,
        Self::MshvDoubleInQemu,
        Self::Emulator,
    ];

    fn column(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::KvmInQemu => "kvm-in-qemu",
            Self::Mshv => "mshv",
            Self::MshvDouble => "mshv-double",
            Self::MshvDoubleInQemu => "mshv-double-in-qemu",
            Self::Emulator => "emulator",
        }
    }

    /// The package whose test program `conformance` runs the suite on the engine, from the root.
    fn package(self) -> (&'static str, &'static str) {
        match self {
            Self::Kvm | Self::KvmInQemu | Self::Mshv => {
                ("vellum-conformance", "crates/conformance")
            }
            Self::MshvDouble | Self::MshvDoubleInQemu => {
                ("vellum-mshv-double", "crates/mshv-double")
            }
            Self::Emulator => ("vellum-emulator", "crates/emulator"),
        }
    }

    /// The lines of the suite on this engine. An error says why there are none.
    fn lines(self, workspace: &Workspace) -> Result<Vec<String>> {
        let (package, directory) = self.package();
        let program = workspace.root().join(directory).join("tests");
        if !program.join("conformance.rs").is_file() && !program.join("conformance").is_dir() {
            bail!("{directory} has no test program named conformance");
        }
        match self {
            Self::KvmInQemu => vm_test::checks(workspace, Boot::Nested, package),
            Self::MshvDoubleInQemu => vm_test::checks(workspace, Boot::Mshv, package),
            Self::Mshv => {
                ensure!(
                    Path::new(mshv::DEVICE).exists(),
                    "{} does not exist; no machine of that kind has run this yet",
                    mshv::DEVICE
                );
                here(workspace, package, Some("mshv"))
            }
            Self::Kvm | Self::MshvDouble | Self::Emulator => here(workspace, package, None),
        }
    }
}

/// Runs every engine that is asked for, prints the table, and fails if a check does.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let mut table = Table::default();
    let mut absent = Vec::new();
    for engine in Engine::ALL {
        if !options.engine.is_empty() && !options.engine.contains(&engine) {
            continue;
        }
        heading(&format!("conformance: {}", engine.column()));
        match engine.lines(workspace) {
            Ok(lines) if lines.is_empty() => {
                bail!("{} reported no check", engine.column());
            }
            Ok(lines) => table.add(engine.column(), &lines),
            Err(error) if options.engine.is_empty() => {
                progress(&format!("SKIPPED: {error:#}"));
                absent.push(format!("{}: NOT RUN: {error:#}", engine.column()));
            }
            Err(error) => return Err(error),
        }
    }
    heading("conformance: engines and checks");
    print!("{table}");
    for line in absent {
        println!("{line}");
    }
    let failed = table.failed();
    if failed > 0 {
        bail!("{failed} checks failed");
    }
    Ok(())
}

/// Runs a package's test program on this machine. That a test fails shows in its line.
fn here(workspace: &Workspace, package: &str, engine: Option<&str>) -> Result<Vec<String>> {
    let report: PathBuf = workspace
        .target_dir()
        .join(format!("{package}-conformance.txt"));
    fs::create_dir_all(workspace.target_dir()).context("could not create the target directory")?;
    fs::write(&report, "").with_context(|| format!("could not create {}", report.display()))?;
    let mut command = workspace.cargo();
    command
        .args(["test", "--package", package, "--test", "conformance"])
        .env(REPORT_VARIABLE, &report);
    if let Some(engine) = engine {
        command.env(super::demo::ENGINE_VARIABLE, engine);
    }
    let passed = process::run_inspected(&mut command, |_| ())?;
    let text = fs::read_to_string(&report)
        .with_context(|| format!("could not read {}", report.display()))?;
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if !passed && lines.is_empty() {
        bail!("the suite of {package} does not build or run; see above");
    }
    Ok(lines)
}

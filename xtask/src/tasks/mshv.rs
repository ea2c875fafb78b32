//! `cargo xtask mshv-test` and `mshv-double-check`: the MSHV backend on a machine of its kind or on the test double, and the double against
//! the tests of the crate that talks to it.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::engine_report::{EngineReport, REPORT_VARIABLE};
use crate::process::{self, heading, progress};
use crate::tasks::test::Totals;
use crate::workspace::Workspace;

/// The device of a real machine.
pub(crate) const DEVICE: &str = "/dev/mshv";
/// The package with the double, and the file name of its shared library.
const DOUBLE_PACKAGE: &str = "vellum-mshv-double";
const DOUBLE_LIBRARY: &str = "libvellum_mshv_double.so";
/// What makes the double tolerate programs that are less careful than ours.
const LENIENT_VARIABLE: &str = "VELLUM_MSHV_DOUBLE_LENIENT";
/// The crate that talks to the driver; its own tests run on real machines elsewhere.
const CRATE: &str = "mshv-ioctls";
/// Creates a VFIO device, which the double does not have.
const KNOWN_FAILURE: &str = "ioctls::device::tests::test_create_device";

/// Parts of the sandbox's VM tests that run on the double, chosen so that every part of the backend is used and the whole takes about a
/// minute. The rest counts KVM's system calls, forks, or takes long where each exit costs three entries.
pub(crate) const DOUBLE_TESTS: [(&str, &[&str]); 3] = [
    (
        "vm",
        &[
            "values::",
            "checkpoints::",
            "host_functions::",
            "pool::",
            "residue::",
            "logging::",
            "sizes::",
            "bad_calls::",
            "debugger::",
        ],
    ),
    ("mappings", &["restores::", "regions::"]),
    ("kernels", &["snapshots::", "state::", "calls::", "roots::"]),
];

/// On a machine of the kind everything runs but what is about KVM alone.
const MACHINE_TESTS: [(&str, &[&str]); 5] = [
    (CONFORMANCE, &[]),
    ("vm", &[]),
    ("mappings", &[]),
    ("kernels", &[]),
    ("store", &[]),
];
/// The suite that every engine must pass.
const CONFORMANCE: &str = "conformance";
/// Tests that hold for KVM alone, by a part of their names: they count its system calls, demand its interrupt controllers, or expect a file that
/// becomes shorter to lose pages that a guest has mapped, which are pinned over MSHV.
const OF_KVM_ALONE: [&str; 5] = [
    "system_calls::",
    "fork::",
    "apic_hole::",
    "the_io_apic_is_in_the_way",
    "truncated",
];

/// Options of `mshv-test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Run on this machine's own /dev/mshv instead of the double: the suite that every engine must pass, and all tests of the sandbox.
    #[arg(long)]
    machine: bool,
}

/// What the tests run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    Double,
    Machine,
}

impl Tier {
    /// What the tests call their engine.
    const fn label(self) -> &'static str {
        match self {
            Self::Double => "mshv-double",
            Self::Machine => "mshv",
        }
    }

    /// Variables that make a test program use MSHV, and say so.
    pub(crate) const fn environment(self) -> [(&'static str, &'static str); 2] {
        [
            ("VELLUM_ENGINE", "mshv"),
            ("VELLUM_TEST_ENGINE_LABEL", self.label()),
        ]
    }
}

/// Runs the sandbox's tests, on a machine all of them and the suite that every engine must pass.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let totals = if options.machine {
        ensure!(
            Path::new(DEVICE).exists(),
            "{DEVICE} does not exist; this needs linux as the root partition of microsoft's hypervisor"
        );
        run_tier(workspace, Tier::Machine, None)?
    } else {
        run_on_double(workspace, None)?
    };
    println!("{totals}");
    totals.verdict()
}

/// Runs the chosen tests on the double; `report` is the file in which tests say what they ran on.
pub(crate) fn run_on_double(workspace: &Workspace, report: Option<&Path>) -> Result<Totals> {
    run_tier(workspace, Tier::Double, report)
}

/// The tests that `filters` select, without those that hold for KVM alone.
pub(crate) fn arguments<'a>(filters: &[&'a str]) -> Vec<&'a str> {
    let skipped = OF_KVM_ALONE.into_iter().flat_map(|test| ["--skip", test]);
    filters.iter().copied().chain(skipped).collect()
}

fn run_tier(workspace: &Workspace, tier: Tier, report: Option<&Path>) -> Result<Totals> {
    let suites: &[(&str, &[&str])] = match tier {
        Tier::Double => &DOUBLE_TESTS,
        Tier::Machine => &MACHINE_TESTS,
    };
    let double = match tier {
        Tier::Double => Some(build_double(workspace)?),
        Tier::Machine => None,
    };
    let own_report = workspace.target_dir().join("mshv-test-report.txt");
    let mut totals = Totals::default();
    for (suite, filters) in suites {
        fs::write(&own_report, "")
            .with_context(|| format!("could not create {}", own_report.display()))?;
        let package = match *suite {
            CONFORMANCE => "conformance",
            _ => "sandbox",
        };
        let name = format!("vellum-{package}");
        let mut cargo = workspace.cargo();
        cargo.args(["test", "--package", &name, "--test", suite]);
        let program = executable(&mut cargo)?;
        let mut command = Command::new(program);
        command
            .current_dir(workspace.root().join("crates").join(package))
            .args(arguments(filters))
            .envs(tier.environment());
        if let Some(double) = &double {
            command.env("LD_PRELOAD", double);
        }
        command.env(REPORT_VARIABLE, &own_report);
        heading(&format!("{suite} on {}", tier.label()));
        process::run_inspected(&mut command, |line| totals.add_line(line))?;
        let lines = fs::read_to_string(&own_report)
            .with_context(|| format!("could not read {}", own_report.display()))?;
        if let Some(report) = report {
            append(report, &lines)?;
        }
        ensure!(
            EngineReport::new(&lines, &[]).has_run(tier.label()),
            "{suite}: every test has skipped itself, and an engine was to be there: {}",
            lines.lines().next().unwrap_or("no report")
        );
    }
    Ok(totals)
}

fn append(path: &Path, lines: &str) -> Result<()> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .and_then(|mut file| file.write_all(lines.as_bytes()))
        .with_context(|| format!("could not write {}", path.display()))
}

/// Runs the tests of the crate against the double.
pub(crate) fn check_double(workspace: &Workspace) -> Result<()> {
    let double = build_double(workspace)?;
    let source = copy_crate(workspace)?;
    let mut cargo = workspace.cargo();
    cargo
        .current_dir(&source)
        .args(["test", "--lib"])
        .env("CARGO_TARGET_DIR", source.join("target"));
    let program = executable(&mut cargo)?;
    let mut command = Command::new(program);
    command
        .current_dir(&source)
        .env("LD_PRELOAD", double)
        .env(LENIENT_VARIABLE, "1");
    let mut totals = Totals::default();
    process::run_inspected(&mut command, |line| totals.add_line(line))?;
    println!("{CRATE} on the double: {totals}");
    verdict(&totals)
}

/// One failure is known; any other, and no test at all, is an error.
fn verdict(totals: &Totals) -> Result<()> {
    let unknown: Vec<&str> = totals
        .failures
        .iter()
        .map(String::as_str)
        .filter(|name| *name != KNOWN_FAILURE)
        .collect();
    ensure!(totals.passed > 0, "no test passed");
    ensure!(unknown.is_empty(), "failed: {}", unknown.join(", "));
    if totals.failures.is_empty() {
        progress("even the test that was expected to fail has passed");
    } else {
        progress(&format!(
            "{KNOWN_FAILURE} is expected to fail: the double has no vfio devices"
        ));
    }
    Ok(())
}

/// Builds the shared library of the double.
pub(crate) fn build_double(workspace: &Workspace) -> Result<PathBuf> {
    process::run(
        workspace
            .cargo()
            .args(["build", "--package", DOUBLE_PACKAGE]),
    )?;
    let library = workspace.target_dir().join("debug").join(DOUBLE_LIBRARY);
    ensure!(library.is_file(), "{} was not built", library.display());
    Ok(library)
}

/// Builds the tests that `cargo` names and returns the one program that they are.
fn executable(cargo: &mut Command) -> Result<PathBuf> {
    cargo.args(["--no-run", "--message-format", "json"]);
    let output = process::capture(cargo)?;
    let programs = executables(&output)?;
    match programs.as_slice() {
        [program] => Ok(program.clone()),
        other => bail!("cargo built {} test programs instead of one", other.len()),
    }
}

fn executables(messages: &str) -> Result<Vec<PathBuf>> {
    let mut programs = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Value =
            serde_json::from_str(line).context("could not read cargo's messages")?;
        if message["profile"]["test"] == true
            && let Some(program) = message["executable"].as_str()
        {
            programs.push(PathBuf::from(program));
        }
    }
    Ok(programs)
}

/// A copy of the crate's source, which is a workspace of its own there and uses the versions that this one is locked to.
fn copy_crate(workspace: &Workspace) -> Result<PathBuf> {
    let mut cargo = workspace.cargo();
    cargo.args(["metadata", "--format-version", "1"]);
    let metadata: Value = serde_json::from_str(&process::capture(&mut cargo)?)
        .context("could not read cargo metadata")?;
    let manifest = manifest_of(&metadata, CRATE).context("the workspace does not use the crate")?;
    let source = manifest.parent().context("a manifest has a directory")?;
    let copy = workspace.target_dir().join("mshv-ioctls-check");
    copy_directory(&source.join("src"), &copy.join("src"))?;
    let mut manifest = fs::read_to_string(&manifest).context("could not read the manifest")?;
    manifest.push_str("\n[workspace]\n");
    fs::write(copy.join("Cargo.toml"), manifest).context("could not write the manifest")?;
    fs::copy(workspace.root().join("Cargo.lock"), copy.join("Cargo.lock"))
        .context("could not copy the lock file")?;
    Ok(copy)
}

fn manifest_of(metadata: &Value, package: &str) -> Option<PathBuf> {
    metadata["packages"]
        .as_array()?
        .iter()
        .find(|it| it["name"] == package)
        .and_then(|it| it["manifest_path"].as_str())
        .map(PathBuf::from)
}

fn copy_directory(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("could not create {}", to.display()))?;
    let entries =
        fs::read_dir(from).with_context(|| format!("could not read {}", from.display()))?;
    for entry in entries {
        let entry = entry.context("could not read a directory entry")?;
        let target = to.join(entry.file_name());
        if entry
            .file_type()
            .context("could not ask for a file's type")?
            .is_dir()
        {
            copy_directory(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)
                .with_context(|| format!("could not write {}", target.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(lines: &[&str]) -> Totals {
        let mut totals = Totals::default();
        for line in lines {
            totals.add_line(line);
        }
        totals
    }

    #[test]
    fn one_failure_is_known_and_every_other_counts() {
        let result =
            "test result: FAILED. 37 passed; 1 failed; 4 ignored; 0 measured; 0 filtered out";
        let known = format!("test {KNOWN_FAILURE} ... FAILED");
        assert!(verdict(&totals(&[&known, result])).is_ok());
        let error = verdict(&totals(&[&known, "test a::b ... FAILED", result])).unwrap_err();
        assert!(error.to_string().contains("a::b"), "{error}");
        assert!(verdict(&totals(&[])).is_err(), "nothing ran");
    }

    #[test]
    fn test_programs_are_found_among_cargos_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","profile":{"test":false},"executable":"/a"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","profile":{"test":true},"executable":"/b"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","profile":{"test":true},"executable":null}"#,
            "\nnoise\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(executables(messages).unwrap(), [PathBuf::from("/b")]);
    }
}

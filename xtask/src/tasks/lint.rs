//! `cargo xtask lint`: format, clippy, documentation and house rules, with warnings as errors.

use std::process::Command;

use anyhow::{Result, bail};

use crate::host::MDBOOK;
use crate::process::{self, heading, progress};
use crate::rules;
use crate::tasks::other_arch;
use crate::workspace::Workspace;

type Stage = fn(&Workspace) -> Result<()>;

/// Every check that needs no test run, in order of cost.
const STAGES: [(&str, Stage); 7] = [
    ("house rules", rules::check),
    ("format", check_format),
    ("clippy", check_clippy),
    ("documentation", check_documentation),
    ("memory map", rules::check_memory_map),
    ("book", build_book),
    ("another architecture", other_arch::check),
];

/// Runs every stage even after a failed one, so that one run shows everything that is wrong.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let mut failed = Vec::new();
    for (name, stage) in STAGES {
        heading(name);
        if let Err(error) = stage(workspace) {
            progress(&format!("FAILED: {error:#}"));
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("lint failed in: {}", failed.join(", "));
    }
    Ok(())
}

fn check_format(workspace: &Workspace) -> Result<()> {
    let mut host = workspace.cargo();
    let mut guests = workspace.guests_cargo();
    run_both(
        host.args(["fmt", "--all", "--check"]),
        guests.args(["fmt", "--all", "--check"]),
    )
}

fn check_clippy(workspace: &Workspace) -> Result<()> {
    let mut host = workspace.cargo();
    host.args(["clippy", "--workspace", "--all-targets", "--keep-going"]);
    // A guest has no test harness, so only its program is checked.
    let mut guests = workspace.guests_cargo();
    guests.args(["clippy", "--workspace", "--keep-going"]);
    run_both(
        host.args(["--", "--deny", "warnings"]),
        guests.args(["--", "--deny", "warnings"]),
    )
}

/// Runs the check of the host's workspace and that of the guests', the second also where the first fails.
fn run_both(host: &mut Command, guests: &mut Command) -> Result<()> {
    let host = process::run(host);
    process::run(guests).and(host)
}

fn check_documentation(workspace: &Workspace) -> Result<()> {
    let mut command = workspace.cargo();
    command
        .args(["doc", "--workspace", "--no-deps"])
        .env("RUSTDOCFLAGS", "-Dwarnings");
    process::run(&mut command)
}

fn build_book(workspace: &Workspace) -> Result<()> {
    if !MDBOOK.is_present() {
        progress(&format!("SKIPPED: {}", MDBOOK.missing()));
        return Ok(());
    }
    let mut command = Command::new(MDBOOK.program);
    command
        .current_dir(workspace.root())
        .args(["build", "docs", "--dest-dir"]);
    process::run(command.arg(workspace.target_dir().join("book")))
}

//! `cargo xtask lint`: format, clippy, documentation and house rules, with warnings as errors.

use anyhow::{Context, Result};

use crate::host::MDBOOK;
use crate::process::{self, heading, progress};
use crate::rules;
use crate::workspace::Workspace;

/// Runs every check that needs no test run, in order of cost.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    heading("house rules");
    rules::check(workspace)?;
    heading("format");
    process::run(workspace.cargo().args(["fmt", "--all", "--check"]))?;
    process::run(workspace.guests_cargo().args(["fmt", "--all", "--check"]))?;
    heading("clippy");
    let deny_warnings = ["--", "--deny", "warnings"];
    process::run(
        workspace
            .cargo()
            .args(["clippy", "--workspace", "--all-targets"])
            .args(deny_warnings),
    )?;
    // A guest has no test harness, so only its program is checked.
    process::run(
        workspace
            .guests_cargo()
            .args(["clippy", "--workspace"])
            .args(deny_warnings),
    )?;
    heading("documentation");
    process::run(
        workspace
            .cargo()
            .args(["doc", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-Dwarnings"),
    )?;
    rules::check_memory_map(workspace).context("memory map")?;
    build_book(workspace)
}

fn build_book(workspace: &Workspace) -> Result<()> {
    if !MDBOOK.is_present() {
        progress(&format!("book SKIPPED: {}", MDBOOK.missing()));
        return Ok(());
    }
    let destination = workspace.target_dir().join("book");
    let mut command = std::process::Command::new(MDBOOK.program);
    command
        .current_dir(workspace.root())
        .args(["build", "docs", "--dest-dir"])
        .arg(destination);
    process::run(&mut command)
}

//! `cargo xtask lint`: format, clippy, documentation and house rules, with warnings as errors.

use anyhow::Result;

use crate::process::{self, heading};
use crate::rules;
use crate::workspace::Workspace;

/// Runs every check that needs no test run.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    heading("house rules");
    rules::check(workspace)?;
    heading("format");
    process::run(workspace.cargo().args(["fmt", "--all", "--check"]))?;
    heading("clippy");
    process::run(workspace.cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))?;
    heading("documentation");
    process::run(
        workspace
            .cargo()
            .args(["doc", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-Dwarnings"),
    )
}

//! `cargo xtask demo`: the demonstration on the real guest.

use anyhow::{Context, Result, bail};

use crate::host::Kvm;
use crate::process;
use crate::workspace::Workspace;

/// Builds the example and its guest, then runs it with `args`.
pub(crate) fn run(workspace: &Workspace, args: &[String]) -> Result<()> {
    // Checked before the build, so that a machine without a hypervisor answers at once.
    if let Some(problem) = Kvm::probe().problem() {
        bail!("the demo needs a hypervisor: {problem}");
    }
    let mut command = workspace.cargo();
    command.args([
        "run",
        "--release",
        "--package",
        "vellum-sandbox",
        "--example",
        "demo",
    ]);
    if !args.is_empty() {
        command.arg("--").args(args);
    }
    process::run(&mut command).context("the demo did not finish")
}

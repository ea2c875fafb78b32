//! `cargo xtask bench`: the benchmark table, each figure beside its floor from the same run.

use std::path::{Path, absolute};

use anyhow::{Context, Result, bail};

use crate::host::{Kvm, STRACE};
use crate::process;
use crate::workspace::Workspace;

/// Runs the table in release mode; `json` is where the figures go as well.
pub(crate) fn run(workspace: &Workspace, json: Option<&Path>, args: &[String]) -> Result<()> {
    if let Some(problem) = Kvm::probe().problem() {
        bail!("the benchmark needs a hypervisor: {problem}");
    }
    if !STRACE.is_present() {
        process::progress(&format!("note: {}", STRACE.missing()));
    }
    let mut command = workspace.cargo();
    command.args(["bench", "--package", "vellum-sandbox", "--bench", "table"]);
    command.arg("--");
    if let Some(json) = json {
        // A benchmark runs in its package's directory; the caller meant their own.
        let json =
            absolute(json).with_context(|| format!("no absolute path for {}", json.display()))?;
        command.arg("--json").arg(json);
    }
    command.args(args);
    process::run(&mut command).context("the benchmark did not finish")
}

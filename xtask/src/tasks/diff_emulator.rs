//! `cargo xtask diff-emulator`: random instructions on the processor and in the emulator, compared.

use anyhow::{Context, Result, bail};

use crate::host::Kvm;
use crate::process;
use crate::workspace::Workspace;

/// How much to compare.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Cases to run.
    #[arg(long, default_value_t = 1_000_000)]
    cases: u64,
    /// Which cases: each seed draws others.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs the comparison, which prints cases, mnemonics and mismatches.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    if let Some(problem) = Kvm::probe().problem() {
        bail!("the comparison needs a processor to compare with: {problem}");
    }
    let mut command = workspace.cargo();
    command
        .args([
            "test",
            "--release",
            "--package",
            "vellum-emulator",
            "--test",
            "differential",
            "--",
            "--nocapture",
        ])
        .env("VELLUM_DIFF_CASES", options.cases.to_string())
        .env("VELLUM_DIFF_SEED", options.seed.to_string());
    process::run(&mut command).context("the emulator differs from the processor")
}

//! `cargo xtask demo`: the demonstration on the real guest.

use anyhow::{Context, Result};

use crate::process;
use crate::workspace::Workspace;

/// The environment variable by which an engine is chosen.
pub(super) const ENGINE_VARIABLE: &str = "VELLUM_ENGINE";

/// Builds the example and its guest, then runs it with `args`, on `engine` or on the first one that works: the emulator needs nothing.
pub(crate) fn run(workspace: &Workspace, engine: Option<&str>, args: &[String]) -> Result<()> {
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
    if let Some(engine) = engine {
        command.env(ENGINE_VARIABLE, engine);
    }
    process::run(&mut command).context("the demo did not finish")
}

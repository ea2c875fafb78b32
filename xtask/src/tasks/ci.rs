//! `cargo xtask ci`: what continuous integration runs, in order.

use anyhow::{Context, Result};

use crate::host::Kvm;
use crate::process::{heading, progress};
use crate::tasks::{bench, demo, lint, test};
use crate::workspace::Workspace;

/// Runs lint, test, demo and a short benchmark; the last two only where a hypervisor is usable.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    heading("lint");
    lint::run(workspace).context("lint")?;
    heading("test");
    test::run(workspace).context("test")?;
    let problem = Kvm::probe().problem();
    for (title, task) in [
        ("demo", demo as fn(&Workspace) -> Result<()>),
        ("bench (short)", short_bench),
    ] {
        heading(title);
        match &problem {
            Some(problem) => progress(&format!("SKIPPED: {problem}")),
            None => task(workspace).context(title)?,
        }
    }
    heading("ci passed");
    Ok(())
}

fn demo(workspace: &Workspace) -> Result<()> {
    demo::run(workspace, &[])
}

/// The whole table with few samples: shows that every row still runs, not how fast.
fn short_bench(workspace: &Workspace) -> Result<()> {
    bench::run(workspace, None, &["--quick".to_owned()])
}

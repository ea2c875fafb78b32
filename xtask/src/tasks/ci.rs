//! `cargo xtask ci`: what continuous integration runs, in order.

use anyhow::{Context, Result};

use crate::host::Kvm;
use crate::process::{heading, progress};
use crate::tasks::{bench, demo, lint, test, vm_test};
use crate::workspace::Workspace;

/// Runs lint and test; demo and a short benchmark where a hypervisor is usable; vm-test and the check of exact counts where QEMU can be
/// had.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    heading("lint");
    lint::run(workspace).context("lint")?;
    heading("test");
    test::run(workspace, None).context("test")?;
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
    heading("vm-test");
    vm_test::run_if_possible(workspace)?;
    heading("exact counts");
    vm_test::check_counts_if_possible(workspace)?;
    heading("ci passed");
    Ok(())
}

fn demo(workspace: &Workspace) -> Result<()> {
    demo::run(workspace, None, &[])
}

/// The whole table with few samples: shows that every row still runs, not how fast.
fn short_bench(workspace: &Workspace) -> Result<()> {
    bench::run(workspace, None, &["--quick".to_owned()])
}

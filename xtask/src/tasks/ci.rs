//! `cargo xtask ci`: what continuous integration runs, in order.

use anyhow::{Context, Result};

use crate::process::heading;
use crate::tasks::{bench, demo, lint, test, vm_test};
use crate::workspace::Workspace;

/// Runs lint, test, demo and a short benchmark, in the emulator where no hypervisor is usable; vm-test and the check of exact counts where QEMU
/// can be had.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    heading("lint");
    lint::run(workspace).context("lint")?;
    heading("test");
    test::run(workspace, None).context("test")?;
    heading("demo");
    demo::run(workspace, None, &[]).context("demo")?;
    heading("bench (short)");
    short_bench(workspace).context("bench (short)")?;
    heading("vm-test");
    vm_test::run_if_possible(workspace)?;
    heading("exact counts");
    vm_test::check_counts_if_possible(workspace)?;
    heading("ci passed");
    Ok(())
}

/// The whole table with few samples: shows that every row still runs, not how fast.
fn short_bench(workspace: &Workspace) -> Result<()> {
    bench::run(workspace, None, &["--quick".to_owned()])
}

//! What a thousand sandboxes of one snapshot occupy.

use std::fs;

use anyhow::Context;
use vellum_sandbox::{Engine, Sandbox};

use crate::figures::Figures;
use crate::measure::Effort;
use crate::sandboxes::{MIB, host_functions, with_arena};

/// Kinds of the kernel's own memory in `/proc/meminfo`.
const KERNEL_KINDS: [&str; 6] = [
    "Slab:",
    "KernelStack:",
    "PageTables:",
    "SecPageTables:",
    "VmallocUsed:",
    "Percpu:",
];

/// Memory of each of many sandboxes that live at once and have been called: this process's own, and the kernel's.
pub(crate) fn footprint(
    engine: &Engine,
    effort: Effort,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let (mut parent, snapshot) = with_arena(engine, 64 * MIB)?;
    parent.call::<_, ()>("null", ())?;
    let dirty_bytes = parent.snapshot()?.len_bytes() - snapshot.len_bytes();
    let dirty_pages = f64::from(u32::try_from(dirty_bytes / 4096)?);
    let host = host_functions();
    let count = effort.samples(1000);
    let (before, kernel_before) = (private_kib()?, kernel_kib()?);
    let mut sandboxes = Vec::new();
    for _ in 0..count {
        let mut sandbox = Sandbox::from_snapshot(engine, &snapshot, &host)?;
        sandbox.call::<_, ()>("null", ())?;
        sandboxes.push(sandbox);
    }
    let (after, kernel_after) = (private_kib()?, kernel_kib()?);
    let count = f64::from(u32::try_from(count)?);
    figures.add("live_sandboxes", count);
    figures.add_count("dirty_pages_of_null_call", dirty_pages);
    figures.add("rss_per_sandbox_kib", (after - before) / count);
    figures.add(
        "kernel_per_sandbox_kib",
        (kernel_after - kernel_before) / count,
    );
    Ok(())
}

/// Memory of this process that it shares with nobody, from the kernel's own accounting.
fn private_kib() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/self/smaps_rollup")?;
    let lines = ["Private_Clean:", "Private_Dirty:"].map(|name| kib(&text, name));
    let [clean, dirty] = lines;
    Ok(clean.context("no Private_Clean")? + dirty.context("no Private_Dirty")?)
}

/// Memory of the whole machine that the kernel uses for itself: what a hypervisor keeps of a VM is in it. Other programs move it, too.
fn kernel_kib() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    Ok(KERNEL_KINDS
        .into_iter()
        .filter_map(|name| kib(&text, name))
        .sum())
}

fn kib(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

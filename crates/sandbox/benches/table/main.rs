//! The benchmark table: what a call, a restore, a snapshot and a new sandbox cost, each beside its floor.
//!
//! `cargo bench -p vellum-sandbox --bench table -- [--json FILE] [--quick]`
//!
//! The floor is a bare `KVM_RUN` round trip of a ring-3 guest of two instructions, on the same machine in the same run, measured
//! in turn with the figure that is put beside it. Figures are medians of nanoseconds unless named otherwise; system calls are
//! counted, not assumed, by a shim around `ioctl`. Exits and page faults are counted by KVM itself.

mod bare;
mod counts;
mod figures;
mod ioctls;
mod measure;
mod memory;
mod pool;
mod sandboxes;
mod statistics;

use std::path::PathBuf;

use clap::Parser;
use vellum_sandbox::Engine;

use figures::Figures;
use measure::Effort;

#[derive(Parser)]
struct Options {
    /// Writes the figures as a flat JSON object of numbers.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Few samples: shows that everything runs, not how fast.
    #[arg(long)]
    quick: bool,
    /// Only what is counted, not what is timed.
    #[arg(long)]
    counts: bool,
    /// Who copies pages: guest or host; by default what suits the hypervisor.
    #[arg(long)]
    cow: Option<String>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let effort = if options.quick {
        Effort::Quick
    } else {
        Effort::Full
    };
    let engine = sandboxes::engine(options.cow.as_deref())?;
    println!("engine: {engine}");
    let mut figures = Figures::default();
    counts::counts(&engine, &mut figures)?;
    if !options.counts {
        timed(&engine, effort, &mut figures)?;
    }
    print!("{}", figures.table());
    if let Some(path) = &options.json {
        std::fs::write(path, figures.json())?;
    }
    Ok(())
}

/// Everything that is timed.
fn timed(engine: &Engine, effort: Effort, figures: &mut Figures) -> anyhow::Result<()> {
    sandboxes::calls(engine, effort, figures)?;
    sandboxes::restores(engine, effort, figures)?;
    sandboxes::cycles(engine, effort, figures)?;
    sandboxes::heaps(engine, effort, figures)?;
    sandboxes::creation(engine, effort, figures)?;
    sandboxes::large_bytes(engine, effort, figures)?;
    sandboxes::footprint(engine, effort, figures)?;
    sandboxes::kernels(engine, effort, figures)?;
    pool::pool(engine, effort, figures)?;
    memory::page_tables(effort, figures)
}

//! The benchmark table: what a call, a restore, a snapshot and a new sandbox cost, each beside its floor.
//!
//! `cargo bench -p vellum-sandbox --bench table -- [--json FILE] [--quick]`
//!
//! The floor is a bare `KVM_RUN` round trip of a ring-3 guest of two instructions, on the same machine in the same run, measured
//! in turn with the figure that is put beside it. Figures are medians of nanoseconds unless named otherwise; system calls are
//! counted, not assumed, by a shim around `ioctl`. Exits and page faults are counted by KVM itself.

mod bare;
mod bare_sandbox;
mod counts;
mod emulator;
mod exact;
mod figures;
mod footprint;
mod ioctls;
mod measure;
mod memory;
mod pool;
mod profile;
mod restores;
mod sandboxes;
mod snapshots;
mod statistics;
mod system_calls;
mod targets;
mod tsc;

use std::path::{Path, PathBuf};

use clap::Parser;
use vellum_sandbox::Engine;

use figures::Figures;
use measure::Effort;

#[derive(Parser)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "flags of a command line are independent"
)]
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
    /// Instructions of each operation, on a machine whose time-stamp counter counts them.
    #[arg(long)]
    exact: bool,
    /// In which functions of the host the instructions of one operation are: a name of the table that `--exact` prints.
    #[arg(long, value_name = "OPERATION")]
    profile: Option<String>,
    /// Only the figures of the emulator, which need no hypervisor.
    #[arg(long)]
    emulator: bool,
    /// Given to the child that is profiled.
    #[arg(long, hide = true)]
    marked: Option<String>,
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
    if options.emulator {
        let mut figures = Figures::default();
        emulator::emulator(effort, &mut figures)?;
        return show(&figures, options.json.as_deref());
    }
    let engine = sandboxes::engine(options.cow.as_deref())?;
    println!("engine: {engine}");
    if let Some(operation) = &options.profile {
        let mut arguments = vec![format!("--marked={operation}")];
        arguments.extend(options.cow.iter().map(|cow| format!("--cow={cow}")));
        return profile::profile(&arguments);
    }
    if options.exact || options.marked.is_some() {
        return exact::exact(&engine, options.marked);
    }
    let mut figures = Figures::default();
    counts::counts(&engine, &mut figures)?;
    if !options.counts {
        timed(&engine, effort, &mut figures)?;
    }
    targets::set(&mut figures);
    show(&figures, options.json.as_deref())
}

/// Prints the table, and writes the file if there is to be one.
fn show(figures: &Figures, json: Option<&Path>) -> anyhow::Result<()> {
    print!("{}", figures.table());
    if let Some(path) = json {
        std::fs::write(path, figures.json())?;
    }
    Ok(())
}

/// Everything that is timed.
fn timed(engine: &Engine, effort: Effort, figures: &mut Figures) -> anyhow::Result<()> {
    sandboxes::calls(engine, effort, figures)?;
    restores::restores(engine, effort, figures)?;
    restores::cycles(engine, effort, figures)?;
    restores::heaps(engine, effort, figures)?;
    snapshots::snapshots(engine, effort, figures)?;
    sandboxes::creation(engine, effort, figures)?;
    sandboxes::large_bytes(engine, effort, figures)?;
    footprint::footprint(engine, effort, figures)?;
    sandboxes::kernels(engine, effort, figures)?;
    pool::pool(engine, effort, figures)?;
    emulator::emulator(effort, figures)?;
    memory::page_tables(effort, figures)
}

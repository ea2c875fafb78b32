//! Snapshots, alone and in a long chain.

use vellum_sandbox::{Engine, Snapshot};

use crate::figures::Figures;
use crate::measure::{Effort, turns};
use crate::restores::spread;
use crate::sandboxes::{MIB, with_arena};

/// Snapshots of the chain, and pages that its guest writes before each.
const CHAIN: usize = 100;
const DIRTY: u64 = 16;

/// A snapshot after 16 pages were written, for growing heaps, in turn.
pub(crate) fn snapshots(
    engine: &Engine,
    effort: Effort,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let names = ["1mib", "64mib", "256mib"];
    let mut subjects = Vec::new();
    for heap_mib in [1, 64, 256] {
        let (sandbox, _) = with_arena(engine, heap_mib * MIB)?;
        let stamp = sandbox.function::<(u64, u64), u64>("stamp_pages")?;
        subjects.push((sandbox, stamp));
    }
    let mut value = 0;
    let times = turns(
        effort.samples(200),
        &mut subjects,
        |(sandbox, stamp)| {
            value += 1;
            Ok(stamp.call(sandbox, (DIRTY, value)).map(drop)?)
        },
        |(sandbox, _)| Ok(sandbox.snapshot().map(drop)?),
    )?;
    figures.add("snapshot_dirty_16_ns", times[0]);
    for (name, time) in names.iter().zip(&times) {
        figures.add(format!("snapshot_heap_{name}_ns"), *time);
    }
    figures.add("snapshot_heap_spread", spread(&times));
    chain(engine, figures)
}

/// What a chain of snapshots holds, all of which are kept.
fn chain(engine: &Engine, figures: &mut Figures) -> anyhow::Result<()> {
    let (mut sandbox, first) = with_arena(engine, MIB)?;
    let stamp = sandbox.function::<(u64, u64), u64>("stamp_pages")?;
    let mut chain: Vec<Snapshot> = Vec::new();
    for value in 0..CHAIN {
        stamp.call(&mut sandbox, (DIRTY, value as u64 + 2))?;
        chain.push(sandbox.snapshot()?);
    }
    let last = chain.last().map_or(0, Snapshot::len_bytes);
    let pages = f64::from(u32::try_from((last - first.len_bytes()) / 4096)?);
    let each = pages / f64::from(u32::try_from(CHAIN)?);
    figures.add_count("chain_pages_per_snapshot", each);
    Ok(())
}

//! Restores, and cycles of restore and call, beside the copies that they cannot do without.

use vellum_sandbox::{Engine, Sandbox, Snapshot};

use crate::bare::BareWriter;
use crate::figures::Figures;
use crate::measure::{Effort, median, turns};
use crate::sandboxes::{FLOOR, MIB, available_mib, with_arena};

/// Pages of the larger of two dirty sets whose difference counts.
const MANY: u64 = 1024;
/// Memory that must be free for each MiB of heap: the guest's own, and the snapshot's.
const NEEDED_PER_HEAP: u64 = 3;

/// Restores after 0, 1, 16, 256 and 1024 dirty pages.
pub(crate) fn restores(
    engine: &Engine,
    effort: Effort,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let (mut sandbox, snapshot) = with_arena(engine, 8 * MIB)?;
    let clean = median(
        effort.samples(2000),
        || Ok(()),
        |()| Ok(sandbox.restore(&snapshot)?),
    )?;
    figures.add_beside("restore_clean_ns", clean, FLOOR);
    for pages in [1, 16, 256, 1024] {
        // A sandbox of its own, so that the remembered set is that of this figure.
        let (mut sandbox, snapshot) = with_arena(engine, 8 * MIB)?;
        let samples = effort.samples(1000);
        let floor = format!("copy_back_{pages}_ns");
        figures.add(&floor, copy_back(usize::try_from(pages)?, samples)?);
        let time = restore_dirty(&mut sandbox, &snapshot, pages, samples)?;
        figures.add_beside(format!("restore_dirty_{pages}_ns"), time, &floor);
    }
    per_page(engine, effort, figures)
}

/// The floor of a restore that copies pages back: the copies alone, in this process's own memory, after one word of each page
/// was changed.
fn copy_back(pages: usize, samples: usize) -> anyhow::Result<f64> {
    const PAGE_LEN_BYTES: usize = 4096;
    let pristine = vec![1_u8; pages * PAGE_LEN_BYTES];
    let memory = std::cell::RefCell::new(pristine.clone());
    median(
        samples,
        || {
            memory
                .borrow_mut()
                .iter_mut()
                .step_by(PAGE_LEN_BYTES)
                .for_each(|byte| *byte = 2);
            Ok(())
        },
        |()| {
            let mut memory = memory.borrow_mut();
            let copies = memory
                .chunks_mut(PAGE_LEN_BYTES)
                .zip(pristine.chunks(PAGE_LEN_BYTES));
            copies
                .for_each(|(page, original)| page.copy_from_slice(std::hint::black_box(original)));
            Ok(())
        },
    )
}

pub(crate) fn restore_dirty(
    sandbox: &mut Sandbox,
    snapshot: &Snapshot,
    pages: u64,
    samples: usize,
) -> anyhow::Result<f64> {
    let touch = sandbox.function::<(u64,), u64>("touch_pages")?;
    let sandbox = std::cell::RefCell::new(sandbox);
    median(
        samples,
        || Ok(touch.call(&mut sandbox.borrow_mut(), (pages,)).map(drop)?),
        |()| Ok(sandbox.borrow_mut().restore(snapshot)?),
    )
}

/// A restore and a call that writes pages: what a server does for each request.
pub(crate) fn cycles(engine: &Engine, effort: Effort, figures: &mut Figures) -> anyhow::Result<()> {
    for pages in [1, 16, 256, 1024] {
        let (mut sandbox, snapshot) = with_arena(engine, 8 * MIB)?;
        let touch = sandbox.function::<(u64,), u64>("touch_pages")?;
        let time = median(
            effort.samples(1000),
            || Ok(()),
            |()| {
                sandbox.restore(&snapshot)?;
                touch.call(&mut sandbox, (pages,))?;
                Ok(())
            },
        )?;
        figures.add_beside(format!("cycle_dirty_{pages}_ns"), time, FLOOR);
        let mut bare = BareWriter::new(pages)?;
        let time = median(effort.samples(1000), || Ok(()), |()| bare.cycle())?;
        figures.add(format!("bare_cycle_{pages}_ns"), time);
    }
    Ok(())
}

/// What one more page costs: the host on a restore, and the guest when it writes the page again.
fn per_page(engine: &Engine, effort: Effort, figures: &mut Figures) -> anyhow::Result<()> {
    let (mut sandbox, snapshot) = with_arena(engine, 8 * MIB)?;
    let touch = sandbox.function::<(u64,), u64>("touch_pages")?;
    let samples = effort.samples(400);
    let many = restore_dirty(&mut sandbox, &snapshot, MANY, samples)?;
    let (mut few_sandbox, few_snapshot) = with_arena(engine, 8 * MIB)?;
    let few = restore_dirty(&mut few_sandbox, &few_snapshot, 0, samples)?;
    let pages = f64::from(u32::try_from(MANY)?);
    figures.add("restore_per_page_ns", (many - few) / pages);
    let copies = figures.value("copy_back_1024_ns").unwrap_or(f64::NAN);
    figures.add("copy_back_per_page_ns", copies / pages);
    let cell = std::cell::RefCell::new(&mut sandbox);
    let again = |()| Ok(touch.call(&mut cell.borrow_mut(), (MANY,)).map(drop)?);
    let warm = median(samples, || Ok(()), again)?;
    let first = median(samples, || Ok(cell.borrow_mut().restore(&snapshot)?), again)?;
    figures.add("fault_per_page_ns", (first - warm) / pages);
    Ok(())
}

/// The same dirty set over growing heaps, in turn.
pub(crate) fn heaps(engine: &Engine, effort: Effort, figures: &mut Figures) -> anyhow::Result<()> {
    let mut names = Vec::new();
    let mut subjects = Vec::new();
    for (name, heap_mib) in [("1mib", 1), ("64mib", 64), ("1gib", 1024), ("4gib", 4096)] {
        // Reserves for those that are held already, too.
        if heap_mib > 64 && available_mib()? < heap_mib * NEEDED_PER_HEAP {
            eprintln!("SKIPPED restore_heap_{name}_ns: not enough free memory");
            continue;
        }
        let (mut sandbox, snapshot) = with_arena(engine, heap_mib * MIB)?;
        let touch = sandbox.function::<(u64,), u64>("touch_pages")?;
        sandbox.restore(&snapshot)?;
        names.push(name);
        subjects.push((sandbox, snapshot, touch));
    }
    let times = turns(
        effort.samples(1000),
        &mut subjects,
        |(sandbox, _, touch)| Ok(touch.call(sandbox, (16,)).map(drop)?),
        |(sandbox, snapshot, _)| Ok(sandbox.restore(snapshot)?),
    )?;
    for (name, time) in names.iter().zip(&times) {
        figures.add_beside(format!("restore_heap_{name}_ns"), *time, FLOOR);
    }
    figures.add("restore_heap_spread", spread(&times));
    Ok(())
}

/// The largest in relation to the smallest.
pub(crate) fn spread(times: &[f64]) -> f64 {
    let largest = times.iter().copied().fold(f64::MIN, f64::max);
    largest / times.iter().copied().fold(f64::MAX, f64::min)
}

//! Page tables in this process's own memory.

use std::hint::black_box;

use anyhow::Context;
use vellum_layout::{Gpa, GpaRange, Gva, GvaRange, PAGE_SIZE, PageSize};
use vellum_vmem::{Attrs, Budget, Format, FrameRange, Mapper, SliceStore, Walker, translate};

use super::meter::{Meter, Repeat};

const ROOT: Gpa = Gpa::literal(0x1_0000_0000);
const START: Gva = Gva::literal(0x40_0000_0000);
const LEN_BYTES: u64 = 1 << 30;
const PAGES: u32 = 1 << 18;
/// 512 tables of leaves, and those above them.
const TABLE_FRAMES: u64 = 520;
const LOOKUPS: u32 = 1 << 12;
const BUDGET: Budget = Budget {
    tables: 1_000,
    leaves: PAGES as u64,
};

pub(super) fn page_tables(meter: &mut Meter) -> anyhow::Result<()> {
    let mut words = vec![0_u64; usize::try_from(TABLE_FRAMES * 512)?];
    let clear = |words: &mut Vec<u64>| {
        words.fill(0);
        Ok(())
    };
    meter
        .measure(
            "page_map",
            Repeat::SLOW.units(PAGES),
            &mut words,
            clear,
            |words| map(words),
        )?
        .aim(5.0);
    let nothing = |_: &mut _| Ok(());
    meter
        .measure(
            "page_walk",
            Repeat::SLOW.units(PAGES),
            &mut words,
            nothing,
            |words| walk(words),
        )?
        .aim(10.0);
    let targets = scattered()?;
    meter
        .measure(
            "page_lookup",
            Repeat::SLOW.units(LOOKUPS),
            &mut words,
            nothing,
            |words| {
                let store = SliceStore::new(ROOT, words);
                for &gva in &targets {
                    black_box(translate(&store, ROOT, gva, Format::FOUR_LEVEL)?);
                }
                Ok(())
            },
        )?
        .aim(60.0);
    Ok(())
}

/// A gibibyte of 4 KiB leaves.
fn map(words: &mut [u64]) -> anyhow::Result<()> {
    let first = ROOT.checked_add(PAGE_SIZE).context("above the root")?;
    let frames = FrameRange::new(GpaRange::new(first, (TABLE_FRAMES - 1) * PAGE_SIZE)?);
    let store = SliceStore::new(ROOT, words);
    let mut mapper =
        Mapper::new(store, frames, ROOT, Format::FOUR_LEVEL)?.with_max_leaf(PageSize::Size4KiB);
    let range = GvaRange::new(START, LEN_BYTES)?;
    mapper
        .map(
            range,
            Gpa::literal(0),
            Attrs::WRITE | Attrs::USER | Attrs::NO_EXECUTE,
        )?
        .ignore("no processor uses these tables");
    Ok(())
}

fn walk(words: &mut [u64]) -> anyhow::Result<()> {
    let store = SliceStore::new(ROOT, words);
    let walker = Walker::new(&store, ROOT, Format::FOUR_LEVEL, BUDGET)?;
    let mut sum = 0_u64;
    walker.for_each_leaf(|step| sum = sum.wrapping_add(step.leaf.frame.as_u64()))?;
    black_box(sum);
    Ok(())
}

/// Addresses in an order that no prefetcher guesses; the same in every run.
fn scattered() -> anyhow::Result<Vec<Gva>> {
    let mut state = 1_u64;
    let mut targets = Vec::new();
    for _ in 0..LOOKUPS {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let page = (state >> 33) % u64::from(PAGES);
        targets.push(
            START
                .checked_add(page * PAGE_SIZE)
                .context("in the range")?,
        );
    }
    Ok(targets)
}

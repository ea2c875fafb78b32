//! Builds the tables of a small amd64 guest, edits them as a copy-on-write monitor does, and prints
//! what a walk finds after each step.
//!
//! `cargo run -p vellum-vmem --example kernel_and_user`

use std::error::Error;

use vellum_layout::{Gpa, GpaRange, Gva, GvaRange, PageSize};
use vellum_vmem::{
    AttrChange, Attrs, Budget, Format, FrameRange, LeafStep, Mapper, SliceStore, Walker, translate,
};

/// Where the guest's table memory starts; the root is its first frame.
const ROOT: Gpa = Gpa::literal(0x80_0000);
const TABLE_FRAMES: u64 = 16;

const CODE: Attrs = Attrs::USER;
const DATA: Attrs = Attrs::USER.union(Attrs::WRITE).union(Attrs::NO_EXECUTE);
const SUPERVISOR: Attrs = Attrs::WRITE.union(Attrs::GLOBAL).union(Attrs::NO_EXECUTE);

fn main() -> Result<(), Box<dyn Error>> {
    let mut memory = vec![0u64; usize::try_from(TABLE_FRAMES * 512)?];
    let mut store = SliceStore::new(ROOT, &mut memory);
    let free = GpaRange::new(Gpa::literal(0x80_1000), (TABLE_FRAMES - 1) * 0x1000)?;
    let mut mapper = Mapper::new(&mut store, FrameRange::new(free), ROOT, Format::FOUR_LEVEL)?;

    for (start, len_bytes, frame, attrs) in [
        (0x40_0000, 0x3000, 0x1000, CODE),
        (0x4000_0000, 0x40_0000, 0x100_0000, DATA),
        (0xffff_8000_0000_0000, 0x20_0000, 0x20_0000, SUPERVISOR),
    ] {
        let range = GvaRange::new(Gva::literal(start), len_bytes)?;
        mapper
            .map(range, Gpa::literal(frame), attrs)?
            .ignore("no vCPU has run on these tables");
    }
    println!("mapped, with {} tables:", 1 + mapper.frames().used_frames());
    print_leaves(mapper.store())?;

    // A snapshot: what the guest could write is now shared, and copied on the next write.
    let heap = GvaRange::new(Gva::literal(0x4000_0000), 0x40_0000)?;
    let freeze = AttrChange::clear(Attrs::WRITE).and_set(Attrs::COW);
    mapper
        .protect(heap, freeze)?
        .flush_all(|change| println!("\nfrozen; reload CR3 ({change:?})"));

    // The guest writes one page of it: split, copy (not shown), remap.
    let page = Gva::literal(0x4020_5000);
    let copy = Gpa::literal(0x300_0000);
    let split = mapper.split_leaf(page, PageSize::Size4KiB)?;
    let remapped = mapper.remap_leaf(page, copy, DATA)?;
    // One page needs `invlpg`; it removes the translation of the large page too.
    split.ignore("the page that changed lies in it and is flushed next");
    remapped.flush_pages(|gva| println!("invlpg {gva}"));

    let written = translate(&store, ROOT, page, Format::FOUR_LEVEL)?;
    println!(
        "{page} is now at {} with {:?}\n",
        written.gpa, written.attrs
    );
    print_leaves(&store)
}

/// Prints runs of neighbouring leaves with equal attributes as one line each.
fn print_leaves(store: &SliceStore<'_>) -> Result<(), Box<dyn Error>> {
    let budget = Budget::for_memory(64 << 20);
    let walker = Walker::new(store, ROOT, Format::FOUR_LEVEL, budget)?;
    let mut run: Option<(LeafStep, u64)> = None;
    for leaf in walker.leaves() {
        let leaf = leaf?;
        match &mut run {
            Some((first, len_bytes)) if continues(first, *len_bytes, &leaf) => {
                *len_bytes += leaf.leaf.size.bytes();
            }
            _ => {
                print_run(run.replace((leaf, leaf.leaf.size.bytes())));
            }
        }
    }
    print_run(run);
    Ok(())
}

fn continues(first: &LeafStep, len_bytes: u64, next: &LeafStep) -> bool {
    first.leaf.size == next.leaf.size
        && first.leaf.attrs == next.leaf.attrs
        && next.gva.offset_from(first.gva) == Some(len_bytes)
        && next.leaf.frame.offset_from(first.leaf.frame) == Some(len_bytes)
}

fn print_run(run: Option<(LeafStep, u64)>) {
    let Some((first, len_bytes)) = run else {
        return;
    };
    println!(
        "  {:#018x} -> {:#010x}  {:>5} KiB in pages of {:>4} KiB  {:?}",
        first.gva,
        first.leaf.frame,
        len_bytes >> 10,
        first.leaf.size.bytes() >> 10,
        first.leaf.attrs,
    );
}

//! Page-table operations over ordinary memory, a gibibyte of address space each: `cargo bench -p vellum-vmem`.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use vellum_layout::{Gpa, GpaRange, Gva, GvaRange, PAGE_SIZE, PageSize};
use vellum_vmem::{
    AttrChange, Attrs, Budget, Format, FrameRange, Mapper, SliceStore, Walker, translate,
};

const ROOT: Gpa = Gpa::literal(0x1_0000_0000);
const TABLE_FRAMES: usize = 600;
const RANGE_BYTES: u64 = 1 << 30;
const PAGES: u64 = RANGE_BYTES / PAGE_SIZE;
const START: Gva = Gva::literal(0x40_0000_0000);
const LOOKUPS: u64 = 100_000;
const DATA: Attrs = Attrs::WRITE.union(Attrs::USER).union(Attrs::NO_EXECUTE);
const BUDGET: Budget = Budget {
    tables: 1_000,
    leaves: PAGES,
};

fn main() {
    divan::main();
}

fn memory() -> Vec<u64> {
    vec![0; TABLE_FRAMES * 512]
}

/// Memory with a gibibyte of 4 KiB leaves in it.
fn mapped() -> Vec<u64> {
    let mut words = memory();
    map(&mut words, PageSize::Size4KiB);
    words
}

fn mapper(memory: &mut [u64], max_leaf: PageSize) -> Mapper<SliceStore<'_>, FrameRange> {
    let first = ROOT.checked_add(PAGE_SIZE).expect("room above the root");
    let frames = GpaRange::new(first, (TABLE_FRAMES as u64 - 1) * PAGE_SIZE).expect("whole frames");
    let store = SliceStore::new(ROOT, memory);
    Mapper::new(store, FrameRange::new(frames), ROOT, Format::FOUR_LEVEL)
        .expect("aligned root")
        .with_max_leaf(max_leaf)
}

fn range() -> GvaRange {
    GvaRange::new(START, RANGE_BYTES).expect("valid range")
}

fn map(memory: &mut [u64], max_leaf: PageSize) {
    mapper(memory, max_leaf)
        .map(range(), Gpa::literal(0), DATA)
        .expect("nothing is mapped yet")
        .ignore("no processor uses these tables");
}

/// Page addresses in an order that no prefetcher guesses; a fixed one, so that runs compare.
fn scattered() -> Vec<Gva> {
    let mut state = 1_u64;
    (0..LOOKUPS)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let page = (state >> 33) % PAGES;
            START.checked_add(page * PAGE_SIZE).expect("in the range")
        })
        .collect()
}

#[divan::bench(args = [PageSize::Size4KiB, PageSize::Size2MiB])]
fn map_fresh(bencher: Bencher, max_leaf: PageSize) {
    bencher
        .counter(ItemsCount::new(PAGES))
        .with_inputs(memory)
        .bench_local_refs(|words| map(words, max_leaf));
}

/// The floor of mapping: as many words, plainly.
#[divan::bench]
fn fill_as_many_words(bencher: Bencher) {
    let mut words = vec![0_u64; usize::try_from(PAGES).expect("few")];
    bencher
        .counter(ItemsCount::new(PAGES))
        .bench_local(|| black_box(&mut words).fill(black_box(7)));
}

#[divan::bench]
fn unmap(bencher: Bencher) {
    bencher
        .counter(ItemsCount::new(PAGES))
        .with_inputs(mapped)
        .bench_local_refs(|words| {
            let duty = mapper(words, PageSize::Size4KiB).unmap(range());
            duty.expect("all is mapped")
                .ignore("no processor uses these tables");
        });
}

#[divan::bench]
fn protect(bencher: Bencher) {
    let change = AttrChange::clear(Attrs::WRITE).and_set(Attrs::COW);
    bencher
        .counter(ItemsCount::new(PAGES))
        .with_inputs(mapped)
        .bench_local_refs(|words| {
            let duty = mapper(words, PageSize::Size4KiB).protect(range(), change);
            duty.expect("all is mapped")
                .ignore("no processor uses these tables");
        });
}

#[divan::bench]
fn walk(bencher: Bencher) {
    let mut words = mapped();
    let store = SliceStore::new(ROOT, &mut words);
    bencher.counter(ItemsCount::new(PAGES)).bench_local(|| {
        let walker = Walker::new(&store, ROOT, Format::FOUR_LEVEL, BUDGET).expect("root");
        let mut sum = 0_u64;
        walker
            .for_each_leaf(|step| sum = sum.wrapping_add(step.leaf.frame.as_u64()))
            .expect("within the budget");
        sum
    });
}

/// The same, leaf by leaf.
#[divan::bench]
fn iterate(bencher: Bencher) {
    let mut words = mapped();
    let store = SliceStore::new(ROOT, &mut words);
    bencher.counter(ItemsCount::new(PAGES)).bench_local(|| {
        let walker = Walker::new(&store, ROOT, Format::FOUR_LEVEL, BUDGET).expect("root");
        walker
            .leaves()
            .map(|leaf| leaf.expect("within the budget").leaf.frame.as_u64())
            .fold(0, u64::wrapping_add)
    });
}

#[divan::bench]
fn look_up_scattered(bencher: Bencher) {
    let mut words = mapped();
    let store = SliceStore::new(ROOT, &mut words);
    let scattered = scattered();
    bencher.counter(ItemsCount::new(LOOKUPS)).bench_local(|| {
        for &gva in &scattered {
            black_box(translate(&store, ROOT, gva, Format::FOUR_LEVEL)).expect("mapped");
        }
    });
}

//! Micro-benchmarks of page-table operations over ordinary memory.
//!
//! `cargo bench -p vellum-vmem` prints, for each operation, the best and the median time of several
//! rounds, for the whole and for each page. Figures in `docs/` come from `cargo xtask bench`; this
//! program is for work on the crate itself.

use std::hint::black_box;
use std::time::Instant;

use vellum_layout::{Gpa, GpaRange, Gva, GvaRange, PAGE_SIZE, PageSize};
use vellum_vmem::{
    AttrChange, Attrs, Budget, Format, FrameRange, Mapper, SliceStore, Walker, translate,
};

const ROOT: Gpa = Gpa::literal(0x1_0000_0000);
const TABLE_FRAMES: usize = 600;
const RANGE_BYTES: u64 = 1 << 30;
const PAGES: u64 = RANGE_BYTES / PAGE_SIZE;
const START: Gva = Gva::literal(0x40_0000_0000);
const ROUNDS: usize = 21;
const DATA: Attrs = Attrs::WRITE.union(Attrs::USER).union(Attrs::NO_EXECUTE);
const BUDGET: Budget = Budget {
    tables: 1_000,
    leaves: PAGES,
};

type Bencher<'a> = Mapper<SliceStore<'a>, FrameRange>;

fn mapper(memory: &mut [u64], max_leaf: PageSize) -> Bencher<'_> {
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

fn map(mapper: &mut Bencher<'_>) {
    mapper
        .map(range(), Gpa::literal(0), DATA)
        .expect("nothing is mapped yet")
        .ignore("no processor uses these tables");
}

/// Runs `operation` on state that `prepare` makes outside the timed part, and prints the times.
fn report<T>(
    name: &str,
    units: u64,
    mut prepare: impl FnMut() -> T,
    mut operation: impl FnMut(&mut T),
) {
    let mut times_ns = Vec::new();
    for _ in 0..ROUNDS {
        let mut state = prepare();
        let start = Instant::now();
        operation(black_box(&mut state));
        times_ns.push(start.elapsed().as_nanos());
    }
    times_ns.sort_unstable();
    let (best, median) = (times_ns[0], times_ns[ROUNDS / 2]);
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let each = median as f64 / units as f64;
    println!("{name:<34} best {best:>10} ns   median {median:>10} ns   {each:>8.2} ns each");
}

fn bench_fresh(memory: &mut [u64]) {
    for (name, size) in [
        ("map 1 GiB, 4 KiB leaves, fresh", PageSize::Size4KiB),
        ("map 1 GiB, 2 MiB leaves, fresh", PageSize::Size2MiB),
    ] {
        let units = RANGE_BYTES / size.bytes();
        // The borrow of `memory` cannot leave the closure: the mapper is made in the timed part,
        // which costs nothing, after the untimed part has cleared the memory.
        let cell = std::cell::RefCell::new(&mut *memory);
        report(
            name,
            units,
            || cell.borrow_mut().fill(0),
            |()| map(&mut mapper(&mut cell.borrow_mut(), size)),
        );
    }
    let cell = std::cell::RefCell::new(&mut *memory);
    report(
        "floor: fill of as many bytes",
        PAGES,
        || cell.borrow_mut().fill(0),
        |()| {
            let words = usize::try_from(PAGES).expect("fits");
            cell.borrow_mut()[..words].fill(black_box(7));
        },
    );
}

fn bench_edits(memory: &mut [u64]) {
    memory.fill(0);
    let mut mapper = mapper(memory, PageSize::Size4KiB);
    map(&mut mapper);
    let cell = std::cell::RefCell::new(mapper);
    report(
        "unmap 1 GiB, 4 KiB leaves",
        PAGES,
        || (),
        |()| {
            let duty = cell.borrow_mut().unmap(range()).expect("all is mapped");
            duty.ignore("no processor uses these tables");
            map(&mut cell.borrow_mut());
        },
    );
    let toggle = std::cell::Cell::new(false);
    report(
        "protect 1 GiB, 4 KiB leaves",
        PAGES,
        || toggle.set(!toggle.get()),
        |()| {
            let change = if toggle.get() {
                AttrChange::clear(Attrs::WRITE).and_set(Attrs::COW)
            } else {
                AttrChange::clear(Attrs::COW).and_set(Attrs::WRITE)
            };
            let duty = cell.borrow_mut().protect(range(), change);
            duty.expect("all is mapped")
                .ignore("no processor uses these tables");
        },
    );
    let scattered = scattered_pages();
    report(
        "remap_leaf, scattered",
        scattered.len() as u64,
        || (),
        |()| {
            for &gva in &scattered {
                let duty = cell
                    .borrow_mut()
                    .remap_leaf(gva, Gpa::literal(0x1000), DATA);
                duty.expect("mapped")
                    .ignore("no processor uses these tables");
            }
        },
    );
}

/// Page addresses in an order that no prefetcher guesses; a fixed one, so that runs compare.
fn scattered_pages() -> Vec<Gva> {
    let mut state = 1u64;
    (0..100_000)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let page = (state >> 33) % PAGES;
            START.checked_add(page * PAGE_SIZE).expect("in the range")
        })
        .collect()
}

fn bench_reads(memory: &mut [u64]) {
    memory.fill(0);
    map(&mut mapper(memory, PageSize::Size4KiB));
    let store = SliceStore::new(ROOT, memory);
    report(
        "walk 1 GiB of 4 KiB leaves",
        PAGES,
        || (),
        |()| {
            let walker = Walker::new(&store, ROOT, Format::FOUR_LEVEL, BUDGET).expect("root");
            let sum = walker
                .leaves()
                .map(|leaf| leaf.expect("within the budget").leaf.frame.as_u64())
                .fold(0, u64::wrapping_add);
            black_box(sum);
        },
    );
    let scattered = scattered_pages();
    report(
        "translate, scattered",
        scattered.len() as u64,
        || (),
        |()| {
            for &gva in &scattered {
                black_box(translate(&store, ROOT, gva, Format::FOUR_LEVEL)).expect("mapped");
            }
        },
    );
}

fn main() {
    let mut memory = vec![0u64; TABLE_FRAMES * 512];
    bench_fresh(&mut memory);
    bench_edits(&mut memory);
    bench_reads(&mut memory);
}

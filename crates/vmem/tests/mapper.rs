//! Random sequences of mapper operations against a plain model and the software MMU.

mod machine;

use std::collections::BTreeMap;

use machine::mmu::{self, Page};
use machine::{FrameList, Memory, Mode, ROOT, machine};
use proptest::prelude::*;
use vellum_layout::{Gpa, Gva, GvaRange, PAGE_SIZE, PageSize};
use vellum_vmem::{
    AttrChange, Attrs, Change, MapError, Mapper, NoFrames, ProtectError, RemapError, SplitError,
    TableError, TranslateError, UnmapError, translate,
};

/// What should be mapped: page number (linear address / 4096) to frame number and attributes.
type Model = BTreeMap<u64, (u64, Attrs)>;

/// A run of pages: first page number and count.
type Run = (u64, u64);

#[derive(Clone, Debug)]
enum Op {
    Map {
        run: Run,
        frame: u64,
        attrs: Attrs,
        max_leaf: PageSize,
    },
    Unmap(Run),
    Protect(Run, AttrChange),
    Remap {
        page: u64,
        frame: u64,
        attrs: Attrs,
    },
    Split {
        page: u64,
        size: PageSize,
    },
}

/// Page numbers around places where something changes: tables, large pages, halves.
fn runs(mode: Mode) -> impl Strategy<Value = Run> {
    let anchors: &[u64] = match mode {
        // Start, 2 MiB boundaries, 1 GiB boundary, 512 GiB boundary, end of the lower half, upper half.
        Mode::FourLevel => &[
            0,
            512,
            1024,
            0x3_fe00,
            0x4_0000,
            0x7ff_fff8,
            0x7_ffff_fe00,
            0x8_0000_0000,
            0xf_ffff_fe00,
        ],
        Mode::TwoLevel | Mode::TwoLevelPse => &[0, 1024, 2048, 0xf_f800, 0xf_fc00],
    };
    let limit = match mode {
        Mode::FourLevel => 0x10_0000_0000u64,
        _ => 0x10_0000,
    };
    let offset = prop_oneof![4 => 0..12u64, 1 => 505..520u64];
    let count = prop_oneof![4 => 1..12u64, 1 => Just(512u64), 1 => Just(1024), 1 => 500..1100u64];
    (proptest::sample::select(anchors), offset, count).prop_map(move |(anchor, offset, count)| {
        let first = anchor + offset;
        // Ranges end a page before the canonical gap and the top (`GvaRange` cannot hold more).
        let half = if first < limit / 2 { limit / 2 } else { limit };
        let end = if mode == Mode::FourLevel {
            half - 1
        } else {
            limit
        };
        let first = first.min(end - 1);
        (first, count.min(end - first))
    })
}

/// Frames at equal and unequal distance from the pages, so that large leaves are possible.
fn frames() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0u64), Just(0x800), Just(0x4_0000), 0..0x1_0000u64]
}

fn attrs(mode: Mode) -> impl Strategy<Value = Attrs> {
    any::<u64>().prop_map(move |bits| {
        let attrs = Attrs::from_bits_truncate(bits);
        match mode {
            Mode::FourLevel => attrs,
            _ => attrs & Attrs::from_bits_truncate(0xfff),
        }
    })
}

fn changes(mode: Mode) -> impl Strategy<Value = AttrChange> {
    (attrs(mode), attrs(mode)).prop_flat_map(|(one, other)| {
        prop_oneof![
            Just(AttrChange::exactly(one)),
            Just(AttrChange::set(one)),
            Just(AttrChange::clear(one)),
            Just(AttrChange::clear(one).and_set(other)),
            Just(AttrChange::set(one).and_clear(other)),
        ]
    })
}

fn sizes() -> impl Strategy<Value = PageSize> {
    proptest::sample::select(&PageSize::ALL[..])
}

fn ops(mode: Mode) -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (runs(mode), frames(), attrs(mode), sizes()).prop_map(|(run, frame, attrs, max_leaf)| {
            // Congruent to the page number modulo 2 MiB in most cases.
            let frame = if frame % 2 == 0 { frame + run.0 % 1024 } else { frame };
            Op::Map { run, frame, attrs, max_leaf }
        }),
        2 => runs(mode).prop_map(Op::Unmap),
        2 => (runs(mode), changes(mode)).prop_map(|(run, change)| Op::Protect(run, change)),
        1 => (runs(mode), frames(), attrs(mode))
            .prop_map(|(run, frame, attrs)| Op::Remap { page: run.0, frame, attrs }),
        1 => (runs(mode), sizes()).prop_map(|(run, size)| Op::Split { page: run.0, size }),
    ]
}

fn histories() -> impl Strategy<Value = (Mode, Vec<Op>)> {
    proptest::sample::select(&Mode::ALL[..]).prop_flat_map(|mode| {
        let history = proptest::collection::vec(ops(mode), 1..16);
        (Just(mode), history)
    })
}

fn gva(page: u64) -> Gva {
    Gva::sign_extend(page * PAGE_SIZE)
}

fn range((first, count): Run) -> GvaRange {
    GvaRange::new(gva(first), count * PAGE_SIZE).expect("the generator keeps to valid ranges")
}

fn pages((first, count): Run) -> std::ops::Range<u64> {
    first..first + count
}

type Machine = Mapper<Memory, FrameList>;

fn with_max_leaf(mapper: Machine, mode: Mode, max_leaf: PageSize) -> Machine {
    let (root, format) = (mapper.root(), mode.format());
    let (store, frames) = mapper.into_parts();
    let mapper = Mapper::new(store, frames, root, format).expect("aligned root");
    mapper.with_max_leaf(max_leaf)
}

/// Carries the operation out on both, and checks that they agree on the outcome.
fn step(mapper: &mut Machine, mode: Mode, model: &mut Model, op: &Op) {
    match *op {
        Op::Map {
            run, frame, attrs, ..
        } => {
            let taken = pages(run).find(|page| model.contains_key(page));
            let result = mapper.map(range(run), Gpa::literal(frame * PAGE_SIZE), attrs);
            if let Some(page) = taken {
                assert_eq!(result, Err(MapError::AlreadyMapped { gva: gva(page) }));
                return;
            }
            let duty = result.expect("nothing is in the way");
            assert_eq!((duty.range(), duty.change()), (range(run), Change::Added));
            duty.ignore("nothing runs");
            model.extend(pages(run).map(|page| (page, (frame + page - run.0, attrs))));
        }
        Op::Unmap(run) => {
            let hole = pages(run).find(|page| !model.contains_key(page));
            let result = mapper.unmap(range(run));
            if let Some(page) = hole {
                assert_eq!(result, Err(UnmapError::NotMapped { gva: gva(page) }));
                return;
            }
            let duty = result.expect("all is mapped");
            assert_eq!(
                (duty.range(), duty.change()),
                (range(run), change_of(model, run))
            );
            duty.ignore("nothing runs");
            model.retain(|page, _| !pages(run).contains(page));
        }
        Op::Protect(run, change) => {
            let hole = pages(run).find(|page| !model.contains_key(page));
            let result = mapper.protect(range(run), change);
            if let Some(page) = hole {
                assert_eq!(result, Err(ProtectError::NotMapped { gva: gva(page) }));
                return;
            }
            let duty = result.expect("all is mapped");
            assert_eq!(
                (duty.range(), duty.change()),
                (range(run), change_of(model, run))
            );
            duty.ignore("nothing runs");
            for page in pages(run) {
                let (_, attrs) = model.get_mut(&page).unwrap();
                *attrs = change.apply(*attrs);
            }
        }
        Op::Remap { page, frame, attrs } => remap(mapper, mode, model, page, (frame, attrs)),
        Op::Split { page, size } => split(mapper, mode, model, page, size),
    }
}

fn change_of(model: &Model, run: Run) -> Change {
    let global = model
        .range(pages(run))
        .any(|(_, (_, attrs))| attrs.contains(Attrs::GLOBAL));
    if global {
        Change::ChangedGlobal
    } else {
        Change::Changed
    }
}

fn size_of(mapper: &Machine, mode: Mode, page: u64) -> Option<PageSize> {
    let found = translate(mapper.store(), mapper.root(), gva(page), mode.format());
    found.ok().map(|mapping| mapping.size)
}

fn remap(mapper: &mut Machine, mode: Mode, model: &mut Model, page: u64, new: (u64, Attrs)) {
    let (frame, attrs) = new;
    let size = size_of(mapper, mode, page);
    let result = mapper.remap_leaf(gva(page), Gpa::literal(frame * PAGE_SIZE), attrs);
    let Some(size) = size else {
        let unmapped = matches!(
            result,
            Err(RemapError::Lookup(TranslateError::NotMapped { .. }))
        );
        assert!(unmapped, "{result:?}");
        return;
    };
    let count = size.bytes() / PAGE_SIZE;
    if frame % count != 0 {
        let refused = matches!(result, Err(RemapError::Unencodable { .. }));
        assert!(refused, "{result:?}");
        return;
    }
    let duty = result.expect("aligned frame for a mapped page");
    let first = page / count * count;
    assert_eq!(duty.range(), range((first, count)));
    assert_eq!(duty.change(), change_of(model, (page, 1)));
    duty.ignore("nothing runs");
    model.extend(pages((first, count)).map(|page| (page, (frame + page - first, attrs))));
}

fn split(mapper: &mut Machine, mode: Mode, model: &Model, page: u64, size: PageSize) {
    let result = mapper.split_leaf(gva(page), size);
    if mode.format().level_of(size).is_none() {
        assert_eq!(result, Err(SplitError::NoSuchSize { size }));
    } else if model.contains_key(&page) {
        result.expect("mapped page").ignore("nothing runs");
        assert!(size_of(mapper, mode, page).unwrap() <= size);
    } else {
        let unmapped = matches!(
            result,
            Err(SplitError::Lookup(TranslateError::NotMapped { .. }))
        );
        assert!(unmapped, "{result:?}");
    }
}

/// What the MMU should say about a page of the model.
fn expected_page(page: u64, frame: u64, attrs: Attrs) -> Page {
    let bits = attrs.bits();
    Page {
        va: gva(page).as_u64(),
        pa: frame * PAGE_SIZE,
        bytes: PAGE_SIZE,
        writable: attrs.contains(Attrs::WRITE),
        user: attrs.contains(Attrs::USER),
        executable: !attrs.contains(Attrs::NO_EXECUTE),
        global: attrs.contains(Attrs::GLOBAL),
        software: bits >> 9 & 7,
        memory_type: (bits >> 7 & 1) << 2 | bits >> 3 & 3,
    }
}

/// Cuts large pages into small ones, to compare with a model of small ones.
fn small_pages(page: Page) -> impl Iterator<Item = Page> {
    (0..page.bytes / PAGE_SIZE).map(move |n| Page {
        va: page.va + n * PAGE_SIZE,
        pa: page.pa + n * PAGE_SIZE,
        bytes: PAGE_SIZE,
        ..page
    })
}

fn assert_mmu_sees(memory: &Memory, mode: Mode, model: &Model) {
    let seen = mmu::enumerate(memory, mode, ROOT);
    let expected = model
        .iter()
        .map(|(&page, &(frame, attrs))| expected_page(page, frame, attrs));
    assert!(seen.into_iter().flat_map(small_pages).eq(expected));
}

proptest! {
    #![proptest_config(machine::cases(256))]

    #[test]
    fn every_operation_does_to_the_tables_what_it_does_to_the_model((mode, ops) in histories()) {
        let (memory, frames) = machine(200);
        let mut mapper =
            Mapper::new(memory, frames, Gpa::literal(ROOT), mode.format()).expect("aligned root");
        let mut model = Model::new();
        for op in &ops {
            if let Op::Map { max_leaf, .. } = *op {
                mapper = with_max_leaf(mapper, mode, max_leaf);
            }
            step(&mut mapper, mode, &mut model, op);
            assert_mmu_sees(mapper.store(), mode, &model);
        }
    }

    #[test]
    fn an_operation_without_frames_changes_no_translation((mode, ops) in histories()) {
        let (memory, frames) = machine(200);
        let mut mapper =
            Mapper::new(memory, frames, Gpa::literal(ROOT), mode.format()).expect("aligned root");
        let mut model = Model::new();
        for op in &ops {
            if let Op::Map { max_leaf, .. } = *op {
                mapper = with_max_leaf(mapper, mode, max_leaf);
            }
            // The same operation with no frame, then with one, on a copy of the machine.
            for frames in [vec![], mapper.frames().0.iter().copied().take(1).collect()] {
                let store = mapper.store().clone();
                let poor = Mapper::new(store, FrameList(frames), mapper.root(), mode.format());
                let mut poor = poor.expect("aligned root");
                if out_of_frames(&mut poor, op) {
                    assert_mmu_sees(poor.store(), mode, &model);
                }
            }
            step(&mut mapper, mode, &mut model, op);
        }
    }

    #[test]
    fn a_store_that_refuses_writes_makes_operations_fail_and_nothing_else(
        (mode, ops) in histories(),
    ) {
        let (memory, frames) = machine(200);
        let mut mapper =
            Mapper::new(memory, frames, Gpa::literal(ROOT), mode.format()).expect("aligned root");
        let mut model = Model::new();
        for op in &ops {
            let mut frozen = mapper.store().clone();
            frozen.freeze();
            let before = frozen.clone();
            let frames = mapper.frames().clone();
            let mut reader = Mapper::new(&mut frozen, frames, mapper.root(), mode.format())
                .expect("aligned root");
            if let Op::Map { run, frame, attrs, .. } = *op {
                let result = reader.map(range(run), Gpa::literal(frame * PAGE_SIZE), attrs);
                let refused = matches!(
                    result,
                    Err(MapError::AlreadyMapped { .. } | MapError::Tables(TableError::Store(_)))
                );
                prop_assert!(refused);
            }
            prop_assert_eq!(&frozen, &before);
            step(&mut mapper, mode, &mut model, op);
        }
    }
}

/// Runs the operation and says whether it failed for want of frames.
fn out_of_frames(mapper: &mut Machine, op: &Op) -> bool {
    let tables = |error: TableError| matches!(error, TableError::OutOfFrames { .. });
    let failed = match *op {
        Op::Map {
            run, frame, attrs, ..
        } => match mapper.map(range(run), Gpa::literal(frame * PAGE_SIZE), attrs) {
            Err(MapError::Tables(error)) => Some(error),
            _ => None,
        },
        Op::Unmap(run) => match mapper.unmap(range(run)) {
            Err(UnmapError::Tables(error)) => Some(error),
            _ => None,
        },
        Op::Protect(run, change) => match mapper.protect(range(run), change) {
            Err(ProtectError::Tables(error)) => Some(error),
            _ => None,
        },
        Op::Split { page, size } => match mapper.split_leaf(gva(page), size) {
            Err(SplitError::Tables(error)) => Some(error),
            _ => None,
        },
        Op::Remap { .. } => None,
    };
    failed.is_some_and(tables)
}

#[test]
fn a_whole_gibibyte_becomes_one_leaf_and_splits_down_to_4_kib() {
    let mode = Mode::FourLevel;
    let (memory, frames) = machine(4);
    let root = Gpa::literal(ROOT);
    let mut mapper = Mapper::new(memory, frames, root, mode.format())
        .expect("aligned root")
        .with_max_leaf(PageSize::Size1GiB);
    let run = (0x4_0000, 0x4_0000);
    mapper
        .map(
            range(run),
            Gpa::literal(0x8000_0000),
            Attrs::WRITE | Attrs::PAT,
        )
        .expect("room")
        .ignore("nothing runs");
    assert_eq!(mapper.frames().0.len(), 3, "one table holds the leaf");
    mapper
        .unmap(range((0x4_1234, 1)))
        .expect("mapped")
        .ignore("nothing runs");
    assert_eq!(mapper.frames().0.len(), 1, "two more tables split it");
    let mut model: Model = pages(run)
        .map(|page| (page, (page + 0x4_0000, Attrs::WRITE | Attrs::PAT)))
        .collect();
    model.remove(&0x4_1234);
    assert_mmu_sees(mapper.store(), mode, &model);
    assert_eq!(mmu::enumerate(mapper.store(), mode, ROOT).len(), 511 + 511);
}

#[test]
fn changing_mapped_pages_needs_no_frames() {
    let mode = Mode::FourLevel;
    let (memory, frames) = machine(3);
    let root = Gpa::literal(ROOT);
    let mut mapper = Mapper::new(memory, frames, root, mode.format()).expect("aligned root");
    mapper
        .map(range((0, 16)), Gpa::literal(0x5000), Attrs::WRITE)
        .expect("room")
        .ignore("nothing runs");
    let (store, _) = mapper.into_parts();
    let mut mapper = Mapper::new(store, NoFrames, root, mode.format()).expect("aligned root");
    let change = AttrChange::clear(Attrs::WRITE).and_set(Attrs::COW);
    mapper
        .protect(range((3, 5)), change)
        .expect("mapped")
        .ignore("nothing runs");
    mapper
        .unmap(range((0, 2)))
        .expect("mapped")
        .ignore("nothing runs");
    let model: Model = (2..16)
        .map(|page| match page {
            3..8 => (page, (page + 5, Attrs::COW)),
            _ => (page, (page + 5, Attrs::WRITE)),
        })
        .collect();
    assert_mmu_sees(mapper.store(), mode, &model);
}

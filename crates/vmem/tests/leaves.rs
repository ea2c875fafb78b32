//! Which leaves the mapper makes, splits and replaces, and what it costs in tables.

mod machine;

use machine::mmu;
use machine::{FrameList, Memory, Mode, ROOT, machine};
use vellum_layout::{Gpa, Gva, GvaRange, PageSize};
use vellum_vmem::{
    Attrs, Change, Level, MapError, Mapper, RemapError, SplitError, TableError, translate,
};

const KIB_4: u64 = 0x1000;
const MIB_2: u64 = 0x20_0000;
const MIB_4: u64 = 0x40_0000;
const GIB: u64 = 0x4000_0000;

fn mapper(mode: Mode, tables: u64) -> Mapper<Memory, FrameList> {
    let (memory, frames) = machine(tables);
    Mapper::new(memory, frames, Gpa::literal(ROOT), mode.format()).expect("aligned root")
}

fn range(start: u64, len_bytes: u64) -> GvaRange {
    GvaRange::new(Gva::literal(start), len_bytes).expect("valid range")
}

/// Sizes of all leaves in order, as (size, how many in a row).
fn sizes(mapper: &Mapper<Memory, FrameList>, mode: Mode) -> Vec<(u64, usize)> {
    let mut runs: Vec<(u64, usize)> = Vec::new();
    for page in mmu::enumerate(mapper.store(), mode, ROOT) {
        match runs.last_mut() {
            Some((bytes, count)) if *bytes == page.bytes => *count += 1,
            _ => runs.push((page.bytes, 1)),
        }
    }
    runs
}

/// A mapping, and the leaves it should be made of.
struct Case {
    mode: Mode,
    max_leaf: Option<PageSize>,
    start: u64,
    len_bytes: u64,
    frame: u64,
    expected: &'static [(u64, usize)],
}

const CASE: Case = Case {
    mode: Mode::FourLevel,
    max_leaf: None,
    start: 0,
    len_bytes: MIB_2,
    frame: 0,
    expected: &[(MIB_2, 1)],
};

const CASES: &[Case] = &[
    CASE,
    // The caller allows less, or more.
    Case {
        max_leaf: Some(PageSize::Size4KiB),
        expected: &[(KIB_4, 512)],
        ..CASE
    },
    Case {
        max_leaf: Some(PageSize::Size1GiB),
        len_bytes: GIB + MIB_2 + KIB_4,
        frame: GIB,
        expected: &[(GIB, 1), (MIB_2, 1), (KIB_4, 1)],
        ..CASE
    },
    // 1 GiB leaves are made only when asked for.
    Case {
        len_bytes: GIB,
        expected: &[(MIB_2, 512)],
        ..CASE
    },
    // The frame is aligned to less than the address.
    Case {
        frame: KIB_4,
        expected: &[(KIB_4, 512)],
        ..CASE
    },
    Case {
        max_leaf: Some(PageSize::Size1GiB),
        len_bytes: GIB,
        frame: MIB_2,
        expected: &[(MIB_2, 512)],
        ..CASE
    },
    // Both are off by the same: small pages up to the boundary, and after it.
    Case {
        start: MIB_2 - KIB_4,
        len_bytes: MIB_2 + 2 * KIB_4,
        frame: GIB - KIB_4,
        expected: &[(KIB_4, 1), (MIB_2, 1), (KIB_4, 1)],
        ..CASE
    },
    // A size that the format does not have means the next smaller one.
    Case {
        max_leaf: Some(PageSize::Size4MiB),
        len_bytes: MIB_4,
        expected: &[(MIB_2, 2)],
        ..CASE
    },
    Case {
        mode: Mode::TwoLevelPse,
        len_bytes: MIB_4 + MIB_2,
        expected: &[(MIB_4, 1), (KIB_4, 512)],
        ..CASE
    },
    Case {
        mode: Mode::TwoLevelPse,
        max_leaf: Some(PageSize::Size2MiB),
        len_bytes: MIB_4,
        expected: &[(KIB_4, 1024)],
        ..CASE
    },
    Case {
        mode: Mode::TwoLevel,
        len_bytes: MIB_4,
        expected: &[(KIB_4, 1024)],
        ..CASE
    },
];

#[test]
fn leaves_are_as_large_as_alignment_and_maximum_allow() {
    for (number, case) in CASES.iter().enumerate() {
        let mut mapper = mapper(case.mode, 8);
        if let Some(max_leaf) = case.max_leaf {
            mapper = mapper.with_max_leaf(max_leaf);
        }
        let frame = Gpa::literal(case.frame);
        mapper
            .map(range(case.start, case.len_bytes), frame, Attrs::WRITE)
            .expect("room")
            .ignore("nothing runs");
        assert_eq!(sizes(&mapper, case.mode), case.expected, "case {number}");
    }
}

#[test]
fn a_run_of_large_pages_goes_around_the_tables_that_are_there() {
    let mut mapper = mapper(Mode::FourLevel, 4);
    let page = range(5 * MIB_2, KIB_4);
    let flush = mapper.map(page, Gpa::literal(MIB_2), Attrs::WRITE);
    flush.expect("mapped").ignore("no processor");
    let flush = mapper.unmap(page).expect("mapped");
    flush.ignore("no processor");
    let all = range(KIB_4, 9 * MIB_2);
    let refused = mapper.map(all, Gpa::literal(GIB + KIB_4), Attrs::WRITE);
    assert!(
        matches!(
            refused,
            Err(MapError::Tables(TableError::OutOfFrames {
                level: Level::L1
            }))
        ),
        "two more tables are needed, and there is one: {refused:?}"
    );
    let middle = range(MIB_2, 8 * MIB_2);
    let flush = mapper.map(middle, Gpa::literal(GIB + MIB_2), Attrs::WRITE);
    flush.expect("mapped").ignore("no processor");
    assert_eq!(
        sizes(&mapper, Mode::FourLevel),
        [(MIB_2, 4), (KIB_4, 512), (MIB_2, 3)]
    );
    for page in mmu::enumerate(mapper.store(), Mode::FourLevel, ROOT) {
        assert_eq!(page.pa, page.va + GIB);
    }
}

#[test]
fn a_table_that_exists_is_used_rather_than_replaced_by_a_large_leaf() {
    let mode = Mode::FourLevel;
    let mut mapper = mapper(mode, 3);
    for len_bytes in [KIB_4, MIB_2] {
        mapper
            .map(range(0, len_bytes), Gpa::literal(0), Attrs::empty())
            .expect("room")
            .ignore("nothing runs");
        mapper
            .unmap(range(0, len_bytes))
            .expect("mapped")
            .ignore("nothing runs");
    }
    mapper
        .map(range(0, MIB_2), Gpa::literal(0), Attrs::empty())
        .expect("the tables of the first mapping are still there")
        .ignore("nothing runs");
    assert_eq!(sizes(&mapper, mode), [(KIB_4, 512)]);
}

#[test]
fn splitting_keeps_every_translation_and_right() {
    let everything = Attrs::WRITE | Attrs::USER | Attrs::GLOBAL | Attrs::PAT | Attrs::COW;
    let cases = [
        // Large leaf, size asked for, sizes afterwards.
        (Mode::FourLevel, GIB, PageSize::Size2MiB, vec![(MIB_2, 512)]),
        (
            Mode::FourLevel,
            GIB,
            PageSize::Size4KiB,
            vec![(KIB_4, 512), (MIB_2, 511)],
        ),
        (
            Mode::FourLevel,
            MIB_2,
            PageSize::Size4KiB,
            vec![(KIB_4, 512)],
        ),
        (
            Mode::TwoLevelPse,
            MIB_4,
            PageSize::Size4KiB,
            vec![(KIB_4, 1024)],
        ),
    ];
    for (mode, len_bytes, size, expected) in cases {
        let mut mapper = mapper(mode, 8).with_max_leaf(PageSize::Size1GiB);
        mapper
            .map(range(0, len_bytes), Gpa::literal(GIB), everything)
            .expect("room")
            .ignore("nothing runs");
        let duty = mapper
            .split_leaf(Gva::literal(0x1234), size)
            .expect("mapped");
        assert_eq!(duty.range(), range(0, len_bytes));
        assert_eq!(duty.change(), Change::ChangedGlobal);
        duty.ignore("nothing runs");
        assert_eq!(sizes(&mapper, mode), expected);
        for page in mmu::enumerate(mapper.store(), mode, ROOT) {
            assert_eq!(page.pa, page.va + GIB);
            assert!(page.writable && page.user && page.executable && page.global);
            assert_eq!((page.software, page.memory_type), (1, 4));
        }
    }
}

#[test]
fn a_split_gives_the_new_table_the_rights_of_its_leaf() {
    // New tables are to be closed, but the leaf was made while they were open.
    let mode = Mode::FourLevel;
    let mut open = mapper(mode, 8);
    open.map(range(0, MIB_2), Gpa::literal(0), Attrs::WRITE | Attrs::USER)
        .expect("room")
        .ignore("nothing runs");
    let (memory, frames) = open.into_parts();
    let mut closed = Mapper::new(memory, frames, Gpa::literal(ROOT), mode.format())
        .expect("aligned root")
        .with_table_attrs(Attrs::NO_EXECUTE)
        .expect("tables can be closed");
    closed
        .split_leaf(Gva::literal(0), PageSize::Size4KiB)
        .expect("mapped")
        .ignore("nothing runs");
    let pages = mmu::enumerate(closed.store(), mode, ROOT);
    assert_eq!(pages.len(), 512);
    for page in pages {
        assert!(page.writable && page.user && page.executable, "{page:?}");
    }
}

#[test]
fn a_page_that_is_small_enough_is_not_split() {
    let mut mapper = mapper(Mode::FourLevel, 3);
    mapper
        .map(range(0x5000, KIB_4), Gpa::literal(0), Attrs::empty())
        .expect("room")
        .ignore("nothing runs");
    let before = mapper.store().clone();
    for size in [PageSize::Size4KiB, PageSize::Size2MiB, PageSize::Size1GiB] {
        let duty = mapper
            .split_leaf(Gva::literal(0x5000), size)
            .expect("mapped");
        assert_eq!(duty.change(), Change::Unchanged);
        duty.ignore("nothing changed");
    }
    assert_eq!(*mapper.store(), before);
}

#[test]
fn a_split_without_frames_leaves_the_large_leaf() {
    let mode = Mode::FourLevel;
    let mut mapper = mapper(mode, 2);
    mapper
        .map(range(0, MIB_2), Gpa::literal(0), Attrs::empty())
        .expect("room")
        .ignore("nothing runs");
    let result = mapper.split_leaf(Gva::literal(0), PageSize::Size4KiB);
    let refused = matches!(
        result,
        Err(SplitError::Tables(TableError::OutOfFrames { .. }))
    );
    assert!(refused, "{result:?}");
    assert_eq!(sizes(&mapper, mode), [(MIB_2, 1)]);
}

#[test]
fn a_large_page_is_remapped_as_a_whole_to_an_aligned_frame() {
    let mode = Mode::FourLevel;
    let mut mapper = mapper(mode, 2);
    mapper
        .map(range(0, MIB_2), Gpa::literal(0), Attrs::COW)
        .expect("room")
        .ignore("nothing runs");
    let gva = Gva::literal(0x3000);
    let result = mapper.remap_leaf(gva, Gpa::literal(KIB_4), Attrs::WRITE);
    let refused = matches!(
        result,
        Err(RemapError::Unencodable {
            size: PageSize::Size2MiB,
            ..
        })
    );
    assert!(refused, "{result:?}");
    let duty = mapper
        .remap_leaf(gva, Gpa::literal(MIB_4), Attrs::WRITE)
        .expect("aligned");
    assert_eq!(duty.range(), range(0, MIB_2));
    assert_eq!(duty.change(), Change::Changed);
    duty.ignore("nothing runs");
    let found = translate(mapper.store(), mapper.root(), gva, mode.format()).expect("mapped");
    assert_eq!(found.gpa, Gpa::literal(MIB_4 + 0x3000));
    assert_eq!(found.attrs, Attrs::WRITE);
}

#[test]
fn pages_that_no_range_can_hold_are_left_alone() {
    // The last page of the lower half, mapped by hand: its range would end in the canonical gap.
    let (mut memory, frames) = machine(3);
    let table = |n: u64| ROOT + n * KIB_4;
    let width = Mode::FourLevel.format().entry_width();
    for (at, raw) in [
        (table(0) + 255 * 8, table(1) | 7),
        (table(1) + 511 * 8, table(2) | 7),
        (table(2) + 511 * 8, table(3) | 7),
        (table(3) + 511 * 8, 0x9000 | 7),
    ] {
        memory.poke(at, width, raw);
    }
    let format = Mode::FourLevel.format();
    let mut mapper = Mapper::new(memory, frames, Gpa::literal(ROOT), format).expect("aligned root");
    let gva = Gva::literal(0x7fff_ffff_f000);
    assert!(translate(mapper.store(), mapper.root(), gva, format).is_ok());
    let before = mapper.store().clone();
    let result = mapper.remap_leaf(gva, Gpa::literal(0), Attrs::empty());
    assert_eq!(result, Err(RemapError::OutOfReach { gva }));
    let result = mapper.split_leaf(gva, PageSize::Size4KiB);
    assert_eq!(result, Err(SplitError::OutOfReach { gva }));
    assert_eq!(*mapper.store(), before);
}

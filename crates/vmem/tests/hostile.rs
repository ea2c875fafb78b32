//! Tables that no honest guest makes: every answer is bounded, typed and in agreement with a
//! processor, or a refusal.

mod machine;

use std::cell::RefCell;
use std::collections::BTreeMap;

use machine::{FrameList, Memory, ROOT};
use vellum_layout::{Gpa, GpaRange, Gva, GvaRange, PageSize};
use vellum_vmem::{
    AttrChange, Attrs, Budget, EntryWidth, Format, FrameRange, Level, MapError, Mapper, NoFrames,
    RemapError, RootError, SeenTables, SelfReference, ShareError, SliceStore, Step, StoreError,
    TableError, TableStore, TranslateError, UnmapError, WalkError, Walker, translate,
};

const FOUR: Format = Format::FOUR_LEVEL;
/// P, R/W and U/S: an entry that allows everything.
const OPEN: u64 = 0b111;
/// PS: a large leaf.
const LARGE: u64 = 1 << 7;

fn table(n: u64) -> u64 {
    ROOT + n * 0x1000
}

/// Memory with `frames` zeroed frames from the root on, and the given 8-byte entries, each as
/// (table number, index, raw).
fn tables(frames: u64, entries: &[(u64, u64, u64)]) -> Memory {
    let mut memory = Memory::with_frames((0..frames).map(table));
    for &(number, index, raw) in entries {
        memory.poke(table(number) + index * 8, EntryWidth::Bytes8, raw);
    }
    memory
}

fn walker<S: TableStore>(store: &S, budget: Budget) -> Walker<'_, S> {
    Walker::new(store, Gpa::literal(ROOT), FOUR, budget).expect("aligned root")
}

const PLENTY: Budget = Budget {
    tables: 1 << 20,
    leaves: 1 << 20,
};

/// A store that counts how often each entry is read.
struct Counting<'a> {
    memory: &'a Memory,
    reads: RefCell<BTreeMap<u64, u64>>,
}

impl<'a> Counting<'a> {
    fn new(memory: &'a Memory) -> Self {
        let reads = RefCell::default();
        Self { memory, reads }
    }

    fn total(&self) -> u64 {
        self.reads.borrow().values().sum()
    }
}

impl TableStore for Counting<'_> {
    fn read_entry(&self, at: Gpa, width: EntryWidth) -> Result<u64, StoreError> {
        *self.reads.borrow_mut().entry(at.as_u64()).or_default() += 1;
        self.memory.read_entry(at, width)
    }

    fn write_entry(&mut self, at: Gpa, _: EntryWidth, _: u64) -> Result<(), StoreError> {
        Err(StoreError::ReadOnly { at })
    }
}

#[test]
fn one_self_referencing_root_entry_is_refused_skipped_or_followed() {
    let memory = tables(1, &[(0, 511, ROOT | OPEN)]);
    let refused = walker(&memory, PLENTY).next().unwrap().unwrap_err();
    let expected_gva = Gva::literal(0xffff_ff80_0000_0000);
    let expected = WalkError::SelfReference {
        gva: expected_gva,
        table: Gpa::literal(ROOT),
    };
    assert_eq!(refused, expected);

    let skipped: Vec<_> = walker(&memory, PLENTY)
        .on_self_reference(SelfReference::Skip)
        .collect::<Result<_, _>>()
        .unwrap();
    assert!(matches!(skipped[..], [Step::SelfReference(step)] if step.gva == expected_gva));

    // A processor maps the root itself at the last page of all.
    let followed: Vec<_> = walker(&memory, PLENTY)
        .on_self_reference(SelfReference::Follow)
        .leaves()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(followed.len(), 1);
    assert_eq!(followed[0].gva, Gva::literal(0xffff_ffff_ffff_f000));
    assert_eq!(followed[0].leaf.frame, Gpa::literal(ROOT));
}

#[test]
fn a_longer_circle_is_noticed_too() {
    // Root -> level 3 -> level 2 -> level 3 again, as a level-1 table.
    let entries = [
        (0, 0, table(1) | OPEN),
        (1, 0, table(2) | OPEN),
        (2, 7, table(1) | OPEN),
    ];
    let memory = tables(3, &entries);
    let error = walker(&memory, PLENTY).find_map(Result::err);
    let expected = WalkError::SelfReference {
        gva: Gva::literal(7 << 21),
        table: Gpa::literal(table(1)),
    };
    assert_eq!(error, Some(expected));
}

#[test]
fn many_self_references_end_by_budget_during_the_walk() {
    for k in [8, 64, 512] {
        let entries: Vec<_> = (0..k).map(|index| (0, index, ROOT | OPEN)).collect();
        let memory = tables(1, &entries);
        let counting = Counting::new(&memory);
        let budget = Budget {
            tables: 100,
            leaves: 1_000,
        };
        let mut walk = walker(&counting, budget).on_self_reference(SelfReference::Follow);
        let error = walk.find_map(Result::err).expect("k^4 leaves do not fit");
        let exhausted = matches!(
            error,
            WalkError::TooManyTables { limit: 100, .. }
                | WalkError::TooManyLeaves { limit: 1_000, .. }
        );
        assert!(exhausted, "{error:?}");
        assert!(counting.total() <= 100 * 512);
    }
}

/// Every entry of the upper three levels points at the next; the one level-1 table maps one page.
fn aliased() -> Memory {
    let mut entries = Vec::new();
    for index in 0..512 {
        entries.extend((0..3).map(|level| (level, index, table(level + 1) | OPEN)));
    }
    entries.push((3, 5, 0x5000 | OPEN));
    tables(4, &entries)
}

#[test]
fn aliased_tables_end_by_budget() {
    let memory = aliased();
    let counting = Counting::new(&memory);
    let budget = Budget {
        tables: 1_000,
        leaves: u64::MAX,
    };
    let mut walk = walker(&counting, budget);
    let error = walk.find_map(Result::err).unwrap();
    assert!(matches!(
        error,
        WalkError::TooManyTables { limit: 1_000, .. }
    ));
    assert!(counting.total() <= 1_000 * 512);
}

#[test]
fn aliased_tables_are_visited_once_by_a_caller_that_remembers_them() {
    let memory = aliased();
    let counting = Counting::new(&memory);
    let mut slots = [0; 8];
    let mut seen = SeenTables::new(&mut slots);
    let budget = Budget {
        tables: 4,
        leaves: 1,
    };
    let mut walk = walker(&counting, budget);
    let mut leaves = 0;
    while let Some(step) = walk.next() {
        match step.expect("four different tables, one leaf") {
            Step::Table(step) if !seen.insert(step.table, step.level).unwrap() => {
                walk.skip_table();
            }
            Step::Leaf(_) => leaves += 1,
            _ => {}
        }
    }
    assert_eq!(leaves, 1);
    assert_eq!(seen.len(), 3);
    assert_eq!(walk.used(), budget);
    // The single-read rule, for every entry of every table.
    let reads = counting.reads.borrow();
    assert_eq!(reads.len(), 4 * 512);
    assert!(reads.values().all(|&count| count == 1));
}

#[test]
fn skipping_concerns_only_a_table_that_was_just_announced() {
    let entries = [
        (0, 0, table(1) | OPEN),
        (1, 0, LARGE | OPEN),
        (1, 1, LARGE | OPEN),
    ];
    let memory = tables(2, &entries);
    let mut walk = walker(&memory, PLENTY);
    walk.skip_table();
    assert!(matches!(walk.next(), Some(Ok(Step::Table(_)))));
    assert!(matches!(walk.next(), Some(Ok(Step::Leaf(_)))));
    walk.skip_table();
    assert!(matches!(walk.next(), Some(Ok(Step::Leaf(_)))));
    assert!(walk.next().is_none());
}

#[test]
fn tables_without_memory_count_as_absent() {
    let far = (1 << 52) - 0x1000;
    let entries = [
        (0, 0, far | OPEN),
        (0, 1, table(9) | OPEN),
        (0, 2, table(1) | OPEN),
        (1, 0, LARGE | OPEN),
    ];
    let memory = tables(2, &entries);
    let steps: Vec<_> = walker(&memory, PLENTY).collect::<Result<_, _>>().unwrap();
    let unbacked: Vec<_> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Unbacked(step, error) => Some((step.table.as_u64(), error.at().as_u64())),
            _ => None,
        })
        .collect();
    assert_eq!(unbacked, [(far, far), (table(9), table(9))]);
    let leaves = steps.iter().filter(|step| matches!(step, Step::Leaf(_)));
    assert_eq!(leaves.count(), 1);
    let gva = Gva::literal(0x1234);
    let error = translate(&memory, Gpa::literal(ROOT), gva, FOUR).unwrap_err();
    assert!(matches!(error, TranslateError::Store { .. }), "{error:?}");
}

#[test]
fn a_table_that_straddles_the_end_of_memory_has_no_memory() {
    // One and a half frames: the half one is the table of entry 0.
    let mut words = [0u64; 512 + 256];
    words[0] = table(1) | OPEN;
    words[512] = LARGE | OPEN;
    let store = SliceStore::new(Gpa::literal(ROOT), &mut words);
    let steps: Vec<_> = walker(&store, PLENTY).collect::<Result<_, _>>().unwrap();
    assert!(
        matches!(steps[..], [Step::Table(_), Step::Unbacked(..)]),
        "{steps:?}"
    );
    let gva = Gva::literal(0x1000);
    let error = translate(&store, Gpa::literal(ROOT), gva, FOUR).unwrap_err();
    let source = StoreError::Unbacked {
        at: Gpa::literal(table(1)),
    };
    assert_eq!(error, TranslateError::Store { gva, source });
}

#[test]
fn a_root_without_memory_has_no_mappings() {
    let memory = tables(1, &[]);
    for root in [0, 0x20_0000, (1 << 52) - 0x1000] {
        let root = Gpa::literal(root);
        let mut walk = Walker::new(&memory, root, FOUR, PLENTY).unwrap();
        let error = walk.next().unwrap().unwrap_err();
        assert!(matches!(error, WalkError::RootUnbacked { root: at, .. } if at == root));
        assert!(walk.next().is_none());
        assert!(translate(&memory, root, Gva::literal(0), FOUR).is_err());
    }
}

#[test]
fn an_unaligned_root_is_refused_everywhere() {
    let mut memory = tables(1, &[]);
    let root = Gpa::literal(ROOT + 8);
    let expected = RootError::Unaligned { root: ROOT + 8 };
    assert_eq!(
        Walker::new(&memory, root, FOUR, PLENTY).unwrap_err(),
        expected
    );
    let translated = translate(&memory, root, Gva::literal(0), FOUR);
    assert_eq!(translated, Err(TranslateError::Root(expected)));
    assert_eq!(
        Mapper::new(&mut memory, NoFrames, root, FOUR).unwrap_err(),
        expected
    );
}

#[test]
fn a_large_leaf_is_never_taken_for_a_table() {
    // If the 2 MiB page at table 3 were read as a table, its first word would be a mapping.
    let entries = [
        (0, 0, table(1) | OPEN),
        (1, 0, table(2) | OPEN),
        (2, 0, LARGE | OPEN),
        (2, 1, table(3) | LARGE | OPEN),
        (3, 0, 0x7000 | OPEN),
    ];
    let memory = tables(4, &entries);
    let root = Gpa::literal(ROOT);
    let inside = translate(&memory, root, Gva::literal(0x1_2345), FOUR).unwrap();
    assert_eq!(inside.gpa, Gpa::literal(0x1_2345));
    assert_eq!(inside.size, PageSize::Size2MiB);
    // Its frame is not 2 MiB aligned: reserved bits.
    let misaligned = translate(&memory, root, Gva::literal(0x20_0000), FOUR);
    assert!(matches!(misaligned, Err(TranslateError::Malformed { .. })));
    // Without CR4.PSE, PS in a 2-level directory is refused too.
    let mut memory = tables(2, &[(1, 0, 0x7000 | OPEN)]);
    memory.poke(ROOT, EntryWidth::Bytes4, table(1) | LARGE | OPEN);
    let error = translate(&memory, root, Gva::literal(0), Format::TWO_LEVEL).unwrap_err();
    assert!(matches!(error, TranslateError::Malformed { .. }));
}

#[test]
fn entries_with_reserved_bits_are_reported_and_map_nothing() {
    let narrow = FOUR.with_physical_bits(46).unwrap();
    let no_nx = FOUR.without_no_execute();
    let cases = [
        (FOUR, table(1) | OPEN | LARGE),
        (FOUR, table(1) | OPEN | 1 << 8),
        (narrow, table(1) | OPEN | 1 << 46),
        (no_nx, table(1) | OPEN | 1 << 63),
    ];
    for (format, raw) in cases {
        let memory = tables(2, &[(0, 3, raw), (1, 0, LARGE | OPEN)]);
        let steps: Vec<_> = Walker::new(&memory, Gpa::literal(ROOT), format, PLENTY)
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        let expected_gva = Gva::literal(3 << 39);
        assert!(
            matches!(steps[..], [Step::Malformed { gva, .. }] if gva == expected_gva),
            "{raw:#x}: {steps:?}"
        );
    }
}

#[test]
fn a_walk_beyond_the_format_reports_nothing() {
    let memory = tables(1, &[(0, 0, LARGE | OPEN)]);
    let format = Format::TWO_LEVEL_PSE;
    let range = GvaRange::new(Gva::literal(1 << 32), 0x1000).unwrap();
    let walk = Walker::new(&memory, Gpa::literal(ROOT), format, PLENTY).unwrap();
    assert_eq!(walk.within(range).count(), 0);
    let beyond = Gva::literal(1 << 32);
    let error = translate(&memory, Gpa::literal(ROOT), beyond, format);
    assert_eq!(error, Err(TranslateError::OutOfReach { gva: beyond }));
}

fn mapper(memory: &mut Memory, free: u64) -> Mapper<&mut Memory, FrameList> {
    let frames = (0..free).map(|n| table(10 + n)).collect();
    Mapper::new(memory, FrameList(frames), Gpa::literal(ROOT), FOUR).expect("aligned root")
}

fn pages(start: u64, count: u64) -> GvaRange {
    GvaRange::new(Gva::literal(start), count * 0x1000).unwrap()
}

#[test]
fn the_mapper_refuses_bad_arguments_before_it_reads_or_writes() {
    let mut memory = tables(1, &[]);
    let before = memory.clone();
    let mut mapper = mapper(&mut memory, 0);
    let unaligned = Gpa::literal(0x1800);
    let result = mapper.map(pages(0x1000, 1), unaligned, Attrs::empty());
    assert_eq!(result, Err(MapError::UnalignedFrame { frame: unaligned }));
    let last = Gpa::literal((1 << 52) - 0x1000);
    let result = mapper.map(pages(0x1000, 2), last, Attrs::empty());
    let expected = MapError::FramePastEnd {
        frame: last,
        len_bytes: 0x2000,
    };
    assert_eq!(result, Err(expected));
    assert_eq!(memory, before);

    let format = Format::TWO_LEVEL;
    let mut mapper = Mapper::new(&mut memory, NoFrames, Gpa::literal(ROOT), format).unwrap();
    let beyond = pages(0xffff_f000, 2);
    let result = mapper.map(beyond, Gpa::literal(0), Attrs::empty());
    assert_eq!(result, Err(MapError::OutOfReach { range: beyond }));
    let expected = Err(UnmapError::OutOfReach { range: beyond });
    assert_eq!(mapper.unmap(beyond), expected);
    let result = mapper.map(pages(0x1000, 1), Gpa::literal(0), Attrs::NO_EXECUTE);
    assert!(matches!(result, Err(MapError::Unencodable(_))));
    let result = mapper.map(pages(0x1000, 2), Gpa::literal(0xffff_f000), Attrs::empty());
    assert!(matches!(result, Err(MapError::Unencodable(_))));
    assert_eq!(memory, before);
}

#[test]
fn a_table_that_denies_a_right_stops_a_mapping_that_needs_it() {
    const PRESENT: u64 = 1;
    let cases = [
        (PRESENT | 1 << 2, Attrs::WRITE, Attrs::WRITE),
        (PRESENT | 1 << 1, Attrs::USER, Attrs::USER),
        (OPEN | 1 << 63, Attrs::WRITE, Attrs::NO_EXECUTE),
    ];
    for (flags, attrs, denied) in cases {
        let mut memory = tables(12, &[(0, 0, table(1) | flags)]);
        let before = memory.clone();
        let gva = Gva::literal(0x1000);
        let mut mapper = mapper(&mut memory, 2);
        let result = mapper.map(pages(0x1000, 1), Gpa::literal(0), attrs);
        assert_eq!(result, Err(MapError::Restricted { gva, denied }));
        // What the table allows, goes.
        let harmless = Attrs::NO_EXECUTE;
        mapper
            .map(pages(0x1000, 1), Gpa::literal(0), harmless)
            .unwrap()
            .ignore("nothing runs");
        let granting = AttrChange::clear(Attrs::NO_EXECUTE).and_set(attrs);
        assert!(mapper.protect(pages(0x1000, 1), granting).is_err());
        let result = mapper.remap_leaf(gva, Gpa::literal(0), attrs);
        assert_eq!(result, Err(RemapError::Restricted { gva, denied }));
        assert_ne!(memory, before);
    }
}

#[test]
fn new_tables_that_would_deny_a_right_are_not_made() {
    let mut memory = tables(12, &[]);
    let before = memory.clone();
    let mut mapper = mapper(&mut memory, 2)
        .with_table_attrs(Attrs::WRITE)
        .unwrap();
    let result = mapper.map(pages(0x1000, 1), Gpa::literal(0), Attrs::USER);
    let expected = MapError::Restricted {
        gva: Gva::literal(0x1000),
        denied: Attrs::USER,
    };
    assert_eq!(result, Err(expected));
    assert_eq!(memory, before);
}

#[test]
fn mapping_below_a_malformed_or_unbacked_table_fails_untouched() {
    for raw in [table(1) | OPEN | LARGE, table(9) | OPEN] {
        let mut memory = tables(2, &[(0, 0, raw)]);
        let before = memory.clone();
        let result = mapper(&mut memory, 0).map(pages(0x1000, 1), Gpa::literal(0), Attrs::empty());
        let refused = matches!(
            result,
            Err(MapError::Tables(
                TableError::Malformed { .. } | TableError::Store(_)
            ))
        );
        assert!(refused, "{result:?}");
        assert_eq!(memory, before);
    }
}

#[test]
fn editing_through_tables_that_contain_themselves_ends() {
    // Entry 0 leads back to the root at every level: page 0 is the root itself.
    let entries = [(0, 0, ROOT | OPEN), (0, 1, table(1) | OPEN)];
    for start_page in [0, 1, 5, 511] {
        for count in [1, 3, 512, 5_000] {
            let mut memory = tables(14, &entries);
            let range = pages(start_page * 0x1000, count);
            let mut mapper = mapper(&mut memory, 4);
            // Success or error: what matters is that each ends, without a panic.
            if let Ok(duty) = mapper.map(range, Gpa::literal(0), Attrs::WRITE) {
                duty.ignore("nothing runs");
            }
            if let Ok(duty) = mapper.protect(range, AttrChange::set(Attrs::USER)) {
                duty.ignore("nothing runs");
            }
            if let Ok(duty) = mapper.unmap(range) {
                duty.ignore("nothing runs");
            }
            let mut walk = walker(&memory, PLENTY).on_self_reference(SelfReference::Skip);
            assert!(walk.all(|step| step.is_ok()));
        }
    }
}

#[test]
fn tables_that_change_under_the_mapper_are_noticed() {
    // Unmapping page 0 of a table that is its own parent clears the way to the other pages.
    let mut memory = tables(1, &[(0, 0, ROOT | OPEN), (0, 1, ROOT | OPEN)]);
    let range = GvaRange::new(Gva::literal(0), 2 << 21).unwrap();
    let result = mapper(&mut memory, 0).unmap(range);
    assert!(
        matches!(result, Err(UnmapError::NotMapped { .. })),
        "{result:?}"
    );
    let full: Vec<_> = (0..512).map(|index| (0, index, ROOT | OPEN)).collect();
    let mut memory = tables(1, &full);
    let result = mapper(&mut memory, 0).unmap(range);
    let noticed = matches!(result, Err(UnmapError::Tables(TableError::Changed { .. })));
    assert!(noticed, "{result:?}");
}

#[test]
fn frames_that_a_format_cannot_address_are_refused() {
    let mut memory = tables(1, &[]);
    let high = GpaRange::new(Gpa::literal(1 << 32), 0x2000).unwrap();
    let format = Format::TWO_LEVEL;
    let frames = FrameRange::new(high);
    let mut mapper = Mapper::new(&mut memory, frames, Gpa::literal(ROOT), format).unwrap();
    let result = mapper.map(pages(0x1000, 1), Gpa::literal(0), Attrs::empty());
    let refused = matches!(result, Err(MapError::Tables(TableError::Frame { .. })));
    assert!(refused, "{result:?}");
}

#[test]
fn shared_tables_show_in_both_roots() {
    let mut memory = tables(20, &[]);
    let kernel = pages(0xffff_8000_0000_0000, 4);
    let mut first = mapper(&mut memory, 4);
    first
        .map(kernel, Gpa::literal(0x8000), Attrs::WRITE)
        .unwrap()
        .ignore("nothing runs");
    let half = first.table_at(kernel.start(), Level::L3).unwrap().unwrap();
    assert_eq!(first.table_at(Gva::literal(0), Level::L3), Ok(None));
    assert_eq!(
        first.table_at(kernel.start(), Level::L4),
        Ok(Some(Gpa::literal(ROOT)))
    );

    let other_root = Gpa::literal(table(1));
    let mut second = Mapper::new(&mut memory, NoFrames, other_root, FOUR).unwrap();
    second
        .share_table(kernel.start(), Level::L3, half)
        .unwrap()
        .ignore("nothing runs");
    let again = second.share_table(kernel.start(), Level::L3, half);
    let expected = ShareError::Occupied {
        gva: kernel.start(),
    };
    assert_eq!(again, Err(expected));
    let top = second.share_table(kernel.start(), Level::L4, half);
    assert_eq!(top, Err(ShareError::NotBelowRoot { level: Level::L4 }));
    // An edit through one root is seen through the other.
    second
        .remap_leaf(kernel.start(), Gpa::literal(0x3000), Attrs::COW)
        .unwrap()
        .ignore("nothing runs");
    let seen = translate(&memory, Gpa::literal(ROOT), kernel.start(), FOUR).unwrap();
    assert_eq!((seen.gpa, seen.attrs), (Gpa::literal(0x3000), Attrs::COW));
}

#[test]
fn shared_tables_hang_below_tables_made_for_them() {
    let mut memory = tables(20, &[(5, 3, 0x9000 | OPEN)]);
    let mut mapper = mapper(&mut memory, 2);
    // The last level-1 table of the lower half: no range can hold its last page.
    let gva = Gva::literal(0x7fff_ffe0_3000);
    let duty = mapper
        .share_table(gva, Level::L1, Gpa::literal(table(5)))
        .unwrap();
    assert_eq!(duty.range().end(), Gva::literal(0x7fff_ffff_f000));
    duty.ignore("nothing runs");
    let found = translate(&memory, Gpa::literal(ROOT), gva, FOUR).unwrap();
    assert_eq!(found.gpa, Gpa::literal(0x9000));
    // Another page of that table is absent, but the table's place is taken.
    let mut mapper = self::mapper(&mut memory, 2);
    let result = mapper.share_table(
        Gva::literal(0x7fff_ffe0_0000),
        Level::L1,
        Gpa::literal(ROOT),
    );
    let expected = ShareError::Occupied {
        gva: Gva::literal(0x7fff_ffe0_0000),
    };
    assert_eq!(result, Err(expected));
}

#[test]
fn slice_stores_keep_to_their_memory() {
    let mut words = vec![0u64; 2 * 512];
    let mut store = SliceStore::new(Gpa::literal(0x5000), &mut words);
    let (four, eight) = (EntryWidth::Bytes4, EntryWidth::Bytes8);
    let cases = [
        (0x5000, eight, true),
        (0x6ff8, eight, true),
        (0x6ffc, four, true),
        (0x6ffc, eight, false),
        (0x7000, four, false),
        (0x4ff8, eight, false),
        (0x5002, four, false),
        ((1 << 52) - 8, eight, false),
    ];
    for (at, width, good) in cases {
        let at = Gpa::literal(at);
        let result = store.write_entry(at, width, 0x1234);
        assert_eq!(result.is_ok(), good, "{at:?} {width:?}");
        let expected = if good {
            Ok(0x1234)
        } else {
            Err(StoreError::Unbacked { at })
        };
        assert_eq!(store.read_entry(at, width), expected);
    }
    let across = Gpa::literal(0x6ff0);
    let mut three = [0; 3];
    assert!(store.read_entries(across, eight, &mut three).is_err());
    assert!(store.read_entries(across, eight, &mut three[..2]).is_ok());
}

#[test]
fn halves_of_a_word_are_separate_entries() {
    let mut words = vec![0u64; 512];
    let mut store = SliceStore::new(Gpa::literal(0), &mut words);
    let width = EntryWidth::Bytes4;
    store
        .write_entry(Gpa::literal(0), width, 0x1111_1111)
        .unwrap();
    store
        .write_entry(Gpa::literal(4), width, 0x2222_2222)
        .unwrap();
    store
        .write_entry(Gpa::literal(0), width, 0x3333_3333)
        .unwrap();
    let mut both = [0; 2];
    store
        .read_entries(Gpa::literal(0), width, &mut both)
        .unwrap();
    assert_eq!(both, [0x3333_3333, 0x2222_2222]);
}

//! Random tables, well-formed and not: the walker and `translate` agree with the software MMU.

mod machine;

use std::cell::Cell;

use machine::mmu::{self, Page};
use machine::{FrameList, Memory, Mode};
use proptest::prelude::*;
use vellum_layout::{Gpa, Gva, GvaRange, PageSize};
use vellum_vmem::{
    AttrChange, Attrs, Budget, EntryWidth, Format, FrameSource, LeafStep, Level, Mapper,
    SelfReference, SliceStore, Step, StoreError, TableIndex, TableStore, TranslateError, WalkError,
    Walker, translate,
};

const FRAMES: u64 = 6;
const BASE: u64 = 0x20_0000;

/// An entry to be written: which frame it lies in, at which index, and its raw value.
type Poke = (u64, u64, u64);

fn frame_address() -> impl Strategy<Value = u64> {
    prop_oneof![
        // Mostly one of the frames that exist, so that deep walks happen.
        12 => (0..FRAMES).prop_map(|n| BASE + n * 0x1000),
        1 => Just(0),
        1 => Just((1 << 52) - 0x1000),
        1 => Just(0xffff_f000),
        1 => (0..1u64 << 40).prop_map(|n| n << 12),
        2 => (0..8u64).prop_map(|n| n << 30),
    ]
}

fn raw_entry() -> impl Strategy<Value = u64> {
    let flags = prop_oneof![
        4 => Just(0x7u64),
        2 => 0..0x80u64,
        2 => 0..0x1000u64,
        1 => (0..0x2000u64).prop_map(|n| n | 0x81),
    ];
    let high =
        prop_oneof![6 => Just(0u64), 1 => Just(1 << 63), 1 => (0..0x1000u64).prop_map(|n| n << 52)];
    let software = any::<u64>().prop_map(|n| n & !1);
    prop_oneof![
        15 => (frame_address(), flags, high).prop_map(|(frame, flags, high)| frame | flags | high),
        1 => software,
    ]
}

fn pokes() -> impl Strategy<Value = Vec<Poke>> {
    let index = prop_oneof![
        Just(0u64),
        Just(1),
        Just(255),
        Just(256),
        Just(511),
        0..512u64
    ];
    proptest::collection::vec((0..FRAMES, index, raw_entry()), 0..20)
}

fn modes() -> impl Strategy<Value = Mode> {
    proptest::sample::select(&Mode::ALL[..])
}

fn memory_with(mode: Mode, pokes: &[Poke]) -> Memory {
    let mut memory = Memory::with_frames((0..FRAMES).map(|n| BASE + n * 0x1000));
    let width = mode.format().entry_width();
    for &(frame, index, raw) in pokes {
        let index = if mode == Mode::FourLevel {
            index
        } else {
            index * 2 + raw % 2
        };
        memory.poke(BASE + frame * 0x1000 + index * width.bytes(), width, raw);
    }
    memory
}

fn as_page(step: &LeafStep) -> Page {
    let attrs = step.leaf.attrs;
    let has = |flag, bit: u64| if attrs.contains(flag) { bit } else { 0 };
    Page {
        va: step.gva.as_u64(),
        pa: step.leaf.frame.as_u64(),
        bytes: step.leaf.size.bytes(),
        writable: step.effective.contains(Attrs::WRITE),
        user: step.effective.contains(Attrs::USER),
        executable: !step.effective.contains(Attrs::NO_EXECUTE),
        global: attrs.contains(Attrs::GLOBAL),
        software: has(Attrs::COW, 1) | has(Attrs::AVAILABLE_10, 2) | has(Attrs::AVAILABLE_11, 4),
        memory_type: has(Attrs::PAT, 4)
            | has(Attrs::CACHE_DISABLE, 2)
            | has(Attrs::WRITE_THROUGH, 1),
    }
}

/// Sorts upper-half pages behind lower-half ones, as the walker does.
fn walk_all(memory: &Memory, mode: Mode) -> Result<Vec<Page>, WalkError> {
    let budget = Budget {
        tables: 100_000,
        leaves: 100_000,
    };
    Walker::new(memory, Gpa::literal(BASE), mode.format(), budget)
        .expect("aligned root")
        .on_self_reference(SelfReference::Follow)
        .leaves()
        .map(|leaf| leaf.map(|leaf| as_page(&leaf)))
        .collect()
}

proptest! {
    #![proptest_config(machine::cases(512))]

    #[test]
    fn the_walker_reports_exactly_what_the_mmu_maps(mode in modes(), pokes in pokes()) {
        let memory = memory_with(mode, &pokes);
        let expected = mmu::enumerate(&memory, mode, BASE);
        prop_assume!(expected.len() < 50_000);
        prop_assert_eq!(walk_all(&memory, mode), Ok(expected));
    }

    #[test]
    fn translate_agrees_with_the_mmu_on_mapped_and_random_addresses(
        mode in modes(),
        pokes in pokes(),
        random in proptest::collection::vec(any::<u64>(), 16),
    ) {
        let memory = memory_with(mode, &pokes);
        let mapped: Vec<u64> = mmu::enumerate(&memory, mode, BASE)
            .iter()
            .step_by(17)
            .flat_map(|page| [page.va, page.va + page.bytes / 2, page.va + (page.bytes - 1)])
            .take(300)
            .collect();
        for address in mapped.into_iter().chain(random) {
            let gva = match mode {
                Mode::FourLevel => Gva::sign_extend(address),
                _ => Gva::literal(address & 0xffff_ffff),
            };
            let linear = gva.as_u64() & 0xffff_ffff_ffff;
            let expected = mmu::resolve(&memory, mode, BASE, linear);
            match (translate(&memory, Gpa::literal(BASE), gva, mode.format()), expected) {
                (Ok(found), Some(page)) => {
                    prop_assert_eq!(found.gpa.as_u64(), page.pa + (gva.as_u64() - page.va));
                    prop_assert_eq!(found.size.bytes(), page.bytes);
                    prop_assert_eq!(found.effective.contains(Attrs::WRITE), page.writable);
                    prop_assert_eq!(found.effective.contains(Attrs::USER), page.user);
                    prop_assert_eq!(!found.effective.contains(Attrs::NO_EXECUTE), page.executable);
                }
                (Err(error), None) => {
                    let by_tables = !matches!(
                        error,
                        TranslateError::Root(_) | TranslateError::OutOfReach { .. }
                    );
                    prop_assert!(by_tables);
                }
                (found, page) => prop_assert!(false, "{:?} against {:?}", found, page),
            }
        }
    }

    #[test]
    fn every_way_of_looking_up_gives_the_same_answer(
        format in formats(),
        pokes in pokes(),
        chain in chain(),
        pages in proptest::collection::vec(page_numbers(), 1..40),
        in_page in 0..0x1000u64,
    ) {
        let mode = match format.root_level() {
            Level::L4 => Mode::FourLevel,
            _ => Mode::TwoLevel,
        };
        let memory = memory_with(mode, &[pokes, chain].concat());
        let mut words = words_of(&memory);
        let slice = SliceStore::new(Gpa::literal(BASE), &mut words);
        for page in pages.into_iter().chain([0]) {
            let linear = page << 12 | in_page;
            let gva = match mode {
                Mode::FourLevel => Gva::sign_extend(linear),
                _ => Gva::literal(linear & 0xffff_ffff),
            };
            let root = Gpa::literal(BASE);
            let expected = translate(&Careful(&slice), root, gva, format);
            prop_assert_eq!(translate(&EntryByEntry(&slice), root, gva, format), expected);
            prop_assert_eq!(translate(&slice, root, gva, format), expected);
        }
    }

    #[test]
    fn a_slice_store_follows_what_any_store_would_follow(
        base in prop_oneof![Just(0), Just(BASE), Just((1 << 52) - 0x2000)],
        frame in -3..9i64,
        flags in prop_oneof![3 => Just(7u64), 1 => 0..8u64].prop_flat_map(|low| {
            (0..0x200u64).prop_map(move |high| high << 3 | low)
        }),
        high in prop_oneof![4 => Just(0u64), 1 => (0..12u32).prop_map(|bit| 1 << (52 + bit))],
        index in any::<u64>(),
    ) {
        let mut words: Vec<u64> = (0..FRAMES * 512).collect();
        let slice = SliceStore::new(Gpa::literal(base), &mut words);
        let above = base.wrapping_add_signed(frame << 12) ^ flags ^ high;
        let index = TableIndex::from_highest_bits(index);
        prop_assert_eq!(slice.follow(above, index), EntryByEntry(&slice).follow(above, index));
    }

    #[test]
    fn no_walk_exceeds_its_budget(
        mode in modes(),
        pokes in pokes(),
        tables in 0..40u64,
        leaves in 0..40u64,
    ) {
        let memory = memory_with(mode, &pokes);
        let budget = Budget { tables, leaves };
        let mut walker = Walker::new(&memory, Gpa::literal(BASE), mode.format(), budget)
            .expect("aligned root")
            .on_self_reference(SelfReference::Follow);
        let steps: Vec<_> = walker.by_ref().collect();
        let count = |wanted: fn(&Step) -> bool| {
            steps.iter().flatten().filter(|step| wanted(step)).count() as u64
        };
        prop_assert!(count(|step| matches!(step, Step::Leaf(_))) <= leaves);
        prop_assert!(walker.used().tables <= tables && walker.used().leaves <= leaves);
        // Only the last step can be an error, and an error is always the last.
        let errors = steps.iter().filter(|step| step.is_err()).count();
        prop_assert!(errors == 0 || errors == 1 && steps.last().unwrap().is_err());
        prop_assert_eq!(walker.next(), None);
    }

    #[test]
    fn visiting_leaves_is_iterating_over_them(
        mode in modes(),
        pokes in pokes(),
        tables in prop_oneof![0..40u64, Just(10_000)],
        leaves in prop_oneof![0..40u64, Just(10_000)],
        action in proptest::sample::select(vec![
            SelfReference::Refuse,
            SelfReference::Skip,
            SelfReference::Follow,
        ]),
    ) {
        let memory = memory_with(mode, &pokes);
        let walker = || {
            let budget = Budget { tables, leaves };
            Walker::new(&memory, Gpa::literal(BASE), mode.format(), budget)
                .expect("aligned root")
                .on_self_reference(action)
        };
        let mut visited = Vec::new();
        let end = walker().for_each_leaf(|leaf| visited.push(leaf));
        let (mut iterated, mut error) = (Vec::new(), Ok(()));
        for leaf in walker().leaves() {
            match leaf {
                Ok(leaf) => iterated.push(leaf),
                Err(last) => error = Err(last),
            }
        }
        prop_assert_eq!(visited, iterated);
        prop_assert_eq!(end, error);
    }

    #[test]
    fn a_walk_within_a_range_reports_the_pages_that_overlap_it(
        mode in modes(),
        pokes in pokes(),
        first in 0..1u64 << 20,
        pages in 1..1u64 << 20,
    ) {
        let memory = memory_with(mode, &pokes);
        let pages = pages.min((1 << 20) - first);
        let range = GvaRange::new(Gva::literal(first << 12), pages << 12).expect("below 4 GiB");
        let budget = Budget { tables: 100_000, leaves: 100_000 };
        let found: Result<Vec<_>, _> = Walker::new(&memory, Gpa::literal(BASE), mode.format(), budget)
            .expect("aligned root")
            .on_self_reference(SelfReference::Follow)
            .within(range)
            .leaves()
            .map(|leaf| leaf.map(|leaf| as_page(&leaf)))
            .collect();
        let (start, end) = (range.start().as_u64(), range.end().as_u64());
        let mut expected = mmu::enumerate(&memory, mode, BASE);
        prop_assume!(expected.len() < 50_000);
        expected.retain(|page| page.va < end && page.va + (page.bytes - 1) >= start);
        prop_assert_eq!(found, Ok(expected));
    }

    #[test]
    fn the_mapper_ends_within_its_bounds_on_any_tables(
        mode in modes(),
        pokes in pokes(),
        edits in proptest::collection::vec(edits(), 1..8),
    ) {
        let spare: Vec<u64> = (0..4).map(|n| BASE + (FRAMES + n) * 0x1000).collect();
        let mut memory = memory_with(mode, &pokes);
        memory.add_frames(&spare);
        let mut frames = FrameList(spare);
        for edit in edits {
            let mut store = Counting { memory: &mut memory, accesses: Cell::new(0) };
            let mapper = Mapper::new(&mut store, &mut frames, Gpa::literal(BASE), mode.format());
            carry_out(&mut mapper.expect("aligned root"), &edit);
            // Four passes over the range at most, some of which read and write, and a few tables
            // of 1,024 entries for leaves that are split.
            let bound = 6 * edit.pages + 8 * 1024;
            prop_assert!(store.accesses.get() <= bound, "{} accesses", store.accesses.get());
        }
    }
}

fn formats() -> impl Strategy<Value = Format> {
    let narrow = |format: Format| format.with_physical_bits(40).expect("in range");
    proptest::sample::select(vec![
        Format::FOUR_LEVEL,
        narrow(Format::FOUR_LEVEL),
        Format::FOUR_LEVEL.without_no_execute(),
        Format::FOUR_LEVEL.without_1_gib_pages(),
        Format::TWO_LEVEL,
        Format::TWO_LEVEL_PSE,
        narrow(Format::TWO_LEVEL_PSE),
    ])
}

/// Pages under the entries that `pokes` writes.
fn page_numbers() -> impl Strategy<Value = u64> {
    let index = || proptest::sample::select(vec![0u64, 1, 255, 256, 511]);
    (index(), index(), index(), index())
        .prop_map(|(l4, l3, l2, l1)| l4 << 27 | l3 << 18 | l2 << 9 | l1)
}

/// One entry in each of four frames that points to the next, with flags that are mostly the usual ones: the way to the first page.
fn chain() -> impl Strategy<Value = Vec<Poke>> {
    let odd = (0..52u32, any::<bool>()).prop_map(|(bit, high)| match bit {
        bit if high => 7 | 1 << 12 << bit,
        bit => 7 ^ 1 << (bit % 12),
    });
    let flags = || prop_oneof![4 => Just(7u64), 1 => odd.clone()];
    (flags(), flags(), flags(), flags()).prop_map(|(l4, l3, l2, l1)| {
        let entries = (0..).zip([l4, l3, l2, l1]);
        let poke = |(frame, flags)| (frame, 0, (BASE + (frame + 1) * 0x1000) | flags);
        entries.map(poke).collect()
    })
}

/// The frames from `BASE` on.
fn words_of(memory: &Memory) -> Vec<u64> {
    let at = |word| Gpa::literal(BASE + word * 8);
    (0..FRAMES * 512)
        .map(|word| memory.read_entry(at(word), EntryWidth::Bytes8))
        .collect::<Result<_, _>>()
        .expect("backed frames")
}

/// Reads as the trait does where a store says no more than how one entry is read.
struct EntryByEntry<'a, 'w>(&'a SliceStore<'w>);

impl TableStore for EntryByEntry<'_, '_> {
    fn read_entry(&self, at: Gpa, width: EntryWidth) -> Result<u64, StoreError> {
        self.0.read_entry(at, width)
    }

    fn write_entry(&mut self, at: Gpa, _: EntryWidth, _: u64) -> Result<(), StoreError> {
        Err(StoreError::ReadOnly { at })
    }
}

/// Follows no entry: a look-up looks at each before the next.
struct Careful<'a, 'w>(&'a SliceStore<'w>);

impl TableStore for Careful<'_, '_> {
    fn read_entry(&self, at: Gpa, width: EntryWidth) -> Result<u64, StoreError> {
        self.0.read_entry(at, width)
    }

    fn follow(&self, _: u64, _: TableIndex) -> Option<(Gpa, u64)> {
        None
    }

    fn write_entry(&mut self, at: Gpa, _: EntryWidth, _: u64) -> Result<(), StoreError> {
        Err(StoreError::ReadOnly { at })
    }
}

/// Counts the entries that are read and written.
struct Counting<'a> {
    memory: &'a mut Memory,
    accesses: Cell<u64>,
}

impl TableStore for Counting<'_> {
    fn read_entry(&self, at: Gpa, width: EntryWidth) -> Result<u64, StoreError> {
        self.accesses.update(|count| count + 1);
        self.memory.read_entry(at, width)
    }

    fn write_entry(&mut self, at: Gpa, width: EntryWidth, raw: u64) -> Result<(), StoreError> {
        self.accesses.update(|count| count + 1);
        self.memory.write_entry(at, width, raw)
    }
}

/// One call of the mapper, with arguments around the entries that `pokes` writes.
#[derive(Clone, Debug)]
struct Edit {
    kind: u8,
    first: u64,
    pages: u64,
    frame: u64,
    attrs: Attrs,
}

fn edits() -> impl Strategy<Value = Edit> {
    let index = || prop_oneof![Just(0u64), Just(1), Just(255), Just(256), Just(511)];
    let first = (index(), index(), index(), index())
        .prop_map(|(l4, l3, l2, l1)| l4 << 27 | l3 << 18 | l2 << 9 | l1);
    let pages = prop_oneof![1..4u64, 500..600u64, Just(1 << 18)];
    let frame = (0..64u64).prop_map(|n| n << 9);
    let attrs = any::<u64>().prop_map(|bits| Attrs::from_bits_truncate(bits & 0xfff));
    (0..6u8, first, pages, frame, attrs).prop_map(|(kind, first, pages, frame, attrs)| Edit {
        kind,
        first,
        pages,
        frame,
        attrs,
    })
}

fn carry_out<S: TableStore, F: FrameSource>(mapper: &mut Mapper<S, F>, edit: &Edit) {
    // The same page numbers serve 2-level tables, where they wrap at 4 GiB.
    let linear = match mapper.format().root_level() {
        Level::L4 => edit.first << 12,
        _ => edit.first << 12 & 0xffff_ffff,
    };
    let gva = Gva::sign_extend(linear);
    let Ok(range) = GvaRange::new(gva, edit.pages << 12) else {
        return;
    };
    let frame = Gpa::literal(edit.frame << 12);
    let duty = match edit.kind {
        0 => mapper.map(range, frame, edit.attrs).ok(),
        1 => mapper.unmap(range).ok(),
        2 => mapper.protect(range, AttrChange::exactly(edit.attrs)).ok(),
        3 => mapper.remap_leaf(gva, frame, edit.attrs).ok(),
        4 => mapper.split_leaf(gva, PageSize::Size4KiB).ok(),
        _ => mapper.share_table(gva, Level::L1, frame).ok(),
    };
    if let Some(duty) = duty {
        duty.ignore("nothing runs");
    }
}

use super::*;
use crate::memory::HostMemory;

const PAGE: u64 = vellum_layout::PAGE_SIZE;

fn range(start: u64, len_bytes: u64) -> GpaRange {
    GpaRange::literal(Gpa::literal(start), len_bytes)
}

/// A page-aligned host address. Nothing here is ever dereferenced.
fn host() -> Hva {
    HostMemory::zeroed(PAGE).expect("address space").hva()
}

/// Slots at the given places, in this order.
fn slots(places: &[(u64, u64, Protection)]) -> Slots {
    let mut slots = Slots::default();
    for &(start, len_bytes, protection) in places {
        let slot = slots
            .plan(range(start, len_bytes), host(), protection)
            .expect("the places do not overlap");
        slots.insert(slot);
    }
    slots
}

fn three() -> Slots {
    slots(&[
        (0x1_0000, 0x4000, Protection::Write),
        (0x2_0000, 0x2000, Protection::ReadOnly),
        (0x3_0000, 0x3000, Protection::TrackedWrite),
    ])
}

#[test]
fn a_range_that_meets_another_is_refused_by_name() {
    let slots = three();
    let mapped = range(0x1_0000, 0x4000);
    for wanted in [
        mapped,
        range(0, 0x1_1000),
        range(0x1_3000, 0x1000),
        range(0x1_1000, 0x1000),
        range(0xF000, 0x6000),
    ] {
        let result = slots.plan(wanted, host(), Protection::Write);
        assert!(
            matches!(result, Err(VmError::Overlap { wanted: w, mapped: m }) if w == wanted && m == mapped),
            "{wanted:?}: {result:?}"
        );
    }
    for free in [
        range(0xF000, 0x1000),
        range(0x1_4000, 0xC000),
        range(0x3_3000, 0x1000),
    ] {
        assert!(
            slots.plan(free, host(), Protection::Write).is_ok(),
            "{free:?}"
        );
    }
}

#[test]
fn an_unaligned_host_address_is_refused() {
    let unaligned = host().checked_add(1).expect("an address");
    let result = Slots::default().plan(range(0, PAGE), unaligned, Protection::Write);
    assert!(
        matches!(result, Err(VmError::Unaligned { host }) if host == unaligned),
        "{result:?}"
    );
}

#[test]
fn numbers_are_unique_and_the_lowest_free_one_is_reused() {
    let mut slots = three();
    let number_of = |slots: &Slots, start| {
        slots
            .plan(range(start, PAGE), host(), Protection::Write)
            .map(|slot| slot.number)
            .expect("free")
    };
    assert_eq!(number_of(&slots, 0x5_0000), 3);
    slots.remove(1);
    assert!(!slots.is_mapped(0x2_0000));
    assert_eq!(number_of(&slots, 0x5_0000), 1);
}

#[test]
fn only_an_exact_range_is_found() {
    let slots = three();
    let found = slots.exact(range(0x2_0000, 0x2000)).expect("it is mapped");
    assert_eq!((found.number, found.protection), (1, Protection::ReadOnly));
    for other in [
        range(0x2_0000, 0x1000),
        range(0x2_1000, 0x1000),
        range(0x5_0000, 0x1000),
    ] {
        let result = slots.exact(other);
        assert!(
            matches!(result, Err(VmError::NotMapped { range }) if range == other),
            "{result:?}"
        );
    }
}

#[test]
fn an_address_is_mapped_from_the_first_to_the_last_byte_of_a_slot() {
    let slots = three();
    let cases = [
        (0xFFFF, false),
        (0x1_0000, true),
        (0x1_3FFF, true),
        (0x1_4000, false),
        (0x2_1FFF, true),
        (u64::MAX, false),
    ];
    for (gpa, is_mapped) in cases {
        assert_eq!(slots.is_mapped(gpa), is_mapped, "{gpa:#x}");
    }
    assert!(!Slots::default().is_mapped(0));
}

#[test]
fn a_writable_part_of_one_slot_has_a_host_address() {
    let slots = three();
    for (start, number) in [(0x1_0000, 0), (0x3_0000, 2)] {
        let base = slots.by_number(number).expect("it is there").host;
        let address = slots
            .host_of(range(start + 0x1000, 0x2000))
            .expect("inside");
        assert_eq!(Some(address), base.checked_add(0x1000));
    }
}

#[test]
fn what_is_not_inside_one_writable_slot_has_no_host_address() {
    let slots = three();
    for wanted in [
        range(0x5_0000, 0x1000),
        range(0x1_3000, 0x2000),
        range(0xF000, 0x2000),
        range(0x1_0000, 0x2_3000),
        // Read-only.
        range(0x2_0000, 0x1000),
    ] {
        let result = slots.host_of(wanted);
        assert!(
            matches!(result, Err(VmError::NotMapped { range }) if range == wanted),
            "{result:?}"
        );
    }
}

#[test]
fn the_smallest_slot_is_the_one_with_the_fewest_bytes() {
    assert_eq!(three().smallest().map(|slot| slot.number), Some(1));
    assert_eq!(Slots::default().smallest(), None);
}

#[test]
fn a_ring_entry_names_a_page_of_its_slot_or_nothing() {
    let slots = three();
    let cases = [
        (0, 0, Some(0x1_0000)),
        (0, 3, Some(0x1_3000)),
        (2, 1, Some(0x3_1000)),
        (0, 4, None),
        (3, 0, None),
        (0, u64::MAX, None),
        (0, 1 << 52, None),
    ];
    for (number, page, gpa) in cases {
        assert_eq!(
            slots.page(number, page).map(Gpa::as_u64),
            gpa,
            "{number} {page:#x}"
        );
    }
}

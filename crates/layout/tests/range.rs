//! Ranges, checked against sets of pages.

use std::collections::BTreeSet;

use proptest::prelude::*;
use vellum_layout::{Gpa, GpaRange, Gva, GvaRange, PAGE_SIZE, RangeError};

const PAGES: u64 = 24;

/// A range within the first few pages, so that pairs often touch or overlap.
fn small_range() -> impl Strategy<Value = GpaRange> {
    (0..PAGES, 1..PAGES).prop_map(|(first, pages)| {
        GpaRange::literal(Gpa::literal(first * PAGE_SIZE), pages * PAGE_SIZE)
    })
}

fn page_set(range: &GpaRange) -> BTreeSet<u64> {
    let first = range.start().as_u64() / PAGE_SIZE;
    (first..first + range.pages()).collect()
}

#[test]
fn malformed_ranges_are_refused() {
    let page = Gpa::literal(0x1000);
    let top = Gpa::literal((1 << 52) - 0x1000);
    let cases = [
        (GpaRange::new(page, 0), RangeError::Empty { start: 0x1000 }),
        (
            GpaRange::new(Gpa::literal(0x1001), 0x1000),
            RangeError::UnalignedStart { start: 0x1001 },
        ),
        (
            GpaRange::new(page, 0x1001),
            RangeError::UnalignedLength {
                start: 0x1000,
                len_bytes: 0x1001,
            },
        ),
        (
            GpaRange::new(page, u64::MAX),
            RangeError::UnalignedLength {
                start: 0x1000,
                len_bytes: u64::MAX,
            },
        ),
        (
            GpaRange::new(page, 0u64.wrapping_sub(0x1000)),
            RangeError::PastEnd {
                start: 0x1000,
                len_bytes: 0xffff_ffff_ffff_f000,
            },
        ),
        (
            GpaRange::new(top, 0x1000),
            RangeError::PastEnd {
                start: top.as_u64(),
                len_bytes: 0x1000,
            },
        ),
        (
            GpaRange::from_bounds(Gpa::literal(0x2000), page),
            RangeError::Reversed {
                start: 0x2000,
                end: 0x1000,
            },
        ),
        (
            GpaRange::from_bounds(page, page),
            RangeError::Empty { start: 0x1000 },
        ),
    ];
    for (result, error) in cases {
        assert_eq!(result, Err(error), "{error}");
    }
}

#[test]
fn a_virtual_range_stays_in_one_half() {
    let low = Gva::literal(0x7fff_ffff_e000);
    let high = Gva::literal(0xffff_8000_0000_0000);
    assert!(GvaRange::new(low, 0x1000).is_ok());
    assert!(matches!(
        GvaRange::new(low, 0x2000),
        Err(RangeError::PastEnd { .. })
    ));
    assert!(matches!(
        GvaRange::from_bounds(low, high),
        Err(RangeError::PastEnd { .. })
    ));
    assert!(GvaRange::new(Gva::literal(0xffff_ffff_ffff_e000), 0x1000).is_ok());
    assert!(GvaRange::new(Gva::literal(0xffff_ffff_ffff_f000), 0x1000).is_err());
}

#[test]
fn a_range_shows_its_bounds() {
    let range = GvaRange::literal(Gva::literal(0x1000), 0x2000);
    assert_eq!(range.to_string(), "[0x1000, 0x3000)");
    assert_eq!(format!("{range:?}"), "GvaRange[0x1000, 0x3000)");
}

proptest! {
    // No regression files: a failure worth keeping becomes a test with a name.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn set_operations_agree_with_sets_of_pages(one in small_range(), other in small_range()) {
        let (pages, others) = (page_set(&one), page_set(&other));
        prop_assert_eq!(one.overlaps(&other), !pages.is_disjoint(&others));
        prop_assert_eq!(one.overlaps(&other), other.overlaps(&one));
        prop_assert_eq!(one.contains_range(&other), pages.is_superset(&others));
        prop_assert_eq!(one.len_bytes(), pages.len() as u64 * PAGE_SIZE);
    }

    #[test]
    fn membership_and_offsets_agree(range in small_range(), raw in 0..2 * PAGES * PAGE_SIZE) {
        let address = Gpa::literal(raw);
        let inside = page_set(&range).contains(&(raw / PAGE_SIZE));
        prop_assert_eq!(range.contains(address), inside);
        prop_assert_eq!(range.offset_of(address).is_some(), inside);
        if let Some(offset) = range.offset_of(address) {
            prop_assert_eq!(range.at(offset), Some(address));
        }
        prop_assert_eq!(range.at(raw).is_some(), raw < range.len_bytes());
    }

    #[test]
    fn the_last_address_is_inside_and_the_end_is_not(range in small_range()) {
        prop_assert!(range.contains(range.last()));
        prop_assert!(!range.contains(range.end()));
        prop_assert_eq!(range.last().checked_add(1), Some(range.end()));
        prop_assert_eq!(GpaRange::from_bounds(range.start(), range.end()), Ok(range));
    }

    #[test]
    fn a_part_is_inside_or_refused(
        range in small_range(),
        offset in 0..PAGES * 2 * PAGE_SIZE,
        len in 0..PAGES * 2 * PAGE_SIZE,
        whole_pages in any::<bool>(),
    ) {
        let mask = if whole_pages { !(PAGE_SIZE - 1) } else { u64::MAX };
        let (offset, len) = (offset & mask, len & mask);
        let fits = len > 0
            && offset % PAGE_SIZE == 0
            && len % PAGE_SIZE == 0
            && offset + len <= range.len_bytes();
        let part = range.part(offset, len);
        prop_assert_eq!(part.is_some(), fits);
        if let Some(part) = part {
            prop_assert!(range.contains_range(&part));
            prop_assert_eq!(part.start().offset_from(range.start()), Some(offset));
            prop_assert_eq!(part.len_bytes(), len);
        }
    }

    #[test]
    fn no_start_and_length_panics(raw in any::<u64>(), len_bytes in any::<u64>()) {
        let start = Gva::sign_extend(raw);
        if let Ok(range) = GvaRange::new(start, len_bytes) {
            prop_assert_eq!(range.len_bytes(), len_bytes);
            prop_assert!(range.last() >= range.start());
        }
    }
}

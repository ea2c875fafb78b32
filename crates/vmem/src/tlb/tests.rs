//! The duty token.

extern crate alloc;

use alloc::vec::Vec;

use super::*;

fn duty(start: u64, pages: u64, change: Change) -> TlbFlush {
    let range = GvaRange::new(Gva::literal(start), pages * PAGE_SIZE).unwrap();
    TlbFlush::new(range, change)
}

#[test]
fn flushing_pages_names_each_page_once() {
    let mut seen = Vec::new();
    duty(0x5000, 3, Change::Changed).flush_pages(|gva| seen.push(gva.as_u64()));
    assert_eq!(seen, [0x5000, 0x6000, 0x7000]);
}

#[test]
fn flushing_all_says_whether_global_pages_are_concerned() {
    let mut seen = None;
    duty(0x5000, 3, Change::ChangedGlobal).flush_all(|change| seen = Some(change));
    assert_eq!(seen, Some(Change::ChangedGlobal));
}

#[test]
fn merging_covers_both_ranges_and_keeps_the_stronger_kind() {
    let merged = duty(0x9000, 1, Change::ChangedGlobal)
        .merge(duty(0x5000, 2, Change::Added))
        .unwrap();
    assert_eq!(merged, duty(0x5000, 5, Change::ChangedGlobal));
    merged.ignore("nothing runs in a test");
}

#[test]
fn duties_of_different_halves_stay_apart() {
    let low = duty(0x5000, 1, Change::Changed);
    let high = duty(0xffff_8000_0000_0000, 1, Change::Added);
    let (first, second) = low.merge(high).unwrap_err();
    assert_eq!(first, duty(0x5000, 1, Change::Changed));
    assert_eq!(second.range().start().as_u64(), 0xffff_8000_0000_0000);
}

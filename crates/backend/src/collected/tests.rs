use std::collections::BTreeSet;

use super::*;

fn page(index: u64) -> Gpa {
    Gpa::literal(index * vellum_layout::PAGE_SIZE)
}

fn taken(collected: &mut Collected) -> BTreeSet<Gpa> {
    collected.take().collect()
}

#[test]
fn every_collected_page_is_taken_once_collected() {
    let mut collected = Collected::new();
    let pages: BTreeSet<Gpa> = (0..100_000).map(page).collect();
    for &page in &pages {
        collected.push(page);
    }
    assert_eq!(taken(&mut collected), pages);
    assert_eq!(taken(&mut collected), BTreeSet::new());
}

#[test]
fn pages_that_come_again_and_again_need_a_bounded_space() {
    for distinct in [1, 100, 8_192, 8_193, 20_000] {
        let mut collected = Collected::new();
        let bound = usize::max(Collected::MIN_LIMIT, 2 * 20_000);
        for index in 0..200_000 {
            collected.push(page(index % distinct));
            assert!(collected.pages.len() <= bound, "{distinct}");
        }
        assert_eq!(taken(&mut collected).len() as u64, distinct);
    }
}

#[test]
fn the_pages_of_a_forgotten_range_are_not_taken() {
    let mut collected = Collected::new();
    for index in 0..8 {
        collected.push(page(index));
    }
    collected.forget(GpaRange::literal(page(2), 3 * vellum_layout::PAGE_SIZE));
    assert_eq!(taken(&mut collected), [0, 1, 5, 6, 7].map(page).into());
}

#[test]
fn a_bit_of_a_bitmap_stands_for_a_page_of_its_range() {
    let range = GpaRange::literal(page(10), 100 * vellum_layout::PAGE_SIZE);
    let mut collected = Collected::new();
    // The bitmap is longer than the range.
    collected.push_bits(range, vec![1 | 1 << 63, 1 << 35 | 1 << 36 | 1 << 63]);
    assert_eq!(taken(&mut collected), [10, 73, 109].map(page).into());
    collected.push_bits(range, vec![0, 0]);
    assert_eq!(taken(&mut collected), BTreeSet::new());
}

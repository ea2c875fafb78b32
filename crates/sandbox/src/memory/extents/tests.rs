use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use vellum_layout::{Gva, PAGE_SIZE};

use super::{Extent, Extents, placed};

/// Pages of the space that the tests use, from address 0x10_0000 on.
const PAGES: u64 = 64;
const BASE: u64 = 0x10_0000;

fn gva(page: u64) -> Gva {
    Gva::new(BASE + page * PAGE_SIZE).expect("canonical")
}

fn extent(first: u64, image_page: u64, pages: u64) -> Extent<Gva> {
    Extent {
        at: gva(first),
        image_page,
        pages,
    }
}

/// What a space says, page by page.
fn map_of(space: &Extents<Gva>) -> BTreeMap<u64, u64> {
    (0..PAGES)
        .filter_map(|page| Some((page, space.image_page_of(gva(page))?)))
        .collect()
}

/// Sorted, disjoint, none empty.
fn assert_well_formed(space: &Extents<Gva>) {
    for pair in space.as_slice().windows(2) {
        assert!(pair[0].end() <= pair[1].at.as_u64(), "{pair:x?}");
    }
    assert!(space.as_slice().iter().all(|extent| extent.pages > 0));
}

fn gvas(pages: &BTreeSet<u64>) -> Vec<Gva> {
    pages.iter().copied().map(gva).collect()
}

#[test]
fn an_overlay_takes_its_pages_out_of_the_extents_below() {
    let space = Extents::new(vec![extent(0, 100, 10)]);
    let cases: [(&[u64], Vec<Extent<Gva>>); 6] = [
        (&[], vec![extent(0, 100, 10)]),
        (&[0], vec![extent(0, 500, 1), extent(1, 101, 9)]),
        (&[9], vec![extent(0, 100, 9), extent(9, 500, 1)]),
        (
            &[4],
            vec![extent(0, 100, 4), extent(4, 500, 1), extent(5, 105, 5)],
        ),
        (
            &[3, 4],
            vec![extent(0, 100, 3), extent(3, 500, 2), extent(5, 105, 5)],
        ),
        (&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], vec![extent(0, 500, 10)]),
    ];
    for (dirty, expected) in cases {
        let dirty: Vec<Gva> = dirty.iter().copied().map(gva).collect();
        assert_eq!(space.below(&placed(&dirty, 500)).as_slice(), expected);
    }
}

#[test]
fn an_overlay_covers_pages_that_no_extent_had() {
    let space = Extents::new(Vec::new());
    let dirty = [gva(2), gva(3), gva(7)];
    let expected = [extent(2, 40, 2), extent(7, 42, 1)];
    assert_eq!(space.below(&placed(&dirty, 40)).as_slice(), expected);
}

proptest! {
    /// Any overlays on any extents give what a map of single pages gives.
    #[test]
    fn overlays_agree_with_a_map_of_pages(
        present in btree_set(0..PAGES, 0..64),
        overlays in vec(btree_set(0..PAGES, 0..20), 0..8),
    ) {
        let mut next_page = 1000;
        let mut oracle = BTreeMap::new();
        let mut space = Extents::new(Vec::new());
        for dirty in std::iter::once(present).chain(overlays) {
            space = space.below(&placed(&gvas(&dirty), next_page));
            oracle.extend(dirty.iter().copied().zip(next_page..));
            next_page += dirty.len() as u64;
            assert_well_formed(&space);
            prop_assert_eq!(map_of(&space), oracle.clone());
            let pages: u64 = space.as_slice().iter().map(|extent| extent.pages).sum();
            prop_assert_eq!(pages, oracle.len() as u64);
        }
    }
}

/// A run that holds a whole large page lies in the image so that a large leaf can map it; shorter ones leave no gap.
#[test]
fn long_runs_are_placed_where_large_leaves_can_map_them() {
    const LARGE: u64 = 512;
    let at = |page: u64| Gva::new(page * PAGE_SIZE).expect("canonical");
    let run = |first: u64, pages: u64| (first..first + pages).map(at);
    // One page, a run over a large page and a bit, one of almost two that holds none, and one of exactly one.
    let pages: Vec<Gva> = run(7, 1)
        .chain(run(LARGE - 1, LARGE + 2))
        .chain(run(3 * LARGE + 1, 2 * LARGE - 2))
        .chain(run(6 * LARGE, LARGE))
        .collect();
    let placed = placed(&pages, 10);
    let image_pages: Vec<u64> = placed.iter().map(|extent| extent.image_page).collect();
    // The image begins at page 1.
    assert_eq!(image_pages[0], 10);
    assert_eq!((image_pages[1] + 1) % LARGE, LARGE - 1);
    assert!(image_pages[1] - 11 < LARGE);
    assert_eq!(image_pages[2], placed[1].end_page());
    assert_eq!((image_pages[3] + 1) % LARGE, 0);
}

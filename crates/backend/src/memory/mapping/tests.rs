use proptest::prelude::*;

use super::*;

const PAGE: u64 = vellum_layout::PAGE_SIZE;

/// A sealed memory whose every page begins with its number, from 0x100.
fn sealed(pages: u64) -> SealedMemory {
    SealedMemory::create("vellum-test", pages * PAGE, |writer| {
        (0..pages).try_for_each(|page| writer.write(page * PAGE, &(0x100 + page).to_le_bytes()))
    })
    .expect("sealed")
}

/// The first word of each page.
fn words(memory: &HostMemory) -> Vec<u64> {
    (0..memory.len_bytes() / PAGE)
        .map(|page| memory.read_u64(page * PAGE).expect("in bounds"))
        .collect()
}

/// The memory of these pieces that users get, and the one where something was in the way.
fn in_both_ways(pieces: &[Piece<'_>], pages: usize) -> [HostMemory; 2] {
    let zeroes = HostMemory::zeroed(pages as u64 * PAGE).expect("memory");
    [
        HostMemory::of_pieces(pieces).expect("mapped"),
        zeroes.overlaid(pieces).expect("mapped"),
    ]
}

#[test]
fn pieces_lie_one_behind_the_other_and_can_be_written() {
    let (one, two) = (sealed(3), sealed(1));
    let pieces = [
        Piece::Sealed(&one, PAGE..3 * PAGE),
        Piece::Sealed(&two, 0..PAGE),
        Piece::Zeroes(PAGE),
        Piece::Zeroes(PAGE),
        Piece::Sealed(&one, 0..PAGE),
        Piece::Zeroes(2 * PAGE),
    ];
    let expected = [0x101, 0x102, 0x100, 0, 0, 0x100, 0, 0];
    for memory in in_both_ways(&pieces, 8) {
        assert_eq!(words(&memory), expected);
        for page in 0..8 {
            memory.write_u64(page * PAGE, page).expect("writable");
        }
        assert_eq!(words(&memory), [0, 1, 2, 3, 4, 5, 6, 7]);
        memory.discard(0..8 * PAGE).expect("discarded");
        assert_eq!(words(&memory), expected, "as it was mapped");
    }
    assert_eq!(words(&one.map().expect("mapped")), [0x100, 0x101, 0x102]);
}

#[test]
fn pieces_that_are_not_of_whole_pages_or_not_there_are_refused() {
    let sealed = sealed(2);
    #[expect(clippy::reversed_empty_ranges, reason = "what is refused")]
    let bad = [
        vec![],
        vec![Piece::Zeroes(0)],
        vec![Piece::Zeroes(1)],
        vec![Piece::Zeroes(PAGE), Piece::Zeroes(u64::MAX - 0xFFF)],
        vec![Piece::Zeroes(1 << 60)],
        vec![Piece::Sealed(&sealed, 0..3 * PAGE), Piece::Zeroes(PAGE)],
        vec![Piece::Sealed(&sealed, 8..PAGE + 8)],
        vec![Piece::Sealed(&sealed, 0..8)],
        vec![Piece::Zeroes(PAGE), Piece::Sealed(&sealed, PAGE..0)],
    ];
    for pieces in bad {
        HostMemory::of_pieces(&pieces).expect_err(&format!("{pieces:?}"));
    }
}

#[test]
fn pieces_are_mapped_over_the_pages_that_they_are_for() {
    let sealed = sealed(2);
    let mut memory = HostMemory::zeroed(5 * PAGE).expect("memory");
    for page in 0..5 {
        memory.write_u64(page * PAGE, page + 1).expect("writable");
    }
    let pieces = [
        Piece::Sealed(&sealed, PAGE..2 * PAGE),
        Piece::Zeroes(PAGE),
        Piece::Sealed(&sealed, 0..PAGE),
    ];
    memory.overlay_pieces(PAGE, &pieces).expect("mapped");
    assert_eq!(words(&memory), [1, 0x101, 0, 0x100, 5]);
    let too_far = memory.overlay_pieces(3 * PAGE, &pieces);
    assert_eq!(
        too_far.expect_err("refused").kind(),
        io::ErrorKind::InvalidInput
    );
}

#[test]
fn pieces_do_not_replace_what_is_in_the_way() {
    let sealed = sealed(2);
    for pieces in [
        vec![Piece::Sealed(&sealed, 0..PAGE)],
        vec![Piece::Zeroes(3 * PAGE)],
    ] {
        let mut lower = HostMemory::zeroed(4 * PAGE).expect("memory");
        lower.write_u64(PAGE, 7).expect("writable");
        let upper = lower.split_off(2 * PAGE).expect("divided");
        upper.below_it(&pieces).expect_err("refused");
        assert_eq!(words(&lower), [0, 7]);
    }
}

#[test]
fn a_memory_can_be_divided_and_each_part_outlives_the_other() {
    let sealed = sealed(1);
    let pieces = [Piece::Zeroes(2 * PAGE), Piece::Sealed(&sealed, 0..PAGE)];
    for keep_lower in [true, false] {
        let mut lower = HostMemory::of_pieces(&pieces).expect("mapped");
        lower.write_u64(0, 7).expect("writable");
        let upper = lower.split_off(PAGE).expect("divided");
        assert_eq!(lower.hva().checked_add(PAGE), Some(upper.hva()));
        if keep_lower {
            drop(upper);
            assert_eq!(words(&lower), [7]);
            lower.read_u64(PAGE).expect_err("that is gone");
        } else {
            drop(lower);
            assert_eq!(words(&upper), [0, 0x100]);
        }
    }
}

#[test]
fn a_memory_is_divided_between_its_pages_or_not_at_all() {
    let mut memory = HostMemory::zeroed(2 * PAGE).expect("memory");
    for offset in [0, 8, PAGE + 1, 2 * PAGE, 3 * PAGE, u64::MAX] {
        let error = memory.split_off(offset).expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{offset:#x}");
    }
    assert_eq!(words(&memory), [0, 0], "nothing was changed");
}

proptest! {
    #[test]
    fn both_ways_show_the_same(lengths in prop::collection::vec((any::<bool>(), 1_u64..4), 1..8)) {
        let source = sealed(4);
        let pieces: Vec<_> = lengths
            .iter()
            .map(|&(is_sealed, pages)| {
                if is_sealed {
                    Piece::Sealed(&source, PAGE..(pages + 1).min(4) * PAGE)
                } else {
                    Piece::Zeroes(pages * PAGE)
                }
            })
            .collect();
        let expected: Vec<u64> = pieces
            .iter()
            .flat_map(|piece| {
                let pages = piece.len_bytes() / PAGE;
                let first = if let Piece::Sealed(..) = piece { 0x101 } else { 0 };
                (0..pages).map(move |page| if first == 0 { 0 } else { first + page })
            })
            .collect();
        for memory in in_both_ways(&pieces, expected.len()) {
            prop_assert_eq!(words(&memory), expected.clone());
        }
    }
}

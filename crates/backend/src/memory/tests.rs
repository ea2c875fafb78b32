use proptest::prelude::*;
use rustix::mm::MapFlags;

use super::mapping::Content;
use super::*;

const PAGE: u64 = vellum_layout::PAGE_SIZE;

fn memory(pages: u64) -> HostMemory {
    HostMemory::zeroed(pages * PAGE).expect("memory")
}

/// A memory whose every page begins with its number, from 1.
fn numbered(pages: u64) -> HostMemory {
    let memory = memory(pages);
    for page in 0..pages {
        memory.write_u64(page * PAGE, page + 1).expect("in bounds");
    }
    memory
}

fn sealed(pages: u64) -> SealedMemory {
    SealedMemory::create("vellum-test", pages * PAGE, |writer| {
        (0..pages).try_for_each(|page| writer.write(page * PAGE, &(0x100 + page).to_le_bytes()))
    })
    .expect("sealed")
}

fn words<const N: usize>(memory: &HostMemory, pages: [u64; N]) -> [u64; N] {
    pages.map(|page| memory.read_u64(page * PAGE).expect("in bounds"))
}

#[test]
fn numbers_of_32_bits_are_halves_of_numbers_of_64() {
    let memory = HostMemory::zeroed(0x1000).expect("memory");
    memory.write_u32(8, 0x5566_7788).expect("in bounds");
    memory.write_u32(12, 0x1122_3344).expect("in bounds");
    assert_eq!(
        memory.read_u64(8).expect("in bounds"),
        0x1122_3344_5566_7788
    );
    assert_eq!(memory.read_u32(12).expect("in bounds"), 0x1122_3344);
    for offset in [1, 2, 3, 0xFFD, 0x1000, u64::MAX] {
        assert!(memory.read_u32(offset).is_err(), "{offset:#x}");
        assert!(memory.write_u32(offset, 1).is_err(), "{offset:#x}");
    }
}

#[test]
fn copies_by_words_are_copies_and_fill_the_last_word_with_zeroes() {
    let from: Vec<u8> = (1..=40).collect();
    for len in 0..from.len() {
        let memory = HostMemory::zeroed(PAGE).expect("memory");
        memory.write(8, &[0xEE; 64]).expect("in bounds");
        memory.write_words(8, &from[..len]).expect("in bounds");
        let mut bytes = [0; 64];
        memory.read(8, &mut bytes).expect("in bounds");
        let (words, behind) = bytes.split_at(len.next_multiple_of(8));
        assert_eq!(words[..len], from[..len]);
        assert!(words[len..].iter().all(|byte| *byte == 0), "{len}");
        assert!(behind.iter().all(|byte| *byte == 0xEE), "{len}");
        let mut copy = vec![0xDD; len];
        memory.read_words(8, &mut copy).expect("in bounds");
        assert_eq!(copy, from[..len]);
    }
}

#[test]
fn copies_by_words_past_the_end_or_of_parts_of_words_are_refused() {
    let memory = HostMemory::zeroed(PAGE).expect("memory");
    let mut bytes = [0; 16];
    memory.read_words(PAGE - 16, &mut bytes).expect("in bounds");
    for (offset, len) in [
        (PAGE - 16, 17),
        (PAGE - 8, 9),
        (PAGE, 1),
        (4, 8),
        (PAGE - 12, 8),
        (u64::MAX - 7, 8),
        (u64::MAX, 1),
    ] {
        let mut bytes = vec![0; len];
        assert!(
            memory.read_words(offset, &mut bytes).is_err(),
            "{offset:#x}"
        );
        assert!(memory.write_words(offset, &bytes).is_err(), "{offset:#x}");
    }
}

#[test]
fn fresh_memory_is_zero_and_aligned() {
    let memory = memory(2);
    let mut bytes = [0xFF; 8192];
    memory.read(0, &mut bytes).expect("in bounds");
    assert!(bytes.iter().all(|&byte| byte == 0));
    assert_eq!(memory.len_bytes(), 2 * PAGE);
    assert!(memory.hva().is_page_aligned());
}

#[test]
fn impossible_lengths_are_refused() {
    for len_bytes in [0, 1 << 60, u64::MAX] {
        assert!(HostMemory::zeroed(len_bytes).is_err(), "{len_bytes:#x}");
    }
}

#[test]
fn every_access_outside_is_refused_and_described() {
    type Attempt<'a> = Box<dyn Fn(u64, u64) -> Result<(), OutOfBounds> + 'a>;
    let (memory, other) = (memory(1), memory(1));
    let buffer = |len_bytes: u64| vec![0; usize::try_from(len_bytes).expect("small")];
    let attempts: [(&str, Attempt<'_>); 7] = [
        (
            "read",
            Box::new(|at, len| memory.read(at, &mut buffer(len))),
        ),
        ("write", Box::new(|at, len| memory.write(at, &buffer(len)))),
        (
            "append",
            Box::new(|at, len| memory.append_to(at, buffer(len).len(), &mut Vec::new())),
        ),
        ("zero", Box::new(|at, len| memory.zero(at, len))),
        (
            "copy into",
            Box::new(|at, len| memory.copy_from(at, &other, 0, len)),
        ),
        (
            "copy out of",
            Box::new(|at, len| other.copy_from(0, &memory, at, len)),
        ),
        (
            "compare",
            Box::new(|at, len| memory.equals(at, &other, 0, len).map(|_| ())),
        ),
    ];
    for (name, attempt) in &attempts {
        for (offset, len_bytes) in [(0, PAGE), (PAGE - 1, 1), (PAGE, 0), (7, 9)] {
            assert_eq!(
                attempt(offset, len_bytes),
                Ok(()),
                "{name} {offset:#x} {len_bytes}"
            );
        }
        for (offset, len_bytes) in [
            (PAGE, 1),
            (PAGE - 1, 2),
            (PAGE + 1, 0),
            (u64::MAX, 1),
            (u64::MAX - 1, 9),
        ] {
            let expected = OutOfBounds {
                offset,
                len_bytes,
                memory_len_bytes: PAGE,
            };
            assert_eq!(
                attempt(offset, len_bytes),
                Err(expected),
                "{name} {offset:#x} {len_bytes}"
            );
        }
    }
}

#[test]
fn a_refused_access_tells_offset_and_sizes() {
    let refusal = memory(1).write(0xFFF, &[0; 4]).expect_err("outside");
    assert_eq!(
        refusal.to_string(),
        "4 bytes at offset 0xfff lie outside of a memory of 4096 bytes"
    );
}

#[test]
fn a_refused_write_writes_nothing() {
    let memory = memory(1);
    memory.write(PAGE - 4, &[1; 8]).expect_err("outside");
    memory.fill_u64(PAGE - 16, 1, 1, 3).expect_err("outside");
    memory.zero(0, PAGE + 1).expect_err("outside");
    assert!(
        memory
            .equals(0, &self::memory(1), 0, PAGE)
            .expect("in bounds")
    );
}

#[test]
fn numbers_are_little_endian_and_aligned() {
    let memory = memory(1);
    memory.write_u64(8, 0x0807_0605_0403_0201).expect("aligned");
    let mut bytes = [0; 8];
    memory.read(8, &mut bytes).expect("in bounds");
    assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(memory.read_u64(8), Ok(0x0807_0605_0403_0201));
    for offset in [1, 4, 9, PAGE - 4, PAGE, u64::MAX - 7] {
        assert!(memory.read_u64(offset).is_err(), "{offset:#x}");
        assert!(memory.write_u64(offset, 0).is_err(), "{offset:#x}");
    }
}

#[test]
fn a_run_of_numbers_has_its_stride_and_its_bounds() {
    let memory = memory(1);
    memory
        .fill_u64(PAGE - 24, 0x1007, 0x1000, 3)
        .expect("it fits exactly");
    let run = [3, 2, 1].map(|back| memory.read_u64(PAGE - back * 8).expect("in bounds"));
    assert_eq!(run, [0x1007, 0x2007, 0x3007]);
    assert_eq!(memory.read_u64(PAGE - 32), Ok(0));
    memory.fill_u64(0, u64::MAX, 2, 2).expect("it fits");
    assert_eq!(memory.read_u64(8), Ok(1), "the sum wraps");
    for (offset, count) in [(PAGE - 16, 3), (4, 1), (0, 513), (8, usize::MAX)] {
        assert!(
            memory.fill_u64(offset, 0, 0, count).is_err(),
            "{offset:#x} {count}"
        );
    }
    for offset in [0, PAGE] {
        assert_eq!(
            memory.fill_u64(offset, 1, 1, 0),
            Ok(()),
            "nothing fits everywhere"
        );
    }
}

#[test]
fn appended_bytes_come_behind_what_is_there() {
    let memory = memory(1);
    memory.write(0x10, b"guest").expect("in bounds");
    let mut bytes = b"host ".to_vec();
    memory.append_to(0x10, 5, &mut bytes).expect("in bounds");
    assert_eq!(bytes, b"host guest");
    memory
        .append_to(PAGE - 1, 2, &mut bytes)
        .expect_err("outside");
    assert_eq!(bytes, b"host guest", "a refused append changes nothing");
}

#[test]
fn copies_within_one_memory_may_overlap() {
    let memory = memory(1);
    memory.write(0, &[1, 2, 3, 4]).expect("in bounds");
    memory.copy_from(1, &memory, 0, 4).expect("in bounds");
    let mut bytes = [0; 5];
    memory.read(0, &mut bytes).expect("in bounds");
    assert_eq!(bytes, [1, 1, 2, 3, 4]);
}

#[test]
fn equality_sees_every_byte() {
    let (left, right) = (memory(1), memory(1));
    for offset in [0, 1, PAGE / 2, PAGE - 1] {
        right.write(offset, &[1]).expect("in bounds");
        assert_eq!(left.equals(0, &right, 0, PAGE), Ok(false), "{offset:#x}");
        right.write(offset, &[0]).expect("in bounds");
        assert_eq!(left.equals(0, &right, 0, PAGE), Ok(true), "{offset:#x}");
    }
}

#[test]
fn sealed_memory_holds_what_filled_it() {
    let map = sealed(3).map().expect("mapped");
    assert_eq!(words(&map, [0, 1, 2]), [0x100, 0x101, 0x102]);
}

#[test]
fn what_is_copied_into_sealed_memory_is_there_in_its_order() {
    // More parts than one batch takes, some of them neighbours in both memories, some in one only, and a gap.
    let pages = 600;
    let source = numbered(pages);
    let order: Vec<u64> = (0..pages)
        .map(|page| if page < 100 { page } else { pages + 99 - page })
        .collect();
    let gap = 3;
    let sealed = SealedMemory::create("vellum-test", (pages + gap) * PAGE, |writer| {
        for (to, from) in (0..).zip(&order) {
            let shift = if to < 300 { 0 } else { gap };
            writer.copy_from((to + shift) * PAGE, &source, from * PAGE, PAGE)?;
        }
        Ok(())
    })
    .expect("sealed");
    let map = sealed.map().expect("mapped");
    for (to, from) in (0..).zip(&order) {
        let shift = if to < 300 { 0 } else { gap };
        assert_eq!(words(&map, [to + shift]), [from + 1], "page {to}");
    }
    assert_eq!(words(&map, [300, 301, 302]), [0; 3]);
}

#[test]
fn a_copy_into_sealed_memory_from_or_to_nowhere_is_an_error() {
    let source = numbered(2);
    for (to, from, len_bytes) in [
        (0, 2 * PAGE, PAGE),
        (0, PAGE, 2 * PAGE),
        (PAGE, 0, PAGE),
        (u64::MAX, 0, PAGE),
    ] {
        let result = SealedMemory::create("vellum-test", PAGE, |writer| {
            writer.copy_from(to, &source, from, len_bytes)
        });
        let error = result.expect_err("outside");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}

#[test]
fn a_refused_fill_is_an_error() {
    let result = SealedMemory::create("vellum-test", PAGE, |writer| writer.write(PAGE, &[1]));
    let error = result.expect_err("outside");
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert!(error.to_string().contains("0x1000"), "{error}");
}

#[test]
fn sealed_memory_can_neither_be_written_nor_resized() {
    let sealed = sealed(1);
    assert!(sealed.file.set_len(2 * PAGE).is_err());
    assert!(sealed.file.set_len(0).is_err());
    assert!(io::Write::write(&mut &sealed.file, b"x").is_err());
    assert!(rustix::fs::fcntl_add_seals(&sealed.file, rustix::fs::SealFlags::WRITE).is_err());
    assert!(HostMemory::fresh(4096, Content::File(&sealed.file, 0), MapFlags::SHARED).is_err());
}

#[test]
fn an_overlay_shows_the_sealed_memory() {
    let sealed = sealed(2);
    let mut memory = numbered(4);
    memory.overlay(PAGE, &sealed).expect("mapped");
    assert_eq!(words(&memory, [0, 1, 2, 3]), [1, 0x100, 0x101, 4]);
}

#[test]
fn a_copied_page_is_private_to_its_memory() {
    let sealed = sealed(2);
    let (mut one, mut two) = (memory(2), memory(2));
    for memory in [&mut one, &mut two] {
        memory.overlay(0, &sealed).expect("mapped");
    }
    one.write_u64(PAGE, 7).expect("writable");
    assert_eq!(words(&one, [0, 1]), [0x100, 7]);
    assert_eq!(words(&two, [0, 1]), [0x100, 0x101]);
    assert_eq!(
        words(&sealed.map().expect("mapped"), [0, 1]),
        [0x100, 0x101]
    );
}

#[test]
fn discarded_pages_read_as_what_was_mapped() {
    let mut memory = numbered(4);
    memory.overlay(PAGE, &sealed(2)).expect("mapped");
    for page in 0..4 {
        memory.write_u64(page * PAGE, 9).expect("writable");
    }
    memory.discard(2 * PAGE..4 * PAGE).expect("discarded");
    assert_eq!(words(&memory, [0, 1, 2, 3]), [9, 9, 0x101, 0]);
    memory.discard(0..2 * PAGE).expect("discarded");
    assert_eq!(words(&memory, [0, 1, 2, 3]), [0, 0x100, 0x101, 0]);
}

#[test]
fn a_zeroed_overlay_replaces_what_was_there() {
    let mut memory = numbered(3);
    memory.overlay_zeroed(PAGE, PAGE).expect("mapped");
    assert_eq!(words(&memory, [0, 1, 2]), [1, 0, 3]);
    memory.write_u64(PAGE, 5).expect("writable");
    assert_eq!(words(&memory, [0, 1, 2]), [1, 5, 3]);
}

#[test]
fn mappings_change_only_whole_pages_inside() {
    let mut memory = numbered(2);
    let sealed = sealed(1);
    let len_bytes = 2 * PAGE;
    let outside_or_partial = [
        (1, PAGE),
        (0, 1),
        (0, PAGE + 1),
        (PAGE, 0x10),
        (PAGE, 2 * PAGE),
        (len_bytes, PAGE),
        (u64::MAX - 0xFFF, PAGE),
    ];
    for (offset, len_bytes) in outside_or_partial {
        let end = offset.saturating_add(len_bytes);
        let error = memory.discard(offset..end).expect_err("refused");
        assert_eq!(
            error.kind(),
            io::ErrorKind::InvalidInput,
            "discard {offset:#x} {len_bytes:#x}"
        );
        let error = memory
            .overlay_zeroed(offset, len_bytes)
            .expect_err("refused");
        assert_eq!(
            error.kind(),
            io::ErrorKind::InvalidInput,
            "zero {offset:#x} {len_bytes:#x}"
        );
    }
    for offset in [8, len_bytes, u64::MAX - 0xFFF] {
        let error = memory.overlay(offset, &sealed).expect_err("refused");
        assert_eq!(
            error.kind(),
            io::ErrorKind::InvalidInput,
            "overlay {offset:#x}"
        );
    }
    assert_eq!(words(&memory, [0, 1]), [1, 2], "nothing was changed");
}

#[test]
fn an_empty_discard_is_nothing() {
    let memory = numbered(1);
    for empty in [0..0, PAGE..PAGE] {
        memory.discard(empty).expect("nothing to do");
    }
    assert_eq!(words(&memory, [0]), [1]);
}

#[test]
fn host_addresses_know_their_alignment_and_their_end() {
    let base = memory(1).hva();
    assert_eq!(base.checked_add(8).map(Hva::is_page_aligned), Some(false));
    assert_eq!(
        base.checked_add(PAGE).map(Hva::as_u64),
        Some(base.as_u64() + PAGE)
    );
    assert_eq!(base.checked_add(u64::MAX), None);
    assert_eq!(format!("{base:?}"), format!("Hva({:#x})", base.as_u64()));
}

proptest! {
    #[test]
    fn what_is_written_is_read_and_nothing_else_changes(
        offset in 0..PAGE - 64,
        bytes in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let memory = memory(1);
        memory.write(offset, &bytes).expect("in bounds");
        let mut expected = vec![0; 4096];
        let start = usize::try_from(offset).expect("small");
        expected[start..start + bytes.len()].copy_from_slice(&bytes);
        let mut read = vec![0; 4096];
        memory.read(0, &mut read).expect("in bounds");
        prop_assert_eq!(read, expected);
    }
}

//! The memory routines that guests are linked with, under other names, against the standard library's.

#![expect(unsafe_code, reason = "calls assembly")]

vellum_guest::__memory_routines!("vellum_test_");

unsafe extern "C" {
    fn vellum_test_memcpy(destination: *mut u8, source: *const u8, len_bytes: usize) -> *mut u8;
    fn vellum_test_memmove(destination: *mut u8, source: *const u8, len_bytes: usize) -> *mut u8;
    fn vellum_test_memset(destination: *mut u8, value: i32, len_bytes: usize) -> *mut u8;
    fn vellum_test_memcmp(left: *const u8, right: *const u8, len_bytes: usize) -> i32;
    fn vellum_test_bcmp(left: *const u8, right: *const u8, len_bytes: usize) -> i32;
    fn vellum_test_strlen(text: *const u8) -> usize;
}

/// Bytes that differ from their neighbours at every distance up to 250.
fn pattern(len_bytes: usize) -> Vec<u8> {
    (0..len_bytes)
        .map(|index| (index % 251).to_le_bytes()[0])
        .collect()
}

#[test]
fn memcpy_copies_every_small_size_at_every_alignment() {
    let source = pattern(700);
    for len_bytes in 0..300 {
        for (from, to) in [(0, 0), (1, 0), (0, 3), (7, 13), (15, 1), (16, 33)] {
            let mut destination = vec![0xEE; 700];
            let mut expected = destination.clone();
            expected[to..to + len_bytes].copy_from_slice(&source[from..from + len_bytes]);
            let start = destination[to..].as_mut_ptr();
            // SAFETY: both ranges lie inside their vectors, which are distinct.
            let returned = unsafe { vellum_test_memcpy(start, source[from..].as_ptr(), len_bytes) };
            assert_eq!(returned, start);
            assert!(
                destination == expected,
                "{len_bytes} bytes from {from} to {to}"
            );
        }
    }
}

#[test]
fn memmove_copies_every_overlap() {
    for len_bytes in (0..140).chain([191, 192, 193, 255, 256, 257, 1000]) {
        for distance in (0..70).chain([127, 128, 129, 200]) {
            for (from, to) in [(0, distance), (distance, 0)] {
                let mut bytes = pattern(1400);
                let mut expected = bytes.clone();
                expected.copy_within(from..from + len_bytes, to);
                let start = bytes.as_mut_ptr();
                // SAFETY: both ranges lie inside the vector; memmove allows them to overlap.
                let returned =
                    unsafe { vellum_test_memmove(start.add(to), start.add(from), len_bytes) };
                assert_eq!(returned, start.wrapping_add(to));
                assert!(bytes == expected, "{len_bytes} bytes from {from} to {to}");
            }
        }
    }
}

#[test]
fn memset_sets_every_small_size_and_nothing_else() {
    for len_bytes in 0..300 {
        for to in [0, 1, 7, 16] {
            let mut bytes = pattern(400);
            let mut expected = bytes.clone();
            expected[to..to + len_bytes].fill(0xC3);
            let start = bytes[to..].as_mut_ptr();
            // SAFETY: the range lies inside the vector. The value's upper bits are to be ignored.
            let returned = unsafe { vellum_test_memset(start, 0x5A_C3, len_bytes) };
            assert_eq!(returned, start);
            assert!(bytes == expected, "{len_bytes} bytes at {to}");
        }
    }
}

#[test]
fn memcmp_orders_by_the_first_difference() {
    let left = pattern(100);
    for len_bytes in 0..100 {
        // SAFETY: the range lies inside the vector.
        let same = unsafe { vellum_test_memcmp(left.as_ptr(), left.clone().as_ptr(), len_bytes) };
        assert_eq!(same, 0);
        for at in 0..len_bytes {
            let mut right = left.clone();
            right[at] = right[at].wrapping_add(200);
            // A later difference must not count.
            right[len_bytes - 1] ^= u8::from(at + 1 < len_bytes);
            // SAFETY: as above.
            let order = unsafe { vellum_test_memcmp(left.as_ptr(), right.as_ptr(), len_bytes) };
            assert_eq!(
                order.cmp(&0),
                left[..len_bytes].cmp(&right[..len_bytes]),
                "{at} of {len_bytes}"
            );
            // SAFETY: as above.
            let is_different =
                unsafe { vellum_test_bcmp(left.as_ptr(), right.as_ptr(), len_bytes) };
            assert_ne!(is_different, 0);
        }
    }
}

#[test]
fn strlen_counts_up_to_the_zero() {
    for text in [c"", c"a", c"eight by", c"more than sixteen bytes"] {
        // SAFETY: the text ends with a zero.
        let len_bytes = unsafe { vellum_test_strlen(text.as_ptr().cast()) };
        assert_eq!(len_bytes, text.count_bytes());
    }
}

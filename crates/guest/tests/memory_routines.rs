//! The memory routines that guests are linked with, under other names, against the standard library's.

#![expect(unsafe_code, reason = "calls assembly")]

vellum_guest::__memory_routines!("vellum_test_user_");
vellum_guest::__kernel_memory_routines!("vellum_test_kernel_");

type Copy = unsafe extern "C" fn(*mut u8, *const u8, usize) -> *mut u8;
type Compare = unsafe extern "C" fn(*const u8, *const u8, usize) -> i32;

/// The routines of one kind of guest.
struct Routines {
    memcpy: Copy,
    memmove: Copy,
    memset: unsafe extern "C" fn(*mut u8, i32, usize) -> *mut u8,
    memcmp: Compare,
    bcmp: Compare,
    strlen: unsafe extern "C" fn(*const u8) -> usize,
}

unsafe extern "C" {
    fn vellum_test_user_memcpy(to: *mut u8, from: *const u8, len_bytes: usize) -> *mut u8;
    fn vellum_test_user_memmove(to: *mut u8, from: *const u8, len_bytes: usize) -> *mut u8;
    fn vellum_test_user_memset(to: *mut u8, value: i32, len_bytes: usize) -> *mut u8;
    fn vellum_test_user_memcmp(left: *const u8, right: *const u8, len_bytes: usize) -> i32;
    fn vellum_test_user_bcmp(left: *const u8, right: *const u8, len_bytes: usize) -> i32;
    fn vellum_test_user_strlen(text: *const u8) -> usize;
    fn vellum_test_kernel_memcpy(to: *mut u8, from: *const u8, len_bytes: usize) -> *mut u8;
    fn vellum_test_kernel_memmove(to: *mut u8, from: *const u8, len_bytes: usize) -> *mut u8;
    fn vellum_test_kernel_memset(to: *mut u8, value: i32, len_bytes: usize) -> *mut u8;
    fn vellum_test_kernel_memcmp(left: *const u8, right: *const u8, len_bytes: usize) -> i32;
    fn vellum_test_kernel_bcmp(left: *const u8, right: *const u8, len_bytes: usize) -> i32;
    fn vellum_test_kernel_strlen(text: *const u8) -> usize;
}

/// Those of user guests, which use vector registers, and those of kernels.
const KINDS: [Routines; 2] = [
    Routines {
        memcpy: vellum_test_user_memcpy,
        memmove: vellum_test_user_memmove,
        memset: vellum_test_user_memset,
        memcmp: vellum_test_user_memcmp,
        bcmp: vellum_test_user_bcmp,
        strlen: vellum_test_user_strlen,
    },
    Routines {
        memcpy: vellum_test_kernel_memcpy,
        memmove: vellum_test_kernel_memmove,
        memset: vellum_test_kernel_memset,
        memcmp: vellum_test_kernel_memcmp,
        bcmp: vellum_test_kernel_bcmp,
        strlen: vellum_test_kernel_strlen,
    },
];

/// Bytes that differ from their neighbours at every distance up to 250.
fn pattern(len_bytes: usize) -> Vec<u8> {
    (0..len_bytes)
        .map(|index| (index % 251).to_le_bytes()[0])
        .collect()
}

#[test]
fn memcpy_copies_every_small_size_at_every_alignment() {
    for Routines { memcpy, .. } in KINDS {
        let source = pattern(700);
        for len_bytes in 0..300 {
            for (from, to) in [(0, 0), (1, 0), (0, 3), (7, 13), (15, 1), (16, 33)] {
                let mut destination = vec![0xEE; 700];
                let mut expected = destination.clone();
                expected[to..to + len_bytes].copy_from_slice(&source[from..from + len_bytes]);
                let start = destination[to..].as_mut_ptr();
                // SAFETY: both ranges lie inside their vectors, which are distinct.
                let returned = unsafe { memcpy(start, source[from..].as_ptr(), len_bytes) };
                assert_eq!(returned, start);
                assert!(
                    destination == expected,
                    "{len_bytes} bytes from {from} to {to}"
                );
            }
        }
    }
}

#[test]
fn memmove_copies_every_overlap() {
    for Routines { memmove, .. } in KINDS {
        for len_bytes in (0..140).chain([191, 192, 193, 255, 256, 257, 1000]) {
            for distance in (0..70).chain([127, 128, 129, 200]) {
                for (from, to) in [(0, distance), (distance, 0)] {
                    let mut bytes = pattern(1400);
                    let mut expected = bytes.clone();
                    expected.copy_within(from..from + len_bytes, to);
                    let start = bytes.as_mut_ptr();
                    // SAFETY: both ranges lie inside the vector; memmove allows them to overlap.
                    let returned = unsafe { memmove(start.add(to), start.add(from), len_bytes) };
                    assert_eq!(returned, start.wrapping_add(to));
                    assert!(bytes == expected, "{len_bytes} bytes from {from} to {to}");
                }
            }
        }
    }
}

#[test]
fn memset_sets_every_small_size_and_nothing_else() {
    for Routines { memset, .. } in KINDS {
        for len_bytes in 0..300 {
            for to in [0, 1, 7, 16] {
                let mut bytes = pattern(400);
                let mut expected = bytes.clone();
                expected[to..to + len_bytes].fill(0xC3);
                let start = bytes[to..].as_mut_ptr();
                // SAFETY: the range lies inside the vector. The value's upper bits are to be ignored.
                let returned = unsafe { memset(start, 0x5A_C3, len_bytes) };
                assert_eq!(returned, start);
                assert!(bytes == expected, "{len_bytes} bytes at {to}");
            }
        }
    }
}

#[test]
fn memcmp_orders_by_the_first_difference() {
    for Routines { memcmp, bcmp, .. } in KINDS {
        let left = pattern(100);
        for len_bytes in 0..100 {
            // SAFETY: the range lies inside the vector.
            let same = unsafe { memcmp(left.as_ptr(), left.clone().as_ptr(), len_bytes) };
            assert_eq!(same, 0);
            for at in 0..len_bytes {
                let mut right = left.clone();
                right[at] = right[at].wrapping_add(200);
                // A later difference must not count.
                right[len_bytes - 1] ^= u8::from(at + 1 < len_bytes);
                // SAFETY: as above.
                let order = unsafe { memcmp(left.as_ptr(), right.as_ptr(), len_bytes) };
                assert_eq!(
                    order.cmp(&0),
                    left[..len_bytes].cmp(&right[..len_bytes]),
                    "{at} of {len_bytes}"
                );
                // SAFETY: as above.
                let is_different = unsafe { bcmp(left.as_ptr(), right.as_ptr(), len_bytes) };
                assert_ne!(is_different, 0);
            }
        }
    }
}

#[test]
fn strlen_counts_up_to_the_zero() {
    for Routines { strlen, .. } in KINDS {
        for text in [c"", c"a", c"eight by", c"more than sixteen bytes"] {
            // SAFETY: the text ends with a zero.
            let len_bytes = unsafe { strlen(text.as_ptr().cast()) };
            assert_eq!(len_bytes, text.count_bytes());
        }
    }
}

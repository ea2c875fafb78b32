use super::*;

const LEN_BYTES: u64 = 0x10_0000;
const GPA: u64 = 0x8_0000_0000;

/// Scratch that ends where the address space of `bits` bits does.
fn peb(bits: u32) -> Peb {
    // 0 - n is 2^64 - n; the low bits are 2^bits - n.
    let start = LEN_BYTES.wrapping_neg() & (u64::MAX >> (64 - bits));
    Peb {
        scratch_ptr: start,
        scratch_len_bytes: LEN_BYTES,
        scratch_gpa: GPA,
        ..Peb::empty()
    }
}

fn gpa(offset: u64) -> Gpa {
    Gpa::literal(GPA + offset)
}

#[test]
fn addresses_inside_scratch_are_as_far_from_its_start_as_frames() {
    for bits in [32, 48, 64] {
        let peb = peb(bits);
        let window = Window::of(&peb).expect("sound");
        let guard = LEN_BYTES - GUARD_OFFSET;
        let cases = [
            (0, 1, true),
            (0x1238, 8, true),
            (LEN_BYTES - 8, 8, true),
            (LEN_BYTES - 1, 1, true),
            // Past the end, partly or wholly.
            (LEN_BYTES - 7, 8, false),
            (LEN_BYTES, 1, false),
            (u64::from(u32::MAX), 8, false),
            // The guard page below the exception stack, and its neighbours.
            (guard - 8, 8, true),
            (guard - 4, 8, false),
            (guard, 1, false),
            (guard + 0xFFF, 1, false),
            (guard + 0x1000, 8, true),
        ];
        for (offset, len_bytes, is_inside) in cases {
            let expected = is_inside.then(|| peb.scratch_ptr + offset);
            assert_eq!(
                window.address_of(gpa(offset), len_bytes),
                expected,
                "{offset:#x} with {bits} bits"
            );
        }
        assert_eq!(window.address_of(Gpa::literal(GPA - 1), 1), None);
        assert_eq!(window.address_of(gpa(8), u64::MAX), None);
    }
}

#[test]
fn the_exception_stack_ends_below_the_bookkeeping_page() {
    let window = Window::of(&peb(64)).expect("sound");
    assert_eq!(window.exception_stack_top(), 0xFFFF_FFFF_FFFF_F000);
    let window = Window::of(&peb(32)).expect("sound");
    assert_eq!(window.exception_stack_top(), 0xFFFF_F000);
}

#[test]
fn frames_are_free_up_to_the_top_of_scratch() {
    let window = Window::of(&peb(64)).expect("sound");
    let end = GPA + LEN_BYTES - SCRATCH_TOP_LEN_BYTES;
    for (next, is_free) in [
        (GPA, true),
        (end - PAGE_SIZE, true),
        (end, false),
        (end + PAGE_SIZE, false),
        (GPA - PAGE_SIZE, false),
        (GPA + 8, false),
        (0, false),
        (u64::MAX, false),
    ] {
        assert_eq!(window.free_frame(next).is_some(), is_free, "{next:#x}");
    }
}

#[test]
fn frames_are_taken_in_order_until_there_are_none() {
    // Bookkeeping, exception stack, guard page, and two frames below them.
    let len_bytes = SCRATCH_TOP_LEN_BYTES + 2 * PAGE_SIZE;
    let memory = alloc::vec![0_u64; usize::try_from(len_bytes / 8 + 512).expect("small")];
    let start = (memory.as_ptr().expose_provenance() as u64).next_multiple_of(PAGE_SIZE);
    let window = Window::of(&Peb {
        scratch_ptr: start,
        scratch_len_bytes: len_bytes,
        ..peb(64)
    })
    .expect("sound");
    let word = pointer::<u64>(start + len_bytes - SCRATCH_TOP_ALLOCATOR_OFFSET);
    // SAFETY: the word lies in `memory`, which nobody else uses.
    unsafe { word.write(GPA) };
    let taken: [Option<Gpa>; 4] = core::array::from_fn(|_| window.take_frame());
    assert_eq!(taken, [Some(gpa(0)), Some(gpa(0x1000)), None, None]);
    // SAFETY: as above.
    let next = unsafe { word.read() };
    assert_eq!(next, GPA + 0x2000, "a refusal takes nothing");
}

#[test]
fn a_peb_without_sound_scratch_has_no_window() {
    let sound = peb(64);
    assert!(Window::of(&sound).is_some());
    let unsound = [
        Peb::empty(),
        Peb {
            scratch_ptr: 0,
            ..sound
        },
        Peb {
            scratch_ptr: sound.scratch_ptr + 8,
            ..sound
        },
        Peb {
            scratch_ptr: sound.scratch_ptr + PAGE_SIZE,
            ..sound
        },
        Peb {
            scratch_len_bytes: LEN_BYTES - 8,
            ..sound
        },
        Peb {
            scratch_len_bytes: SCRATCH_TOP_LEN_BYTES,
            ..sound
        },
        Peb {
            scratch_gpa: GPA + 1,
            ..sound
        },
        Peb {
            scratch_gpa: 0_u64.wrapping_sub(LEN_BYTES),
            ..sound
        },
    ];
    for peb in unsound {
        assert_eq!(Window::of(&peb), None, "{peb:x?}");
    }
}

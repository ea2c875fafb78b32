//! Where scratch begins, and pointers under each translation.

use proptest::prelude::*;
use vellum_layout::amd64::user;
use vellum_layout::{
    AddressError, Gpa, GpaRange, GuestKind, GuestPtr, Gva, LayoutError, PAGE_SIZE, Translation,
    amd64, i686, scratch_base_for_guest,
};

const TRANSLATIONS: [Translation; 3] = [
    Translation::Identity,
    Translation::TwoLevel,
    Translation::FourLevel,
];

fn max_len(translation: Translation) -> u64 {
    match translation {
        Translation::Identity | Translation::TwoLevel => i686::MAX_SCRATCH_LEN_BYTES,
        Translation::FourLevel => amd64::MAX_SCRATCH_LEN_BYTES,
    }
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0..=amd64::MAX_SCRATCH_LEN_BYTES / PAGE_SIZE + 2).prop_map(|pages| pages * PAGE_SIZE),
        (0..=i686::MAX_SCRATCH_LEN_BYTES / PAGE_SIZE + 2).prop_map(|pages| pages * PAGE_SIZE),
        0_u64..0x4000,
    ]
}

#[test]
fn scratch_ends_at_the_highest_address() {
    let len = 0x10_0000;
    assert_eq!(
        amd64::scratch_base_gpa(len),
        Ok(Gpa::literal(0xf_fff0_0000))
    );
    assert_eq!(
        amd64::scratch_base_gva(len),
        Ok(Gva::literal(0xffff_ffff_ffef_f000))
    );
    assert_eq!(i686::scratch_base_gpa(len), Ok(Gpa::literal(0xfed0_0000)));
    assert_eq!(
        i686::scratch_base_gva_paged(len),
        Ok(Gva::literal(0xfff0_0000))
    );
}

#[test]
fn lengths_that_cannot_be_are_refused_under_every_translation() {
    for translation in TRANSLATIONS {
        let max_len_bytes = max_len(translation);
        let too_large = |len_bytes| LayoutError::TooLarge {
            area: "scratch",
            len_bytes,
            max_len_bytes,
        };
        let unaligned = |len_bytes| LayoutError::Unaligned {
            area: "scratch",
            len_bytes,
        };
        let cases = [
            (0, LayoutError::Empty { area: "scratch" }),
            (1, unaligned(1)),
            (0x1001, unaligned(0x1001)),
            (u64::MAX, unaligned(u64::MAX)),
            (
                max_len_bytes + PAGE_SIZE,
                too_large(max_len_bytes + PAGE_SIZE),
            ),
            (!0xfff, too_large(!0xfff)),
        ];
        for (len_bytes, error) in cases {
            assert_eq!(
                scratch_base_for_guest(translation, len_bytes),
                Err(error),
                "{translation}"
            );
        }
        assert!(scratch_base_for_guest(translation, max_len_bytes).is_ok());
    }
}

#[test]
fn a_pointer_of_a_32_bit_guest_fits_32_bits() {
    let address = 1 << 32;
    let error = Err(AddressError::AboveFourGib { address });
    assert_eq!(GuestPtr::identity(Gpa::literal(address)), error);
    assert_eq!(GuestPtr::two_level(Gva::literal(address)), error);
    let last = GuestPtr::two_level(Gva::literal(address - 1)).expect("fits");
    assert_eq!(last.checked_add(1), None);
    assert_eq!(last.to_string(), "0xffffffff");
}

#[test]
fn kinds_translations_and_architectures_agree() {
    for kind in GuestKind::ALL {
        assert_eq!(kind.translation().arch(), kind.arch(), "{kind}");
    }
}

#[test]
fn the_io_area_keeps_a_gap_between_neighbours() {
    let area = user::io_area(0x4000, 0x2000).expect("fits");
    assert_eq!(area.peb.start(), user::IO_BASE);
    for (earlier, later) in [(area.peb, area.resume), (area.resume, area.input)] {
        assert_eq!(later.start().offset_from(earlier.end()), Some(PAGE_SIZE));
    }
    assert_eq!(
        area.output.start().offset_from(area.input.end()),
        Some(PAGE_SIZE)
    );
}

#[test]
fn the_longest_buffers_leave_a_gap_before_the_stack_area() {
    // PEB, resume page and four gaps of a page each: behind each of both, between the buffers, after the output.
    let longest = user::IO_AREA.len_bytes() - 6 * PAGE_SIZE - PAGE_SIZE;
    let area = user::io_area(longest, PAGE_SIZE).expect("exactly the room there is");
    assert_eq!(
        user::IO_AREA.end().offset_from(area.output.end()),
        Some(PAGE_SIZE)
    );
    assert_eq!(
        user::io_area(longest, 2 * PAGE_SIZE),
        Err(LayoutError::TooLarge {
            area: "output buffer",
            len_bytes: 2 * PAGE_SIZE,
            max_len_bytes: PAGE_SIZE,
        })
    );
}

#[test]
fn user_areas_refuse_what_does_not_fit() {
    let io = user::IO_AREA.len_bytes();
    assert!(matches!(
        user::io_area(io, 0x1000),
        Err(LayoutError::TooLarge { .. })
    ));
    assert!(matches!(
        user::io_area(0x1000, io),
        Err(LayoutError::TooLarge { .. })
    ));
    assert_eq!(
        user::io_area(0x1000, 0),
        Err(LayoutError::Empty {
            area: "output buffer"
        })
    );
    assert!(user::heap(user::HEAP_AREA.len_bytes()).is_ok());
    assert!(user::heap(user::HEAP_AREA.len_bytes() + PAGE_SIZE).is_err());
    assert!(user::stack(user::STACK_AREA.len_bytes()).is_err());
    assert!(user::stack(u64::MAX).is_err());
    let beyond = Gpa::literal(amd64::MAX_GPA.as_u64() + 1);
    assert_eq!(
        user::window_gva(beyond),
        Err(LayoutError::AboveMaxGpa {
            gpa: beyond,
            max_gpa: amd64::MAX_GPA
        })
    );
}

#[test]
fn a_mapping_is_seen_in_its_window_at_its_physical_address() {
    let last_page = GpaRange::new(
        Gpa::literal(amd64::MAX_GPA.as_u64() + 1 - PAGE_SIZE),
        PAGE_SIZE,
    );
    let last_page = last_page.expect("a range");
    let seen = user::mapping_gva(last_page).expect("inside the window");
    assert_eq!(seen.end(), user::MAPPINGS_WINDOW.end());
    assert_eq!(seen.len_bytes(), PAGE_SIZE);

    let beyond = GpaRange::new(last_page.start(), 2 * PAGE_SIZE).expect("a range");
    assert_eq!(
        user::mapping_gva(beyond),
        Err(LayoutError::AboveMaxGpa {
            gpa: beyond.last(),
            max_gpa: amd64::MAX_GPA,
        })
    );
}

proptest! {
    // No regression files: a failure worth keeping becomes a test with a name.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn an_identity_pointer_is_its_physical_address(len_bytes in length()) {
        let gpa = i686::scratch_base_gpa(len_bytes);
        let pointer = scratch_base_for_guest(Translation::Identity, len_bytes);
        prop_assert_eq!(gpa.is_ok(), pointer.is_ok());
        if let (Ok(gpa), Ok(pointer)) = (gpa, pointer) {
            prop_assert_eq!(pointer.gpa(), Some(gpa));
            prop_assert_eq!(pointer.as_u64(), gpa.as_u64());
            prop_assert_eq!(pointer.gva().as_u64(), gpa.as_u64());
            prop_assert!(pointer.gva() <= i686::MAX_GVA_IDENTITY);
        }
    }

    #[test]
    fn every_good_length_and_no_other_gives_a_base(
        len_bytes in length(),
        translation in prop::sample::select(TRANSLATIONS.to_vec()),
    ) {
        let good = len_bytes > 0 && len_bytes % PAGE_SIZE == 0 && len_bytes <= max_len(translation);
        let base = scratch_base_for_guest(translation, len_bytes);
        prop_assert_eq!(base.is_ok(), good);
        if let Ok(base) = base {
            prop_assert_eq!(base.translation(), translation);
            let last = base.checked_add(len_bytes - 1).map(GuestPtr::gva);
            let expected = match translation {
                Translation::Identity => i686::MAX_GVA_IDENTITY,
                Translation::TwoLevel => i686::MAX_GVA_PAGED,
                Translation::FourLevel => amd64::MAX_GVA,
            };
            prop_assert_eq!(last, Some(expected));
        }
    }

    #[test]
    fn user_ranges_lie_in_their_areas(first in length(), second in length()) {
        if let Ok(area) = user::io_area(first, second) {
            prop_assert_eq!(area.input.len_bytes(), first);
            prop_assert_eq!(area.output.len_bytes(), second);
            prop_assert!(area.peb.end() < area.input.start());
            prop_assert!(area.input.end() < area.output.start());
            prop_assert!(area.output.end() < user::IO_AREA.end());
        }
        if let (Ok(stack), Ok(guard)) = (user::stack(first), user::stack_guard(first)) {
            prop_assert_eq!(stack.end(), user::STACK_TOP);
            prop_assert_eq!(guard.end(), stack.start());
            prop_assert!(user::STACK_AREA.contains_range(&guard));
        }
        if let Ok(heap) = user::heap(first) {
            prop_assert!(user::HEAP_AREA.contains_range(&heap));
        }
    }

    #[test]
    fn the_window_shows_all_guest_physical_memory(raw in 0..=amd64::MAX_GPA.as_u64()) {
        let gva = user::window_gva(Gpa::literal(raw)).expect("inside the window");
        prop_assert_eq!(user::PHYSICAL_WINDOW.offset_of(gva), Some(raw));
    }
}

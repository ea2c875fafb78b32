//! Addresses, checked against arithmetic on wider integers.

use proptest::prelude::*;
use vellum_layout::{AddressError, Gpa, Gva, PageSize};

/// Numbers near the places where validity changes, and any others.
fn raw_address() -> impl Strategy<Value = u64> {
    let edges = [
        0,
        1 << 32,
        1 << 47,
        1 << 48,
        1 << 52,
        0xffff_8000_0000_0000,
        u64::MAX,
    ];
    prop_oneof![
        any::<u64>(),
        0_u64..1 << 52,
        (prop::sample::select(edges.to_vec()), -0x2000_i64..0x2000)
            .prop_map(|(edge, delta)| edge.wrapping_add_signed(delta)),
    ]
}

fn byte_count() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), 0_u64..0x1_0000, raw_address()]
}

fn gva() -> impl Strategy<Value = Gva> {
    raw_address().prop_map(Gva::sign_extend)
}

fn gpa() -> impl Strategy<Value = Gpa> {
    raw_address().prop_map(|raw| Gpa::literal(raw & ((1 << 52) - 1)))
}

/// The definition of a canonical address, by its two stretches.
fn is_canonical(raw: u64) -> bool {
    matches!(raw, 0..=0x7fff_ffff_ffff | 0xffff_8000_0000_0000..)
}

#[test]
fn a_gpa_has_at_most_52_bits() {
    assert_eq!(
        Gpa::new((1 << 52) - 1),
        Ok(Gpa::literal(0x000f_ffff_ffff_ffff))
    );
    for address in [1 << 52, 1 << 63, u64::MAX] {
        assert_eq!(Gpa::new(address), Err(AddressError::GpaTooWide { address }));
    }
}

#[test]
fn a_gva_is_canonical() {
    for address in [0, 0x7fff_ffff_ffff, 0xffff_8000_0000_0000, u64::MAX] {
        assert_eq!(Gva::new(address).map(Gva::as_u64), Ok(address));
    }
    for address in [0x8000_0000_0000, 0xffff_7fff_ffff_ffff, 1 << 63] {
        assert_eq!(
            Gva::new(address),
            Err(AddressError::GvaNotCanonical { address })
        );
    }
}

#[test]
fn counting_does_not_cross_the_canonical_gap() {
    let below = Gva::literal(0x7fff_ffff_f000);
    let above = Gva::literal(0xffff_8000_0000_0000);
    assert_eq!(below.checked_add(0x1000), None);
    assert_eq!(below.checked_add(above.as_u64() - below.as_u64()), None);
    assert_eq!(above.checked_sub(1), None);
    assert_eq!(above.offset_from(below), None);
    assert_eq!(below.checked_align_up(PageSize::Size2MiB), None);
}

#[test]
fn page_sizes_are_those_of_the_tables() {
    // Each entry of a level-1 table maps 4 KiB; a table has 512 entries with 4-level paging and
    // 1024 with 2-level paging (Intel SDM Vol. 3A, chapter "Paging").
    let cases = [
        (PageSize::Size4KiB, 4 * 1024),
        (PageSize::Size2MiB, 512 * 4 * 1024),
        (PageSize::Size4MiB, 1024 * 4 * 1024),
        (PageSize::Size1GiB, 512 * 512 * 4 * 1024),
    ];
    for (size, bytes) in cases {
        assert_eq!(size.bytes(), bytes, "{size:?}");
    }
}

#[test]
fn debug_and_hex_show_the_address() {
    assert_eq!(
        format!("{:?}", Gpa::literal(0xfee0_0000)),
        "Gpa(0xfee00000)"
    );
    assert_eq!(
        format!("{:?}", Gva::literal(u64::MAX)),
        "Gva(0xffffffffffffffff)"
    );
    assert_eq!(format!("{}", Gpa::literal(0x1000)), "0x1000");
    assert_eq!(format!("{:#010x}", Gva::literal(0x1000)), "0x00001000");
}

#[test]
fn errors_name_the_address_in_hex() {
    let messages = [
        (Gpa::new(1 << 52).map(Gpa::as_u64), "0x10000000000000"),
        (Gva::new(1 << 47).map(Gva::as_u64), "0x800000000000"),
    ];
    for (result, address) in messages {
        let message = result.expect_err("out of range").to_string();
        assert!(message.contains(address), "{message}");
    }
}

proptest! {
    // No regression files: a failure worth keeping becomes a test with a name.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn validity_agrees_with_its_definition(raw in raw_address()) {
        prop_assert_eq!(Gpa::new(raw).is_ok(), raw < 1 << 52);
        prop_assert_eq!(Gva::new(raw).is_ok(), is_canonical(raw));
    }

    #[test]
    fn sign_extension_is_canonical_and_keeps_48_bits(raw in raw_address()) {
        let address = Gva::sign_extend(raw).as_u64();
        prop_assert!(is_canonical(address));
        prop_assert_eq!(address & 0xffff_ffff_ffff, raw & 0xffff_ffff_ffff);
        prop_assert_eq!(Gva::sign_extend(address).as_u64(), address);
    }

    #[test]
    fn gpa_addition_agrees_with_wide_arithmetic(base in gpa(), bytes in byte_count()) {
        let sum = u128::from(base.as_u64()) + u128::from(bytes);
        let expected = (sum < 1 << 52).then_some(sum);
        prop_assert_eq!(base.checked_add(bytes).map(|a| u128::from(a.as_u64())), expected);
    }

    #[test]
    fn gva_addition_stays_in_its_half(base in gva(), bytes in byte_count()) {
        let sum = u128::from(base.as_u64()) + u128::from(bytes);
        let limit = if base.as_u64() < 1 << 47 { 1 << 47 } else { 1 << 64 };
        let expected = (sum < limit).then_some(sum);
        prop_assert_eq!(base.checked_add(bytes).map(|a| u128::from(a.as_u64())), expected);
    }

    #[test]
    fn addition_subtraction_and_distance_agree(base in gva(), bytes in byte_count()) {
        if let Some(sum) = base.checked_add(bytes) {
            prop_assert_eq!(sum.checked_sub(bytes), Some(base));
            prop_assert_eq!(sum.offset_from(base), Some(bytes));
        }
        if let Some(difference) = base.checked_sub(bytes) {
            prop_assert_eq!(difference.checked_add(bytes), Some(base));
        }
    }

    #[test]
    fn distance_is_the_bytes_to_add(one in gva(), other in gva()) {
        match one.offset_from(other) {
            Some(bytes) => prop_assert_eq!(other.checked_add(bytes), Some(one)),
            None => prop_assert!(one < other || one.as_u64() >> 63 != other.as_u64() >> 63),
        }
    }

    #[test]
    fn alignment_brackets_the_address(
        address in gva(),
        size in prop::sample::select(PageSize::ALL.to_vec()),
    ) {
        let down = address.align_down(size);
        prop_assert!(down.is_aligned(size) && down <= address);
        prop_assert!(address.offset_from(down) < Some(size.bytes()));
        if let Some(up) = address.checked_align_up(size) {
            prop_assert!(up.is_aligned(size) && up >= address);
            prop_assert!(up.offset_from(address) < Some(size.bytes()));
        } else {
            prop_assert_eq!(down.checked_add(size.bytes()), None);
        }
    }
}

//! Geometry of the formats, control registers, roots.

extern crate alloc;

use alloc::vec::Vec;

use super::*;

#[test]
fn registers_select_the_format() {
    const LONG: u64 = EFER_LMA | EFER_NXE;
    let cases = [
        (0, 0, 0, Err(FormatError::PagingOff)),
        (0x11, CR4_PAE, LONG, Err(FormatError::PagingOff)),
        (CR0_PG, 0, 0, Ok(Format::TWO_LEVEL)),
        (CR0_PG, CR4_PSE, 0, Ok(Format::TWO_LEVEL_PSE)),
        (CR0_PG, CR4_PAE, 0, Err(FormatError::ThreeLevel)),
        (CR0_PG, CR4_PAE, LONG, Ok(Format::FOUR_LEVEL)),
        (CR0_PG, CR4_PAE | CR4_PSE, LONG, Ok(Format::FOUR_LEVEL)),
        (
            CR0_PG,
            CR4_PAE,
            EFER_LMA,
            Ok(Format::FOUR_LEVEL.without_no_execute()),
        ),
        (
            CR0_PG,
            CR4_PAE | CR4_LA57,
            LONG,
            Err(FormatError::FiveLevel),
        ),
        (CR0_PG, 0, LONG, Err(FormatError::LongModeWithoutPae)),
    ];
    for (cr0, cr4, efer, expected) in cases {
        let format = Format::from_registers(cr0, cr4, efer);
        assert_eq!(
            format, expected,
            "cr0 {cr0:#x}, cr4 {cr4:#x}, efer {efer:#x}"
        );
    }
}

#[test]
fn cr3_values_with_other_bits_than_address_and_cache_control_are_refused() {
    let four = Format::FOUR_LEVEL;
    let narrow = four.with_physical_bits(40).unwrap();
    let two = Format::TWO_LEVEL;
    let reserved = |root, bits| Err(RootError::ReservedBits { root, bits });
    let cases = [
        (four, 0x1000, Ok(Gpa::literal(0x1000))),
        (four, 0x1018, Ok(Gpa::literal(0x1000))),
        (four, 0x1001, reserved(0x1001, 1)),
        (four, 0x1fff, reserved(0x1fff, 0xfe7)),
        (four, 1 << 63 | 0x1000, reserved(1 << 63 | 0x1000, 1 << 63)),
        (
            four,
            (1 << 52) - 0x1000,
            Ok(Gpa::literal((1 << 52) - 0x1000)),
        ),
        (narrow, 1 << 40, reserved(1 << 40, 1 << 40)),
        (two, 0xffff_f000, Ok(Gpa::literal(0xffff_f000))),
        (two, 1 << 32, reserved(1 << 32, 1 << 32)),
    ];
    for (format, cr3, expected) in cases {
        assert_eq!(format.root_from_cr3(cr3), expected, "cr3 {cr3:#x}");
    }
}

#[test]
fn roots_must_be_frames_that_the_processor_can_address() {
    let unaligned = Gpa::literal(0x1018);
    let expected = Err(RootError::Unaligned { root: 0x1018 });
    assert_eq!(Format::FOUR_LEVEL.check_root(unaligned), expected);
    assert_eq!(Format::FOUR_LEVEL.check_root(Gpa::literal(1 << 40)), Ok(()));
    assert!(Format::TWO_LEVEL.check_root(Gpa::literal(1 << 40)).is_err());
}

#[test]
fn physical_widths_out_of_range_are_refused() {
    for (format, bits, good) in [
        (Format::FOUR_LEVEL, 31, false),
        (Format::FOUR_LEVEL, 32, true),
        (Format::FOUR_LEVEL, 52, true),
        (Format::FOUR_LEVEL, 53, false),
        (Format::FOUR_LEVEL, u32::MAX, false),
        (Format::TWO_LEVEL, 0, false),
        (Format::TWO_LEVEL_PSE, 40, true),
        (Format::TWO_LEVEL_PSE, 41, false),
    ] {
        assert_eq!(format.with_physical_bits(bits).is_ok(), good, "{bits} bits");
    }
}

#[test]
fn indices_and_spans_tile_the_address_space() {
    let gva = Gva::literal(0xffff_8080_4020_1000);
    let indices = Level::ALL.map(|level| Format::FOUR_LEVEL.index(level, gva));
    assert_eq!(indices, [1, 1, 1, 257]);
    let gva = Gva::literal(0xffc0_1000);
    assert_eq!(Format::TWO_LEVEL.index(Level::L2, gva), 1023);
    assert_eq!(Format::TWO_LEVEL.index(Level::L1, gva), 1);
    for format in [Format::FOUR_LEVEL, Format::TWO_LEVEL] {
        let root = format.root_level();
        let all = format.entries_per_table() * format.span_bytes(root);
        assert_eq!(all, 1 << format.linear_bits());
    }
}

#[test]
fn sizes_and_levels_agree() {
    let formats = [
        Format::FOUR_LEVEL,
        Format::FOUR_LEVEL.without_1_gib_pages(),
        Format::TWO_LEVEL,
        Format::TWO_LEVEL_PSE,
    ];
    for format in formats {
        for level in Level::ALL
            .into_iter()
            .filter(|level| format.has_level(*level))
        {
            if let Some(size) = format.leaf_size(level) {
                assert_eq!(format.level_of(size), Some(level));
                assert_eq!(format.span_bytes(level), size.bytes());
            }
        }
        for size in PageSize::ALL {
            if let Some(level) = format.level_of(size) {
                assert_eq!(format.leaf_size(level), Some(size));
            }
        }
    }
}

#[test]
fn slots_cut_a_span_at_entry_boundaries() {
    let format = Format::FOUR_LEVEL;
    let span = Span {
        first: 0x401f_f000,
        last: 0x4040_0fff,
    };
    let slots: Vec<_> = span.slots(format, Level::L2).collect();
    let expected = [
        (0, 0x401f_f000, 0x401f_ffff, false),
        (1, 0x4020_0000, 0x403f_ffff, true),
        (2, 0x4040_0000, 0x4040_0fff, false),
    ];
    let found = slots.iter().map(|slot| {
        let fills = slot.span.fills(format, Level::L2);
        (slot.index, slot.span.first, slot.span.last, fills)
    });
    assert!(found.eq(expected), "{slots:?}");
    let edges: Vec<_> = span.edge_slots(format, Level::L2).collect();
    assert_eq!(edges, [slots[0], slots[2]]);
}

#[test]
fn a_span_under_one_entry_has_one_edge_at_most() {
    let format = Format::FOUR_LEVEL;
    let inside = Span {
        first: 0x1000,
        last: 0x1fff,
    };
    assert_eq!(inside.edge_slots(format, Level::L2).count(), 1);
    let full = Span {
        first: 0,
        last: 0x1f_ffff,
    };
    assert_eq!(full.edge_slots(format, Level::L2).count(), 0);
    let whole = Span::whole(format);
    assert_eq!(whole.slots(format, Level::L4).count(), 512);
    assert_eq!(whole.edge_slots(format, Level::L4).count(), 0);
}

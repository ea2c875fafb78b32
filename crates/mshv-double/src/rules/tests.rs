use super::*;

const ALL_COMPONENTS: u64 = 0b111;

fn is_accepted(register: u32, value: u64) -> bool {
    accept(register, value.into(), ALL_COMPONENTS).is_ok()
}

#[test]
fn fixed_and_reserved_bits_are_checked_register_by_register() {
    let cases = [
        (name::CR0, 0x11, true),
        (name::CR0, 0x01, false),
        (name::CR0, 0x8000_0010, false),
        (name::CR0, 0x2000_0010, false),
        (name::CR0, 0x6000_0010, true),
        (name::CR0, 0x1_0000_0010, false),
        (name::CR4, 1 << 5, true),
        (name::CR4, 1 << 13, false),
        (name::CR3, 1 << 52, false),
        (name::CR8, 16, false),
        (name::EFER, 0x500, true),
        (name::EFER, 0x2, false),
        (name::RFLAGS, 0x2, true),
        (name::RFLAGS, 0x0, false),
        (name::RFLAGS, 0x8002, false),
        (name::DR7, 0x400, true),
        (name::DR7, 0, false),
        (name::XFEM, 1, true),
        (name::XFEM, 0, false),
        (name::XFEM, 0b101, false),
        (name::XFEM, 0b1111, false),
        (0x80009, 1 << 47, false),
        (0x80004, 0x0007_0406_0007_0406, true),
        (0x80004, 2, false),
        (name::EXPLICIT_SUSPEND, 0, false),
    ];
    for (register, value, accepted) in cases {
        assert_eq!(
            is_accepted(register, value),
            accepted,
            "{register:#x} {value:#x}"
        );
    }
}

#[test]
fn bits_beyond_a_register_are_refused() {
    assert_eq!(
        accept(name::RAX, 1 << 64, ALL_COMPONENTS),
        Err(Status::INVALID_REGISTER_VALUE)
    );
}

#[test]
fn reserved_bits_of_cr0_are_dropped() {
    assert_eq!(
        accept(name::CR0, (CR0_DROPPED | 0x11).into(), ALL_COMPONENTS),
        Ok(0x11)
    );
}

fn segment(attributes: u16, limit: u32) -> u128 {
    Segment {
        base: 0,
        limit,
        selector: 8,
        attributes,
    }
    .value()
}

fn long_mode() -> Values {
    let mut values = Values::default();
    values.set(name::CR0, 0x8000_0011_u64);
    values.set(name::CR4, CR4_PAE);
    values.set(name::EFER, EFER_LME | EFER_LMA);
    values.set(name::CS, segment(0xA09B, u32::MAX));
    values.set(name::SS, segment(0xC093, u32::MAX));
    values.set(name::TR, segment(0x8B, 0x67));
    values
}

#[test]
fn registers_that_do_not_fit_together_cannot_be_entered() {
    assert!(can_enter(&long_mode()));
    let edits: [(&str, u32, u128); 9] = [
        ("long mode without LMA", name::EFER, EFER_LME.into()),
        ("LMA without paging", name::CR0, 0x11),
        ("long mode without PAE", name::CR4, 0),
        ("no TSS", name::TR, segment(0, 0)),
        ("an available TSS", name::TR, segment(0x89, 0x67)),
        ("data in CS", name::CS, segment(0xC093, u32::MAX)),
        ("code of two sizes", name::CS, segment(0xE09B, u32::MAX)),
        (
            "another privilege in SS",
            name::SS,
            segment(0xC0F3, u32::MAX),
        ),
        (
            "a limit in pages that ends in bytes",
            name::SS,
            segment(0xC093, 0x1234),
        ),
    ];
    for (what, register, value) in edits {
        let mut values = long_mode();
        values.set(register, value);
        assert!(!can_enter(&values), "{what}");
    }
}

//! A valid state of each mode, and one edit for each rule that must break it.

use super::*;
use crate::state::{DescriptorTable, SegmentType};

const fn segment(selector: u16, limit: u32, attributes: SegmentType) -> Segment {
    Segment {
        base: 0,
        limit,
        selector,
        attributes,
    }
}

/// Ring 3 in long mode.
fn long_mode() -> SpecialRegs {
    let data = segment(0x1B, u32::MAX, SegmentType::DATA.with_dpl(3));
    SpecialRegs {
        cs: segment(0x23, u32::MAX, SegmentType::CODE64.with_dpl(3)),
        ss: data,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        tr: segment(0x28, 0x67, SegmentType::TSS_BUSY),
        cr0: cr0::PE | cr0::ET | cr0::PG,
        cr3: 0x1000,
        cr4: cr4::PAE,
        efer: efer::LME | efer::LMA,
        ..SpecialRegs::default()
    }
}

fn protected_mode() -> SpecialRegs {
    SpecialRegs {
        cs: segment(8, u32::MAX, SegmentType::CODE32),
        ss: segment(16, u32::MAX, SegmentType::DATA),
        cr0: cr0::PE | cr0::ET,
        ..SpecialRegs::default()
    }
}

type Edit = fn(&mut SpecialRegs);

/// What is wrong with `base` after `edit`.
fn refusal(base: SpecialRegs, edit: Edit) -> Result<(), HypervViolation> {
    let mut regs = base;
    edit(&mut regs);
    validate_for_hyperv(&regs)
}

#[test]
fn states_without_a_flaw_are_accepted() {
    let cases: [(&str, SpecialRegs, Edit); 14] = [
        ("long mode", long_mode(), |_| {}),
        ("protected mode", protected_mode(), |_| {}),
        ("after a reset", SpecialRegs::default(), |_| {}),
        ("every cr0 bit", long_mode(), |r| r.cr0 = CR0_DEFINED),
        ("every cr4 bit", long_mode(), |r| r.cr4 = !CR4_REFUSED),
        ("SCE, NXE, FFXSR, TCE", long_mode(), |r| {
            r.efer |= efer::SCE | efer::NXE | 1 << 14 | 1 << 15;
        }),
        ("LME before paging", protected_mode(), |r| {
            r.efer = efer::LME;
        }),
        ("the widest cr3", long_mode(), |r| {
            r.cr3 = (1 << 52) - 0x1000;
        }),
        ("absent data segments", long_mode(), |r| {
            (r.ds, r.es, r.fs, r.gs) = Default::default();
        }),
        ("an absent ss", long_mode(), |r| r.ss = Segment::default()),
        ("ss below conforming code", long_mode(), |r| {
            r.cs.attributes = SegmentType::from_bits(r.cs.attributes.bits() | 0b100);
            r.ss.attributes = SegmentType::DATA;
        }),
        ("upper-half bases", long_mode(), |r| {
            r.fs.base = 0xFFFF_8000_0000_0000;
            r.gs.base = 0x7FFF_FFFF_FFFF;
        }),
        ("a limit of whole pages", long_mode(), |r| {
            r.ds.limit = 0xFFF;
        }),
        ("an absent segment of any limit", long_mode(), |r| {
            r.es = segment(0, 0x1234_5678, SegmentType::ABSENT);
        }),
    ];
    for (name, base, edit) in cases {
        assert_eq!(refusal(base, edit), Ok(()), "{name}");
    }
}

#[test]
fn control_registers_with_a_flaw_are_refused() {
    let valid = long_mode();
    let cases: [(Edit, HypervViolation); 15] = [
        (
            |r| r.cr0 &= !cr0::ET,
            HypervViolation::ExtensionTypeClear(valid.cr0 & !cr0::ET),
        ),
        (
            |r| r.cr0 |= 1 << 6,
            HypervViolation::Cr0(valid.cr0 | 1 << 6),
        ),
        (
            |r| r.cr0 |= 1 << 32,
            HypervViolation::Cr0(valid.cr0 | 1 << 32),
        ),
        (
            |r| r.cr0 &= !cr0::PE,
            HypervViolation::Cr0(valid.cr0 & !cr0::PE),
        ),
        (
            |r| r.cr0 |= cr0::NW,
            HypervViolation::Cr0(valid.cr0 | cr0::NW),
        ),
        (
            |r| r.cr4 |= cr4::VMXE,
            HypervViolation::Cr4(valid.cr4 | cr4::VMXE),
        ),
        (
            |r| r.cr4 |= 1 << 14,
            HypervViolation::Cr4(valid.cr4 | 1 << 14),
        ),
        (
            |r| r.cr4 |= 1 << 22,
            HypervViolation::Cr4(valid.cr4 | 1 << 22),
        ),
        (
            |r| r.cr4 |= 1 << 63,
            HypervViolation::Cr4(valid.cr4 | 1 << 63),
        ),
        (
            |r| r.efer |= 1 << 1,
            HypervViolation::Efer(valid.efer | 1 << 1),
        ),
        // SVME and LMSLE.
        (
            |r| r.efer |= 1 << 12,
            HypervViolation::Efer(valid.efer | 1 << 12),
        ),
        (
            |r| r.efer |= 1 << 13,
            HypervViolation::Efer(valid.efer | 1 << 13),
        ),
        (
            |r| r.efer |= 1 << 16,
            HypervViolation::Efer(valid.efer | 1 << 16),
        ),
        (
            |r| r.cr3 |= 1 << 52,
            HypervViolation::Cr3(valid.cr3 | 1 << 52),
        ),
        (
            |r| r.cr3 |= 1 << 63,
            HypervViolation::Cr3(valid.cr3 | 1 << 63),
        ),
    ];
    for (edit, expected) in cases {
        assert_eq!(refusal(valid, edit), Err(expected));
    }
}

#[test]
fn long_mode_must_be_active_exactly_where_it_is_enabled_and_paging_is_on() {
    let long = long_mode();
    let cases: [(SpecialRegs, Edit, HypervViolation); 4] = [
        (
            long,
            |r| r.efer = efer::LME,
            HypervViolation::LongModeActive {
                efer: efer::LME,
                cr0: long.cr0,
            },
        ),
        (
            long,
            |r| r.efer = efer::LMA,
            HypervViolation::LongModeActive {
                efer: efer::LMA,
                cr0: long.cr0,
            },
        ),
        (
            protected_mode(),
            |r| r.efer = efer::LME | efer::LMA,
            HypervViolation::LongModeActive {
                efer: efer::LME | efer::LMA,
                cr0: cr0::PE | cr0::ET,
            },
        ),
        (long, |r| r.cr4 = 0, HypervViolation::LongModeWithoutPae(0)),
    ];
    for (base, edit, expected) in cases {
        assert_eq!(refusal(base, edit), Err(expected));
    }
}

#[test]
fn tr_must_be_a_present_busy_tss() {
    // Absent, available, not present, and data of the same type.
    for bits in [0, 0x89, 0x0B, 0x9B] {
        let regs = SpecialRegs {
            tr: segment(0x28, 0x67, SegmentType::from_bits(bits)),
            ..long_mode()
        };
        assert_eq!(
            validate_for_hyperv(&regs),
            Err(HypervViolation::TaskRegister(bits))
        );
    }
}

#[test]
fn cs_must_be_present_accessed_code_of_one_size() {
    let code = SegmentType::CODE64.with_dpl(3).bits();
    let cases = [
        ("not present", code & !(1 << 7)),
        ("a system segment", code & !(1 << 4)),
        ("data", code & !(1 << 3)),
        ("not accessed", code & !1),
        ("64-bit and 32-bit", code | 1 << 14),
    ];
    for (name, bits) in cases {
        let regs = SpecialRegs {
            cs: segment(0x23, u32::MAX, SegmentType::from_bits(bits)),
            ..long_mode()
        };
        assert_eq!(
            validate_for_hyperv(&regs),
            Err(HypervViolation::CodeSegment(bits)),
            "{name}"
        );
        let real = SpecialRegs {
            cs: segment(0, 0xFFFF, SegmentType::from_bits(bits & 0xFF)),
            ..SpecialRegs::default()
        };
        assert_eq!(validate_for_hyperv(&real), Ok(()), "{name} in real mode");
    }
}

#[test]
fn ss_must_have_the_privilege_of_cs() {
    let edit: Edit = |r| r.ss.attributes = SegmentType::DATA;
    assert_eq!(
        refusal(long_mode(), edit),
        Err(HypervViolation::StackPrivilege { ss: 0, cs: 3 })
    );
    let edit: Edit = |r| r.ss.attributes = SegmentType::DATA.with_dpl(3);
    assert_eq!(
        refusal(protected_mode(), edit),
        Err(HypervViolation::StackPrivilege { ss: 3, cs: 0 })
    );
}

#[test]
fn limits_must_agree_with_the_granularity_of_every_segment() {
    type Access = fn(&mut SpecialRegs) -> &mut Segment;
    let segments: [Access; 7] = [
        |r| &mut r.cs,
        |r| &mut r.ds,
        |r| &mut r.es,
        |r| &mut r.fs,
        |r| &mut r.gs,
        |r| &mut r.ss,
        |r| &mut r.tr,
    ];
    // Pages, but not a whole number of them; bytes, but more than 20 bits of them.
    for (pages, limit) in [
        (true, 0xFFFF_FFFE),
        (true, 0),
        (false, 0x10_0000),
        (false, u32::MAX),
    ] {
        for access in segments {
            let mut regs = long_mode();
            let segment = access(&mut regs);
            let bits = segment.attributes.bits() & !(1 << 15) | u16::from(pages) << 15;
            segment.attributes = SegmentType::from_bits(bits);
            segment.limit = limit;
            let expected = HypervViolation::Granularity {
                limit,
                attributes: bits,
            };
            assert_eq!(validate_for_hyperv(&regs), Err(expected));
        }
    }
}

#[test]
fn base_addresses_must_be_canonical() {
    type Access = fn(&mut SpecialRegs) -> &mut u64;
    let bases: [Access; 5] = [
        |r| &mut r.fs.base,
        |r| &mut r.gs.base,
        |r| &mut r.gdtr.base,
        |r| &mut r.idtr.base,
        |r| &mut r.tr.base,
    ];
    for base in [1 << 47, 0xFFFF_7FFF_FFFF_FFFF, 1 << 63] {
        for access in bases {
            let mut regs = long_mode();
            *access(&mut regs) = base;
            assert_eq!(
                validate_for_hyperv(&regs),
                Err(HypervViolation::NonCanonical(base))
            );
        }
    }
}

#[test]
fn a_refusal_names_the_register_and_its_value() {
    let cases = [
        (
            HypervViolation::ExtensionTypeClear(0x8000_0001),
            "cr0 0x80000001",
        ),
        (HypervViolation::Cr3(1 << 52), "cr3 0x10000000000000"),
        (HypervViolation::TaskRegister(0x89), "0x0089"),
        (
            HypervViolation::StackPrivilege { ss: 0, cs: 3 },
            "ss has privilege level 0, cs has 3",
        ),
    ];
    for (violation, part) in cases {
        let text = violation.to_string();
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn tables_may_lie_anywhere_canonical() {
    let regs = SpecialRegs {
        gdtr: DescriptorTable {
            base: 0xFFFF_FFFF_FFFF_F000,
            limit: 0xFFF,
        },
        ..long_mode()
    };
    assert_eq!(validate_for_hyperv(&regs), Ok(()));
}

//! Nothing is lost on the way to KVM's structures and back.

use proptest::prelude::*;

use super::*;
use crate::boot;
use crate::state::{VcpuState, rflags};
use vellum_layout::Gpa;

/// Segments as a register can hold them: of a present one every attribute counts, of an absent one base and selector.
fn segment() -> impl Strategy<Value = Segment> {
    (any::<u64>(), any::<u32>(), any::<u16>(), any::<u16>()).prop_map(
        |(base, limit, selector, bits)| {
            // Bits 8 to 11 do not exist.
            let attributes = SegmentType::from_bits(bits & 0xF0FF);
            let present = Segment {
                base,
                limit,
                selector,
                attributes,
            };
            if attributes.is_present() {
                return present;
            }
            Segment {
                limit: 0,
                attributes: SegmentType::ABSENT,
                ..present
            }
        },
    )
}

fn table() -> impl Strategy<Value = DescriptorTable> {
    (any::<u64>(), any::<u16>()).prop_map(|(base, limit)| DescriptorTable { base, limit })
}

fn gprs() -> impl Strategy<Value = Gprs> {
    any::<[u64; 18]>()
        .prop_map(|[general @ .., rip, rflags]| Gprs::from_encoding_order(general, rip, rflags))
}

fn special() -> impl Strategy<Value = SpecialRegs> {
    let segments = prop::array::uniform8(segment());
    (segments, table(), table(), any::<[u64; 7]>()).prop_map(|(s, gdtr, idtr, v)| SpecialRegs {
        cs: s[0],
        ds: s[1],
        es: s[2],
        fs: s[3],
        gs: s[4],
        ss: s[5],
        tr: s[6],
        ldtr: s[7],
        gdtr,
        idtr,
        cr0: v[0],
        cr2: v[1],
        cr3: v[2],
        cr4: v[3],
        cr8: v[4],
        efer: v[5],
        apic_base: v[6],
    })
}

fn events() -> impl Strategy<Value = PendingEvents> {
    let exception = prop::option::of((any::<u8>(), prop::option::of(any::<u32>())));
    (exception, any::<u8>(), any::<bool>(), any::<bool>()).prop_map(
        |(exception, interrupt_shadow, nmi_pending, nmi_masked)| PendingEvents {
            exception,
            interrupt_shadow,
            nmi_pending,
            nmi_masked,
        },
    )
}

proptest! {
    #[test]
    fn general_registers_round_trip(registers in gprs()) {
        prop_assert_eq!(gprs_from_kvm(&gprs_to_kvm(&registers)), registers);
    }

    #[test]
    fn special_registers_round_trip(registers in special()) {
        prop_assert_eq!(special_from_kvm(&special_to_kvm(&registers)), registers);
    }

    #[test]
    fn debug_registers_round_trip(dr in any::<[u64; 4]>(), dr6 in any::<u64>(), dr7 in any::<u64>()) {
        let registers = DebugRegs { dr, dr6, dr7 };
        prop_assert_eq!(debug_from_kvm(&debug_to_kvm(&registers)), registers);
    }

    #[test]
    fn events_round_trip(pending in events()) {
        prop_assert_eq!(events_from_kvm(&events_to_kvm(&pending)), pending);
    }
}

#[test]
fn attributes_go_to_the_fields_that_kvm_has_for_them() {
    let ring_zero_code = Segment {
        base: 0,
        limit: 0xFFFF_FFFF,
        selector: 8,
        attributes: SegmentType::CODE64,
    };
    let kvm = segment_to_kvm(&ring_zero_code);
    assert_eq!((kvm.type_, kvm.s, kvm.dpl, kvm.present), (0xB, 1, 0, 1));
    assert_eq!(
        (kvm.avl, kvm.l, kvm.db, kvm.g, kvm.unusable),
        (0, 1, 0, 1, 0)
    );
    let ring_three_data = segment_to_kvm(&Segment {
        attributes: SegmentType::DATA.with_dpl(3),
        ..ring_zero_code
    });
    assert_eq!((ring_three_data.type_, ring_three_data.dpl), (3, 3));
    assert_eq!((ring_three_data.l, ring_three_data.db), (0, 1));
    let available = segment_to_kvm(&Segment {
        attributes: SegmentType::from_bits(0x1093),
        ..ring_zero_code
    });
    assert_eq!(
        (available.avl, available.l, available.db, available.g),
        (1, 0, 0, 0)
    );
}

#[test]
fn an_absent_segment_is_unusable_and_keeps_base_and_selector() {
    let absent = Segment {
        base: 0x7000,
        selector: 3,
        ..Segment::default()
    };
    let kvm = segment_to_kvm(&absent);
    assert_eq!((kvm.present, kvm.unusable), (0, 1));
    // KVM leaves what it likes in the other fields of such a segment, and says in either way that it cannot be used.
    for (present, unusable) in [(1, 1), (0, 0), (0, 1)] {
        let read = kvm_segment {
            present,
            unusable,
            limit: 0xFFFF_FFFF,
            type_: 0xB,
            s: 1,
            ..kvm
        };
        assert_eq!(segment_from_kvm(&read), absent, "{present} {unusable}");
    }
}

#[test]
fn no_interrupt_is_injected_with_special_registers() {
    let state = boot::flat32(Gpa::literal(0x1000), Gpa::literal(0x2000), 0, 0);
    assert_eq!(special_to_kvm(&state.special).interrupt_bitmap, [0; 4]);
    assert_eq!(gprs_to_kvm(&state.general).rflags, rflags::FIXED);
}

#[test]
fn writing_events_also_clears_what_was_pending() {
    let kvm = events_to_kvm(&VcpuState::default().events);
    assert_eq!((kvm.exception.injected, kvm.exception.pending), (0, 0));
    assert_eq!((kvm.nmi.pending, kvm.nmi.masked), (0, 0));
    // Without these flags KVM would keep the old values.
    assert_ne!(kvm.flags & KVM_VCPUEVENT_VALID_SHADOW, 0);
    assert_ne!(kvm.flags & kvm_bindings::KVM_VCPUEVENT_VALID_NMI_PENDING, 0);
}

#[test]
fn an_exception_keeps_whether_it_has_an_error_code() {
    for (exception, has_error_code, error_code) in [
        ((14, Some(7)), 1, 7),
        ((13, Some(0)), 1, 0),
        ((6, None), 0, 0),
    ] {
        let pending = PendingEvents {
            exception: Some(exception),
            ..PendingEvents::default()
        };
        let kvm = events_to_kvm(&pending);
        assert_eq!((kvm.exception.injected, kvm.exception.nr), (1, exception.0));
        assert_eq!(kvm.exception.has_error_code, has_error_code);
        assert_eq!(kvm.exception.error_code, error_code);
    }
}

#[test]
fn absent_legacy_state_is_written_out_before_the_kernel_sees_it() {
    // Every word is garbage of somebody else's; what is present stays.
    let cases = [
        (0b000, 0x037F, 0x1F80, 0),
        (0b001, 0xAAAA_AAAA, 0x1F80, 0),
        (0b010, 0x037F, 0xAAAA_AAAA, 0xAAAA_AAAA),
        (0b100, 0x037F, 0xAAAA_AAAA, 0),
        (0b111, 0xAAAA_AAAA, 0xAAAA_AAAA, 0xAAAA_AAAA),
    ];
    for (present, control, mxcsr, xmm) in cases {
        let mut area = [0xAAAA_AAAA; 1024];
        area[128] = present;
        write_out_legacy_state(&mut area);
        assert_eq!(
            (area[0], area[6], area[40], area[103]),
            (control, mxcsr, xmm, xmm),
            "{present:#b}"
        );
        let x87 = if present & 1 == 0 { 0 } else { 0xAAAA_AAAA };
        assert_eq!((area[8], area[39]), (x87, x87), "{present:#b}");
        assert_eq!(area[128], present | 3, "{present:#b}");
        assert_eq!(area[144], 0xAAAA_AAAA, "the rest stays");
    }
}

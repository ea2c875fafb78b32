use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::state::Msrs;

fn segment() -> impl Strategy<Value = Segment> {
    (any::<u64>(), any::<u32>(), any::<u16>(), any::<u16>()).prop_map(
        |(base, limit, selector, bits)| {
            let attributes = SegmentType::from_bits(bits);
            if attributes.is_present() {
                Segment {
                    base,
                    limit,
                    selector,
                    attributes,
                }
            } else {
                Segment {
                    base,
                    selector,
                    ..Segment::default()
                }
            }
        },
    )
}

fn table() -> impl Strategy<Value = DescriptorTable> {
    (any::<u64>(), any::<u16>()).prop_map(|(base, limit)| DescriptorTable { base, limit })
}

fn special() -> impl Strategy<Value = SpecialRegs> {
    (
        proptest::array::uniform8(segment()),
        proptest::array::uniform2(table()),
        proptest::array::uniform7(any::<u64>()),
    )
        .prop_map(|(segments, [gdtr, idtr], numbers)| {
            let [cs, ds, es, fs, gs, ss, tr, ldtr] = segments;
            let [cr0, cr2, cr3, cr4, cr8, efer, apic_base] = numbers;
            SpecialRegs {
                cs,
                ds,
                es,
                fs,
                gs,
                ss,
                tr,
                ldtr,
                gdtr,
                idtr,
                cr0,
                cr2,
                cr3,
                cr4,
                cr8,
                efer,
                apic_base,
            }
        })
}

/// Of the two ways to block interrupts one comes back, and an NMI waits behind an exception.
fn events() -> impl Strategy<Value = PendingEvents> {
    (
        any::<Option<(u8, Option<u32>)>>(),
        prop_oneof![Just(0), Just(SHADOW_OF_MOV_SS)],
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(
            |(exception, interrupt_shadow, nmi, nmi_masked)| PendingEvents {
                exception,
                interrupt_shadow,
                nmi_pending: nmi && exception.is_none(),
                nmi_masked,
            },
        )
}

proptest! {
    #[test]
    fn special_registers_come_back(regs in special()) {
        prop_assert_eq!(special_from_values(&special_values(&regs)), regs);
    }

    #[test]
    fn general_registers_come_back(values in proptest::collection::vec(any::<u64>(), GENERAL_COUNT)) {
        let values: GeneralValues = values.try_into().expect("as many as there are");
        prop_assert_eq!(general_values(&general_from_values(&values)), values);
    }

    #[test]
    fn debug_registers_come_back(numbers in proptest::array::uniform6(any::<u64>())) {
        let [dr0, dr1, dr2, dr3, dr6, dr7] = numbers;
        let regs = DebugRegs { dr: [dr0, dr1, dr2, dr3], dr6, dr7 };
        prop_assert_eq!(debug_from_values(&debug_values(&regs)), regs);
    }

    #[test]
    fn events_come_back(events in events()) {
        prop_assert_eq!(events_from_values(&event_values(&events)), events);
    }
}

#[test]
fn general_registers_stand_in_the_order_of_their_encoding() {
    let gprs = Gprs {
        rax: 0,
        rcx: 1,
        rdx: 2,
        rbx: 3,
        rsp: 4,
        rbp: 5,
        rsi: 6,
        rdi: 7,
        r8: 8,
        r15: 15,
        rip: 16,
        rflags: 17,
        ..Gprs::default()
    };
    let values = general_values(&gprs);
    for (index, value) in values.into_iter().enumerate() {
        if index <= 8 || index >= 15 {
            assert_eq!(value, index as u64);
        }
    }
    let names: Vec<_> = general_names().collect();
    assert_eq!(
        (names[0], names[16], names[17]),
        (0x20000, 0x20010, 0x20011)
    );
}

#[test]
fn segments_and_tables_have_the_hypervisors_layout() {
    let cs = Segment {
        base: 0x1111_2222_3333_4444,
        limit: 0x5555_6666,
        selector: 0x7777,
        attributes: SegmentType::CODE64,
    };
    assert_eq!(
        segment_value(&cs),
        0xA09B_7777_5555_6666_1111_2222_3333_4444
    );
    let gdtr = DescriptorTable {
        base: 0x1111_2222_3333_4444,
        limit: 0x5555,
    };
    assert_eq!(table_value(gdtr), 0x1111_2222_3333_4444_5555_0000_0000_0000);
}

#[test]
fn an_absent_segment_keeps_no_attributes() {
    let left_over = u128::from(SegmentType::DATA.bits() & !(1 << 7)) << 112 | 0xFFFF << 64 | 5;
    let segment = segment_from_value(left_over);
    assert_eq!(segment.attributes, SegmentType::ABSENT);
    assert_eq!((segment.base, segment.limit), (5, 0));
}

#[test]
fn an_exception_comes_before_an_nmi() {
    let both = PendingEvents {
        exception: Some((14, Some(6))),
        nmi_pending: true,
        ..PendingEvents::default()
    };
    let read = events_from_values(&event_values(&both));
    assert_eq!(read.exception, both.exception);
    assert!(!read.nmi_pending);
    // Pending, type 3, error code, vector 14, error code 6.
    assert_eq!(
        event_values(&both)[0],
        6 << 32 | 14 << 16 | 1 << 4 | 3 << 1 | 1
    );
}

#[test]
fn every_declared_register_has_a_name_of_its_own() {
    let names: BTreeSet<_> = MSRS.into_iter().collect();
    assert_eq!(names.len(), Msrs::default().iter().len());
}

#[test]
fn a_list_of_any_group_fits_one_call() {
    assert!(SPECIAL.len().max(GENERAL_COUNT).max(DEBUG.len()) <= 127);
}

//! Exits as the kernel reports them, made up here.

use kvm_bindings::{KVM_EXIT_HYPERV, KVM_EXIT_IO_IN, KVM_EXIT_UNKNOWN, KVM_EXIT_X86_RDMSR};

use super::*;

/// Where the kernel puts what a port access moves: the second page (Linux `include/uapi/linux/kvm.h`, `KVM_PIO_PAGE_OFFSET`).
const ITEMS_OFFSET: u64 = 4096;

/// 64 KiB of guest memory at 0.
fn is_mapped(gpa: u64) -> bool {
    gpa < 0x1_0000
}

fn left(reason: u32) -> kvm_run {
    kvm_run {
        exit_reason: reason,
        ..kvm_run::default()
    }
}

/// Decodes an exit in the long way. Where the short one knows it, too, both say the same.
fn decoded_with(run: &kvm_run, items: u32) -> Exit {
    let item_at = |offset| {
        assert_eq!(offset, ITEMS_OFFSET);
        items
    };
    if let Some(exit) = decode_out(run, item_at) {
        assert_eq!(decode_io(run, item_at), Some(exit));
    }
    match decode_io(run, item_at).map_or_else(|| decode(run, is_mapped), Decoded::Exit) {
        Decoded::Exit(exit) => exit,
        Decoded::DirtyRingFull => panic!("this is no exit of the ring"),
    }
}

fn decoded(run: &kvm_run) -> Exit {
    decoded_with(run, 0)
}

fn port_access(direction: u32, port: u16, size: u8, count: u32) -> kvm_run {
    let mut run = left(KVM_EXIT_IO);
    let io = kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_4 {
        direction: u8::try_from(direction).expect("0 or 1"),
        size,
        port,
        count,
        data_offset: ITEMS_OFFSET,
    };
    run.__bindgen_anon_1.io = io;
    run
}

#[test]
fn an_output_has_its_port_and_width_and_of_the_item_no_more_than_that() {
    let cases = [
        (0, 1, 0xAABB_CCFF, IoWidth::Byte, 0xFF),
        (0x3F8, 2, 0xAABB_3412, IoWidth::Word, 0x3412),
        (0xFFFF, 4, 0x0403_0201, IoWidth::Dword, 0x0403_0201),
        (0xE0, 4, 0x8000_0000, IoWidth::Dword, 0x8000_0000),
    ];
    for (port, size, item, width, data) in cases {
        let run = port_access(KVM_EXIT_IO_OUT, port, size, 1);
        assert_eq!(decoded_with(&run, item), Exit::IoOut { port, width, data });
        assert_eq!(decode_out(&run, |_| item).is_some(), size == 4, "{port:#x}");
    }
}

#[test]
fn an_input_has_its_port_and_width() {
    for (size, width) in [(1, IoWidth::Byte), (2, IoWidth::Word), (4, IoWidth::Dword)] {
        assert_eq!(
            decoded(&port_access(KVM_EXIT_IO_IN, 0x60, size, 1)),
            Exit::IoIn { port: 0x60, width }
        );
    }
}

#[test]
fn several_items_or_items_of_another_size_are_a_string_access() {
    let cases = [
        (1, 0),
        (1, 2),
        (1, 4),
        (2, 2),
        (4, 2),
        (1, 1024),
        (0, 1),
        (3, 1),
        (8, 1),
    ];
    for (size, count) in cases {
        for direction in [KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT] {
            assert_eq!(
                decoded(&port_access(direction, 0x60, size, count)),
                Exit::IoString { port: 0x60 },
                "{count} items of {size} bytes"
            );
        }
    }
}

#[test]
fn a_memory_fault_tells_the_direction_and_whether_memory_is_there() {
    for (gpa, mapped) in [
        (0, true),
        (0xFFFF, true),
        (0x1_0000, false),
        (u64::MAX, false),
    ] {
        for (is_write, access) in [(0, Access::Read), (1, Access::Write)] {
            let mut run = left(KVM_EXIT_MMIO);
            run.__bindgen_anon_1.mmio = kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_6 {
                phys_addr: gpa,
                is_write,
                ..Default::default()
            };
            let expected = Exit::MemoryFault {
                gpa,
                access,
                mapped,
            };
            assert_eq!(decoded(&run), expected);
        }
    }
}

#[test]
fn memory_that_the_host_cannot_provide_is_lost() {
    let mut run = left(KVM_EXIT_MEMORY_FAULT);
    run.__bindgen_anon_1.memory_fault = kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_27 {
        flags: 0,
        gpa: 0x5000,
        size: 4096,
    };
    assert_eq!(decoded(&run), Exit::MemoryLost { gpa: Some(0x5000) });
}

#[test]
fn an_entry_that_failed_keeps_the_processors_reason() {
    let reason = 0x8000_0021;
    let mut run = left(KVM_EXIT_FAIL_ENTRY);
    run.__bindgen_anon_1.fail_entry = kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_2 {
        hardware_entry_failure_reason: reason,
        cpu: 3,
    };
    assert_eq!(decoded(&run), Exit::InvalidState { reason });
}

#[test]
fn exits_without_data_have_their_names() {
    let cases = [
        (KVM_EXIT_HLT, Exit::Halt),
        (KVM_EXIT_SHUTDOWN, Exit::TripleFault),
        (KVM_EXIT_INTERNAL_ERROR, Exit::EmulationFailure),
        (KVM_EXIT_INTR, Exit::Interrupted),
    ];
    for (reason, expected) in cases {
        assert_eq!(decoded(&left(reason)), expected);
    }
}

#[test]
fn a_full_ring_is_not_an_exit_of_the_guest() {
    let run = left(KVM_EXIT_DIRTY_RING_FULL);
    assert_eq!(decode_io(&run, |_| 0), None);
    assert_eq!(decode(&run, is_mapped), Decoded::DirtyRingFull);
}

#[test]
fn whatever_no_guest_may_cause_is_unhandled() {
    for reason in [
        KVM_EXIT_UNKNOWN,
        KVM_EXIT_X86_RDMSR,
        KVM_EXIT_HYPERV,
        35,
        u32::MAX,
    ] {
        assert_eq!(decoded(&left(reason)), Exit::Unhandled { reason });
    }
}

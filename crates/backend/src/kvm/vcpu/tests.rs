//! Exits as the kernel reports them, made up here.

use kvm_ioctls::ReadMsrExit;

use super::*;

/// 64 KiB of guest memory at 0.
fn is_mapped(gpa: u64) -> bool {
    gpa < 0x1_0000
}

fn decoded(exit: &VcpuExit<'_>) -> Exit {
    match decode(exit, is_mapped) {
        Decoded::Exit(exit) => exit,
        Decoded::DirtyRingFull => panic!("this is no exit of the ring"),
    }
}

#[test]
fn an_output_has_its_port_width_and_little_endian_value() {
    let cases: [(u16, &[u8], IoWidth, u32); 4] = [
        (0, &[0xFF], IoWidth::Byte, 0xFF),
        (0x3F8, &[0x12, 0x34], IoWidth::Word, 0x3412),
        (0xFFFF, &[1, 2, 3, 4], IoWidth::Dword, 0x0403_0201),
        (0xE0, &[0, 0, 0, 0x80], IoWidth::Dword, 0x8000_0000),
    ];
    for (port, bytes, width, data) in cases {
        assert_eq!(
            decoded(&VcpuExit::IoOut(port, bytes)),
            Exit::IoOut { port, width, data }
        );
    }
}

#[test]
fn an_input_has_its_port_and_width() {
    for (len, width) in [(1, IoWidth::Byte), (2, IoWidth::Word), (4, IoWidth::Dword)] {
        let mut bytes = vec![0; len];
        assert_eq!(
            decoded(&VcpuExit::IoIn(0x60, &mut bytes)),
            Exit::IoIn { port: 0x60, width }
        );
    }
}

#[test]
fn several_items_at_once_are_a_string_access() {
    for len in [0, 3, 5, 8, 1024] {
        let mut bytes = vec![0; len];
        assert_eq!(
            decoded(&VcpuExit::IoOut(0x60, &bytes)),
            Exit::IoString { port: 0x60 },
            "{len}"
        );
        assert_eq!(
            decoded(&VcpuExit::IoIn(0x60, &mut bytes)),
            Exit::IoString { port: 0x60 },
            "{len}"
        );
    }
}

#[test]
fn several_small_items_are_not_one_wide_item() {
    let two_bytes = decoded(&VcpuExit::IoIn(0x60, &mut [0; 2]));
    let four_bytes = decoded(&VcpuExit::IoOut(0x60, &[0; 4]));
    for exit in [two_bytes, four_bytes] {
        assert_eq!(with_item_count(exit, 1), exit);
        for items in [0, 2, 4] {
            assert_eq!(with_item_count(exit, items), Exit::IoString { port: 0x60 });
        }
    }
    assert_eq!(with_item_count(Exit::Halt, 4), Exit::Halt);
}

#[test]
fn a_memory_fault_tells_the_direction_and_whether_memory_is_there() {
    for (gpa, mapped) in [
        (0, true),
        (0xFFFF, true),
        (0x1_0000, false),
        (u64::MAX, false),
    ] {
        let mut bytes = [0; 8];
        let fault = |access| Exit::MemoryFault {
            gpa,
            access,
            mapped,
        };
        assert_eq!(
            decoded(&VcpuExit::MmioRead(gpa, &mut bytes)),
            fault(Access::Read)
        );
        assert_eq!(
            decoded(&VcpuExit::MmioWrite(gpa, &bytes)),
            fault(Access::Write)
        );
    }
}

#[test]
fn memory_that_the_host_cannot_provide_is_lost() {
    let unresolved = VcpuExit::MemoryFault {
        flags: 0,
        gpa: 0x5000,
        size: 4096,
    };
    assert_eq!(decoded(&unresolved), Exit::MemoryLost { gpa: Some(0x5000) });
}

#[test]
fn exits_without_data_have_their_names() {
    let cases = [
        (VcpuExit::Hlt, Exit::Halt),
        (VcpuExit::Shutdown, Exit::TripleFault),
        (VcpuExit::InternalError, Exit::EmulationFailure),
        (VcpuExit::Intr, Exit::Interrupted),
        (
            VcpuExit::FailEntry(0x8000_0021, 3),
            Exit::InvalidState {
                reason: 0x8000_0021,
            },
        ),
    ];
    for (exit, expected) in cases {
        assert_eq!(decoded(&exit), expected);
    }
}

#[test]
fn a_full_ring_is_not_an_exit_of_the_guest() {
    let exit = VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL);
    assert_eq!(decode(&exit, is_mapped), Decoded::DirtyRingFull);
}

#[test]
fn whatever_no_guest_may_cause_is_unhandled() {
    let (mut error, mut data) = (0, 0);
    let read_msr = VcpuExit::X86Rdmsr(ReadMsrExit {
        error: &mut error,
        reason: kvm_ioctls::MsrExitReason::Filter,
        index: 0x1B,
        data: &mut data,
    });
    for exit in [
        read_msr,
        VcpuExit::Unknown,
        VcpuExit::Exception,
        VcpuExit::IrqWindowOpen,
        VcpuExit::Nmi,
        VcpuExit::Hyperv,
        VcpuExit::SystemEvent(2, &[]),
        VcpuExit::IoapicEoi(1),
    ] {
        assert_eq!(
            decoded(&exit),
            Exit::Unhandled {
                reason: KVM_EXIT_UNKNOWN
            },
            "{exit:?}"
        );
    }
    assert_eq!(
        decoded(&VcpuExit::Unsupported(35)),
        Exit::Unhandled { reason: 35 }
    );
}

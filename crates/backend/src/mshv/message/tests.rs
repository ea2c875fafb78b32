//! Canned messages, laid out by hand as the hypervisor lays them out.

use mshv_bindings::{
    hv_message_type_HVMSG_UNSUPPORTED_FEATURE, hv_message_type_HVMSG_X64_CPUID_INTERCEPT,
    hv_message_type_HVMSG_X64_EXCEPTION_INTERCEPT, hv_message_type_HVMSG_X64_MSR_INTERCEPT,
};

use super::*;

const READ: u8 = 0;
const WRITE: u8 = 1;
const EXECUTE: u8 = 2;
/// CPL 3, protected mode, long mode active.
const LONG: u16 = 3 | 1 << 2 | EXECUTION_STATE_LMA;
const LONG_CODE: u16 = 0xA0FB;
const CODE32: u16 = 0xC09B;

fn message(kind: u32, fields: &[(usize, &[u8])]) -> Message {
    let mut payload = [0; PAYLOAD_LEN_BYTES];
    for (offset, bytes) in fields {
        payload[*offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    Message { kind, payload }
}

/// A port access of 2 bytes of instruction at 0x7FFF_FFFF in 64-bit code.
fn port(access: u8, info: u8, rax: u64) -> Message {
    port_in(access, info, rax, (LONG, LONG_CODE, 0x7FFF_FFFF))
}

fn port_in(access: u8, info: u8, rax: u64, (state, cs, rip): (u16, u16, u64)) -> Message {
    message(
        hv_message_type_HVMSG_X64_IO_PORT_INTERCEPT,
        &[
            // CR8 in the upper half is no part of the length.
            (4, &[0xF2]),
            (5, &[access]),
            (6, &state.to_le_bytes()),
            (22, &cs.to_le_bytes()),
            (0x18, &rip.to_le_bytes()),
            (0x28, &0xE0_u16.to_le_bytes()),
            (0x2A, &[info]),
            (0x30, &rax.to_le_bytes()),
        ],
    )
}

fn memory(kind: u32, access: u8) -> Message {
    message(
        kind,
        &[
            (5, &[access]),
            (0x30, &[0xEE; 8]),
            (0x38, &0x1234_5000_u64.to_le_bytes()),
        ],
    )
}

fn decoded(message: &Message) -> Decoded {
    decode(message, |_| false)
}

#[test]
fn a_port_access_tells_port_width_value_and_where_to_go_on() {
    const RAX: u64 = 0x1122_3344_5566_7788;
    let out = |width, data| Exit::IoOut {
        port: 0xE0,
        width,
        data,
    };
    let input = |width| Exit::IoIn { port: 0xE0, width };
    let cases = [
        (port(WRITE, 1, RAX), out(IoWidth::Byte, 0x88)),
        (port(WRITE, 2, RAX), out(IoWidth::Word, 0x7788)),
        (port(WRITE, 4, RAX), out(IoWidth::Dword, 0x5566_7788)),
        (port(READ, 1, RAX), input(IoWidth::Byte)),
        (port(READ, 2, RAX), input(IoWidth::Word)),
        (port(READ, 4, RAX), input(IoWidth::Dword)),
    ];
    for (message, exit) in cases {
        let expected = Decoded {
            exit,
            next_rip: Some(0x8000_0001),
            rax: RAX,
        };
        assert_eq!(decoded(&message), expected);
    }
}

#[test]
fn a_string_access_or_an_impossible_width_is_no_plain_access() {
    // String, string with a repetition, widths of 0, 3 and 7.
    for info in [1 | 1 << 3, 4 | 3 << 3, 0, 3, 7] {
        for access in [READ, WRITE] {
            let decoded = decoded(&port(access, info, 0));
            assert_eq!(decoded.exit, Exit::IoString { port: 0xE0 }, "{info:#x}");
            assert_eq!(decoded.next_rip, None, "{info:#x}");
        }
    }
}

#[test]
fn outside_of_64_bit_code_rip_has_32_bits() {
    let cases = [
        ((LONG, LONG_CODE, u64::from(u32::MAX)), 0x1_0000_0001),
        // Compatibility mode, and no long mode at all.
        ((LONG, CODE32, u64::from(u32::MAX)), 1),
        ((1 << 2, CODE32, u64::from(u32::MAX)), 1),
        // CS.L means nothing outside of long mode.
        ((1 << 2, LONG_CODE, u64::from(u32::MAX)), 1),
    ];
    for (mode, next_rip) in cases {
        let decoded = decoded(&port_in(WRITE, 1, 0, mode));
        assert_eq!(decoded.next_rip, Some(next_rip), "{mode:x?}");
    }
}

#[test]
fn a_memory_access_tells_its_address_and_direction() {
    let fault = |access, mapped| Exit::MemoryFault {
        gpa: 0x1234_5000,
        access,
        mapped,
    };
    let unmapped = hv_message_type_HVMSG_UNMAPPED_GPA;
    let denied = hv_message_type_HVMSG_GPA_INTERCEPT;
    let cases = [
        (memory(unmapped, READ), fault(Access::Read, false)),
        (memory(unmapped, WRITE), fault(Access::Write, false)),
        (memory(unmapped, EXECUTE), fault(Access::Execute, false)),
        (memory(denied, WRITE), fault(Access::Write, true)),
        (memory(denied, EXECUTE), fault(Access::Execute, true)),
    ];
    for (message, exit) in cases {
        assert_eq!(decoded(&message), Decoded::plain(exit));
    }
    // A range that exists is known better by whoever mapped it.
    let known = decode(&memory(unmapped, WRITE), |gpa| gpa == 0x1234_5000);
    assert_eq!(known.exit, fault(Access::Write, true));
}

#[test]
fn what_ends_a_guest_is_told_apart() {
    let cases = [
        (hv_message_type_HVMSG_X64_HALT, Exit::Halt),
        (
            hv_message_type_HVMSG_UNRECOVERABLE_EXCEPTION,
            Exit::TripleFault,
        ),
        (
            hv_message_type_HVMSG_INVALID_VP_REGISTER_VALUE,
            Exit::InvalidState { reason: 0 },
        ),
    ];
    for (kind, exit) in cases {
        assert_eq!(decoded(&message(kind, &[])), Decoded::plain(exit));
    }
}

#[test]
fn a_message_that_no_guest_of_ours_may_cause_keeps_its_number() {
    for reason in [
        hv_message_type_HVMSG_X64_MSR_INTERCEPT,
        hv_message_type_HVMSG_X64_CPUID_INTERCEPT,
        hv_message_type_HVMSG_X64_EXCEPTION_INTERCEPT,
        hv_message_type_HVMSG_UNSUPPORTED_FEATURE,
        0,
        u32::MAX,
    ] {
        let decoded = decoded(&message(reason, &[(0, &[0xFF; PAYLOAD_LEN_BYTES])]));
        assert_eq!(decoded.exit, Exit::Unhandled { reason });
    }
}

#[test]
fn a_kernel_message_is_taken_over_byte_by_byte() {
    let mut raw = hv_message::default();
    raw.header.message_type = hv_message_type_HVMSG_X64_HALT;
    raw.u.payload = std::array::from_fn(|index| index as u64 * 0x0101_0101_0101_0101);
    let message = Message::of(&raw);
    assert_eq!(message.kind, hv_message_type_HVMSG_X64_HALT);
    assert_eq!(message.payload[..8], [0; 8]);
    assert_eq!(message.payload[8..16], [1; 8]);
    assert_eq!(message.payload[232..], [29; 8]);
}

#[test]
fn an_input_changes_only_the_bytes_of_its_width() {
    let cases = [
        (IoWidth::Byte, 0x1122_3344_5566_77DD),
        (IoWidth::Word, 0x1122_3344_5566_CCDD),
        (IoWidth::Dword, 0xAABB_CCDD),
    ];
    for (width, rax) in cases {
        let after = rax_after_input(0x1122_3344_5566_7788, width, 0xAABB_CCDD);
        assert_eq!(after, rax, "{width:?}");
    }
}

//! Decoding of intercept messages: a pure function over what `MSHV_RUN_VP` returned.
//!
//! Layouts are those of the Hypervisor Top-Level Functional Specification, section "Intercept message formats" (`HV_X64_*_INTERCEPT_MESSAGE`); the
//! offsets below count from the start of the payload.

use mshv_bindings::{
    hv_message, hv_message_type_HVMSG_GPA_INTERCEPT,
    hv_message_type_HVMSG_INVALID_VP_REGISTER_VALUE, hv_message_type_HVMSG_UNMAPPED_GPA,
    hv_message_type_HVMSG_UNRECOVERABLE_EXCEPTION, hv_message_type_HVMSG_X64_HALT,
    hv_message_type_HVMSG_X64_IO_PORT_INTERCEPT,
};

use crate::vm::{Access, Exit, IoWidth};

/// Bytes of a message's payload.
pub(super) const PAYLOAD_LEN_BYTES: usize = 240;

/// A message as plain bytes.
#[derive(Clone, Copy)]
pub(super) struct Message {
    pub(super) kind: u32,
    pub(super) payload: [u8; PAYLOAD_LEN_BYTES],
}

impl Message {
    #[expect(unsafe_code, reason = "reads the only member of a union")]
    pub(super) fn of(message: &hv_message) -> Self {
        let kind = message.header.message_type;
        // SAFETY: the union has one member, plain numbers, which the crate zeroed and the kernel filled.
        let words = unsafe { message.u.payload };
        let mut payload = [0; PAYLOAD_LEN_BYTES];
        for (target, word) in payload.chunks_exact_mut(8).zip(words) {
            target.copy_from_slice(&word.to_ne_bytes());
        }
        Self { kind, payload }
    }

    fn bytes<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.payload[offset..offset + N]);
        bytes
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.bytes(offset))
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.bytes(offset))
    }
}

/// What a message means for the caller and for the vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decoded {
    pub(super) exit: Exit,
    /// RIP behind a port access, which the hypervisor has not stepped over.
    pub(super) next_rip: Option<u64>,
    /// RAX at a port access.
    pub(super) rax: u64,
}

impl Decoded {
    const fn plain(exit: Exit) -> Self {
        Self {
            exit,
            next_rip: None,
            rax: 0,
        }
    }
}

/// Offset of a byte whose low half is the length of the instruction.
const INSTRUCTION_LENGTH: usize = 4;
const ACCESS_TYPE: usize = 5;
/// Offset of the execution state, whose bit 4 says that EFER.LMA is set.
const EXECUTION_STATE: usize = 6;
const EXECUTION_STATE_LMA: u16 = 1 << 4;
/// Offset of the attributes of CS, whose bit 13 is L.
const CS_ATTRIBUTES: usize = 8 + 14;
const CS_LONG: u16 = 1 << 13;
const RIP: usize = 0x18;
/// Port access: number of the port, kind of access (size in bits 0 to 2, string in bit 3), RAX.
const PORT: usize = 0x28;
const PORT_ACCESS: usize = 0x2A;
const PORT_ACCESS_SIZE: u8 = 0b111;
const PORT_ACCESS_STRING: u8 = 1 << 3;
const PORT_RAX: usize = 0x30;
/// Memory access: guest-physical address.
const MEMORY_GPA: usize = 0x38;
/// `HV_INTERCEPT_ACCESS_*`.
const ACCESS_WRITE: u8 = 1;
const ACCESS_EXECUTE: u8 = 2;

/// Translates a message. `is_mapped` tells whether guest-physical memory exists at an address.
#[expect(
    non_upper_case_globals,
    reason = "the names are the header's, as bindgen writes them"
)]
pub(super) fn decode(message: &Message, is_mapped: impl Fn(u64) -> bool) -> Decoded {
    match message.kind {
        hv_message_type_HVMSG_X64_IO_PORT_INTERCEPT => port_access(message),
        hv_message_type_HVMSG_UNMAPPED_GPA | hv_message_type_HVMSG_GPA_INTERCEPT => {
            let gpa = message.u64(MEMORY_GPA);
            Decoded::plain(Exit::MemoryFault {
                gpa,
                access: match message.payload[ACCESS_TYPE] {
                    ACCESS_WRITE => Access::Write,
                    ACCESS_EXECUTE => Access::Execute,
                    _ => Access::Read,
                },
                mapped: message.kind == hv_message_type_HVMSG_GPA_INTERCEPT || is_mapped(gpa),
            })
        }
        hv_message_type_HVMSG_X64_HALT => Decoded::plain(Exit::Halt),
        hv_message_type_HVMSG_UNRECOVERABLE_EXCEPTION => Decoded::plain(Exit::TripleFault),
        // Which register is not said.
        hv_message_type_HVMSG_INVALID_VP_REGISTER_VALUE => {
            Decoded::plain(Exit::InvalidState { reason: 0 })
        }
        reason => Decoded::plain(Exit::Unhandled { reason }),
    }
}

fn port_access(message: &Message) -> Decoded {
    let port = message.u16(PORT);
    let access = message.payload[PORT_ACCESS];
    let width = match IoWidth::from_len_bytes((access & PORT_ACCESS_SIZE).into()) {
        Some(width) if access & PORT_ACCESS_STRING == 0 => width,
        _ => return Decoded::plain(Exit::IoString { port }),
    };
    let rax = message.u64(PORT_RAX);
    let exit = if message.payload[ACCESS_TYPE] == ACCESS_WRITE {
        Exit::IoOut {
            port,
            width,
            data: low_bytes(rax, width),
        }
    } else {
        Exit::IoIn { port, width }
    };
    Decoded {
        exit,
        next_rip: Some(next_rip(message)),
        rax,
    }
}

/// RIP behind the instruction; outside of 64-bit code it has 32 bits.
fn next_rip(message: &Message) -> u64 {
    let len_bytes = message.payload[INSTRUCTION_LENGTH] & 0xF;
    let next = message.u64(RIP).wrapping_add(len_bytes.into());
    let is_long = message.u16(EXECUTION_STATE) & EXECUTION_STATE_LMA != 0
        && message.u16(CS_ATTRIBUTES) & CS_LONG != 0;
    if is_long { next } else { next & 0xFFFF_FFFF }
}

const fn mask(width: IoWidth) -> u32 {
    u32::MAX >> (32 - 8 * width.len_bytes())
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the low bytes are asked for"
)]
const fn low_bytes(rax: u64, width: IoWidth) -> u32 {
    rax as u32 & mask(width)
}

/// RAX after an `in` of `width` that read `data`: 4 bytes clear the upper half, fewer leave the rest (Intel SDM volume 1, section
/// 3.4.1.1).
pub(super) fn rax_after_input(rax: u64, width: IoWidth, data: u32) -> u64 {
    let data = u64::from(data & mask(width));
    match width {
        IoWidth::Dword => data,
        IoWidth::Byte | IoWidth::Word => rax & !u64::from(mask(width)) | data,
    }
}

#[cfg(test)]
mod tests;

//! From KVM's exits to the hypervisor's messages.

use mshv_bindings::{
    hv_message_type_HVMSG_GPA_INTERCEPT as GPA_INTERCEPT,
    hv_message_type_HVMSG_INVALID_VP_REGISTER_VALUE as INVALID_VP_REGISTER_VALUE,
    hv_message_type_HVMSG_UNMAPPED_GPA as UNMAPPED_GPA,
    hv_message_type_HVMSG_UNRECOVERABLE_EXCEPTION as UNRECOVERABLE_EXCEPTION,
    hv_message_type_HVMSG_UNSUPPORTED_FEATURE as UNSUPPORTED_FEATURE,
    hv_message_type_HVMSG_X64_HALT as X64_HALT,
    hv_message_type_HVMSG_X64_IO_PORT_INTERCEPT as X64_IO_PORT_INTERCEPT,
};

use crate::registers::{Values, name};

const MESSAGE_LEN: usize = 256;
const PAYLOAD: usize = 16;

/// What happened, of what KVM tells.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KvmExit {
    Port(PortAccess),
    Memory { gpa: u64, access: Access },
    Halt,
    Shutdown,
    InvalidState,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Execute,
}

impl Access {
    const fn number(self) -> u8 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Execute => 2,
        }
    }
}

/// A port access. Of a string instruction KVM tells the items, and the bytes of all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortAccess {
    port: u16,
    len: usize,
    is_output: bool,
    items: u32,
}

impl PortAccess {
    pub(crate) fn new(port: u16, data: &[u8], is_output: bool) -> Self {
        Self {
            port,
            len: data.len(),
            is_output,
            items: 1,
        }
    }

    pub(crate) const fn with_items(self, items: u32) -> Self {
        Self { items, ..self }
    }

    fn width(self) -> u8 {
        let items = usize::try_from(self.items).unwrap_or(1).max(1);
        u8::try_from(self.len / items).unwrap_or(0)
    }
}

/// The length of a port instruction of which only the bytes before its end are known; `byte(n)` is the n-th byte back from there.
///
/// Opcodes E4 to E7 have the port behind them, EC to EF have it in DX, 6C to 6F are string instructions; 66h in front changes the width (Intel SDM
/// volume 2, `IN`, `OUT`, `INS`, `OUTS`).
pub(crate) fn port_instruction_len(access: PortAccess, byte: impl Fn(u64) -> Option<u8>) -> u64 {
    const OPERAND_SIZE: u8 = 0x66;
    let last = byte(1).unwrap_or(0);
    let is_immediate = matches!(byte(2), Some(0xE4..=0xE7)) && u16::from(last) == access.port;
    let bare = if is_immediate { 2 } else { 1 };
    // A prefix belongs to an access of 2 bytes. In 16-bit code it belongs to one of 4.
    let has_prefix = access.width() != 1 && byte(bare + 1) == Some(OPERAND_SIZE);
    bare + u64::from(has_prefix)
}

/// A message of 256 bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message {
    bytes: [u8; MESSAGE_LEN],
}

impl Message {
    fn new(kind: u32, payload_len: u8) -> Self {
        let mut message = Self {
            bytes: [0; MESSAGE_LEN],
        };
        message.bytes[..4].copy_from_slice(&kind.to_le_bytes());
        message.bytes[4] = payload_len;
        message
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[PAYLOAD + offset..PAYLOAD + offset + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) const fn bytes(&self) -> [u8; MESSAGE_LEN] {
        self.bytes
    }

    /// A message with the header of an intercept.
    fn intercept(
        kind: u32,
        payload_len: u8,
        values: &Values,
        (access, len): (Access, u64),
    ) -> Self {
        let mut message = Self::new(kind, payload_len);
        let cs = values.segment(name::CS);
        let cr0 = values.u64(name::CR0);
        let is_long = values.u64(name::EFER) >> 10 & 1;
        let protected = cr0 & 1;
        let state = u64::from(cs.privilege()) | protected << 2 | is_long << 4;
        let length = u8::try_from(len & 0xF).unwrap_or(0);
        let cr8 = u8::try_from(values.u64(name::CR8) & 0xF).unwrap_or(0);
        message.put(4, &[length | cr8 << 4, access.number()]);
        message.put(6, &state.to_le_bytes()[..2]);
        message.put(8, &cs.value().to_le_bytes());
        message.put(0x18, &values.u64(name::RIP).to_le_bytes());
        message.put(0x20, &values.u64(name::RFLAGS).to_le_bytes());
        message
    }

    pub(crate) fn port(values: &Values, access: PortAccess, len_bytes: u64) -> Self {
        let direction = if access.is_output {
            Access::Write
        } else {
            Access::Read
        };
        let mut message =
            Self::intercept(X64_IO_PORT_INTERCEPT, 0x80, values, (direction, len_bytes));
        // String and repeated.
        let string = if access.items == 1 {
            0
        } else {
            1 << 3 | 1 << 4
        };
        message.put(0x28, &access.port.to_le_bytes());
        message.put(0x2A, &[access.width() | string]);
        message.put(0x30, &values.u64(name::RAX).to_le_bytes());
        message
    }

    pub(crate) fn memory(values: &Values, gpa: u64, access: Access, is_mapped: bool) -> Self {
        let kind = if is_mapped {
            GPA_INTERCEPT
        } else {
            UNMAPPED_GPA
        };
        let mut message = Self::intercept(kind, 0x50, values, (access, 0));
        message.put(0x38, &gpa.to_le_bytes());
        message
    }

    pub(crate) fn halt(values: &Values) -> Self {
        Self::intercept(X64_HALT, 0x28, values, (Access::Read, 0))
    }

    pub(crate) fn triple_fault(values: &Values) -> Self {
        Self::intercept(UNRECOVERABLE_EXCEPTION, 0x28, values, (Access::Read, 0))
    }

    /// What KVM's instruction emulator cannot do has no counterpart; this message is the nearest.
    pub(crate) fn unsupported(values: &Values) -> Self {
        Self::intercept(UNSUPPORTED_FEATURE, 0x28, values, (Access::Read, 0))
    }

    pub(crate) fn invalid_registers() -> Self {
        Self::new(INVALID_VP_REGISTER_VALUE, 8)
    }
}

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
    /// The lowest byte that goes out.
    first: u8,
}

impl PortAccess {
    pub(crate) fn new(port: u16, data: &[u8], is_output: bool) -> Self {
        Self {
            port,
            len: data.len(),
            is_output,
            items: 1,
            first: data.first().copied().unwrap_or(0),
        }
    }

    pub(crate) const fn with_items(self, items: u32) -> Self {
        Self { items, ..self }
    }

    const fn is_repeated(self) -> bool {
        self.items != 1
    }

    fn width(self) -> u8 {
        let items = usize::try_from(self.items).unwrap_or(1).max(1);
        u8::try_from(self.len / items).unwrap_or(0)
    }
}

/// A port instruction, found among the bytes around the place where KVM stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortInstruction {
    pub(crate) len_bytes: u64,
    pub(crate) is_string: bool,
    opcode: u8,
}

/// Opcodes E4 to E7 have the port behind them, EC to EF have it in DX, 6C to 6F are string instructions (Intel SDM volume 2, `IN`, `OUT`,
/// `INS`, `OUTS`).
const IMMEDIATE: std::ops::RangeInclusive<u8> = 0xE4..=0xE7;
const STRING: std::ops::RangeInclusive<u8> = 0x6C..=0x6F;
const OPERAND_SIZE: u8 = 0x66;

impl PortInstruction {
    /// The instruction that begins where KVM stopped; `byte(n)` is the n-th byte from there.
    pub(crate) fn at_start(byte: impl Fn(u64) -> Option<u8>) -> Option<Self> {
        /// Operand size, address size, repetition, REX.
        const fn is_prefix(byte: u8) -> bool {
            matches!(byte, OPERAND_SIZE | 0x67 | 0xF2 | 0xF3 | 0x40..=0x4F)
        }
        /// An instruction has at most 15 bytes.
        const MAX_PREFIXES: u64 = 14;
        let prefixes = (0..MAX_PREFIXES).find(|&at| !byte(at).is_some_and(is_prefix))?;
        let opcode = byte(prefixes)?;
        let is_string = STRING.contains(&opcode);
        let operands = match opcode {
            0xE4..=0xE7 => 1,
            0xEC..=0xEF | 0x6C..=0x6F => 0,
            _ => return None,
        };
        Some(Self {
            len_bytes: prefixes + 1 + operands,
            is_string,
            opcode,
        })
    }

    /// The instruction that ends where KVM stopped; `byte(n)` is the n-th byte back from there.
    pub(crate) fn at_end(access: PortAccess, byte: impl Fn(u64) -> Option<u8>) -> Self {
        let last = byte(1).unwrap_or(0);
        let is_immediate = byte(2).is_some_and(|opcode| IMMEDIATE.contains(&opcode))
            && u16::from(last) == access.port;
        let bare = if is_immediate { 2 } else { 1 };
        // The prefix belongs to an access of 2 bytes; in 16-bit code, to one of 4.
        let has_prefix = access.width() != 1 && byte(bare + 1) == Some(OPERAND_SIZE);
        Self {
            len_bytes: bare + u64::from(has_prefix),
            is_string: !is_immediate && STRING.contains(&last),
            opcode: byte(bare).unwrap_or(0),
        }
    }

    /// Whether the access fits what a plain instruction would have done: the port is the one in the instruction or in DX, and what went out is in
    /// RAX.
    pub(crate) fn is_plain_access(self, access: PortAccess, values: &Values) -> bool {
        let dx = values.u64(name::RAX + 2) & 0xFFFF;
        let has_port = match self.opcode {
            0xE4..=0xE7 => true,
            0xEC..=0xEF => dx == u64::from(access.port),
            _ => false,
        };
        let rax = values.u64(name::RAX).to_le_bytes();
        let has_data = !access.is_output || access.first == rax[0];
        has_port && has_data && !access.is_repeated()
    }
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

    pub(crate) fn port(values: &Values, access: PortAccess, instruction: PortInstruction) -> Self {
        let direction = if access.is_output {
            Access::Write
        } else {
            Access::Read
        };
        let mut message = Self::intercept(
            X64_IO_PORT_INTERCEPT,
            0x80,
            values,
            (direction, instruction.len_bytes),
        );
        let repeated = u8::from(access.is_repeated()) << 4;
        let string = u8::from(instruction.is_string || access.is_repeated()) << 3;
        message.put(0x28, &access.port.to_le_bytes());
        message.put(0x2A, &[access.width() | string | repeated]);
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

#[cfg(test)]
mod tests;

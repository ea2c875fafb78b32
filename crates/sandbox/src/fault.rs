//! Guest faults: what the monitor recorded, in the words of the manual.

use std::fmt;

use vellum_abi::fault::FaultRecord;
use vellum_layout::GvaRange;

/// What a guest did that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    kind: FaultKind,
    vector: u8,
    error_code: u32,
    instruction: u64,
    address: Option<u64>,
}

/// The kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// The stack grew into its guard page.
    StackOverflow,
    /// An access to the first 64 KiB of the address space.
    NullAccess,
    /// A read or write of an address that is not mapped.
    UnmappedAccess,
    /// A write to memory that may only be read.
    WriteToReadOnly,
    /// A jump into memory that may not be executed.
    ExecuteNonExecutable,
    /// An access to memory of the monitor.
    SupervisorAccess,
    /// An undefined instruction.
    InvalidOpcode,
    /// A division by zero, or with a quotient that does not fit.
    DivideError,
    /// `int3`.
    Breakpoint,
    /// A debug exception.
    Debug,
    /// An instruction that ring 3 may not execute, or a non-canonical address.
    GeneralProtection,
    /// An SSE or x87 exception that was unmasked.
    FloatingPoint,
    /// A fault inside the monitor.
    Monitor,
    /// Any other exception.
    Other,
}

/// Addresses below this are null pointers with an offset.
const NULL_AREA_LEN_BYTES: u64 = 0x1_0000;
/// A frame larger than the guard page may step over it by this much and still be called an overflow.
const STACK_REACH_BYTES: u64 = 0x10_0000;

/// Exception vectors (Intel SDM volume 3, table 6-1).
mod vector {
    pub(super) const DIVIDE_ERROR: u8 = 0;
    pub(super) const DEBUG: u8 = 1;
    pub(super) const BREAKPOINT: u8 = 3;
    pub(super) const INVALID_OPCODE: u8 = 6;
    pub(super) const GENERAL_PROTECTION: u8 = 13;
    pub(super) const PAGE_FAULT: u8 = 14;
    pub(super) const X87: u8 = 16;
    pub(super) const SIMD: u8 = 19;
}

impl Fault {
    /// Names what a record says. `stack_guard` is the page below the guest's stack.
    pub(crate) fn from_record(record: &FaultRecord, stack_guard: GvaRange) -> Self {
        let vector = u8::try_from(record.vector).unwrap_or(u8::MAX);
        let is_page_fault = vector == vector::PAGE_FAULT;
        Self {
            kind: kind_of(vector, record, stack_guard),
            vector,
            error_code: u32::try_from(record.error_code & u64::from(u32::MAX)).unwrap_or(0),
            instruction: record.rip,
            address: is_page_fault.then_some(record.cr2),
        }
    }

    /// A fault inside the monitor.
    pub(crate) fn in_monitor(record: &FaultRecord) -> Self {
        Self {
            kind: FaultKind::Monitor,
            vector: u8::try_from(record.vector).unwrap_or(u8::MAX),
            error_code: u32::try_from(record.error_code & u64::from(u32::MAX)).unwrap_or(0),
            instruction: record.rip,
            address: Some(record.cr2),
        }
    }

    /// What kind of fault it was.
    pub const fn kind(&self) -> FaultKind {
        self.kind
    }

    /// The exception vector.
    pub const fn vector(&self) -> u8 {
        self.vector
    }

    /// The exception's error code, 0 where it has none.
    pub const fn error_code(&self) -> u32 {
        self.error_code
    }

    /// Guest-virtual address of the instruction.
    pub const fn instruction(&self) -> u64 {
        self.instruction
    }

    /// Guest-virtual address that was accessed, for page faults.
    pub const fn address(&self) -> Option<u64> {
        self.address
    }
}

fn kind_of(vector: u8, record: &FaultRecord, stack_guard: GvaRange) -> FaultKind {
    match vector {
        vector::DIVIDE_ERROR => FaultKind::DivideError,
        vector::DEBUG => FaultKind::Debug,
        vector::BREAKPOINT => FaultKind::Breakpoint,
        vector::INVALID_OPCODE => FaultKind::InvalidOpcode,
        vector::GENERAL_PROTECTION => FaultKind::GeneralProtection,
        vector::PAGE_FAULT => page_fault(record, stack_guard),
        vector::X87 | vector::SIMD => FaultKind::FloatingPoint,
        _ => FaultKind::Other,
    }
}

/// Error code bits: Intel SDM volume 3, section 4.7.
fn page_fault(record: &FaultRecord, stack_guard: GvaRange) -> FaultKind {
    const PRESENT: u64 = 1 << 0;
    const WRITE: u64 = 1 << 1;
    const FETCH: u64 = 1 << 4;
    let address = record.cr2;
    let below_stack =
        stack_guard.end().as_u64().saturating_sub(STACK_REACH_BYTES)..stack_guard.end().as_u64();
    if below_stack.contains(&address) {
        return FaultKind::StackOverflow;
    }
    if address < NULL_AREA_LEN_BYTES {
        return FaultKind::NullAccess;
    }
    if address >> 63 != 0 {
        return FaultKind::SupervisorAccess;
    }
    match record.error_code {
        code if code & FETCH != 0 => FaultKind::ExecuteNonExecutable,
        code if code & PRESENT == 0 => FaultKind::UnmappedAccess,
        code if code & WRITE != 0 => FaultKind::WriteToReadOnly,
        _ => FaultKind::SupervisorAccess,
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            FaultKind::StackOverflow => "stack overflow",
            FaultKind::NullAccess => "null pointer access",
            FaultKind::UnmappedAccess => "access to unmapped memory",
            FaultKind::WriteToReadOnly => "write to read-only memory",
            FaultKind::ExecuteNonExecutable => "jump to non-executable memory",
            FaultKind::SupervisorAccess => "access to supervisor memory",
            FaultKind::InvalidOpcode => "invalid opcode",
            FaultKind::DivideError => "divide error",
            FaultKind::Breakpoint => "breakpoint",
            FaultKind::Debug => "debug exception",
            FaultKind::GeneralProtection => "general protection fault",
            FaultKind::FloatingPoint => "floating-point exception",
            FaultKind::Monitor => "fault inside the monitor",
            FaultKind::Other => "exception",
        };
        write!(f, "{what} at instruction {:#x}", self.instruction)?;
        if let Some(address) = self.address {
            write!(f, ", address {address:#x}")?;
        }
        write!(
            f,
            " (vector {}, error code {:#x})",
            self.vector, self.error_code
        )
    }
}

/// What an instruction that raised #GP in ring 3 tried to do, judged by its first bytes: a port access or `hlt` deserve
/// their own words, because on other hosts they leave the guest as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privileged {
    /// `in`, `out` and their string forms; the port is known when it is an immediate.
    Port(Option<u8>),
    Halt,
    Other,
}

/// Classifies the bytes of an instruction (Intel SDM volume 2).
pub(crate) fn classify(bytes: &[u8]) -> Privileged {
    const PREFIXES: [u8; 5] = [0x66, 0x67, 0xF2, 0xF3, 0x2E];
    let mut rest = bytes;
    while let Some((first, others)) = rest.split_first()
        && PREFIXES.contains(first)
    {
        rest = others;
    }
    match rest {
        [0xE4..=0xE7, port, ..] => Privileged::Port(Some(*port)),
        [0xEC..=0xEF | 0x6C..=0x6F, ..] => Privileged::Port(None),
        [0xF4, ..] => Privileged::Halt,
        _ => Privileged::Other,
    }
}

#[cfg(test)]
mod tests;

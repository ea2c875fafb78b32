//! A decoded instruction, ready to run.

use crate::cpu::Cpu;
use crate::trap::Trap;

/// Carries an instruction out.
pub(crate) type Handler = fn(&mut Cpu, &Op) -> Result<(), Trap>;

/// A vector result from two vectors and an immediate.
pub(crate) type VectorFunction = fn(u128, u128, u8) -> u128;

/// What an operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    None,
    /// A general-purpose register.
    Register,
    /// A vector register.
    Vector,
    /// An MMX register.
    Mmx,
    /// A segment, control, debug or x87 register.
    Special,
    Memory,
    Immediate,
}

/// An operand: its kind and, for a register, its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operand {
    pub(crate) kind: Kind,
    pub(crate) index: u8,
}

impl Operand {
    pub(crate) const NONE: Self = Self {
        kind: Kind::None,
        index: 0,
    };

    pub(crate) fn is_memory(self) -> bool {
        self.kind == Kind::Memory
    }
}

/// Which repeat prefix stands before a string instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    No,
    /// `rep` or `repe`.
    Equal,
    /// `repne`.
    NotEqual,
}

/// A decoded instruction. Everything that can be resolved before it runs is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    pub(crate) run: Handler,
    /// What a vector instruction computes.
    pub(crate) vector: VectorFunction,
    /// RIP of the instruction behind it.
    pub(crate) next: u64,
    /// Immediate operand or branch target.
    pub(crate) imm: u64,
    /// Displacement of the memory operand; of an address relative to RIP, the address.
    pub(crate) disp: u64,
    /// Bits that an effective address keeps.
    pub(crate) address_mask: u64,
    pub(crate) a: Operand,
    pub(crate) b: Operand,
    pub(crate) c: Operand,
    /// Registers of the memory operand.
    pub(crate) base: u8,
    pub(crate) index: u8,
    /// Binary logarithm of the factor of `index`.
    pub(crate) scale: u8,
    /// Segment of the memory operand, in the order of [`crate::cpu::seg`].
    pub(crate) segment: u8,
    pub(crate) len: u8,
    /// Operand size in bytes.
    pub(crate) size: u8,
    /// A second immediate.
    pub(crate) imm2: u8,
    pub(crate) locked: bool,
    pub(crate) repeat: Repeat,
    /// The decoder's number for the instruction.
    pub(crate) code: u16,
}

impl Op {
    /// RIP of the instruction itself.
    #[inline]
    pub(crate) fn ip(&self) -> u64 {
        self.next.wrapping_sub(u64::from(self.len))
    }

    /// Whether the lengths of strings in registers are 64 bits wide.
    pub(crate) fn is_wide(&self) -> bool {
        let code = iced_x86::Code::try_from(usize::from(self.code)).unwrap_or_default();
        matches!(
            code.mnemonic(),
            iced_x86::Mnemonic::Pcmpestri64 | iced_x86::Mnemonic::Pcmpestrm64
        )
    }
}

//! Vector instructions: SSE to SSE4.2, and MMX where it does the same on fewer lanes.

mod convert;
mod float;
mod integer;
mod lanes;
mod mmx;
mod moves;
mod multiply;
mod reciprocal;
mod save;
mod shuffle;
mod text;

use iced_x86::{Instruction, Mnemonic};

pub(super) use float::flags_of;

use crate::cpu::{Cpu, Write};
use crate::exec::{CR0_EM, CR0_TS};
use crate::op::{Handler, Kind, Op, Operand, VectorFunction};
use crate::trap::{Trap, vector};

/// What a vector instruction of two operands, and perhaps an immediate, computes.
pub(crate) fn function(instruction: &Instruction) -> Option<VectorFunction> {
    let mnemonic = instruction.mnemonic();
    if mmx::is_mmx(instruction) {
        return mmx::function(mnemonic);
    }
    vector_function(mnemonic)
}

fn vector_function(mnemonic: Mnemonic) -> Option<VectorFunction> {
    integer::function(mnemonic)
        .or_else(|| multiply::function(mnemonic))
        .or_else(|| shuffle::function(mnemonic))
        .or_else(|| moves::function(mnemonic))
}

pub(super) fn select(instruction: &Instruction, size: u8) -> Option<Handler> {
    if instruction.is_string_instruction() {
        return None;
    }
    if mmx::is_mmx(instruction) {
        return mmx::select(instruction);
    }
    moves::select(instruction)
        .or_else(|| save::select(instruction))
        .or_else(|| float::select(instruction))
        .or_else(|| convert::select(instruction, size))
        .or_else(|| text::select(instruction))
        .or_else(|| reciprocal::select(instruction))
        .or_else(|| function(instruction).map(|_| binary as Handler))
}

impl Cpu {
    /// #UD or #NM unless vector instructions are switched on.
    #[inline]
    pub(super) fn require_vectors(&mut self) -> Result<(), Trap> {
        if self.vectors_ready {
            Ok(())
        } else {
            Err(self.vectors_missing())
        }
    }

    #[cold]
    fn vectors_missing(&mut self) -> Trap {
        use vellum_backend::state::cr4;
        let exists = self.special.cr0 & CR0_EM == 0 && self.special.cr4 & cr4::OSFXSR != 0;
        self.fault(if exists { vector::NM } else { vector::UD })
    }

    /// As [`require_vectors`](Self::require_vectors), for x87 and MMX.
    pub(in crate::exec) fn require_x87(&mut self) -> Result<(), Trap> {
        if self.special.cr0 & (CR0_EM | CR0_TS) == 0 {
            Ok(())
        } else {
            Err(self.fault(vector::NM))
        }
    }

    /// Reads a vector operand. One of 16 bytes in memory must be aligned, smaller ones are extended by zeroes.
    #[inline]
    pub(super) fn get_vector(&mut self, op: &Op, operand: Operand) -> Result<u128, Trap> {
        match operand.kind {
            Kind::Vector => Ok(self.xmm[usize::from(operand.index) & 15]),
            Kind::Register => Ok(u128::from(self.gpr[usize::from(operand.index) & 31])),
            Kind::Immediate => Ok(u128::from(op.imm & 0xFF)),
            _ => {
                let linear = self.linear(op, u64::from(op.size).max(1), Write::No)?;
                self.load_vector(linear, op.size)
            }
        }
    }

    pub(super) fn load_vector(&mut self, linear: u64, size: u8) -> Result<u128, Trap> {
        match size {
            16 if !linear.is_multiple_of(16) => Err(self.gp()),
            16 => self.load_wide(linear),
            8 => self.load::<u64>(linear).map(u128::from),
            4 => self.load::<u32>(linear).map(u128::from),
            2 => self.load::<u16>(linear).map(u128::from),
            _ => self.load::<u8>(linear).map(u128::from),
        }
    }

    #[inline]
    pub(super) fn put_vector(&mut self, operand: Operand, value: u128) {
        self.xmm[usize::from(operand.index) & 15] = value;
    }
}

fn binary(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let b = cpu.get_vector(op, op.b)?;
    let a = cpu.xmm[usize::from(op.a.index) & 15];
    let immediate = if op.c.kind == Kind::Immediate {
        op.imm as u8
    } else {
        0
    };
    cpu.put_vector(op.a, (op.vector)(a, b, immediate));
    Ok(())
}

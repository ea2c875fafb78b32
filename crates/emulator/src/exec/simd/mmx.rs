//! MMX: registers of 64 bits, which are the significands of the x87 registers.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::float::{Double, Lane, Single};
use super::lanes::{gather, lane, signed, works_on_64_bits};
use crate::cpu::{Cpu, Write};
use crate::exec::CR0_EM;
use crate::float::{self, Rounding};
use crate::memory::Cell;
use crate::op::{Handler, Kind, Op, VectorFunction};
use crate::trap::Trap;
use crate::width::Width;

pub(super) fn is_mmx(instruction: &Instruction) -> bool {
    let registers = (0..instruction.op_count()).any(|index| {
        instruction.op_kind(index) == OpKind::Register && instruction.op_register(index).is_mm()
    });
    // They have no operand that tells them apart.
    registers
        || matches!(
            instruction.code(),
            Code::Cvtpi2ps_xmm_mmm64 | Code::Cvtpi2pd_xmm_mmm64
        )
}

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    select_move(instruction)
        .or_else(|| select_transfer(instruction))
        .or_else(|| select_conversion(instruction))
        .or_else(|| function(instruction.mnemonic()).map(|_| binary as Handler))
}

/// Two registers of 64 bits in one of 128.
fn join(low: u128, high: u128) -> u128 {
    low | high << 64
}

/// What the functions of 128-bit vectors need to be told to do the same for 64 bits: the result is the low half.
pub(super) fn function(mnemonic: Mnemonic) -> Option<VectorFunction> {
    use Mnemonic as M;
    macro_rules! wide {
        ($($name:ident => |$a:ident, $b:ident, $immediate:ident, $f:ident| $result:expr),* $(,)?) => {
            match mnemonic {
                $(M::$name => |$a, $b, $immediate| {
                    let $f = super::vector_function(M::$name).unwrap_or(|_, b, _| b);
                    $result
                },)*
                M::Pshufw => |_, b, immediate| {
                    gather::<16>((0..4).map(|index| lane::<16>(b, u32::from(immediate >> (index * 2) & 3))))
                },
                M::Palignr => |a, b, immediate| match u32::from(immediate) * 8 {
                    bits @ 0..128 => join(b, a) >> bits,
                    _ => 0,
                },
                _ if works_on_64_bits(mnemonic) => return super::vector_function(mnemonic),
                _ => return None,
            }
        };
    }
    Some(wide! {
        Packsswb => |a, b, imm, f| f(join(a, b), 0, imm),
        Packssdw => |a, b, imm, f| f(join(a, b), 0, imm),
        Packuswb => |a, b, imm, f| f(join(a, b), 0, imm),
        Phaddw => |a, b, imm, f| f(join(a, b), 0, imm),
        Phaddd => |a, b, imm, f| f(join(a, b), 0, imm),
        Phaddsw => |a, b, imm, f| f(join(a, b), 0, imm),
        Phsubw => |a, b, imm, f| f(join(a, b), 0, imm),
        Phsubd => |a, b, imm, f| f(join(a, b), 0, imm),
        Phsubsw => |a, b, imm, f| f(join(a, b), 0, imm),
        // The upper half of 64 bits lies where that of 128 bits begins.
        Punpckhbw => |a, b, imm, f| f(a << 32, b << 32, imm),
        Punpckhwd => |a, b, imm, f| f(a << 32, b << 32, imm),
        Punpckhdq => |a, b, imm, f| f(a << 32, b << 32, imm),
        // Indices have one bit less.
        Pshufb => |a, b, imm, f| f(join(a, a), b, imm),
    })
}

impl Cpu {
    /// Where an MMX register lies: in the significand of an x87 register.
    pub(super) fn mmx(&self, index: u8) -> u64 {
        self.x87.registers[usize::from(index & 7)] as u64
    }

    pub(super) fn put_mmx(&mut self, index: u8, value: u64) {
        /// Exponent and sign are all ones (Intel SDM volume 1, section 9.6.2).
        const UPPER: u128 = 0xFFFF << 64;
        self.x87.registers[usize::from(index & 7)] = UPPER | u128::from(value);
    }

    /// What comes before every MMX instruction.
    pub(super) fn begin_mmx(&mut self) -> Result<(), Trap> {
        if self.special.cr0 & CR0_EM != 0 {
            return Err(self.ud());
        }
        self.require_x87()?;
        self.check_x87_pending()
    }

    /// Every MMX instruction but `emms` makes all x87 registers used, and the first one the top.
    pub(super) fn end_mmx(&mut self) {
        self.x87.set_top(0);
        self.x87.used = 0xFF;
    }
}

fn binary(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.begin_mmx()?;
    let b = match op.b.kind {
        Kind::Mmx => cpu.mmx(op.b.index),
        Kind::Immediate => op.imm & 0xFF,
        _ => {
            let linear = cpu.linear(op, 8, Write::No)?;
            cpu.load::<u64>(linear)?
        }
    };
    let immediate = if op.c.kind == Kind::Immediate {
        op.imm as u8
    } else {
        0
    };
    let a = cpu.mmx(op.a.index);
    let result = (op.vector)(u128::from(a), u128::from(b), immediate) as u64;
    cpu.put_mmx(op.a.index, result);
    cpu.end_mmx();
    Ok(())
}

/// Moves to and from MMX registers.
fn select_move(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.code() {
        Code::Movd_mm_rm32 => from_general::<u32>,
        Code::Movq_mm_rm64 => from_general::<u64>,
        Code::Movd_rm32_mm => to_general::<u32>,
        Code::Movq_rm64_mm => to_general::<u64>,
        Code::Movq_mm_mmm64 => load,
        Code::Movq_mmm64_mm | Code::Movntq_m64_mm => store,
        _ => return None,
    })
}

fn from_general<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.begin_mmx()?;
    let value = cpu.get::<W>(op, op.b)?;
    cpu.put_mmx(op.a.index, value);
    cpu.end_mmx();
    Ok(())
}

fn to_general<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.begin_mmx()?;
    // A store that faults has changed the top already.
    cpu.x87.set_top(0);
    let value = cpu.mmx(op.b.index) & W::MASK;
    cpu.put::<W>(op, op.a, value)?;
    cpu.end_mmx();
    Ok(())
}

fn load(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.begin_mmx()?;
    let value = if op.b.kind == Kind::Mmx {
        cpu.mmx(op.b.index)
    } else {
        let linear = cpu.linear(op, 8, Write::No)?;
        cpu.load::<u64>(linear)?
    };
    cpu.put_mmx(op.a.index, value);
    cpu.end_mmx();
    Ok(())
}

fn store(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.begin_mmx()?;
    let value = cpu.mmx(op.b.index);
    cpu.x87.set_top(0);
    if op.a.kind == Kind::Mmx {
        cpu.put_mmx(op.a.index, value);
        cpu.end_mmx();
        return Ok(());
    }
    let linear = cpu.linear(op, 8, Write::Yes)?;
    cpu.store::<u64>(linear, value)?;
    cpu.end_mmx();
    Ok(())
}

/// To and from XMM registers, general-purpose registers, and masked bytes of memory.
fn select_transfer(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Movq2dq => to_vector,
        Mnemonic::Movdq2q => from_vector,
        Mnemonic::Pextrw => extract,
        Mnemonic::Pinsrw => insert,
        Mnemonic::Pmovmskb => sign_mask,
        Mnemonic::Maskmovq => store_masked,
        _ => return None,
    })
}

fn to_vector(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    cpu.begin_mmx()?;
    let value = u128::from(cpu.mmx(op.b.index));
    cpu.put_vector(op.a, value);
    cpu.end_mmx();
    Ok(())
}

fn from_vector(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    cpu.begin_mmx()?;
    let value = cpu.get_vector(op, op.b)? as u64;
    cpu.put_mmx(op.a.index, value);
    cpu.end_mmx();
    Ok(())
}

fn extract(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.begin_mmx()?;
    let value = lane::<16>(u128::from(cpu.mmx(op.b.index)), op.imm as u32 & 3);
    cpu.gpr[usize::from(op.a.index) & 31] = value;
    cpu.end_mmx();
    Ok(())
}

fn insert(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.begin_mmx()?;
    let value = cpu.get::<u16>(op, op.b)?;
    let shift = (op.imm & 3) * 16;
    let old = cpu.mmx(op.a.index);
    cpu.put_mmx(op.a.index, old & !(0xFFFF << shift) | value << shift);
    cpu.end_mmx();
    Ok(())
}

fn sign_mask(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.begin_mmx()?;
    let bytes = cpu.mmx(op.b.index).to_le_bytes();
    let mask = (0..).zip(bytes).fold(0, |mask, (index, byte)| {
        mask | u64::from(byte >> 7) << index
    });
    u32::set(&mut cpu.gpr, op.a.index, mask);
    cpu.end_mmx();
    Ok(())
}

fn store_masked(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.begin_mmx()?;
    let (bytes, mask) = (cpu.mmx(op.b.index), cpu.mmx(op.c.index));
    cpu.store_bytes_by_mask(op, &bytes.to_le_bytes(), &mask.to_le_bytes())?;
    cpu.end_mmx();
    Ok(())
}

/// Conversions between two integers of 32 bits and floating-point lanes.
fn select_conversion(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Cvtpi2ps => from_integers::<Single>,
        Mnemonic::Cvtpi2pd => from_integers::<Double>,
        Mnemonic::Cvtps2pi => to_integers::<Single, false>,
        Mnemonic::Cvttps2pi => to_integers::<Single, true>,
        Mnemonic::Cvtpd2pi => to_integers::<Double, false>,
        Mnemonic::Cvttpd2pi => to_integers::<Double, true>,
        _ => return None,
    })
}

/// The source in memory is a vector operand like another; one in a register is the use of MMX.
fn from_integers<L: Lane>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let uses_mmx = op.b.kind == Kind::Mmx;
    if uses_mmx {
        cpu.begin_mmx()?;
    }
    let source = if uses_mmx {
        cpu.mmx(op.b.index)
    } else {
        let linear = cpu.linear(op, 8, Write::No)?;
        cpu.load::<u64>(linear)?
    };
    if uses_mmx {
        cpu.end_mmx();
    }
    let mut environment = cpu.environment();
    let lanes: Vec<u64> = (0..2)
        .map(|index| {
            let value = signed::<32>(lane::<32>(u128::from(source), index));
            float::from_integer(L::FORMAT, &mut environment, value) as u64
        })
        .collect();
    cpu.settle_exceptions(&environment)?;
    let result = if L::BITS == 32 {
        let old = cpu.xmm[usize::from(op.a.index) & 15];
        old >> 64 << 64 | gather::<32>(lanes)
    } else {
        gather::<64>(lanes)
    };
    cpu.put_vector(op.a, result);
    Ok(())
}

fn to_integers<L: Lane, const TRUNCATE: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    cpu.begin_mmx()?;
    let source = cpu.get_vector(op, op.b)?;
    let mut environment = cpu.environment();
    if TRUNCATE {
        environment.rounding = Rounding::Zero;
    }
    let mask = u128::from(u64::MAX >> (64 - L::BITS));
    let lanes: Vec<u64> = (0..2)
        .map(|index| {
            let number = L::FORMAT.unpack(source >> (index * L::BITS) & mask);
            float::to_integer(&mut environment, number, 32) as u64
        })
        .collect();
    // This much happens even if the conversion is an exception.
    cpu.end_mmx();
    cpu.settle_exceptions(&environment)?;
    cpu.put_mmx(op.a.index, gather::<32>(lanes) as u64);
    Ok(())
}

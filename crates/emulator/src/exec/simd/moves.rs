//! Moves between vectors, memory and general-purpose registers.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::lanes::lane;
use super::shuffle::blend_by_sign;
use crate::cpu::{Cpu, Write, reg};
use crate::flags::{CF, STATUS, ZF};
use crate::op::{Handler, Kind, Op, VectorFunction};
use crate::trap::Trap;
use crate::width::Width;

/// Moves that are functions of the source, or of the source and the destination's other lanes.
pub(super) fn function(mnemonic: Mnemonic) -> Option<VectorFunction> {
    use Mnemonic as M;
    const LOW: u128 = u64::MAX as u128;
    Some(match mnemonic {
        M::Movaps | M::Movapd | M::Movdqa | M::Movntdqa => |_, b, _| b,
        M::Movhlps => |a, b, _| a & !LOW | b >> 64,
        M::Movlhps => |a, b, _| a & LOW | b << 64,
        _ => return None,
    })
}

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    let to_memory = instruction.op0_kind() == OpKind::Memory;
    let from_memory = instruction.op_count() > 1 && instruction.op1_kind() == OpKind::Memory;
    Some(match instruction.mnemonic() {
        M::Movaps | M::Movapd | M::Movdqa | M::Movntps | M::Movntpd | M::Movntdq if to_memory => {
            store_aligned
        }
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu if to_memory => store_unaligned,
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu if from_memory => load_unaligned,
        M::Movups | M::Movupd | M::Movdqu => copy,
        M::Movss if to_memory => store_low::<4>,
        M::Movsd if to_memory => store_low::<8>,
        M::Movss | M::Movsd if from_memory => load_low,
        M::Movss => merge_low::<0xFFFF_FFFF>,
        M::Movsd => merge_low::<{ u64::MAX }>,
        M::Movd | M::Movq => return select_transfer(instruction),
        M::Movlps | M::Movlpd | M::Movhps | M::Movhpd => {
            let high = matches!(instruction.mnemonic(), M::Movhps | M::Movhpd);
            match (to_memory, high) {
                (true, false) => store_low::<8>,
                (true, true) => store_high,
                (false, false) => load_half::<false>,
                (false, true) => load_half::<true>,
            }
        }
        M::Movmskps => sign_mask::<32>,
        M::Movmskpd => sign_mask::<64>,
        M::Pmovmskb => sign_mask::<8>,
        M::Ptest => test,
        M::Pinsrb => insert::<8>,
        M::Pinsrw => insert::<16>,
        M::Pinsrd => insert::<32>,
        M::Pinsrq => insert::<64>,
        M::Pextrb => extract::<8>,
        M::Pextrw => extract::<16>,
        M::Pextrd | M::Extractps => extract::<32>,
        M::Pextrq => extract::<64>,
        M::Pblendvb => blend_variable::<8>,
        M::Blendvps => blend_variable::<32>,
        M::Blendvpd => blend_variable::<64>,
        M::Insertps if from_memory => insert_loaded,
        M::Maskmovdqu => store_masked,
        _ => return None,
    })
}

/// `movd` and `movq`, in both directions.
fn select_transfer(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.code() {
        Code::Movd_xmm_rm32 => from_general::<u32>,
        Code::Movq_xmm_rm64 => from_general::<u64>,
        Code::Movd_rm32_xmm => to_general::<u32>,
        Code::Movq_rm64_xmm => to_general::<u64>,
        Code::Movq_xmmm64_xmm if instruction.op0_kind() == OpKind::Memory => store_low::<8>,
        Code::Movq_xmm_xmmm64 | Code::Movq_xmmm64_xmm => load_low_quad,
        _ => return None,
    })
}

fn source(cpu: &Cpu, op: &Op) -> u128 {
    cpu.xmm[usize::from(op.b.index) & 15]
}

fn copy(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let value = source(cpu, op);
    cpu.put_vector(op.a, value);
    Ok(())
}

fn load_unaligned(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let linear = cpu.linear(op, 16, Write::No)?;
    let value = cpu.load_wide(linear)?;
    cpu.put_vector(op.a, value);
    Ok(())
}

fn store_unaligned(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let linear = cpu.linear(op, 16, Write::Yes)?;
    cpu.store_wide(linear, source(cpu, op))
}

fn store_aligned(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let linear = cpu.linear(op, 16, Write::Yes)?;
    if !linear.is_multiple_of(16) {
        return Err(cpu.gp());
    }
    cpu.store_wide(linear, source(cpu, op))
}

/// Loads `size` bytes; the rest of the vector becomes zero.
fn load_low(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let value = cpu.get_vector(op, op.b)?;
    cpu.put_vector(op.a, value);
    Ok(())
}

fn load_low_quad(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let value = cpu.get_vector(op, op.b)? & u128::from(u64::MAX);
    cpu.put_vector(op.a, value);
    Ok(())
}

fn store_low<const BYTES: u64>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let value = source(cpu, op) as u64;
    let linear = cpu.linear(op, BYTES, Write::Yes)?;
    if BYTES == 4 {
        cpu.store::<u32>(linear, value)
    } else {
        cpu.store::<u64>(linear, value)
    }
}

fn store_high(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let value = (source(cpu, op) >> 64) as u64;
    let linear = cpu.linear(op, 8, Write::Yes)?;
    cpu.store::<u64>(linear, value)
}

fn load_half<const HIGH: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    const LOW: u128 = u64::MAX as u128;
    cpu.require_vectors()?;
    let linear = cpu.linear(op, 8, Write::No)?;
    let value = u128::from(cpu.load::<u64>(linear)?);
    let old = cpu.xmm[usize::from(op.a.index) & 15];
    let new = if HIGH {
        old & LOW | value << 64
    } else {
        old & !LOW | value
    };
    cpu.put_vector(op.a, new);
    Ok(())
}

/// `movss` and `movsd` between registers keep the other lanes.
fn merge_low<const MASK: u64>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let mask = u128::from(MASK);
    let old = cpu.xmm[usize::from(op.a.index) & 15];
    let new = old & !mask | source(cpu, op) & mask;
    cpu.put_vector(op.a, new);
    Ok(())
}

fn from_general<W: Width + crate::memory::Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let value = cpu.get::<W>(op, op.b)?;
    cpu.put_vector(op.a, u128::from(value));
    Ok(())
}

fn to_general<W: Width + crate::memory::Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let value = source(cpu, op) as u64 & W::MASK;
    cpu.put::<W>(op, op.a, value)
}

fn sign_mask<const BITS: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let vector = source(cpu, op);
    let mask = (0..128 / BITS).fold(0, |mask, index| {
        mask | lane::<BITS>(vector, index) >> (BITS - 1) << index
    });
    u32::set(&mut cpu.gpr, op.a.index, mask);
    Ok(())
}

fn test(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let b = cpu.get_vector(op, op.b)?;
    let a = cpu.xmm[usize::from(op.a.index) & 15];
    cpu.flags.0 &= !STATUS;
    cpu.flags.put(ZF, a & b == 0);
    cpu.flags.put(CF, !a & b == 0);
    Ok(())
}

fn insert<const BITS: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let value = if op.b.kind == Kind::Register {
        cpu.gpr[usize::from(op.b.index) & 31]
    } else {
        let linear = cpu.linear(op, u64::from(BITS / 8), Write::No)?;
        cpu.load_vector(linear, (BITS / 8) as u8)? as u64
    };
    let shift = (op.imm as u32 & (128 / BITS - 1)) * BITS;
    let mask = u128::from(u64::MAX >> (64 - BITS)) << shift;
    let old = cpu.xmm[usize::from(op.a.index) & 15];
    let new = old & !mask | u128::from(value) << shift & mask;
    cpu.put_vector(op.a, new);
    Ok(())
}

/// A register gets the lane extended by zeroes.
fn extract<const BITS: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let value = lane::<BITS>(source(cpu, op), op.imm as u32 & (128 / BITS - 1));
    if op.a.kind == Kind::Register {
        cpu.gpr[usize::from(op.a.index) & 31] = value;
        return Ok(());
    }
    let linear = cpu.linear(op, u64::from(BITS / 8), Write::Yes)?;
    match BITS {
        8 => cpu.store::<u8>(linear, value),
        16 => cpu.store::<u16>(linear, value),
        32 => cpu.store::<u32>(linear, value),
        _ => cpu.store::<u64>(linear, value),
    }
}

/// The mask is XMM0.
fn blend_variable<const BITS: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let b = cpu.get_vector(op, op.b)?;
    let a = cpu.xmm[usize::from(op.a.index) & 15];
    let new = blend_by_sign::<BITS>(a, b, cpu.xmm[0]);
    cpu.put_vector(op.a, new);
    Ok(())
}

/// `insertps` from memory: the lane that the immediate names in a register is the only one.
fn insert_loaded(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let b = cpu.get_vector(op, op.b)?;
    let a = cpu.xmm[usize::from(op.a.index) & 15];
    cpu.put_vector(op.a, (op.vector)(a, b, op.imm as u8 & 0x3F));
    Ok(())
}

/// `maskmovdqu`, to where RDI points.
fn store_masked(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let (bytes, mask) = (
        cpu.xmm[usize::from(op.b.index) & 15],
        cpu.xmm[usize::from(op.c.index) & 15],
    );
    cpu.store_bytes_by_mask(op, &bytes.to_le_bytes(), &mask.to_le_bytes())
}

impl Cpu {
    /// Stores the bytes where RDI points whose mask has its highest bit set, or none.
    pub(super) fn store_bytes_by_mask(
        &mut self,
        op: &Op,
        bytes: &[u8],
        mask: &[u8],
    ) -> Result<(), Trap> {
        let first = self.gpr[usize::from(reg::RDI)] & op.address_mask;
        let linear = self.linear_at(op.segment, first, bytes.len() as u64, Write::Yes)?;
        let chosen = || {
            (linear..)
                .zip(bytes.iter().zip(mask))
                .filter(|(_, (_, mask))| **mask & 0x80 != 0)
        };
        for (at, _) in chosen() {
            self.check_writable(self.wrap(at), 1)?;
        }
        for (at, (byte, _)) in chosen() {
            self.store::<u8>(self.wrap(at), u64::from(*byte))?;
        }
        Ok(())
    }
}

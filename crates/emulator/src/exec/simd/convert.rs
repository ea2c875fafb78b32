//! Conversions between formats and integers, and rounding.

use iced_x86::{Instruction, Mnemonic};

use super::float::{Double, Lane, Single};
use super::lanes::{gather, lane, signed};
use crate::cpu::Cpu;
use crate::float::{self, DOUBLE, Environment, Format, Rounding, SINGLE, flag};
use crate::memory::Cell;
use crate::op::{Handler, Op};
use crate::trap::Trap;
use crate::width::Width;

pub(super) fn select(instruction: &Instruction, size: u8) -> Option<Handler> {
    use Mnemonic as M;
    Some(match instruction.mnemonic() {
        M::Cvtsi2ss if source_size(instruction) == 8 => from_general::<Single, u64>,
        M::Cvtsi2ss => from_general::<Single, u32>,
        M::Cvtsi2sd if source_size(instruction) == 8 => from_general::<Double, u64>,
        M::Cvtsi2sd => from_general::<Double, u32>,
        M::Cvtss2si if size == 8 => to_general::<Single, u64, false>,
        M::Cvtss2si => to_general::<Single, u32, false>,
        M::Cvtsd2si if size == 8 => to_general::<Double, u64, false>,
        M::Cvtsd2si => to_general::<Double, u32, false>,
        M::Cvttss2si if size == 8 => to_general::<Single, u64, true>,
        M::Cvttss2si => to_general::<Single, u32, true>,
        M::Cvttsd2si if size == 8 => to_general::<Double, u64, true>,
        M::Cvttsd2si => to_general::<Double, u32, true>,
        M::Cvtss2sd => single_to_double,
        M::Cvtsd2ss => double_to_single,
        M::Cvtps2pd => singles_to_doubles,
        M::Cvtpd2ps => doubles_to_singles,
        M::Cvtdq2ps => integers_to_singles,
        M::Cvtdq2pd => integers_to_doubles,
        M::Cvtps2dq => singles_to_integers::<false>,
        M::Cvttps2dq => singles_to_integers::<true>,
        M::Cvtpd2dq => doubles_to_integers::<false>,
        M::Cvttpd2dq => doubles_to_integers::<true>,
        M::Roundss => round::<Single, false>,
        M::Roundsd => round::<Double, false>,
        M::Roundps => round::<Single, true>,
        M::Roundpd => round::<Double, true>,
        _ => return None,
    })
}

fn source_size(instruction: &Instruction) -> usize {
    match instruction.op1_kind() {
        iced_x86::OpKind::Register => instruction.op1_register().size(),
        _ => instruction.memory_size().size(),
    }
}

/// A source lane, and the destination's old value.
fn operands(cpu: &mut Cpu, op: &Op) -> Result<(u128, u128), Trap> {
    cpu.require_vectors()?;
    let b = cpu.get_vector(op, op.b)?;
    Ok((cpu.xmm[usize::from(op.a.index) & 15], b))
}

fn finish(cpu: &mut Cpu, op: &Op, environment: &Environment, value: u128) -> Result<(), Trap> {
    cpu.settle_exceptions(environment)?;
    cpu.put_vector(op.a, value);
    Ok(())
}

fn from_general<L: Lane, W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let value = W::extend(cpu.get::<W>(op, op.b)?);
    let mut environment = cpu.environment();
    let result = float::from_integer(L::FORMAT, &mut environment, value);
    let mask = u128::from(u64::MAX >> (64 - L::BITS));
    let old = cpu.xmm[usize::from(op.a.index) & 15];
    finish(cpu, op, &environment, old & !mask | result)
}

fn to_general<L: Lane, W: Width + Cell, const TRUNCATE: bool>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let b = if op.b.is_memory() {
        let bytes = u64::from(L::BITS / 8);
        let linear = cpu.linear(op, bytes, crate::cpu::Write::No)?;
        cpu.load_vector(linear, bytes as u8)?
    } else {
        cpu.get_vector(op, op.b)?
    };
    let mut environment = truncating(cpu.environment(), TRUNCATE);
    let value = b & u128::from(u64::MAX >> (64 - L::BITS));
    let result = float::to_integer(&mut environment, L::FORMAT.unpack(value), W::BITS);
    cpu.settle_exceptions(&environment)?;
    W::set(&mut cpu.gpr, op.a.index, result as u64 & W::MASK);
    Ok(())
}

fn truncating(environment: Environment, truncate: bool) -> Environment {
    if truncate {
        Environment {
            rounding: Rounding::Zero,
            ..environment
        }
    } else {
        environment
    }
}

fn single_to_double(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let (a, b) = operands(cpu, op)?;
    let mut environment = cpu.environment();
    let value = b & 0xFFFF_FFFF;
    let result = float::convert(DOUBLE, &mut environment, SINGLE.unpack(value));
    finish(cpu, op, &environment, a >> 64 << 64 | result)
}

fn double_to_single(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let (a, b) = operands(cpu, op)?;
    let mut environment = cpu.environment();
    let value = b & u128::from(u64::MAX);
    let result = float::convert(SINGLE, &mut environment, DOUBLE.unpack(value));
    finish(cpu, op, &environment, a >> 32 << 32 | result)
}

fn singles_to_doubles(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let (_, b) = operands(cpu, op)?;
    let mut environment = cpu.environment();
    let mut one = |index| {
        let value = u128::from(lane::<32>(b, index));
        float::convert(DOUBLE, &mut environment, SINGLE.unpack(value)) as u64
    };
    let result = gather::<64>([one(0), one(1)]);
    finish(cpu, op, &environment, result)
}

fn doubles_to_singles(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let (_, b) = operands(cpu, op)?;
    let mut environment = cpu.environment();
    let mut one = |index| {
        let value = u128::from(lane::<64>(b, index));
        float::convert(SINGLE, &mut environment, DOUBLE.unpack(value)) as u64
    };
    let result = gather::<32>([one(0), one(1)]);
    finish(cpu, op, &environment, result)
}

fn integers_to_singles(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let (_, b) = operands(cpu, op)?;
    let mut environment = cpu.environment();
    let lanes: Vec<u64> = (0..4)
        .map(|index| {
            let value = signed::<32>(lane::<32>(b, index));
            float::from_integer(SINGLE, &mut environment, value) as u64
        })
        .collect();
    finish(cpu, op, &environment, gather::<32>(lanes))
}

fn integers_to_doubles(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let (_, b) = operands(cpu, op)?;
    let mut environment = cpu.environment();
    let lanes: Vec<u64> = (0..2)
        .map(|index| {
            let value = signed::<32>(lane::<32>(b, index));
            float::from_integer(DOUBLE, &mut environment, value) as u64
        })
        .collect();
    finish(cpu, op, &environment, gather::<64>(lanes))
}

fn to_integers(environment: &mut Environment, format: Format, lanes: Vec<u64>) -> u128 {
    let integers: Vec<u64> = lanes
        .into_iter()
        .map(|it| float::to_integer(environment, format.unpack(u128::from(it)), 32) as u64)
        .collect();
    gather::<32>(integers)
}

fn singles_to_integers<const TRUNCATE: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let (_, b) = operands(cpu, op)?;
    let mut environment = truncating(cpu.environment(), TRUNCATE);
    let lanes = (0..4).map(|index| lane::<32>(b, index)).collect();
    let result = to_integers(&mut environment, SINGLE, lanes);
    finish(cpu, op, &environment, result)
}

fn doubles_to_integers<const TRUNCATE: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let (_, b) = operands(cpu, op)?;
    let mut environment = truncating(cpu.environment(), TRUNCATE);
    let lanes = (0..2).map(|index| lane::<64>(b, index)).collect();
    let result = to_integers(&mut environment, DOUBLE, lanes);
    finish(cpu, op, &environment, result)
}

/// The immediate chooses the rounding, that of MXCSR among them, and whether inexact results are noted.
fn round<L: Lane, const PACKED: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    const FROM_MXCSR: u64 = 4;
    const SILENT: u64 = 8;
    let (a, b) = operands(cpu, op)?;
    let mut environment = cpu.environment();
    if op.imm & FROM_MXCSR == 0 {
        environment.rounding = Rounding::from_bits(op.imm as u32);
    }
    let mask = u128::from(u64::MAX >> (64 - L::BITS));
    let mut result = a;
    for index in 0..if PACKED { 128 / L::BITS } else { 1 } {
        let shift = index * L::BITS;
        let value = float::round_to_integral(L::FORMAT, &mut environment, b >> shift & mask);
        result = result & !(mask << shift) | value << shift;
    }
    if op.imm & SILENT != 0 {
        environment.raised &= !flag::INEXACT;
    }
    finish(cpu, op, &environment, result)
}

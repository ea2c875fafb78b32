//! Loads, stores, constants, and moves between registers.

use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind};

use super::{Double, Integer, Memory, Single, Stored, numeric};
use crate::cpu::{Cpu, Write};
use crate::flags::{CF, PF, ZF};
use crate::float::{self, EXTENDED, Environment, Number, Rounding, flag};
use crate::memory::Cell;
use crate::op::{Handler, Op};
use crate::trap::Trap;
use crate::width::Width;
use crate::x87::X87;

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    let size = instruction.memory_size();
    let register = instruction.op0_kind() == OpKind::Register
        && (instruction.op_count() < 2 || instruction.op1_kind() == OpKind::Register);
    Some(match (instruction.mnemonic(), size) {
        (M::Fld, _) if register => numeric!(load_register),
        (M::Fld, MemorySize::Float32) => numeric!(load::<Single>),
        (M::Fld, MemorySize::Float64) => numeric!(load::<Double>),
        (M::Fld, MemorySize::Float80) => numeric!(load_extended),
        (M::Fild, MemorySize::Int16) => numeric!(load::<Integer<u16>>),
        (M::Fild, MemorySize::Int32) => numeric!(load::<Integer<u32>>),
        (M::Fild, MemorySize::Int64) => numeric!(load::<Integer<u64>>),
        (M::Fbld, _) => numeric!(load_decimal),
        (M::Fst, _) if register => numeric!(store_register::<false>),
        (M::Fstp, _) if register => numeric!(store_register::<true>),
        (M::Fst, MemorySize::Float32) => numeric!(store::<Single, false>),
        (M::Fst, MemorySize::Float64) => numeric!(store::<Double, false>),
        (M::Fstp, MemorySize::Float32) => numeric!(store::<Single, true>),
        (M::Fstp, MemorySize::Float64) => numeric!(store::<Double, true>),
        (M::Fstp, MemorySize::Float80) => numeric!(store_extended),
        (M::Fist, MemorySize::Int16) => numeric!(store_integer::<u16, 0>),
        (M::Fist, MemorySize::Int32) => numeric!(store_integer::<u32, 0>),
        (M::Fistp, MemorySize::Int16) => numeric!(store_integer::<u16, 1>),
        (M::Fistp, MemorySize::Int32) => numeric!(store_integer::<u32, 1>),
        (M::Fistp, MemorySize::Int64) => numeric!(store_integer::<u64, 1>),
        (M::Fisttp, MemorySize::Int16) => numeric!(store_integer::<u16, TRUNCATE>),
        (M::Fisttp, MemorySize::Int32) => numeric!(store_integer::<u32, TRUNCATE>),
        (M::Fisttp, MemorySize::Int64) => numeric!(store_integer::<u64, TRUNCATE>),
        (M::Fbstp, _) => numeric!(store_decimal),
        (M::Fxch, _) => numeric!(exchange),
        (M::Fld1, _) => numeric!(constant::<1>),
        (M::Fldl2t, _) => numeric!(constant::<2>),
        (M::Fldl2e, _) => numeric!(constant::<3>),
        (M::Fldpi, _) => numeric!(constant::<4>),
        (M::Fldlg2, _) => numeric!(constant::<5>),
        (M::Fldln2, _) => numeric!(constant::<6>),
        (M::Fldz, _) => numeric!(constant::<0>),
        (M::Fcmovb, _) => numeric!(move_if::<{ CF }, true>),
        (M::Fcmove, _) => numeric!(move_if::<{ ZF }, true>),
        (M::Fcmovbe, _) => numeric!(move_if::<{ CF | ZF }, true>),
        (M::Fcmovu, _) => numeric!(move_if::<{ PF }, true>),
        (M::Fcmovnb, _) => numeric!(move_if::<{ CF }, false>),
        (M::Fcmovne, _) => numeric!(move_if::<{ ZF }, false>),
        (M::Fcmovnbe, _) => numeric!(move_if::<{ CF | ZF }, false>),
        (M::Fcmovnu, _) => numeric!(move_if::<{ PF }, false>),
        _ => return None,
    })
}

/// Pushes a number, unless the stack is full or it is none, and those are exceptions.
fn push(x87: &mut X87, mut environment: Environment, mut value: u128) {
    if environment.raised & flag::STACK == 0 && !x87.is_empty(7) {
        environment.raised = flag::INVALID | flag::STACK;
        environment.rounded_up = true;
        value = EXTENDED.indefinite();
    }
    x87.conclude(&environment);
    // A denormal number is loaded even if that is an exception.
    if environment.unmasked() & flag::INVALID == 0 {
        x87.push(value);
    }
}

fn load<M: Memory>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let number = cpu.x87_operand::<M>(op)?;
    let mut environment = cpu.x87.environment();
    let value = float::convert(EXTENDED, &mut environment, number);
    push(&mut cpu.x87, environment, value);
    Ok(())
}

fn load_10_bytes(cpu: &mut Cpu, op: &Op) -> Result<u128, Trap> {
    let linear = cpu.linear(op, 10, Write::No)?;
    let low = cpu.load::<u64>(linear)?;
    let high = cpu.load::<u16>(cpu.wrap(linear.wrapping_add(8)))?;
    Ok(u128::from(high) << 64 | u128::from(low))
}

fn store_10_bytes(cpu: &mut Cpu, op: &Op, value: u128) -> Result<(), Trap> {
    let linear = cpu.linear(op, 10, Write::Yes)?;
    cpu.check_writable(linear, 10)?;
    cpu.store::<u64>(linear, value as u64)?;
    cpu.store::<u16>(
        cpu.wrap(linear.wrapping_add(8)),
        (value >> 64) as u64 & 0xFFFF,
    )
}

/// What lies in memory is taken as it is, whatever it encodes.
fn load_extended(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let value = load_10_bytes(cpu, op)?;
    let environment = cpu.x87.environment();
    push(&mut cpu.x87, environment, value);
    Ok(())
}

fn load_register(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let mut environment = cpu.x87.environment();
    let index = op.a.index.max(op.b.index);
    let value = cpu.x87.operand_bits(&mut environment, index);
    push(&mut cpu.x87, environment, value);
    Ok(())
}

/// Eighteen decimal digits in nine bytes, and a sign in the tenth.
fn load_decimal(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let bits = load_10_bytes(cpu, op)?;
    let magnitude = (0..18).rev().fold(0_i64, |value, digit| {
        value * 10 + (bits >> (digit * 4) & 0xF) as i64
    });
    let value = super::from_integer(magnitude) | bits & super::arithmetic::SIGN;
    let environment = cpu.x87.environment();
    push(&mut cpu.x87, environment, value);
    Ok(())
}

/// Whether an exception keeps a result from being stored in memory: any but the one for inexact results.
fn is_blocked(environment: &Environment) -> bool {
    environment.unmasked() & !flag::INEXACT != 0
}

/// A number without what stores do not report.
fn source(x87: &X87, environment: &mut Environment) -> Number {
    Number {
        denormal: false,
        ..x87.operand(environment, 0)
    }
}

fn store<S: Stored, const POP: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let mut environment = cpu.x87.environment();
    let number = source(&cpu.x87, &mut environment);
    let value = float::convert(S::FORMAT, &mut environment, number) as u64;
    if !is_blocked(&environment) {
        let linear = cpu.linear(op, S::Width::BYTES, Write::Yes)?;
        cpu.store::<S::Width>(linear, value)?;
    }
    finish_store(&mut cpu.x87, &environment, POP.into());
    Ok(())
}

/// Only what was stored is popped, and only that can be inexact.
fn finish_store(x87: &mut X87, environment: &Environment, pops: u8) {
    if is_blocked(environment) {
        x87.conclude(&Environment {
            raised: environment.raised & !flag::INEXACT,
            rounded_up: false,
            ..*environment
        });
    } else {
        x87.conclude(environment);
        (0..pops).for_each(|_| x87.pop());
    }
}

fn store_extended(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let mut environment = cpu.x87.environment();
    let value = cpu.x87.operand_bits(&mut environment, 0);
    if !is_blocked(&environment) {
        store_10_bytes(cpu, op, value)?;
    }
    finish_store(&mut cpu.x87, &environment, 1);
    Ok(())
}

fn store_register<const POP: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let x87 = &mut cpu.x87;
    let mut environment = x87.environment();
    let value = x87.operand_bits(&mut environment, 0);
    if x87.finish(&environment, op.a.index, value) && POP {
        x87.pop();
    }
    Ok(())
}

/// As the number of pops: one, and the fraction is cut off.
const TRUNCATE: u8 = 2;

fn store_integer<W: Width + Cell, const POPS: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let mut environment = cpu.x87.environment();
    if POPS == TRUNCATE {
        environment.rounding = Rounding::Zero;
    }
    let number = source(&cpu.x87, &mut environment);
    let value = float::to_integer(&mut environment, number, W::BITS) as u64 & W::MASK;
    if !is_blocked(&environment) {
        let linear = cpu.linear(op, W::BYTES, Write::Yes)?;
        cpu.store::<W>(linear, value)?;
    }
    finish_store(&mut cpu.x87, &environment, POPS.min(1));
    Ok(())
}

fn store_decimal(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    /// What has no eighteen digits (Intel SDM volume 1, table 4-4).
    const INDEFINITE: u128 = 0xFFFF_C000_0000_0000_0000;
    const LIMIT: u64 = 1_000_000_000_000_000_000;
    let mut environment = cpu.x87.environment();
    let number = source(&cpu.x87, &mut environment);
    let raised = environment.raised;
    let value = float::to_integer(&mut environment, number, 64).unsigned_abs();
    let bits = if value < LIMIT {
        let digits = (0..18).map(|digit| u128::from(value / 10_u64.pow(digit) % 10) << (digit * 4));
        digits.sum::<u128>() | u128::from(number.negative) << 79
    } else {
        environment.raised = raised | flag::INVALID;
        environment.rounded_up = false;
        INDEFINITE
    };
    if !is_blocked(&environment) {
        store_10_bytes(cpu, op, bits)?;
    }
    finish_store(&mut cpu.x87, &environment, 1);
    Ok(())
}

/// Empty registers get the result of an invalid operation first.
fn exchange(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let x87 = &mut cpu.x87;
    let mut environment = x87.environment();
    let index = op.a.index.max(op.b.index);
    let first = x87.operand_bits(&mut environment, 0);
    let second = x87.operand_bits(&mut environment, index);
    if x87.conclude(&environment) {
        x87.put(index, first);
        x87.put(0, second);
    }
    Ok(())
}

/// A constant between two numbers: sign and exponent, the lower significand, and whether the upper one is nearer
/// (Intel SDM volume 1, section 8.3.8).
const CONSTANTS: [(u64, u64, bool); 7] = [
    (0, 0, false),
    (0x3FFF, 1 << 63, false),
    (0x4000, 0xD49A_784B_CD1B_8AFE, false),
    (0x3FFF, 0xB8AA_3B29_5C17_F0BB, true),
    (0x4000, 0xC90F_DAA2_2168_C234, true),
    (0x3FFD, 0x9A20_9A84_FBCF_F798, true),
    (0x3FFE, 0xB172_17F7_D1CF_79AB, true),
];
/// Those before this one are exact.
const FIRST_INEXACT: usize = 2;

/// It is rounded as the control word says, without an exception.
fn constant<const NUMBER: usize>(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let environment = cpu.x87.environment();
    let (exponent, significand, upper_is_nearer) = CONSTANTS[NUMBER];
    let up = match environment.rounding {
        Rounding::Nearest => upper_is_nearer,
        Rounding::Up => NUMBER >= FIRST_INEXACT,
        Rounding::Down | Rounding::Zero => false,
    };
    let value = u128::from(exponent) << 64 | u128::from(significand + u64::from(up));
    push(&mut cpu.x87, environment, value);
    Ok(())
}

/// Both registers must hold numbers, whatever the flags say. C1 stays as it is unless one does not.
fn move_if<const FLAGS: u64, const WANTED: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let holds = cpu.flags.has(FLAGS) == WANTED;
    let x87 = &mut cpu.x87;
    let mut environment = x87.environment();
    x87.operand_bits(&mut environment, 0);
    let new = x87.operand_bits(&mut environment, op.b.index);
    if environment.raised != 0 {
        x87.finish(&environment, 0, EXTENDED.indefinite());
    } else if holds {
        x87.put(0, new);
    }
    Ok(())
}

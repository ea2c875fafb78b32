//! Comparison and classification.

use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind};

use super::{Double, Integer, Memory, Single, numeric};
use crate::cpu::Cpu;
use crate::exec::simd::flags_of;
use crate::flags::STATUS;
use crate::float::{self, EXTENDED, Environment, Number, Order, Quiet, Value, flag};
use crate::op::{Handler, Op};
use crate::trap::Trap;
use crate::x87::{X87, status};

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    Some(match instruction.mnemonic() {
        M::Fcom | M::Ficom => of_operands::<0>(instruction)?,
        M::Fcomp | M::Ficomp => of_operands::<1>(instruction)?,
        M::Fcompp => numeric!(with_register::<2, false>),
        M::Fucom => numeric!(with_register::<0, true>),
        M::Fucomp => numeric!(with_register::<1, true>),
        M::Fucompp => numeric!(with_register::<2, true>),
        M::Fcomi => numeric!(to_flags::<false, false>),
        M::Fcomip => numeric!(to_flags::<true, false>),
        M::Fucomi => numeric!(to_flags::<false, true>),
        M::Fucomip => numeric!(to_flags::<true, true>),
        M::Ftst => numeric!(with_zero),
        M::Fxam => numeric!(examine),
        _ => return None,
    })
}

fn of_operands<const POPS: u8>(instruction: &Instruction) -> Option<Handler> {
    if instruction.op0_kind() == OpKind::Register {
        return Some(numeric!(with_register::<POPS, false>));
    }
    Some(match instruction.memory_size() {
        MemorySize::Float32 => numeric!(with_memory::<POPS, Single>),
        MemorySize::Float64 => numeric!(with_memory::<POPS, Double>),
        MemorySize::Int16 => numeric!(with_memory::<POPS, Integer<u16>>),
        MemorySize::Int32 => numeric!(with_memory::<POPS, Integer<u32>>),
        _ => return None,
    })
}

const CONDITIONS: u16 = status::C0 | status::C2 | status::C3;

/// C3, C2 and C0 of a comparison (Intel SDM volume 1, table 8-6).
fn conditions_of(order: Order) -> u16 {
    match order {
        Order::Greater => 0,
        Order::Less => status::C0,
        Order::Equal => status::C3,
        Order::Unordered => CONDITIONS,
    }
}

/// An empty register compares as unordered.
fn compare(environment: &mut Environment, numbers: (Number, Number), quiet: Quiet) -> Order {
    if environment.raised & flag::STACK != 0 {
        return Order::Unordered;
    }
    float::compare(environment, numbers, quiet)
}

fn finish(x87: &mut X87, environment: &Environment, order: Order, pops: u8) {
    let counts = x87.conclude(environment);
    x87.set_conditions(CONDITIONS, conditions_of(order));
    if counts {
        (0..pops).for_each(|_| x87.pop());
    }
}

fn with_memory<const POPS: u8, M: Memory>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let b = cpu.x87_operand::<M>(op)?;
    let x87 = &mut cpu.x87;
    let mut environment = x87.environment();
    let a = x87.operand(&mut environment, 0);
    let order = compare(&mut environment, (a, b), Quiet::No);
    finish(x87, &environment, order, POPS);
    Ok(())
}

/// The other operand of ST(0). `fcompp` and its kin name none: it is ST(1).
fn other(op: &Op) -> u8 {
    op.b.index
}

fn with_register<const POPS: u8, const QUIET: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let x87 = &mut cpu.x87;
    let mut environment = x87.environment();
    let a = x87.operand(&mut environment, 0);
    let b = x87.operand(&mut environment, if POPS == 2 { 1 } else { other(op) });
    let quiet = if QUIET { Quiet::Yes } else { Quiet::No };
    let order = compare(&mut environment, (a, b), quiet);
    finish(x87, &environment, order, POPS);
    Ok(())
}

/// C1 stays as it is unless a register is empty.
fn to_flags<const POP: bool, const QUIET: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let x87 = &mut cpu.x87;
    let mut environment = x87.environment();
    let a = x87.operand(&mut environment, 0);
    let b = x87.operand(&mut environment, other(op));
    let quiet = if QUIET { Quiet::Yes } else { Quiet::No };
    let order = compare(&mut environment, (a, b), quiet);
    let c1 = x87.status & status::C1;
    let counts = x87.conclude(&environment);
    if environment.raised & flag::STACK == 0 {
        x87.set_conditions(status::C1, c1);
    }
    cpu.flags.0 = cpu.flags.0 & !STATUS | flags_of(order);
    if counts && POP {
        cpu.x87.pop();
    }
    Ok(())
}

fn with_zero(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let x87 = &mut cpu.x87;
    let mut environment = x87.environment();
    let a = x87.operand(&mut environment, 0);
    let zero = EXTENDED.unpack(EXTENDED.zero(false));
    let order = compare(&mut environment, (a, zero), Quiet::No);
    finish(x87, &environment, order, 0);
    Ok(())
}

/// The class of ST(0), and its sign in C1, which an empty register has too (Intel SDM volume 2, table 3-33).
fn examine(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let x87 = &mut cpu.x87;
    let number = EXTENDED.unpack(x87.get(0));
    let class = match number.value {
        _ if x87.is_empty(0) => status::C3 | status::C0,
        Value::Unsupported => 0,
        Value::Nan { .. } => status::C0,
        Value::Infinity => status::C2 | status::C0,
        Value::Zero => status::C3,
        Value::Finite { .. } if number.denormal => status::C3 | status::C2,
        Value::Finite { .. } => status::C2,
    };
    let sign = if number.negative { status::C1 } else { 0 };
    x87.set_conditions(CONDITIONS | status::C1, class | sign);
    Ok(())
}

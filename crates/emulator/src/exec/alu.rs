//! Addition, subtraction, logic, comparison, exchange.

use iced_x86::{Instruction, Mnemonic};

use super::sized;
use crate::cpu::{Cpu, Write, reg};
use crate::flags::{self, Flags};
use crate::memory::Cell;
use crate::op::{Handler, Kind, Op};
use crate::trap::Trap;
use crate::width::Width;

pub(super) fn select(instruction: &Instruction, size: u8) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Add => binary_of::<Add>(instruction, size),
        Mnemonic::Or => binary_of::<Or>(instruction, size),
        Mnemonic::Adc => sized!(size, binary, Adc),
        Mnemonic::Sbb => sized!(size, binary, Sbb),
        Mnemonic::And => binary_of::<And>(instruction, size),
        Mnemonic::Sub => binary_of::<Sub>(instruction, size),
        Mnemonic::Xor => binary_of::<Xor>(instruction, size),
        Mnemonic::Cmp => sized!(size, compare, Sub),
        Mnemonic::Test => sized!(size, compare, And),
        Mnemonic::Inc => sized!(size, unary, Inc),
        Mnemonic::Dec => sized!(size, unary, Dec),
        Mnemonic::Neg => sized!(size, unary, Neg),
        Mnemonic::Not => sized!(size, not),
        Mnemonic::Xchg => sized!(size, exchange),
        Mnemonic::Xadd => sized!(size, exchange_add),
        Mnemonic::Cmpxchg => sized!(size, compare_exchange),
        Mnemonic::Cmpxchg8b => compare_exchange_8,
        Mnemonic::Cmpxchg16b => compare_exchange_16,
        _ => return None,
    })
}

/// Two operands and a result that sets flags.
trait Binary: 'static {
    fn apply<W: Width>(flags: &mut Flags, a: u64, b: u64) -> u64;
}

macro_rules! binary_operation {
    ($name:ident, |$flags:ident, $a:ident, $b:ident| $result:expr) => {
        struct $name;
        impl Binary for $name {
            #[inline]
            fn apply<W: Width>($flags: &mut Flags, $a: u64, $b: u64) -> u64 {
                $result
            }
        }
    };
}

binary_operation!(Add, |flags, a, b| flags.add::<W>(a, b, 0));
binary_operation!(Adc, |flags, a, b| flags.add::<W>(a, b, flags.carry()));
binary_operation!(Sub, |flags, a, b| flags.sub::<W>(a, b, 0));
binary_operation!(Sbb, |flags, a, b| flags.sub::<W>(a, b, flags.carry()));
binary_operation!(And, |flags, a, b| flags.logic::<W>(a & b));
binary_operation!(Or, |flags, a, b| flags.logic::<W>(a | b));
binary_operation!(Xor, |flags, a, b| flags.logic::<W>(a ^ b));

/// The form with registers alone has a handler of its own, without a look at operand kinds.
fn binary_of<O: Binary>(instruction: &Instruction, size: u8) -> Handler {
    use iced_x86::OpKind::Register;
    match (instruction.op0_kind(), instruction.op1_kind()) {
        (Register, Register) => sized!(size, binary_registers, O),
        (Register, kind) if kind != iced_x86::OpKind::Memory => sized!(size, binary_immediate, O),
        _ => sized!(size, binary, O),
    }
}

fn binary<W: Width + Cell, O: Binary>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let b = cpu.get::<W>(op, op.b)?;
    cpu.modify::<W>(op, |cpu, a| O::apply::<W>(&mut cpu.flags, a, b))
}

fn binary_registers<W: Width + Cell, O: Binary>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let a = W::get(&cpu.gpr, op.a.index);
    let b = W::get(&cpu.gpr, op.b.index);
    let result = O::apply::<W>(&mut cpu.flags, a, b);
    W::set(&mut cpu.gpr, op.a.index, result);
    Ok(())
}

fn binary_immediate<W: Width + Cell, O: Binary>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let a = W::get(&cpu.gpr, op.a.index);
    let result = O::apply::<W>(&mut cpu.flags, a, op.imm & W::MASK);
    W::set(&mut cpu.gpr, op.a.index, result);
    Ok(())
}

/// The flags alone.
fn compare<W: Width + Cell, O: Binary>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let b = cpu.get::<W>(op, op.b)?;
    let a = cpu.get::<W>(op, op.a)?;
    O::apply::<W>(&mut cpu.flags, a, b);
    Ok(())
}

trait Unary: 'static {
    fn apply<W: Width>(flags: &mut Flags, a: u64) -> u64;
}

struct Inc;
impl Unary for Inc {
    #[inline]
    fn apply<W: Width>(flags: &mut Flags, a: u64) -> u64 {
        flags.inc::<W>(a)
    }
}

struct Dec;
impl Unary for Dec {
    #[inline]
    fn apply<W: Width>(flags: &mut Flags, a: u64) -> u64 {
        flags.dec::<W>(a)
    }
}

struct Neg;
impl Unary for Neg {
    #[inline]
    fn apply<W: Width>(flags: &mut Flags, a: u64) -> u64 {
        flags.sub::<W>(0, a, 0)
    }
}

fn unary<W: Width + Cell, O: Unary>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.modify::<W>(op, |cpu, a| O::apply::<W>(&mut cpu.flags, a))
}

fn not<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.modify::<W>(op, |_, a| !a & W::MASK)
}

/// With memory it is locked, prefix or not (Intel SDM volume 2, `XCHG`).
fn exchange<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let (memory, register) = if op.b.is_memory() {
        (op.b, op.a)
    } else {
        (op.a, op.b)
    };
    let new = W::get(&cpu.gpr, register.index);
    let mut old = 0;
    if memory.is_memory() {
        let linear = cpu.linear(op, W::BYTES, Write::Yes)?;
        cpu.update::<W>(linear, true, |_, now| {
            old = now;
            new
        })?;
    } else {
        old = W::get(&cpu.gpr, memory.index);
        W::set(&mut cpu.gpr, memory.index, new);
    }
    W::set(&mut cpu.gpr, register.index, old);
    Ok(())
}

fn exchange_add<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let b = W::get(&cpu.gpr, op.b.index);
    if op.a.kind == Kind::Register {
        let a = W::get(&cpu.gpr, op.a.index);
        let sum = cpu.flags.add::<W>(a, b, 0);
        W::set(&mut cpu.gpr, op.b.index, a);
        W::set(&mut cpu.gpr, op.a.index, sum);
        return Ok(());
    }
    let mut old = 0;
    cpu.modify::<W>(op, |cpu, a| {
        old = a;
        cpu.flags.add::<W>(a, b, 0)
    })?;
    W::set(&mut cpu.gpr, op.b.index, old);
    Ok(())
}

/// The destination is written in either case. The accumulator only where it differs, so that 32-bit operands keep its upper half.
fn compare_exchange<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let expected = W::get(&cpu.gpr, reg::RAX);
    let new = W::get(&cpu.gpr, op.b.index);
    let mut found = 0;
    if op.a.kind == Kind::Register {
        found = W::get(&cpu.gpr, op.a.index);
        cpu.flags.sub::<W>(expected, found, 0);
        if found == expected {
            W::set(&mut cpu.gpr, op.a.index, new);
            return Ok(());
        }
        W::set(&mut cpu.gpr, reg::RAX, found);
        return Ok(());
    }
    cpu.modify::<W>(op, |cpu, now| {
        found = now;
        cpu.flags.sub::<W>(expected, now, 0);
        if now == expected { new } else { now }
    })?;
    if found != expected {
        W::set(&mut cpu.gpr, reg::RAX, found);
    }
    Ok(())
}

fn compare_exchange_8(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let pair = |cpu: &Cpu, high, low| u32::get(&cpu.gpr, high) << 32 | u32::get(&cpu.gpr, low);
    let expected = pair(cpu, reg::RDX, reg::RAX);
    let new = pair(cpu, reg::RCX, reg::RBX);
    let linear = cpu.linear(op, 8, Write::Yes)?;
    let mut found = 0;
    cpu.update::<u64>(linear, op.locked, |_, now| {
        found = now;
        if now == expected { new } else { now }
    })?;
    cpu.flags.put(flags::ZF, found == expected);
    if found != expected {
        u32::set(&mut cpu.gpr, reg::RAX, found);
        u32::set(&mut cpu.gpr, reg::RDX, found >> 32);
    }
    Ok(())
}

/// Not atomic towards other threads of the host, which do not use it on memory that guests share.
fn compare_exchange_16(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let linear = cpu.linear(op, 16, Write::Yes)?;
    if !linear.is_multiple_of(16) {
        return Err(cpu.gp());
    }
    cpu.check_writable(linear, 16)?;
    let (low, high) = (cpu.load::<u64>(linear)?, cpu.load::<u64>(linear + 8)?);
    let gpr = |cpu: &Cpu, index: u8| cpu.gpr[usize::from(index)];
    let equal = low == gpr(cpu, reg::RAX) && high == gpr(cpu, reg::RDX);
    if equal {
        let new = u128::from(gpr(cpu, reg::RBX)) | u128::from(gpr(cpu, reg::RCX)) << 64;
        cpu.store_wide(linear, new)?;
    } else {
        cpu.gpr[usize::from(reg::RAX)] = low;
        cpu.gpr[usize::from(reg::RDX)] = high;
    }
    cpu.flags.put(flags::ZF, equal);
    Ok(())
}

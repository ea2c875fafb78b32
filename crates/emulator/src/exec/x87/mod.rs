//! x87 instructions, but for transcendental functions.

mod arithmetic;
mod compare;
mod control;
mod moves;
mod remainder;

use iced_x86::Instruction;

use crate::cpu::{Cpu, Write};
use crate::float::{self, DOUBLE, EXTENDED, Format, Number, SINGLE};
use crate::memory::Cell;
use crate::op::{Handler, Op};
use crate::trap::Trap;
use crate::width::Width;
use crate::x87::status;

pub(super) fn select(instruction: &Instruction, _: u8) -> Option<Handler> {
    arithmetic::select(instruction)
        .or_else(|| compare::select(instruction))
        .or_else(|| moves::select(instruction))
        .or_else(|| remainder::select(instruction))
        .or_else(|| control::select(instruction))
}

/// A handler that raises what waits before the instruction, and notes behind it where it was.
macro_rules! numeric {
    ($function:expr) => {
        (|cpu, op| $crate::exec::x87::carry_out(cpu, op, $function)) as $crate::op::Handler
    };
}
use numeric;

fn carry_out(cpu: &mut Cpu, op: &Op, function: Handler) -> Result<(), Trap> {
    cpu.require_x87()?;
    cpu.check_x87_pending()?;
    function(cpu, op)?;
    cpu.x87.instruction = op.ip();
    if op.a.is_memory() {
        cpu.x87.operand = cpu.effective(op);
    }
    if cpu.x87.status & status::ERROR_SUMMARY != 0 {
        // None was pending, so this instruction raised it.
        cpu.x87.opcode = op.imm as u16;
    }
    Ok(())
}

/// A kind of operand in memory.
trait Memory: 'static {
    fn number(bits: u64) -> Number;

    type Width: Width + Cell;
}

struct Single;
struct Double;
struct Integer<W>(W);

impl Memory for Single {
    type Width = u32;

    fn number(bits: u64) -> Number {
        SINGLE.unpack(u128::from(bits))
    }
}

impl Memory for Double {
    type Width = u64;

    fn number(bits: u64) -> Number {
        DOUBLE.unpack(u128::from(bits))
    }
}

impl<W: Width + Cell> Memory for Integer<W> {
    type Width = W;

    fn number(bits: u64) -> Number {
        EXTENDED.unpack(from_integer(W::extend(bits)))
    }
}

/// An integer as an 80-bit number, which is always exact.
fn from_integer(value: i64) -> u128 {
    let mut exact = crate::x87::X87::default().environment();
    float::from_integer(EXTENDED, &mut exact, value)
}

/// A format that numbers are stored in.
trait Stored: Memory {
    const FORMAT: Format;
}

impl Stored for Single {
    const FORMAT: Format = SINGLE;
}

impl Stored for Double {
    const FORMAT: Format = DOUBLE;
}

impl Cpu {
    /// The operand in memory.
    fn x87_operand<M: Memory>(&mut self, op: &Op) -> Result<Number, Trap> {
        let linear = self.linear(op, M::Width::BYTES, Write::No)?;
        self.load::<M::Width>(linear).map(M::number)
    }
}

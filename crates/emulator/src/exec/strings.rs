//! String instructions. A repeated one pauses now and then, so that it can be interrupted.

use iced_x86::{Instruction, Mnemonic};

use super::sized;
use crate::cpu::{Cpu, Write, reg, seg};
use crate::flags;
use crate::memory::{Cell, Intent};
use crate::op::{Handler, Op, Repeat};
use crate::trap::Trap;
use crate::width::Width;

/// Items between two pauses.
const ITEMS_PER_RUN: u64 = 1024;

pub(super) fn select(instruction: &Instruction, _: u8) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Movsb => copy::<u8>,
        Mnemonic::Movsw => copy::<u16>,
        Mnemonic::Movsd if instruction.is_string_instruction() => copy::<u32>,
        Mnemonic::Movsq => copy::<u64>,
        Mnemonic::Stosb => fill::<u8>,
        Mnemonic::Stosw => fill::<u16>,
        Mnemonic::Stosd => fill::<u32>,
        Mnemonic::Stosq => fill::<u64>,
        mnemonic => {
            let size = match mnemonic {
                Mnemonic::Lodsb | Mnemonic::Scasb | Mnemonic::Cmpsb => 1,
                Mnemonic::Lodsw | Mnemonic::Scasw | Mnemonic::Cmpsw => 2,
                Mnemonic::Lodsd | Mnemonic::Scasd => 4,
                Mnemonic::Cmpsd if instruction.is_string_instruction() => 4,
                Mnemonic::Lodsq | Mnemonic::Scasq | Mnemonic::Cmpsq => 8,
                _ => return None,
            };
            match mnemonic {
                Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => {
                    sized!(size, load)
                }
                Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => {
                    sized!(size, scan)
                }
                _ => sized!(size, compare),
            }
        }
    })
}

/// What ends a repetition beside its count.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Count,
    /// The zero flag that the prefix does not ask for.
    Flag,
}

/// Runs `item` as often as prefix and count say.
fn repeat(
    cpu: &mut Cpu,
    op: &Op,
    until: Until,
    item: fn(&mut Cpu, &Op) -> Result<(), Trap>,
) -> Result<(), Trap> {
    if op.repeat == Repeat::No {
        return item(cpu, op);
    }
    for _ in 0..ITEMS_PER_RUN {
        if count(cpu, op) == 0 {
            return Ok(());
        }
        item(cpu, op)?;
        count_off(cpu, op, 1);
        let equal = cpu.flags.has(flags::ZF);
        if until == Until::Flag && equal != (op.repeat == Repeat::Equal) {
            return Ok(());
        }
    }
    pause(cpu, op)
}

/// Ends this run of the instruction: for good when nothing is left.
fn pause(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if count(cpu, op) == 0 {
        Ok(())
    } else {
        Err(cpu.again())
    }
}

pub(crate) fn count(cpu: &Cpu, op: &Op) -> u64 {
    cpu.gpr[usize::from(reg::RCX)] & op.address_mask
}

pub(crate) fn count_off(cpu: &mut Cpu, op: &Op, items: u64) {
    let left = count(cpu, op).wrapping_sub(items) & op.address_mask;
    cpu.put_address_register(reg::RCX, left, op.address_mask);
}

/// Moves an index register by `bytes`, in the direction of DF.
pub(crate) fn advance(cpu: &mut Cpu, op: &Op, register: u8, bytes: u64) {
    let old = cpu.gpr[usize::from(register)];
    let new = if cpu.flags.has(flags::DF) {
        old.wrapping_sub(bytes)
    } else {
        old.wrapping_add(bytes)
    };
    cpu.put_address_register(register, new & op.address_mask, op.address_mask);
}

fn source<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<u64, Trap> {
    let effective = cpu.gpr[usize::from(reg::RSI)] & op.address_mask;
    cpu.linear_at(op.segment, effective, W::BYTES, Write::No)
}

/// The destination's segment cannot be overridden.
fn destination<W: Width>(cpu: &mut Cpu, op: &Op, write: Write) -> Result<u64, Trap> {
    let effective = cpu.gpr[usize::from(reg::RDI)] & op.address_mask;
    cpu.linear_at(seg::ES, effective, W::BYTES, write)
}

pub(crate) fn load_source<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<u64, Trap> {
    let linear = source::<W>(cpu, op)?;
    cpu.load::<W>(linear)
}

pub(crate) fn store_destination<W: Width + Cell>(
    cpu: &mut Cpu,
    op: &Op,
    value: u64,
) -> Result<(), Trap> {
    let linear = destination::<W>(cpu, op, Write::Yes)?;
    cpu.store::<W>(linear, value)
}

/// How many items from the current addresses on lie in one page each, upwards: what can be done at once. 0 where segments must be
/// checked item by item.
fn run_length<W: Width>(cpu: &Cpu, op: &Op, rooms: &[u64]) -> u64 {
    let plain = 1 << seg::ES | 1 << op.segment;
    if cpu.flags.has(flags::DF) || cpu.plain & plain != plain {
        return 0;
    }
    let room = rooms.iter().copied().min().unwrap_or(0) / W::BYTES;
    room.min(count(cpu, op))
}

fn copy<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if op.repeat != Repeat::No && count(cpu, op) > 1 && copy_page::<W>(cpu, op)? {
        return pause(cpu, op);
    }
    repeat(cpu, op, Until::Count, |cpu, op| {
        let value = load_source::<W>(cpu, op)?;
        store_destination::<W>(cpu, op, value)?;
        advance(cpu, op, reg::RSI, W::BYTES);
        advance(cpu, op, reg::RDI, W::BYTES);
        Ok(())
    })
}

/// Copies up to the end of a page at once, where that cannot be told from item by item.
fn copy_page<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<bool, Trap> {
    let from_at = source::<W>(cpu, op)?;
    let to_at = destination::<W>(cpu, op, Write::Yes)?;
    let from = cpu.host_of(from_at, Intent::Read)?;
    let to = cpu.host_of(to_at, Intent::Write)?;
    let items = run_length::<W>(cpu, op, &[from.room_bytes(), to.room_bytes()]);
    if items == 0 || !to.copy_forward(from, items * W::BYTES) {
        return Ok(false);
    }
    advance(cpu, op, reg::RSI, items * W::BYTES);
    advance(cpu, op, reg::RDI, items * W::BYTES);
    count_off(cpu, op, items);
    Ok(true)
}

fn fill<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if op.repeat != Repeat::No && count(cpu, op) > 1 && fill_page::<W>(cpu, op)? {
        return pause(cpu, op);
    }
    repeat(cpu, op, Until::Count, |cpu, op| {
        let value = W::get(&cpu.gpr, reg::RAX);
        store_destination::<W>(cpu, op, value)?;
        advance(cpu, op, reg::RDI, W::BYTES);
        Ok(())
    })
}

fn fill_page<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<bool, Trap> {
    let at = destination::<W>(cpu, op, Write::Yes)?;
    let to = cpu.host_of(at, Intent::Write)?;
    let items = run_length::<W>(cpu, op, &[to.room_bytes()]);
    if items == 0 {
        return Ok(false);
    }
    let value = W::get(&cpu.gpr, reg::RAX);
    to.fill::<W>(value, items);
    advance(cpu, op, reg::RDI, items * W::BYTES);
    count_off(cpu, op, items);
    Ok(true)
}

fn load<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    repeat(cpu, op, Until::Count, |cpu, op| {
        let value = load_source::<W>(cpu, op)?;
        W::set(&mut cpu.gpr, reg::RAX, value);
        advance(cpu, op, reg::RSI, W::BYTES);
        Ok(())
    })
}

fn scan<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    repeat(cpu, op, Until::Flag, |cpu, op| {
        let linear = destination::<W>(cpu, op, Write::No)?;
        let value = cpu.load::<W>(linear)?;
        let accumulator = W::get(&cpu.gpr, reg::RAX);
        cpu.flags.sub::<W>(accumulator, value, 0);
        advance(cpu, op, reg::RDI, W::BYTES);
        Ok(())
    })
}

fn compare<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    repeat(cpu, op, Until::Flag, |cpu, op| {
        let left = load_source::<W>(cpu, op)?;
        let linear = destination::<W>(cpu, op, Write::No)?;
        let right = cpu.load::<W>(linear)?;
        cpu.flags.sub::<W>(left, right, 0);
        advance(cpu, op, reg::RSI, W::BYTES);
        advance(cpu, op, reg::RDI, W::BYTES);
        Ok(())
    })
}

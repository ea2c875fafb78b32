//! Control and status words, the stack's top, environments.

use iced_x86::{Code, Instruction, Mnemonic};

use super::numeric;
use crate::cpu::{Cpu, Write, reg};
use crate::float::{EXTENDED, Value};
use crate::memory::Cell;
use crate::op::{Handler, Kind, Op};
use crate::trap::Trap;
use crate::width::Width;
use crate::x87::{MASK, X87, status};

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    match instruction.code() {
        Code::Fnstenv_m14byte => return Some(save_environment::<u16>),
        Code::Fnstenv_m28byte => return Some(save_environment::<u32>),
        Code::Fldenv_m14byte => return Some(load_environment::<u16>),
        Code::Fldenv_m28byte => return Some(load_environment::<u32>),
        Code::Fnsave_m94byte => return Some(save::<u16>),
        Code::Fnsave_m108byte => return Some(save::<u32>),
        Code::Frstor_m94byte => return Some(restore::<u16>),
        Code::Frstor_m108byte => return Some(restore::<u32>),
        _ => {}
    }
    Some(match instruction.mnemonic() {
        M::Fnstcw => store_control,
        M::Fldcw => load_control,
        M::Fnstsw => store_status,
        M::Fninit => initialize,
        M::Fnclex => clear_exceptions,
        M::Fnop => numeric!(nothing),
        M::Fincstp => numeric!(increment_top),
        M::Fdecstp => numeric!(decrement_top),
        M::Ffree => numeric!(free),
        M::Ffreep => numeric!(free_and_pop),
        M::Wait => wait,
        // Of coprocessors that came before the 387.
        M::Fneni | M::Fndisi | M::Fnsetpm => forgotten,
        _ => return None,
    })
}

fn store_control(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_x87()?;
    cpu.put::<u16>(op, op.a, u64::from(cpu.x87.control))
}

fn load_control(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_x87()?;
    cpu.check_x87_pending()?;
    let linear = cpu.linear(op, 2, Write::No)?;
    let value = cpu.load::<u16>(linear)?;
    cpu.x87.set_control(value as u16);
    Ok(())
}

fn store_status(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_x87()?;
    let value = u64::from(cpu.x87.status);
    if op.a.kind == Kind::Register {
        u16::set(&mut cpu.gpr, reg::RAX, value);
        return Ok(());
    }
    let linear = cpu.linear(op, 2, Write::Yes)?;
    cpu.store::<u16>(linear, value)
}

/// The registers keep what they hold, but are empty.
fn initialize(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.require_x87()?;
    reset(&mut cpu.x87);
    Ok(())
}

fn reset(x87: &mut X87) {
    *x87 = X87 {
        registers: x87.registers,
        ..X87::default()
    };
}

fn clear_exceptions(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.require_x87()?;
    cpu.x87.status &= !(status::EXCEPTIONS | status::ERROR_SUMMARY | status::BUSY);
    Ok(())
}

fn nothing(_: &mut Cpu, _: &Op) -> Result<(), Trap> {
    Ok(())
}

fn forgotten(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.require_x87()
}

fn increment_top(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    turn(&mut cpu.x87, 1);
    Ok(())
}

fn decrement_top(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    turn(&mut cpu.x87, 7);
    Ok(())
}

fn turn(x87: &mut X87, by: u8) {
    x87.set_top(x87.top().wrapping_add(by));
    x87.set_conditions(status::C1, 0);
}

fn free(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.x87.free(op.a.index);
    cpu.x87.set_conditions(status::C1, 0);
    Ok(())
}

/// `ffreep` is in no manual, but processors have it.
fn free_and_pop(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    free(cpu, op)?;
    cpu.x87.pop();
    Ok(())
}

/// CR0.MP: `wait` heeds CR0.TS.
const CR0_MP: u64 = 1 << 1;

fn wait(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    const BOTH: u64 = CR0_MP | crate::exec::CR0_TS;
    if cpu.special.cr0 & BOTH == BOTH {
        return Err(cpu.fault(crate::trap::vector::NM));
    }
    cpu.check_x87_pending()
}

/// The full tag word: two bits for each register.
fn tags(x87: &X87) -> u64 {
    (0..8).fold(0, |tags, index: u64| {
        let number = EXTENDED.unpack(x87.registers[index as usize]);
        let tag = match number.value {
            _ if x87.used >> index & 1 == 0 => 3,
            Value::Zero => 1,
            Value::Finite { .. } if !number.denormal => 0,
            _ => 2,
        };
        tags | tag << (index * 2)
    })
}

/// Words of an environment.
const WORDS: usize = 7;

/// Where an environment lies, which in real mode would have another format.
fn environment_at<W: Width>(
    cpu: &mut Cpu,
    op: &Op,
    len_bytes: u64,
    write: Write,
) -> Result<u64, Trap> {
    cpu.require_x87()?;
    if !cpu.is_protected() {
        return Err(cpu.lacks("x87 environment of real mode"));
    }
    let len_bytes = len_bytes + WORDS as u64 * W::BYTES;
    let linear = cpu.linear(op, len_bytes, write)?;
    if write == Write::Yes {
        cpu.check_writable(linear, len_bytes)?;
    }
    Ok(linear)
}

/// The environment as protected mode stores it (Intel SDM volume 1, figures 8-9 and 8-11). Selectors are 0, as of processors that do not
/// keep them.
fn store_environment<W: Width + Cell>(cpu: &mut Cpu, linear: u64) -> Result<(), Trap> {
    let x87 = &cpu.x87;
    // The upper halves of what is narrower are ones.
    let ones = W::MASK & !0xFFFF;
    let opcode = if W::BYTES == 4 {
        u64::from(x87.opcode) << 16
    } else {
        0
    };
    let words: [u64; WORDS] = [
        ones | u64::from(x87.control),
        ones | u64::from(x87.status),
        ones | tags(x87),
        x87.instruction,
        opcode,
        x87.operand,
        ones,
    ];
    for (at, word) in (linear..).step_by(W::BYTES as usize).zip(words) {
        cpu.store::<W>(cpu.wrap(at), word & W::MASK)?;
    }
    Ok(())
}

fn read_environment<W: Width + Cell>(cpu: &mut Cpu, linear: u64) -> Result<X87, Trap> {
    let mut words = [0; WORDS];
    for (at, word) in (linear..).step_by(W::BYTES as usize).zip(&mut words) {
        *word = cpu.load::<W>(cpu.wrap(at))?;
    }
    let [control, status, tags, instruction, opcode, operand, _] = words;
    let used = (0..8).filter(|index| tags >> (index * 2) & 3 != 3);
    let mut x87 = X87 {
        status: status as u16,
        used: used.fold(0, |used, index| used | 1 << index),
        opcode: if W::BYTES == 4 {
            (opcode >> 16) as u16 & 0x7FF
        } else {
            0
        },
        instruction,
        operand,
        ..cpu.x87.clone()
    };
    x87.set_control(control as u16);
    Ok(x87)
}

/// Every exception is masked afterwards.
fn save_environment<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let linear = environment_at::<W>(cpu, op, 0, Write::Yes)?;
    store_environment::<W>(cpu, linear)?;
    let control = cpu.x87.control | 0x3F;
    cpu.x87.set_control(control);
    Ok(())
}

fn load_environment<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let linear = environment_at::<W>(cpu, op, 0, Write::No)?;
    cpu.check_x87_pending()?;
    cpu.x87 = read_environment::<W>(cpu, linear)?;
    Ok(())
}

/// Bytes of the registers behind an environment.
const REGISTERS_LEN_BYTES: u64 = 80;

fn save<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let linear = environment_at::<W>(cpu, op, REGISTERS_LEN_BYTES, Write::Yes)?;
    store_environment::<W>(cpu, linear)?;
    let first = linear.wrapping_add(WORDS as u64 * W::BYTES);
    for (at, index) in (first..).step_by(10).zip(0..8) {
        let value = cpu.x87.get(index);
        cpu.store::<u64>(cpu.wrap(at), value as u64)?;
        cpu.store::<u16>(cpu.wrap(at.wrapping_add(8)), (value >> 64) as u64 & 0xFFFF)?;
    }
    reset(&mut cpu.x87);
    Ok(())
}

fn restore<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let linear = environment_at::<W>(cpu, op, REGISTERS_LEN_BYTES, Write::No)?;
    cpu.check_x87_pending()?;
    let mut x87 = read_environment::<W>(cpu, linear)?;
    let first = linear.wrapping_add(WORDS as u64 * W::BYTES);
    for (at, index) in (first..).step_by(10).zip(0..8) {
        let low = cpu.load::<u64>(cpu.wrap(at))?;
        let high = cpu.load::<u16>(cpu.wrap(at.wrapping_add(8)))?;
        let physical = x87.physical(index);
        x87.registers[physical] = (u128::from(high) << 64 | u128::from(low)) & MASK;
    }
    cpu.x87 = x87;
    Ok(())
}

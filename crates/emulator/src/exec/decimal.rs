//! Instructions that 64-bit code does not have: decimal arithmetic, `bound`, `arpl`, `salc`.

use iced_x86::{Instruction, Mnemonic};

use super::sized;
use crate::cpu::{Cpu, Write, reg};
use crate::flags::{AF, CF, ZF};
use crate::memory::Cell;
use crate::op::{Handler, Op};
use crate::trap::{Trap, vector};
use crate::width::{HIGH_BYTES, Width};

pub(super) fn select(instruction: &Instruction, size: u8) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Daa => adjust_packed::<true>,
        Mnemonic::Das => adjust_packed::<false>,
        Mnemonic::Aaa => adjust_digit::<true>,
        Mnemonic::Aas => adjust_digit::<false>,
        Mnemonic::Aam => split_digits,
        Mnemonic::Aad => join_digits,
        Mnemonic::Salc => spread_carry,
        Mnemonic::Arpl => adjust_privilege,
        Mnemonic::Bound => sized!(size, check_bounds),
        _ => return None,
    })
}

fn al(cpu: &Cpu) -> u64 {
    u8::get(&cpu.gpr, reg::RAX)
}

fn put_al(cpu: &mut Cpu, value: u64) {
    u8::set(&mut cpu.gpr, reg::RAX, value);
}

/// Whether the low digit must be corrected.
fn low_digit_is_off(cpu: &Cpu) -> bool {
    al(cpu) & 0xF > 9 || cpu.flags.has(AF)
}

/// `daa` and `das` (Intel SDM volume 2): two digits in AL. OF is undefined, and stays.
fn adjust_packed<const ADD: bool>(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let old = al(cpu);
    let mut carry = cpu.flags.has(CF);
    let high = old > 0x99 || carry;
    let low = low_digit_is_off(cpu);
    let by = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
    if !ADD && low {
        carry |= old < 6;
    }
    carry = high || !ADD && carry;
    let result = if ADD {
        old.wrapping_add(by)
    } else {
        old.wrapping_sub(by)
    } & 0xFF;
    put_al(cpu, result);
    cpu.flags.set_result::<u8>(result);
    cpu.flags.put(CF, carry);
    cpu.flags.put(AF, low);
    Ok(())
}

/// `aaa` and `aas`: one digit in AL, and AH counts.
fn adjust_digit<const ADD: bool>(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let off = low_digit_is_off(cpu);
    if off {
        let ax = u16::get(&cpu.gpr, reg::RAX);
        let changed = if ADD {
            ax.wrapping_add(0x106)
        } else {
            ax.wrapping_sub(0x106)
        };
        u16::set(&mut cpu.gpr, reg::RAX, changed);
    }
    cpu.flags.put(AF, off);
    cpu.flags.put(CF, off);
    let digit = al(cpu) & 0xF;
    put_al(cpu, digit);
    Ok(())
}

fn split_digits(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let base = op.imm & 0xFF;
    if base == 0 {
        return Err(cpu.fault(vector::DE));
    }
    let value = al(cpu);
    u8::set(&mut cpu.gpr, HIGH_BYTES, value / base);
    put_al(cpu, value % base);
    cpu.flags.set_result::<u8>(value % base);
    Ok(())
}

fn join_digits(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let high = u8::get(&cpu.gpr, HIGH_BYTES);
    let value = al(cpu).wrapping_add(high.wrapping_mul(op.imm & 0xFF)) & 0xFF;
    u16::set(&mut cpu.gpr, reg::RAX, value);
    cpu.flags.set_result::<u8>(value);
    Ok(())
}

/// `salc` is in no manual, but processors have it.
fn spread_carry(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let value = if cpu.flags.has(CF) { 0xFF } else { 0 };
    put_al(cpu, value);
    Ok(())
}

/// Raises the requested privilege of a selector to that of another.
fn adjust_privilege(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if !cpu.is_protected() {
        return Err(cpu.ud());
    }
    let wanted = u16::get(&cpu.gpr, op.b.index) & 3;
    let selector = cpu.get::<u16>(op, op.a)?;
    let raises = selector & 3 < wanted;
    if raises {
        cpu.put::<u16>(op, op.a, selector & !3 | wanted)?;
    }
    cpu.flags.put(ZF, raises);
    Ok(())
}

/// #BR unless a signed index lies between two bounds in memory.
fn check_bounds<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let linear = cpu.linear(op, 2 * W::BYTES, Write::No)?;
    let lower = cpu.load::<W>(linear)?;
    let upper = cpu.load::<W>(cpu.wrap(linear.wrapping_add(W::BYTES)))?;
    let index = W::extend(W::get(&cpu.gpr, op.a.index));
    if index < W::extend(lower) || index > W::extend(upper) {
        return Err(cpu.fault(vector::BR));
    }
    Ok(())
}

//! Multiplication and division.

use iced_x86::{Instruction, Mnemonic};

use super::sized;
use crate::cpu::{Cpu, reg};
use crate::flags::{CF, OF};
use crate::memory::Cell;
use crate::op::{Handler, Kind, Op};
use crate::trap::{Trap, vector};
use crate::width::{HIGH_BYTES, Width};

pub(super) fn select(instruction: &Instruction, size: u8) -> Option<Handler> {
    Some(match (instruction.mnemonic(), instruction.op_count()) {
        (Mnemonic::Mul, _) => sized!(size, multiply),
        (Mnemonic::Imul, 1) => sized!(size, multiply_signed),
        (Mnemonic::Imul, _) => sized!(size, multiply_into),
        (Mnemonic::Div, _) => sized!(size, divide),
        (Mnemonic::Idiv, _) => sized!(size, divide_signed),
        _ => return None,
    })
}

/// The upper and the lower half of products and dividends: AH and AL for bytes, else RDX and RAX.
fn high<W: Width>() -> u8 {
    if W::BITS == 8 { HIGH_BYTES } else { reg::RDX }
}

/// Overflow is in CF and OF; the others are undefined, and set here by the lower half.
fn put_product<W: Width>(cpu: &mut Cpu, product: u128, overflow: bool) {
    let low = product as u64 & W::MASK;
    W::set(&mut cpu.gpr, reg::RAX, low);
    W::set(
        &mut cpu.gpr,
        high::<W>(),
        (product >> W::BITS) as u64 & W::MASK,
    );
    cpu.flags.logic::<W>(low);
    cpu.flags.put(CF, overflow);
    cpu.flags.put(OF, overflow);
}

fn multiply<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let b = cpu.get::<W>(op, op.a)?;
    let a = W::get(&cpu.gpr, reg::RAX);
    let product = u128::from(a) * u128::from(b);
    put_product::<W>(cpu, product, product >> W::BITS != 0);
    Ok(())
}

fn multiply_signed<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let b = W::extend(cpu.get::<W>(op, op.a)?);
    let a = W::extend(W::get(&cpu.gpr, reg::RAX));
    let product = i128::from(a) * i128::from(b);
    let overflow = product != i128::from(W::extend(product as u64));
    put_product::<W>(cpu, product as u128, overflow);
    Ok(())
}

/// The forms with two and with three operands.
fn multiply_into<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let b = W::extend(cpu.get::<W>(op, op.b)?);
    let a = W::extend(match op.c.kind {
        Kind::None => W::get(&cpu.gpr, op.a.index),
        _ => op.imm,
    });
    let product = i128::from(a) * i128::from(b);
    let low = product as u64 & W::MASK;
    let overflow = product != i128::from(W::extend(low));
    W::set(&mut cpu.gpr, op.a.index, low);
    cpu.flags.logic::<W>(low);
    cpu.flags.put(CF, overflow);
    cpu.flags.put(OF, overflow);
    Ok(())
}

fn dividend<W: Width>(cpu: &Cpu) -> u128 {
    let low = W::get(&cpu.gpr, reg::RAX);
    let high = W::get(&cpu.gpr, high::<W>());
    u128::from(high) << W::BITS | u128::from(low)
}

fn put_quotient<W: Width>(cpu: &mut Cpu, quotient: u64, remainder: u64) {
    W::set(&mut cpu.gpr, reg::RAX, quotient & W::MASK);
    W::set(&mut cpu.gpr, high::<W>(), remainder & W::MASK);
}

fn divide<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let divisor = u128::from(cpu.get::<W>(op, op.a)?);
    let dividend = dividend::<W>(cpu);
    if divisor == 0 || dividend >> W::BITS >= divisor {
        return Err(cpu.fault(vector::DE));
    }
    if let (Ok(dividend), Ok(divisor)) = (u64::try_from(dividend), u64::try_from(divisor)) {
        put_quotient::<W>(cpu, dividend / divisor, dividend % divisor);
        return Ok(());
    }
    put_quotient::<W>(
        cpu,
        (dividend / divisor) as u64,
        (dividend % divisor) as u64,
    );
    Ok(())
}

fn divide_signed<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let divisor = i128::from(W::extend(cpu.get::<W>(op, op.a)?));
    let unused = 128 - 2 * W::BITS;
    let dividend = ((dividend::<W>(cpu) << unused) as i128) >> unused;
    let result = dividend
        .checked_div(divisor)
        .zip(dividend.checked_rem(divisor))
        .filter(|(quotient, _)| i128::from(W::extend(*quotient as u64)) == *quotient);
    let Some((quotient, remainder)) = result else {
        return Err(cpu.fault(vector::DE));
    };
    put_quotient::<W>(cpu, quotient as u64, remainder as u64);
    Ok(())
}

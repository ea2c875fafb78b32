//! Shifts and rotations.

use iced_x86::{Instruction, Mnemonic};

use super::sized;
use crate::cpu::{Cpu, reg};
use crate::flags::{self, CF, Flags, OF};
use crate::memory::Cell;
use crate::op::{Handler, Op};
use crate::trap::Trap;
use crate::width::Width;

pub(super) fn select(instruction: &Instruction, size: u8) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => sized!(size, shift, Left),
        Mnemonic::Shr => sized!(size, shift, Right),
        Mnemonic::Sar => sized!(size, shift, Arithmetic),
        Mnemonic::Rol => sized!(size, shift, RotateLeft),
        Mnemonic::Ror => sized!(size, shift, RotateRight),
        Mnemonic::Rcl => sized!(size, shift, CarryLeft),
        Mnemonic::Rcr => sized!(size, shift, CarryRight),
        Mnemonic::Shld => sized!(size, double, Left),
        Mnemonic::Shrd => sized!(size, double, Right),
        _ => return None,
    })
}

/// Only 5 bits of a count matter, 6 for 64-bit operands.
#[inline]
fn masked<W: Width>(count: u64) -> u32 {
    (count & if W::BITS == 64 { 63 } else { 31 }) as u32
}

trait Shift: 'static {
    /// The result, for a count from 1 on.
    fn apply<W: Width>(flags: &mut Flags, a: u64, count: u32) -> u64;
}

fn shift<W: Width + Cell, O: Shift>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let count = masked::<W>(cpu.get::<u8>(op, op.b)?);
    cpu.modify::<W>(op, |cpu, a| {
        if count == 0 {
            a
        } else {
            O::apply::<W>(&mut cpu.flags, a, count) & W::MASK
        }
    })
}

fn sign<W: Width>(value: u64) -> bool {
    value & W::SIGN != 0
}

pub(super) struct Left;
impl Shift for Left {
    #[inline]
    fn apply<W: Width>(flags: &mut Flags, a: u64, count: u32) -> u64 {
        let wide = u128::from(a) << count;
        let result = wide as u64 & W::MASK;
        let carry = wide >> W::BITS & 1 != 0;
        finish::<W>(flags, result, carry, sign::<W>(result) != carry)
    }
}

pub(super) struct Right;
impl Shift for Right {
    #[inline]
    fn apply<W: Width>(flags: &mut Flags, a: u64, count: u32) -> u64 {
        let carry = a >> (count - 1) & 1 != 0;
        finish::<W>(flags, a >> count, carry, sign::<W>(a))
    }
}

struct Arithmetic;
impl Shift for Arithmetic {
    #[inline]
    fn apply<W: Width>(flags: &mut Flags, a: u64, count: u32) -> u64 {
        let extended = W::extend(a);
        let carry = extended >> (count - 1) & 1 != 0;
        finish::<W>(flags, (extended >> count) as u64 & W::MASK, carry, false)
    }
}

/// AF is undefined; processors clear it.
fn finish<W: Width>(flags: &mut Flags, result: u64, carry: bool, overflow: bool) -> u64 {
    flags.logic::<W>(result);
    flags.put(CF, carry);
    flags.put(OF, overflow);
    result
}

struct RotateLeft;
impl Shift for RotateLeft {
    #[inline]
    fn apply<W: Width>(flags: &mut Flags, a: u64, count: u32) -> u64 {
        let count = count % W::BITS;
        let result = if count == 0 {
            a
        } else {
            (a << count | a >> (W::BITS - count)) & W::MASK
        };
        flags.put(CF, result & 1 != 0);
        flags.put(OF, sign::<W>(result) != (result & 1 != 0));
        result
    }
}

struct RotateRight;
impl Shift for RotateRight {
    #[inline]
    fn apply<W: Width>(flags: &mut Flags, a: u64, count: u32) -> u64 {
        let count = count % W::BITS;
        let result = if count == 0 {
            a
        } else {
            (a >> count | a << (W::BITS - count)) & W::MASK
        };
        flags.put(CF, sign::<W>(result));
        flags.put(OF, sign::<W>(result) != sign::<W>(result << 1));
        result
    }
}

/// A value of one bit more than the operand, the carry on top.
fn with_carry<W: Width>(flags: Flags, a: u64) -> u128 {
    u128::from(a) | u128::from(flags.carry()) << W::BITS
}

/// Rotates `BITS + 1` bits to the left.
fn rotate_wide<W: Width>(value: u128, count: u32) -> u128 {
    let bits = W::BITS + 1;
    let mask = (1_u128 << bits) - 1;
    if count == 0 {
        value
    } else {
        (value << count | value >> (bits - count)) & mask
    }
}

struct CarryLeft;
impl Shift for CarryLeft {
    fn apply<W: Width>(flags: &mut Flags, a: u64, count: u32) -> u64 {
        let count = count % (W::BITS + 1);
        if count == 0 {
            return a;
        }
        let wide = rotate_wide::<W>(with_carry::<W>(*flags, a), count);
        let result = wide as u64 & W::MASK;
        let carry = wide >> W::BITS & 1 != 0;
        flags.put(CF, carry);
        flags.put(OF, sign::<W>(result) != carry);
        result
    }
}

struct CarryRight;
impl Shift for CarryRight {
    fn apply<W: Width>(flags: &mut Flags, a: u64, count: u32) -> u64 {
        let bits = W::BITS + 1;
        if count.is_multiple_of(bits) {
            return a;
        }
        let left = bits - count % bits;
        let wide = rotate_wide::<W>(with_carry::<W>(*flags, a), left);
        let result = wide as u64 & W::MASK;
        flags.put(CF, wide >> W::BITS & 1 != 0);
        flags.put(OF, sign::<W>(result) != sign::<W>(result << 1));
        result
    }
}

/// `shld` and `shrd`. A count beyond the operand, which only 16-bit operands can have, leaves result and flags undefined; here it acts as
/// on the operands one behind the other, as Intel's processors do.
fn double<W: Width + Cell, O: Shift>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let source = W::get(&cpu.gpr, op.b.index);
    let count = masked::<W>(match op.c.kind {
        crate::op::Kind::Register => cpu.gpr[usize::from(reg::RCX)],
        _ => op.imm,
    });
    let left = std::any::TypeId::of::<O>() == std::any::TypeId::of::<Left>();
    cpu.modify::<W>(op, |cpu, a| {
        if count == 0 {
            return a;
        }
        let (result, carry) = if left {
            double_left::<W>(a, source, count)
        } else {
            double_right::<W>(a, source, count)
        };
        let overflow = sign::<W>(result) != sign::<W>(a);
        cpu.flags.set_result::<W>(result);
        cpu.flags.put(CF, carry);
        cpu.flags.put(OF, overflow);
        cpu.flags.put(flags::AF, false);
        result
    })
}

fn double_left<W: Width>(a: u64, source: u64, count: u32) -> (u64, bool) {
    let bits = W::BITS;
    let wide = (u128::from(a) << bits | u128::from(source)).rotate_left(128 - 2 * bits);
    let wide = wide.rotate_left(count);
    let result = (wide >> (128 - bits)) as u64 & W::MASK;
    (result, wide & 1 != 0)
}

fn double_right<W: Width>(a: u64, source: u64, count: u32) -> (u64, bool) {
    let wide = u128::from(source) << W::BITS | u128::from(a);
    let wide = if count > W::BITS {
        // 16-bit operands: the destination follows again behind the source.
        wide | u128::from(a) << (2 * W::BITS)
    } else {
        wide
    };
    let carry = wide >> (count - 1) & 1 != 0;
    ((wide >> count) as u64 & W::MASK, carry)
}

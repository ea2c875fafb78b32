//! Approximations of reciprocals, and of those of square roots.
//!
//! Manuals bound the error, 1.5 * 2^-12 of the result, and leave the bits to processors (Intel SDM volume 2, `RCPPS`). Here they are the
//! exact result, rounded to twelve bits.

use iced_x86::{Instruction, Mnemonic};

use super::lanes::lane;
use crate::cpu::Cpu;
use crate::float::{self, Environment, Rounding, SINGLE, Value, flag};
use crate::op::{Handler, Op};
use crate::trap::Trap;

/// Bits of a significand.
const PRECISION: u32 = 12;

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Rcpss => approximate::<1, false>,
        Mnemonic::Rcpps => approximate::<4, false>,
        Mnemonic::Rsqrtss => approximate::<1, true>,
        Mnemonic::Rsqrtps => approximate::<4, true>,
        _ => return None,
    })
}

/// Neither exceptions nor MXCSR take part.
fn approximate<const LANES: u32, const ROOT: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let b = cpu.get_vector(op, op.b)?;
    let mut result = cpu.xmm[usize::from(op.a.index) & 15];
    for index in 0..LANES {
        let value = reciprocal::<ROOT>(lane::<32>(b, index));
        let shift = index * 32;
        result = result & !(0xFFFF_FFFF << shift) | value << shift;
    }
    cpu.put_vector(op.a, result);
    Ok(())
}

/// Denormal operands and results are zero.
fn reciprocal<const ROOT: bool>(bits: u64) -> u128 {
    let mut environment = Environment {
        rounding: Rounding::Nearest,
        denormals_are_zero: true,
        flush_to_zero: true,
        masked: flag::ALL,
        raised: 0,
        rounded_up: false,
        larger_nan: false,
        extends_exponents: false,
    };
    let mut number = SINGLE.unpack(u128::from(bits));
    if ROOT && !number.denormal && !matches!(number.value, Value::Zero) {
        // With all bits, so that it is not rounded twice to twelve.
        let root = float::square_root(SINGLE, &mut environment, number, SINGLE.precision);
        number = SINGLE.unpack(root);
    }
    let one = SINGLE.unpack(u128::from(1_f32.to_bits()));
    float::divide(SINGLE, &mut environment, (one, number), PRECISION)
}

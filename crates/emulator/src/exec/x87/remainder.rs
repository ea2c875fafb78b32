//! `fprem` and `fprem1`.

use iced_x86::{Instruction, Mnemonic};

use super::numeric;
use crate::cpu::Cpu;
use crate::float::{EXTENDED, Environment, Number, Value, flag};
use crate::op::{Handler, Op};
use crate::trap::Trap;
use crate::x87::status;

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Fprem => numeric!(remainder::<false>),
        Mnemonic::Fprem1 => numeric!(remainder::<true>),
        _ => return None,
    })
}

/// What a step of the division leaves.
struct Rest {
    value: u128,
    /// The low bits of the quotient; `None` when the division must go on.
    quotient: Option<u64>,
}

/// ST(0) becomes its remainder by ST(1): of a quotient that is cut off, or the nearest one.
fn remainder<const NEAREST: bool>(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let x87 = &mut cpu.x87;
    let mut environment = x87.environment();
    let a = x87.operand(&mut environment, 0);
    let b = x87.operand(&mut environment, 1);
    let rest = if environment.raised & flag::STACK != 0 {
        Err(EXTENDED.indefinite())
    } else {
        special(&mut environment, a, b)
            .map_or_else(|| Ok(divide::<NEAREST>(&mut environment, a, b)), Err)
    };
    x87.set_conditions(status::C2, 0);
    let value = match &rest {
        Ok(rest) => rest.value,
        Err(value) => *value,
    };
    if !x87.finish(&environment, 0, value) {
        return Ok(());
    }
    if let Ok(rest) = rest {
        let bit =
            |quotient: u64, bit: u32, flag: u16| if quotient >> bit & 1 != 0 { flag } else { 0 };
        let conditions = match rest.quotient {
            None => status::C2,
            Some(q) => bit(q, 0, status::C1) | bit(q, 1, status::C3) | bit(q, 2, status::C0),
        };
        x87.set_conditions(
            status::C0 | status::C1 | status::C2 | status::C3,
            conditions,
        );
    }
    Ok(())
}

/// The result where there is nothing to divide.
fn special(environment: &mut Environment, a: Number, b: Number) -> Option<u128> {
    if let Some(nan) = EXTENDED.propagate(environment, a, b) {
        return Some(nan);
    }
    if a.value == Value::Infinity || b.value == Value::Zero {
        environment.raise(flag::INVALID);
        return Some(EXTENDED.indefinite());
    }
    if a.denormal || b.denormal {
        environment.raise(flag::DENORMAL);
    }
    None
}

fn divide<const NEAREST: bool>(environment: &mut Environment, a: Number, b: Number) -> Rest {
    let Value::Finite {
        exponent,
        significand,
    } = a.value
    else {
        return Rest {
            value: EXTENDED.zero(a.negative),
            quotient: Some(0),
        };
    };
    if b.value == Value::Infinity {
        // The dividend stays as it is: no underflow, if it is denormal.
        environment.masked |= flag::UNDERFLOW;
    }
    let mut pack = |negative: bool, exponent: i32, significand: u128| {
        if significand == 0 {
            return EXTENDED.zero(negative);
        }
        let shift = significand.leading_zeros();
        // Counted from bit 63.
        EXTENDED.pack(
            environment,
            negative,
            exponent + 64 - shift as i32,
            significand << shift,
        )
    };
    let whole = u128::from(significand);
    let (divisor_exponent, divisor) = match b.value {
        Value::Finite {
            exponent,
            significand,
        } => (exponent, u128::from(significand)),
        _ => {
            return Rest {
                value: pack(a.negative, exponent, whole),
                quotient: Some(0),
            };
        }
    };
    let distance = exponent - divisor_exponent;
    if distance < -1 || distance < 0 && (!NEAREST || whole <= divisor) {
        return Rest {
            value: pack(a.negative, exponent, whole),
            quotient: Some(0),
        };
    }
    if distance < 0 {
        // More than half of the divisor: the nearest quotient is 1, and the rest is below 0.
        return Rest {
            value: pack(!a.negative, exponent, (divisor << 1) - whole),
            quotient: Some(1),
        };
    }
    if distance >= 64 {
        // How far one instruction gets is the processor's own choice, between 32 and 63.
        let step = distance & 0x1F | 0x20;
        let rest = (whole << step) % divisor;
        return Rest {
            value: pack(a.negative, exponent - step, rest),
            quotient: None,
        };
    }
    let dividend = whole << distance;
    let (mut quotient, mut rest, mut negative) =
        (dividend / divisor, dividend % divisor, a.negative);
    if NEAREST && (rest * 2 > divisor || rest * 2 == divisor && quotient & 1 != 0) {
        quotient += 1;
        rest = divisor - rest;
        negative = !negative;
    }
    Rest {
        value: pack(negative, divisor_exponent, rest),
        quotient: Some(quotient as u64),
    }
}

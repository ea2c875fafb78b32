//! Between formats, and to and from integers.

use super::{Environment, Format, Number, Rounding, Value, flag, shift_right_sticky};

/// A number in a format.
pub(crate) fn convert(to: Format, environment: &mut Environment, number: Number) -> u128 {
    if let Some(nan) = to.propagate(environment, number, number) {
        return nan;
    }
    let number = Format::admit(environment, number);
    if number.denormal {
        environment.raise(flag::DENORMAL);
    }
    match number.value {
        Value::Finite {
            exponent,
            significand,
        } => to.pack(
            environment,
            number.negative,
            exponent,
            u128::from(significand) << 64,
        ),
        Value::Infinity => to.infinity(number.negative),
        _ => to.zero(number.negative),
    }
}

/// An integer as a number.
pub(crate) fn from_integer(format: Format, environment: &mut Environment, value: i64) -> u128 {
    let magnitude = value.unsigned_abs();
    if magnitude == 0 {
        return format.zero(false);
    }
    let shift = magnitude.leading_zeros();
    let significand = u128::from(magnitude << shift) << 64;
    format.pack(environment, value < 0, 63 - shift as i32, significand)
}

/// Rounds `significand * 2^(exponent - 63)` to an integer: its magnitude, whether bits were lost, and whether it grew. `None` from 2^64 on.
fn integral(
    environment: &Environment,
    negative: bool,
    exponent: i32,
    significand: u64,
) -> Option<(u64, bool, bool)> {
    if exponent > 63 {
        return None;
    }
    // The point is in the middle.
    let wide = shift_right_sticky(u128::from(significand) << 64, (63 - exponent) as u32);
    let (whole, rest) = ((wide >> 64) as u64, wide as u64);
    if rest == 0 {
        return Some((whole, false, false));
    }
    let half = 1_u64 << 63;
    let up = match environment.rounding {
        Rounding::Nearest => rest > half || rest == half && whole & 1 != 0,
        Rounding::Down => negative,
        Rounding::Up => !negative,
        Rounding::Zero => false,
    };
    let whole = if up { whole.checked_add(1)? } else { whole };
    Some((whole, true, up))
}

/// A number as a signed integer of `bits` bits; the smallest one, with an exception, for what has none.
pub(crate) fn to_integer(environment: &mut Environment, number: Number, bits: u32) -> i64 {
    let smallest = i64::MIN >> (64 - bits);
    let number = Format::admit(environment, number);
    let result = match number.value {
        Value::Zero => return 0,
        Value::Finite {
            exponent,
            significand,
        } => integral(environment, number.negative, exponent, significand),
        _ => None,
    };
    let limit = smallest.unsigned_abs();
    let result = result.and_then(|(magnitude, inexact, up)| {
        if number.negative && magnitude <= limit {
            Some((magnitude.wrapping_neg() as i64, inexact, up))
        } else if !number.negative && magnitude < limit {
            Some((magnitude as i64, inexact, up))
        } else {
            None
        }
    });
    let Some((integer, inexact, up)) = result else {
        environment.raise(flag::INVALID);
        return smallest;
    };
    if inexact {
        environment.raise(flag::INEXACT);
        environment.rounded_up = up;
    }
    integer
}

/// A number rounded to an integer, in its own format.
pub(crate) fn round_to_integral(format: Format, environment: &mut Environment, bits: u128) -> u128 {
    let number = format.unpack(bits);
    if let Some(nan) = format.propagate(environment, number, number) {
        return nan;
    }
    let number = Format::admit(environment, number);
    let Value::Finite {
        exponent,
        significand,
    } = number.value
    else {
        return match number.value {
            Value::Infinity => format.infinity(number.negative),
            _ => format.zero(number.negative),
        };
    };
    // Numbers from 2^63 on are integers.
    if exponent >= 63 {
        return bits;
    }
    let Some((whole, inexact, up)) = integral(environment, number.negative, exponent, significand)
    else {
        return bits;
    };
    let result = if whole == 0 {
        format.zero(number.negative)
    } else {
        let shift = whole.leading_zeros();
        let significand = u128::from(whole << shift) << 64;
        format.pack(environment, number.negative, 63 - shift as i32, significand)
    };
    if inexact {
        environment.raise(flag::INEXACT);
        environment.rounded_up = up;
    }
    result
}

//! The four operations, the square root, and comparison.

use super::{Environment, Format, Number, Value, flag, shift_right_sticky};

fn note_denormals(environment: &mut Environment, numbers: &[Number]) {
    if numbers.iter().any(|number| number.denormal) {
        environment.raise(flag::DENORMAL);
    }
}

/// An exact sum, product or quotient: sign, exponent, and a significand with bit 127 set.
pub(crate) type Exact = (bool, i32, u128);

/// What an operation gives before rounding.
#[derive(Clone, Copy)]
pub(crate) enum Raw {
    Done(u128),
    Exact(Exact),
}

fn invalid(format: Format, environment: &mut Environment) -> Raw {
    environment.raise(flag::INVALID);
    Raw::Done(format.indefinite())
}

fn finish(format: Format, environment: &mut Environment, raw: Raw, precision: u32) -> u128 {
    match raw {
        Raw::Done(bits) => bits,
        Raw::Exact(exact) => format.pack_to(environment, exact, precision),
    }
}

/// What `operation` makes of two numbers, rounded to `precision` bits; without it where one of them is a NaN, which decides alone.
fn calculate(
    format: Format,
    environment: &mut Environment,
    (a, b): (Number, Number),
    precision: u32,
    operation: impl FnOnce(Format, &mut Environment, Number, Number) -> Raw,
) -> u128 {
    if let Some(nan) = format.propagate(environment, a, b) {
        return nan;
    }
    let (a, b) = (Format::admit(environment, a), Format::admit(environment, b));
    let raw = operation(format, environment, a, b);
    finish(format, environment, raw, precision)
}

/// `a + b`, with a significand of `precision` bits. `negate` makes it `a - b`.
pub(crate) fn add(
    format: Format,
    environment: &mut Environment,
    numbers: (Number, Number),
    negate: Negate,
    precision: u32,
) -> u128 {
    let operation = |format, environment: &mut Environment, a, mut b: Number| {
        b.negative ^= negate == Negate::Second;
        sum(format, environment, a, b)
    };
    calculate(format, environment, numbers, precision, operation)
}

/// Which operand of an addition changes its sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Negate {
    None,
    Second,
}

fn sum(format: Format, environment: &mut Environment, a: Number, b: Number) -> Raw {
    let down = environment.rounding == super::Rounding::Down;
    match (a.value, b.value) {
        (Value::Infinity, Value::Infinity) if a.negative != b.negative => {
            invalid(format, environment)
        }
        (Value::Infinity, _) => {
            note_denormals(environment, &[b]);
            Raw::Done(format.infinity(a.negative))
        }
        (_, Value::Infinity) => {
            note_denormals(environment, &[a]);
            Raw::Done(format.infinity(b.negative))
        }
        (Value::Zero, Value::Zero) => {
            let negative = if a.negative == b.negative {
                a.negative
            } else {
                down
            };
            Raw::Done(format.zero(negative))
        }
        (
            Value::Zero,
            Value::Finite {
                exponent,
                significand,
            },
        ) => {
            note_denormals(environment, &[b]);
            Raw::Exact((b.negative, exponent, u128::from(significand) << 64))
        }
        (
            Value::Finite {
                exponent,
                significand,
            },
            Value::Zero,
        ) => {
            note_denormals(environment, &[a]);
            Raw::Exact((a.negative, exponent, u128::from(significand) << 64))
        }
        (
            Value::Finite {
                exponent: ea,
                significand: sa,
            },
            Value::Finite {
                exponent: eb,
                significand: sb,
            },
        ) => {
            note_denormals(environment, &[a, b]);
            let left = (a.negative, ea, u128::from(sa) << 63);
            let right = (b.negative, eb, u128::from(sb) << 63);
            sum_finite(format, down, left, right)
        }
        _ => invalid(format, environment),
    }
}

/// Both significands have bit 126 set, so that a carry has room.
fn sum_finite(format: Format, down: bool, a: Exact, b: Exact) -> Raw {
    let (large, small) = if (a.1, a.2) >= (b.1, b.2) {
        (a, b)
    } else {
        (b, a)
    };
    let distance = (large.1 - small.1) as u32;
    let aligned = shift_right_sticky(small.2, distance);
    let significand = if large.0 == small.0 {
        large.2 + aligned
    } else {
        large.2 - aligned
    };
    if significand == 0 {
        return Raw::Done(format.zero(down));
    }
    let shift = significand.leading_zeros();
    Raw::Exact((large.0, large.1 + 1 - shift as i32, significand << shift))
}

/// `a * b`.
pub(crate) fn multiply(
    format: Format,
    environment: &mut Environment,
    numbers: (Number, Number),
    precision: u32,
) -> u128 {
    calculate(format, environment, numbers, precision, product)
}

fn product(format: Format, environment: &mut Environment, a: Number, b: Number) -> Raw {
    let negative = a.negative != b.negative;
    match (a.value, b.value) {
        (Value::Infinity, Value::Zero) | (Value::Zero, Value::Infinity) => {
            invalid(format, environment)
        }
        (Value::Infinity, _) | (_, Value::Infinity) => {
            note_denormals(environment, &[a, b]);
            Raw::Done(format.infinity(negative))
        }
        (
            Value::Finite {
                exponent: ea,
                significand: sa,
            },
            Value::Finite {
                exponent: eb,
                significand: sb,
            },
        ) => {
            note_denormals(environment, &[a, b]);
            let wide = u128::from(sa) * u128::from(sb);
            let shift = wide.leading_zeros();
            Raw::Exact((negative, ea + eb + 1 - shift as i32, wide << shift))
        }
        _ => {
            note_denormals(environment, &[a, b]);
            Raw::Done(format.zero(negative))
        }
    }
}

/// `a / b`.
pub(crate) fn divide(
    format: Format,
    environment: &mut Environment,
    numbers: (Number, Number),
    precision: u32,
) -> u128 {
    calculate(format, environment, numbers, precision, quotient)
}

fn quotient(format: Format, environment: &mut Environment, a: Number, b: Number) -> Raw {
    let negative = a.negative != b.negative;
    match (a.value, b.value) {
        (Value::Infinity, Value::Infinity) | (Value::Zero, Value::Zero) => {
            invalid(format, environment)
        }
        (Value::Infinity, _) => {
            note_denormals(environment, &[b]);
            Raw::Done(format.infinity(negative))
        }
        (Value::Finite { .. }, Value::Zero) => {
            environment.raise(flag::ZERO_DIVIDE);
            Raw::Done(format.infinity(negative))
        }
        (
            Value::Finite {
                exponent: ea,
                significand: sa,
            },
            Value::Finite {
                exponent: eb,
                significand: sb,
            },
        ) => {
            note_denormals(environment, &[a, b]);
            let (significand, shift) = divide_significands(sa, sb);
            Raw::Exact((negative, ea - eb - shift, significand))
        }
        _ => {
            note_denormals(environment, &[a, b]);
            Raw::Done(format.zero(negative))
        }
    }
}

/// The quotient with bit 127 set, and whether the exponent is one less for it.
fn divide_significands(a: u64, b: u64) -> (u128, i32) {
    let (dividend, divisor) = (u128::from(a) << 63, u128::from(b));
    // At least 63 and at most 64 bits.
    let (high, rest) = (dividend / divisor, dividend % divisor);
    let low_dividend = rest << 63;
    let (low, rest) = (low_dividend / divisor, low_dividend % divisor);
    let wide = high << 63 | low;
    let shift = wide.leading_zeros();
    let significand = wide << shift | u128::from(rest != 0);
    // A quotient of 1 has bit 126 set.
    (significand, shift as i32 - 1)
}

/// The square root.
pub(crate) fn square_root(
    format: Format,
    environment: &mut Environment,
    number: Number,
    precision: u32,
) -> u128 {
    if let Some(nan) = format.propagate(environment, number, number) {
        return nan;
    }
    let number = Format::admit(environment, number);
    let raw = match number.value {
        Value::Zero => Raw::Done(format.zero(number.negative)),
        _ if number.negative => invalid(format, environment),
        Value::Finite {
            exponent,
            significand,
        } => {
            note_denormals(environment, &[number]);
            Raw::Exact(root(exponent, significand))
        }
        _ => Raw::Done(format.infinity(false)),
    };
    finish(format, environment, raw, precision)
}

/// Digit by digit: 66 bits and whether a rest is left.
fn root(exponent: i32, significand: u64) -> Exact {
    const DIGITS: u32 = 66;
    let odd = exponent & 1 != 0;
    // The radicand has two bits before the point, below bit 66.
    let mut radicand = u128::from(significand) << u32::from(odd);
    let mut rest: u128 = 0;
    let mut root: u128 = 0;
    for _ in 0..DIGITS {
        rest = rest << 2 | radicand >> 63 & 3;
        radicand = radicand << 2 & ((1 << 65) - 1);
        let trial = root << 2 | 1;
        root <<= 1;
        if rest >= trial {
            rest -= trial;
            root |= 1;
        }
    }
    let shift = root.leading_zeros();
    let significand = root << shift | u128::from(rest != 0);
    (false, exponent.div_euclid(2), significand)
}

/// How two numbers compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Less,
    Equal,
    Greater,
    Unordered,
}

/// Compares. `quiet` says that quiet NaNs raise nothing.
pub(crate) fn compare(
    environment: &mut Environment,
    (a, b): (Number, Number),
    quiet: Quiet,
) -> Order {
    let unsupported = a.value == Value::Unsupported || b.value == Value::Unsupported;
    if unsupported || a.is_nan() || b.is_nan() {
        if unsupported || a.is_signalling() || b.is_signalling() || quiet == Quiet::No {
            environment.raise(flag::INVALID);
        }
        return Order::Unordered;
    }
    let (a, b) = (Format::admit(environment, a), Format::admit(environment, b));
    note_denormals(environment, &[a, b]);
    let key = |number: Number| {
        let (class, exponent, significand) = match number.value {
            Value::Finite {
                exponent,
                significand,
            } => (1, exponent, significand),
            Value::Infinity => (2, 0, 0),
            _ => (0, 0, 0),
        };
        (class, exponent, significand)
    };
    let both_zero = a.value == Value::Zero && b.value == Value::Zero;
    if both_zero {
        return Order::Equal;
    }
    let order = match (a.negative, b.negative) {
        (false, true) => std::cmp::Ordering::Greater,
        (true, false) => std::cmp::Ordering::Less,
        (false, false) => key(a).cmp(&key(b)),
        (true, true) => key(b).cmp(&key(a)),
    };
    match order {
        std::cmp::Ordering::Less => Order::Less,
        std::cmp::Ordering::Equal => Order::Equal,
        std::cmp::Ordering::Greater => Order::Greater,
    }
}

/// Whether quiet NaNs compare without an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quiet {
    Yes,
    No,
}

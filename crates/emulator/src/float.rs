//! Floating point in integers: exact results, every rounding and every exception flag, for formats that hosts do not have and for flags that
//! Rust does not show (Intel SDM volume 1, chapter 4 and section 11.5).

mod arithmetic;
mod convert;

pub(crate) use arithmetic::{Negate, Order, Quiet, add, compare, divide, multiply, square_root};
pub(crate) use convert::{convert, from_integer, round_to_integral, to_integer};

/// Exception flags, as in MXCSR and in the x87 status word.
pub(crate) mod flag {
    pub(crate) const INVALID: u32 = 1;
    pub(crate) const DENORMAL: u32 = 2;
    pub(crate) const ZERO_DIVIDE: u32 = 4;
    pub(crate) const OVERFLOW: u32 = 8;
    pub(crate) const UNDERFLOW: u32 = 16;
    pub(crate) const INEXACT: u32 = 32;
    /// The operand was an empty x87 register, or the result found none: with [`INVALID`], and masked by its mask.
    pub(crate) const STACK: u32 = 64;
    /// Those that are found before anything is computed.
    pub(crate) const EARLY: u32 = INVALID | DENORMAL | ZERO_DIVIDE;
    pub(crate) const ALL: u32 = 63;
}

/// Where results go that no number of the format equals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    Nearest,
    Down,
    Up,
    Zero,
}

impl Rounding {
    /// From the two bits of a control register.
    pub(crate) fn from_bits(bits: u32) -> Self {
        match bits & 3 {
            0 => Self::Nearest,
            1 => Self::Down,
            2 => Self::Up,
            _ => Self::Zero,
        }
    }
}

/// How to compute, and which exceptions that raised.
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent bits of control registers"
)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Environment {
    pub(crate) rounding: Rounding,
    /// Denormal operands count as zero.
    pub(crate) denormals_are_zero: bool,
    /// Results that are tiny become zero, if underflow is masked.
    pub(crate) flush_to_zero: bool,
    /// Which exceptions have a default result instead of a handler.
    pub(crate) masked: u32,
    pub(crate) raised: u32,
    /// The last rounding went away from zero.
    pub(crate) rounded_up: bool,
    /// Two NaNs: the one with the larger significand, as x87 chooses, instead of the first.
    pub(crate) larger_nan: bool,
    /// A handler for overflow or underflow gets the result with an exponent that fits, as x87 makes it.
    pub(crate) extends_exponents: bool,
}

impl Environment {
    pub(crate) fn raise(&mut self, flags: u32) {
        self.raised |= flags;
    }

    /// What a result raises whose exponent does not fit even when it is changed.
    fn inexact_beyond(&self) -> u32 {
        if self.extends_exponents {
            flag::INEXACT
        } else {
            0
        }
    }

    /// Exceptions that a handler is to hear of.
    pub(crate) fn unmasked(&self) -> u32 {
        self.raised & !self.masked & flag::ALL
    }
}

/// A binary format. Numbers are kept in the low bits of a `u128`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    exponent_bits: u32,
    /// Bits of the significand, with the one before the point.
    pub(crate) precision: u32,
    /// Whether the bit before the point is stored.
    explicit: bool,
}

pub(crate) const SINGLE: Format = Format {
    exponent_bits: 8,
    precision: 24,
    explicit: false,
};
pub(crate) const DOUBLE: Format = Format {
    exponent_bits: 11,
    precision: 53,
    explicit: false,
};
/// What x87 registers hold.
pub(crate) const EXTENDED: Format = Format {
    exponent_bits: 15,
    precision: 64,
    explicit: true,
};

/// A number without its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Zero,
    /// `significand * 2^(exponent - 63)`, with bit 63 set.
    Finite {
        exponent: i32,
        significand: u64,
    },
    Infinity,
    /// The significand, its quiet bit in bit 62.
    Nan {
        significand: u64,
    },
    /// An encoding of 80 bits that processors since the 387 refuse.
    Unsupported,
}

/// A number with its sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Number {
    pub(crate) negative: bool,
    pub(crate) value: Value,
    /// It was stored without a leading one.
    pub(crate) denormal: bool,
}

/// What a handler for overflow or underflow finds the exponent changed by (Intel SDM volume 1, sections 8.5.4 and 8.5.5).
const WRAP: i32 = 24_576;

/// The bit that tells quiet NaNs from signalling ones.
const QUIET: u64 = 1 << 62;

impl Number {
    pub(crate) fn is_nan(self) -> bool {
        matches!(self.value, Value::Nan { .. })
    }

    pub(crate) fn is_signalling(self) -> bool {
        match self.value {
            Value::Nan { significand } => significand & QUIET == 0,
            _ => false,
        }
    }

    fn new(negative: bool, value: Value) -> Self {
        Self {
            negative,
            value,
            denormal: false,
        }
    }
}

impl Format {
    fn bias(self) -> i32 {
        (1 << (self.exponent_bits - 1)) - 1
    }

    fn max_exponent(self) -> u64 {
        (1 << self.exponent_bits) - 1
    }

    /// Bits of the stored significand.
    fn stored_bits(self) -> u32 {
        self.precision - u32::from(!self.explicit)
    }

    fn sign_bit(self) -> u128 {
        1 << (self.stored_bits() + self.exponent_bits)
    }

    /// Takes a number apart.
    pub(crate) fn unpack(self, bits: u128) -> Number {
        let negative = bits & self.sign_bit() != 0;
        let stored = (bits & ((1 << self.stored_bits()) - 1)) as u64;
        let exponent = (bits >> self.stored_bits()) as u64 & self.max_exponent();
        // The fraction behind the point, from bit 62 on.
        let fraction = stored << (64 - self.precision) & (u64::MAX >> 1);
        let integer = if self.explicit {
            stored >> 63 != 0
        } else {
            exponent != 0
        };
        if exponent == self.max_exponent() {
            let value = match (fraction, self.explicit && !integer) {
                (_, true) => Value::Unsupported,
                (0, _) => Value::Infinity,
                (significand, _) => Value::Nan { significand },
            };
            return Number::new(negative, value);
        }
        if exponent != 0 && !integer {
            return Number::new(negative, Value::Unsupported);
        }
        let significand = fraction | u64::from(integer) << 63;
        if significand == 0 {
            return Number::new(negative, Value::Zero);
        }
        let shift = significand.leading_zeros();
        let exponent = (exponent.max(1)) as i32 - self.bias() - shift as i32;
        Number {
            negative,
            value: Value::Finite {
                exponent,
                significand: significand << shift,
            },
            denormal: shift != 0
                || (self.explicit
                    && bits >> self.stored_bits() & u128::from(self.max_exponent()) == 0),
        }
    }

    /// Takes two apart.
    pub(crate) fn unpack_both(self, a: u128, b: u128) -> (Number, Number) {
        (self.unpack(a), self.unpack(b))
    }

    fn assemble(self, negative: bool, exponent: u64, stored: u64) -> u128 {
        let sign = if negative { self.sign_bit() } else { 0 };
        sign | u128::from(exponent) << self.stored_bits() | u128::from(stored)
    }

    pub(crate) fn infinity(self, negative: bool) -> u128 {
        let stored = if self.explicit { 1 << 63 } else { 0 };
        self.assemble(negative, self.max_exponent(), stored)
    }

    pub(crate) fn zero(self, negative: bool) -> u128 {
        self.assemble(negative, 0, 0)
    }

    /// The quiet NaN of a significand, which is that of invalid operations where it is 0.
    pub(crate) fn nan(self, negative: bool, significand: u64) -> u128 {
        let fraction = (significand | QUIET) >> (64 - self.precision);
        let integer = if self.explicit { 1 << 63 } else { 0 };
        self.assemble(negative, self.max_exponent(), fraction | integer)
    }

    /// The result of an invalid operation.
    pub(crate) fn indefinite(self) -> u128 {
        self.nan(true, 0)
    }

    /// The largest number with a significand of `precision` bits.
    fn largest(self, negative: bool, precision: u32) -> u128 {
        let stored =
            u64::MAX >> (64 - self.stored_bits()) & u64::MAX << (self.precision - precision);
        self.assemble(negative, self.max_exponent() - 1, stored)
    }

    /// Puts a number together that is `significand * 2^(exponent - 127)`, with bit 127 set unless it is 0. Bits that were lost before are
    /// in the lowest one.
    pub(crate) fn pack(
        self,
        environment: &mut Environment,
        negative: bool,
        exponent: i32,
        significand: u128,
    ) -> u128 {
        self.pack_to(
            environment,
            (negative, exponent, significand),
            self.precision,
        )
    }

    /// As [`pack`](Self::pack), with a significand of at most `precision` bits, which x87 can be told to round to.
    pub(crate) fn pack_to(
        self,
        environment: &mut Environment,
        (negative, exponent, significand): (bool, i32, u128),
        precision: u32,
    ) -> u128 {
        if significand == 0 {
            return self.zero(negative);
        }
        let smallest = 1 - self.bias();
        let (rounded, carried, inexact, up) = round(environment, negative, significand, precision);
        let tiny = exponent + i32::from(carried) < smallest;
        if tiny && environment.masked & flag::UNDERFLOW == 0 {
            // The handler is to get the result with an exponent of its own: only what that loses is inexact.
            environment.raise(flag::UNDERFLOW | if inexact { flag::INEXACT } else { 0 });
            environment.rounded_up = up;
            let wrapped = exponent + i32::from(carried) + WRAP;
            return if environment.extends_exponents && wrapped >= smallest {
                self.normal(negative, wrapped, rounded)
            } else {
                environment.raise(environment.inexact_beyond());
                self.zero(negative)
            };
        }
        if tiny {
            return self.pack_tiny(environment, (negative, exponent, significand), precision);
        }
        environment.rounded_up = up;
        let exponent = exponent + i32::from(carried);
        if exponent > self.bias() && environment.masked & flag::OVERFLOW == 0 {
            environment.raise(flag::OVERFLOW | if inexact { flag::INEXACT } else { 0 });
            let wrapped = exponent - WRAP;
            return if environment.extends_exponents && wrapped <= self.bias() {
                self.normal(negative, wrapped, rounded)
            } else {
                environment.raise(environment.inexact_beyond());
                environment.rounded_up |= environment.extends_exponents;
                self.infinity(negative)
            };
        }
        if exponent > self.bias() {
            return self.overflow(environment, negative, precision);
        }
        if inexact {
            environment.raise(flag::INEXACT);
        }
        self.normal(negative, exponent, rounded)
    }

    /// A normal number whose significand fits.
    fn normal(self, negative: bool, exponent: i32, rounded: u128) -> u128 {
        let stored = (rounded >> (128 - self.precision)) as u64;
        let stored = if self.explicit {
            stored
        } else {
            stored & !(1 << (self.precision - 1))
        };
        self.assemble(negative, (exponent + self.bias()) as u64, stored)
    }

    fn overflow(self, environment: &mut Environment, negative: bool, precision: u32) -> u128 {
        environment.raise(flag::OVERFLOW | flag::INEXACT);
        let away = match environment.rounding {
            Rounding::Nearest => true,
            Rounding::Down => negative,
            Rounding::Up => !negative,
            Rounding::Zero => false,
        };
        environment.rounded_up = away;
        if away {
            self.infinity(negative)
        } else {
            self.largest(negative, precision)
        }
    }

    fn pack_tiny(
        self,
        environment: &mut Environment,
        (negative, exponent, significand): (bool, i32, u128),
        precision: u32,
    ) -> u128 {
        if environment.flush_to_zero {
            environment.raise(flag::UNDERFLOW | flag::INEXACT);
            environment.rounded_up = false;
            return self.zero(negative);
        }
        let distance = (1 - self.bias() - exponent) as u32;
        let shifted = shift_right_sticky(significand, distance);
        // The point stays where it is; a carry makes it the smallest normal number.
        let (rounded, carried, inexact, up) = round(environment, negative, shifted, precision);
        environment.rounded_up = up;
        if inexact {
            environment.raise(flag::INEXACT | flag::UNDERFLOW);
        }
        debug_assert!(!carried);
        let stored = (rounded >> (128 - self.precision)) as u64;
        let normal = stored >> (self.precision - 1) & 1;
        let stored = if self.explicit {
            stored
        } else {
            stored & !(1 << (self.precision - 1))
        };
        self.assemble(negative, normal, stored)
    }

    /// The result for operands of which one is a NaN or an encoding that is not supported; `None` for others. Raises what operands alone
    /// can raise.
    pub(crate) fn propagate(
        self,
        environment: &mut Environment,
        a: Number,
        b: Number,
    ) -> Option<u128> {
        if a.value == Value::Unsupported || b.value == Value::Unsupported {
            environment.raise(flag::INVALID);
            return Some(self.indefinite());
        }
        if a.is_signalling() || b.is_signalling() {
            environment.raise(flag::INVALID);
        }
        let chosen = match (a.value, b.value) {
            (Value::Nan { significand: left }, Value::Nan { significand: right }) => {
                let second = environment.larger_nan && choose_second(a, b, left, right);
                if second { b } else { a }
            }
            (Value::Nan { .. }, _) => a,
            (_, Value::Nan { .. }) => b,
            _ => return None,
        };
        match chosen.value {
            Value::Nan { significand } => Some(self.nan(chosen.negative, significand)),
            _ => None,
        }
    }

    /// Makes zeroes of denormal operands where that is asked for.
    pub(crate) fn admit(environment: &Environment, number: Number) -> Number {
        if number.denormal && environment.denormals_are_zero {
            return Number::new(number.negative, Value::Zero);
        }
        number
    }
}

/// Of two NaNs x87 takes the quiet one, else the one with the larger significand, else the positive one (Intel SDM volume 1,
/// table 4-7).
fn choose_second(a: Number, b: Number, left: u64, right: u64) -> bool {
    match (a.is_signalling(), b.is_signalling()) {
        (true, false) => true,
        (false, true) => false,
        _ if left == right => a.negative && !b.negative,
        _ => right > left,
    }
}

/// Rounds to the upper `precision` bits: the result, whether it carried out (the result is then 2^127 of the next exponent), whether bits
/// were lost, and whether it grew.
fn round(
    environment: &Environment,
    negative: bool,
    significand: u128,
    precision: u32,
) -> (u128, bool, bool, bool) {
    let unit = 1_u128 << (128 - precision);
    let rest = significand & (unit - 1);
    let kept = significand & !(unit - 1);
    if rest == 0 {
        return (kept, false, false, false);
    }
    let half = unit >> 1;
    let up = match environment.rounding {
        Rounding::Nearest => rest > half || rest == half && kept & unit != 0,
        Rounding::Down => negative,
        Rounding::Up => !negative,
        Rounding::Zero => false,
    };
    if !up {
        return (kept, false, true, false);
    }
    match kept.checked_add(unit) {
        Some(sum) => (sum, false, true, true),
        None => (1 << 127, true, true, true),
    }
}

/// Shifts to the right; the lowest bit says whether ones were lost.
pub(crate) fn shift_right_sticky(value: u128, distance: u32) -> u128 {
    match distance {
        0 => value,
        1..128 => value >> distance | u128::from(value << (128 - distance) != 0),
        _ => u128::from(value != 0),
    }
}

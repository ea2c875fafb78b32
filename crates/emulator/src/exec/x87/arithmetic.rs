//! The four operations, the square root, and what else computes a number.

use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind};

use super::{Double, Integer, Memory, Single, numeric};
use crate::cpu::Cpu;
use crate::float::{self, EXTENDED, Environment, Negate, Number, Value, flag};
use crate::op::{Handler, Op};
use crate::trap::Trap;

/// An operation on two numbers, with significands of so many bits.
trait Operation: 'static {
    fn apply(environment: &mut Environment, numbers: (Number, Number), precision: u32) -> u128;
}

macro_rules! operation {
    ($name:ident, |$environment:ident, $a:ident, $b:ident, $precision:ident| $result:expr) => {
        struct $name;
        impl Operation for $name {
            fn apply(
                $environment: &mut Environment,
                ($a, $b): (Number, Number),
                $precision: u32,
            ) -> u128 {
                $result
            }
        }
    };
}

operation!(Add, |env, a, b, precision| float::add(
    EXTENDED,
    env,
    (a, b),
    Negate::None,
    precision
));
operation!(Subtract, |env, a, b, precision| float::add(
    EXTENDED,
    env,
    (a, b),
    Negate::Second,
    precision
));
operation!(SubtractFrom, |env, a, b, precision| float::add(
    EXTENDED,
    env,
    (b, a),
    Negate::Second,
    precision
));
operation!(Multiply, |env, a, b, precision| float::multiply(
    EXTENDED,
    env,
    (a, b),
    precision
));
operation!(Divide, |env, a, b, precision| float::divide(
    EXTENDED,
    env,
    (a, b),
    precision
));
operation!(DivideInto, |env, a, b, precision| float::divide(
    EXTENDED,
    env,
    (b, a),
    precision
));

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    Some(match instruction.mnemonic() {
        M::Fadd | M::Fiadd => of_operands::<Add>(instruction)?,
        M::Fsub | M::Fisub => of_operands::<Subtract>(instruction)?,
        M::Fsubr | M::Fisubr => of_operands::<SubtractFrom>(instruction)?,
        M::Fmul | M::Fimul => of_operands::<Multiply>(instruction)?,
        M::Fdiv | M::Fidiv => of_operands::<Divide>(instruction)?,
        M::Fdivr | M::Fidivr => of_operands::<DivideInto>(instruction)?,
        M::Faddp => numeric!(with_register::<Add, true>),
        M::Fsubp => numeric!(with_register::<Subtract, true>),
        M::Fsubrp => numeric!(with_register::<SubtractFrom, true>),
        M::Fmulp => numeric!(with_register::<Multiply, true>),
        M::Fdivp => numeric!(with_register::<Divide, true>),
        M::Fdivrp => numeric!(with_register::<DivideInto, true>),
        M::Fsqrt => numeric!(square_root),
        M::Frndint => numeric!(round_to_integral),
        M::Fscale => numeric!(scale),
        M::Fxtract => numeric!(extract),
        M::Fchs => numeric!(change_sign),
        M::Fabs => numeric!(clear_sign),
        _ => return None,
    })
}

fn of_operands<O: Operation>(instruction: &Instruction) -> Option<Handler> {
    if instruction.op0_kind() == OpKind::Register {
        return Some(numeric!(with_register::<O, false>));
    }
    Some(match instruction.memory_size() {
        MemorySize::Float32 => numeric!(with_memory::<O, Single>),
        MemorySize::Float64 => numeric!(with_memory::<O, Double>),
        MemorySize::Int16 => numeric!(with_memory::<O, Integer<u16>>),
        MemorySize::Int32 => numeric!(with_memory::<O, Integer<u32>>),
        _ => return None,
    })
}

/// An empty register makes the result that of an invalid operation; else they are computed with.
fn compute<O: Operation>(
    environment: &mut Environment,
    numbers: (Number, Number),
    precision: u32,
) -> u128 {
    if environment.raised & flag::STACK != 0 {
        return EXTENDED.indefinite();
    }
    O::apply(environment, numbers, precision)
}

fn with_memory<O: Operation, M: Memory>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let b = cpu.x87_operand::<M>(op)?;
    let x87 = &mut cpu.x87;
    let mut environment = x87.environment();
    let a = x87.operand(&mut environment, 0);
    let result = compute::<O>(&mut environment, (a, b), x87.precision());
    x87.finish(&environment, 0, result);
    Ok(())
}

fn with_register<O: Operation, const POP: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let x87 = &mut cpu.x87;
    let mut environment = x87.environment();
    let a = x87.operand(&mut environment, op.a.index);
    let b = x87.operand(&mut environment, op.b.index);
    let result = compute::<O>(&mut environment, (a, b), x87.precision());
    if x87.finish(&environment, op.a.index, result) && POP {
        x87.pop();
    }
    Ok(())
}

/// Replaces ST(0) by what `function` makes of it.
fn replace_top(
    cpu: &mut Cpu,
    function: impl Fn(&mut Environment, u128, u32) -> u128,
) -> Result<(), Trap> {
    let x87 = &mut cpu.x87;
    let mut environment = x87.environment();
    let value = x87.operand_bits(&mut environment, 0);
    let result = if environment.raised & flag::STACK != 0 {
        value
    } else {
        function(&mut environment, value, x87.precision())
    };
    x87.finish(&environment, 0, result);
    Ok(())
}

fn square_root(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    replace_top(cpu, |env, value, precision| {
        float::square_root(EXTENDED, env, EXTENDED.unpack(value), precision)
    })
}

fn round_to_integral(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    replace_top(cpu, |env, value, _| {
        if EXTENDED.unpack(value).denormal {
            env.raise(flag::DENORMAL);
        }
        float::round_to_integral(EXTENDED, env, value)
    })
}

/// The sign of a number of 80 bits.
pub(super) const SIGN: u128 = 1 << 79;

fn change_sign(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    replace_top(cpu, |_, value, _| value ^ SIGN)
}

fn clear_sign(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    replace_top(cpu, |_, value, _| value & !SIGN)
}

/// ST(0) times two to the power of ST(1), whose fraction is cut off (Intel SDM volume 2, table 3-30).
fn scale(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let x87 = &mut cpu.x87;
    let mut environment = x87.environment();
    let a = x87.operand(&mut environment, 0);
    let b = x87.operand(&mut environment, 1);
    let result = if environment.raised & flag::STACK != 0 {
        EXTENDED.indefinite()
    } else {
        scaled(&mut environment, a, b)
    };
    x87.finish(&environment, 0, result);
    Ok(())
}

fn scaled(environment: &mut Environment, a: Number, b: Number) -> u128 {
    if let Some(nan) = EXTENDED.propagate(environment, a, b) {
        return nan;
    }
    if matches!(
        (a.value, b.value, b.negative),
        (Value::Zero, Value::Infinity, false) | (Value::Infinity, Value::Infinity, true)
    ) {
        environment.raise(flag::INVALID);
        return EXTENDED.indefinite();
    }
    if a.denormal || b.denormal {
        environment.raise(flag::DENORMAL);
    }
    if b.value == Value::Zero {
        // The number stays as it is: no underflow, if it is denormal.
        environment.masked |= flag::UNDERFLOW;
    }
    match (a.value, b.value) {
        (Value::Finite { .. }, Value::Infinity) if !b.negative => EXTENDED.infinity(a.negative),
        (Value::Finite { .. }, Value::Infinity) | (Value::Zero, _) => EXTENDED.zero(a.negative),
        (
            Value::Finite {
                exponent,
                significand,
            },
            _,
        ) => {
            let wide = u128::from(significand) << 64;
            EXTENDED.pack(environment, a.negative, exponent + whole_power(b), wide)
        }
        _ => EXTENDED.infinity(a.negative),
    }
}

/// The integer part, as far as exponents reach.
fn whole_power(number: Number) -> i32 {
    /// More than any two exponents are apart.
    const MOST: i32 = 1 << 16;
    let magnitude = match number.value {
        Value::Finite { exponent, .. } if exponent < 0 => 0,
        Value::Finite {
            exponent,
            significand,
        } if exponent < 16 => (significand >> (63 - exponent)) as i32,
        Value::Finite { .. } => MOST,
        _ => 0,
    };
    if number.negative {
        -magnitude
    } else {
        magnitude
    }
}

/// Replaces ST(0) by its exponent, and pushes its significand.
fn extract(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let x87 = &mut cpu.x87;
    let mut environment = x87.environment();
    let number = x87.operand(&mut environment, 0);
    if environment.raised == 0 && !x87.is_empty(7) {
        environment.raise(flag::INVALID | flag::STACK);
        environment.rounded_up = true;
    }
    let (power, significand) = if environment.raised == 0 {
        extracted(&mut environment, number)
    } else {
        (EXTENDED.indefinite(), EXTENDED.indefinite())
    };
    if x87.finish(&environment, 0, power) {
        x87.push(significand);
    }
    Ok(())
}

fn extracted(environment: &mut Environment, number: Number) -> (u128, u128) {
    if let Some(nan) = EXTENDED.propagate(environment, number, number) {
        return (nan, nan);
    }
    if number.denormal {
        environment.raise(flag::DENORMAL);
    }
    match number.value {
        Value::Zero => {
            environment.raise(flag::ZERO_DIVIDE);
            (EXTENDED.infinity(true), EXTENDED.zero(number.negative))
        }
        Value::Finite {
            exponent,
            significand,
        } => {
            let wide = u128::from(significand) << 64;
            let significand = EXTENDED.pack(environment, number.negative, 0, wide);
            (super::from_integer(i64::from(exponent)), significand)
        }
        _ => (EXTENDED.infinity(false), EXTENDED.infinity(number.negative)),
    }
}

//! Floating-point lanes: arithmetic and comparison.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::lanes::{gather, lane};
use crate::cpu::Cpu;
use crate::flags::{CF, PF, STATUS, ZF};
use crate::float::{
    self, DOUBLE, Environment, Format, Negate, Order, Quiet, Rounding, SINGLE, flag,
};
use crate::op::{Handler, Kind, Op};
use crate::trap::{Trap, vector};

/// A floating-point lane, as the trait of its two formats.
pub(super) trait Lane: 'static {
    const BITS: u32;
    const FORMAT: Format;

    /// The result of the host's own arithmetic, for a kind of operation.
    fn on_host(operation: Host, a: u64, b: u64) -> u64;
}

/// Operations that hosts compute too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Host {
    Add,
    Subtract,
    Multiply,
    Divide,
    Root,
}

pub(super) struct Single;
pub(super) struct Double;

macro_rules! lane_type {
    ($name:ident, $number:ty, $bits_type:ty, $format:expr) => {
        impl Lane for $name {
            const BITS: u32 = <$bits_type>::BITS;
            const FORMAT: Format = $format;

            #[inline]
            fn on_host(operation: Host, a: u64, b: u64) -> u64 {
                let (a, b) = (
                    <$number>::from_bits(a as $bits_type),
                    <$number>::from_bits(b as $bits_type),
                );
                u64::from(
                    match operation {
                        Host::Add => a + b,
                        Host::Subtract => a - b,
                        Host::Multiply => a * b,
                        Host::Divide => a / b,
                        Host::Root => b.sqrt(),
                    }
                    .to_bits(),
                )
            }
        }
    };
}

lane_type!(Single, f32, u32, SINGLE);
lane_type!(Double, f64, u64, DOUBLE);

/// What an operation does with two lanes; one operand is `b`.
type LaneFunction = fn(Format, &mut Environment, u128, u128) -> u128;

/// MXCSR: flags below 6, DAZ 6, masks from 7, rounding from 13, FTZ 15 (Intel SDM volume 1, section 10.2.3).
impl Cpu {
    pub(super) fn environment(&self) -> Environment {
        Environment {
            rounding: Rounding::from_bits(self.mxcsr >> 13),
            denormals_are_zero: self.mxcsr & 1 << 6 != 0,
            flush_to_zero: self.mxcsr & 1 << 15 != 0,
            masked: self.mxcsr >> 7 & flag::ALL,
            raised: 0,
            rounded_up: false,
            larger_nan: false,
            extends_exponents: false,
        }
    }

    /// Notes the exceptions of all lanes; #XM where one is not masked.
    pub(super) fn settle_exceptions(&mut self, environment: &Environment) -> Result<(), Trap> {
        let unmasked = environment.raised & !environment.masked;
        if unmasked == 0 {
            self.mxcsr |= environment.raised;
            return Ok(());
        }
        let early = unmasked & flag::EARLY != 0;
        self.mxcsr |= if early {
            environment.raised & flag::EARLY
        } else {
            environment.raised
        };
        let exists = self.special.cr4 & vellum_backend::state::cr4::OSXMMEXCPT != 0;
        Err(self.fault(if exists { vector::XM } else { vector::UD }))
    }

    /// Whether the host's arithmetic shows every effect: results round to nearest, and inexact ones are noted already.
    #[inline]
    fn computes_on_host(&self) -> bool {
        const INEXACT: u32 = flag::INEXACT;
        const INEXACT_MASK: u32 = flag::INEXACT << 7;
        const ROUNDING: u32 = 3 << 13;
        self.mxcsr & (INEXACT | INEXACT_MASK | ROUNDING) == INEXACT | INEXACT_MASK
    }
}

/// A number whose neighbours are normal too, or that is zero.
#[inline]
fn is_ordinary<L: Lane>(bits: u64) -> bool {
    let mantissa_bits = L::FORMAT.precision - 1;
    let exponent_mask = (1_u64 << (L::BITS - 1 - mantissa_bits)) - 1;
    let exponent = bits >> mantissa_bits & exponent_mask;
    exponent > 1 && exponent < exponent_mask - 1
}

#[inline]
fn is_zero<L: Lane>(bits: u64) -> bool {
    bits << (65 - L::BITS) == 0
}

/// One lane, on the host where that shows no difference.
#[inline]
fn one<L: Lane>(
    environment: &mut Environment,
    host: Option<Host>,
    function: LaneFunction,
    (a, b): (u64, u64),
) -> u64 {
    if let Some(host) = host
        && (is_ordinary::<L>(a) || is_zero::<L>(a) || host == Host::Root)
        && (is_ordinary::<L>(b) || is_zero::<L>(b) && host != Host::Divide)
    {
        let result = L::on_host(host, a, b);
        // A sum is zero only if it is exactly that; a product or quotient may have become it.
        let exact_zero = || match host {
            Host::Add | Host::Subtract => true,
            Host::Multiply => is_zero::<L>(a) || is_zero::<L>(b),
            Host::Divide => is_zero::<L>(a),
            Host::Root => is_zero::<L>(b),
        };
        if is_ordinary::<L>(result) || is_zero::<L>(result) && exact_zero() {
            return result;
        }
    }
    function(L::FORMAT, environment, u128::from(a), u128::from(b)) as u64
}

struct Plan {
    host: Host,
    function: LaneFunction,
}

fn plan(mnemonic: Mnemonic) -> Option<Plan> {
    use Mnemonic as M;
    let (host, function): (Host, LaneFunction) = match mnemonic {
        M::Addps | M::Addpd | M::Addss | M::Addsd => (Host::Add, |format, env, a, b| {
            float::add(
                format,
                env,
                format.unpack_both(a, b),
                Negate::None,
                format.precision,
            )
        }),
        M::Subps | M::Subpd | M::Subss | M::Subsd => (Host::Subtract, |format, env, a, b| {
            float::add(
                format,
                env,
                format.unpack_both(a, b),
                Negate::Second,
                format.precision,
            )
        }),
        M::Mulps | M::Mulpd | M::Mulss | M::Mulsd => (Host::Multiply, |format, env, a, b| {
            float::multiply(format, env, format.unpack_both(a, b), format.precision)
        }),
        M::Divps | M::Divpd | M::Divss | M::Divsd => (Host::Divide, |format, env, a, b| {
            float::divide(format, env, format.unpack_both(a, b), format.precision)
        }),
        M::Sqrtps | M::Sqrtpd | M::Sqrtss | M::Sqrtsd => (Host::Root, |format, env, _, b| {
            float::square_root(format, env, format.unpack(b), format.precision)
        }),
        _ => return None,
    };
    Some(Plan { host, function })
}

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    Some(match instruction.mnemonic() {
        M::Addps | M::Subps | M::Mulps | M::Divps | M::Sqrtps => packed::<Single>,
        M::Addpd | M::Subpd | M::Mulpd | M::Divpd | M::Sqrtpd => packed::<Double>,
        M::Addss => scalar::<Single, 0>,
        M::Subss => scalar::<Single, 1>,
        M::Mulss => scalar::<Single, 2>,
        M::Divss => scalar::<Single, 3>,
        M::Sqrtss => scalar::<Single, 4>,
        M::Addsd => scalar::<Double, 0>,
        M::Subsd => scalar::<Double, 1>,
        M::Mulsd => scalar::<Double, 2>,
        M::Divsd => scalar::<Double, 3>,
        M::Sqrtsd => scalar::<Double, 4>,
        M::Minps => choose::<Single, true, false>,
        M::Maxps => choose::<Single, true, true>,
        M::Minpd => choose::<Double, true, false>,
        M::Maxpd => choose::<Double, true, true>,
        M::Minss => choose::<Single, false, false>,
        M::Maxss => choose::<Single, false, true>,
        M::Minsd => choose::<Double, false, false>,
        M::Maxsd => choose::<Double, false, true>,
        M::Cmpps => compare::<Single, true>,
        M::Cmppd => compare::<Double, true>,
        M::Cmpss => compare::<Single, false>,
        M::Cmpsd if instruction.op0_kind() == OpKind::Register => compare::<Double, false>,
        M::Comiss => compare_flags::<Single, false>,
        M::Comisd => compare_flags::<Double, false>,
        M::Ucomiss => compare_flags::<Single, true>,
        M::Ucomisd => compare_flags::<Double, true>,
        M::Haddps | M::Hsubps | M::Addsubps => across::<Single>,
        M::Haddpd | M::Hsubpd | M::Addsubpd => across::<Double>,
        M::Dpps => dot_product::<Single>,
        M::Dppd => dot_product::<Double>,
        _ => return None,
    })
}

/// The plans of scalar handlers, by their number.
const SCALAR: [Mnemonic; 5] = [
    Mnemonic::Addss,
    Mnemonic::Subss,
    Mnemonic::Mulss,
    Mnemonic::Divss,
    Mnemonic::Sqrtss,
];

fn mnemonic_of(op: &Op) -> Mnemonic {
    iced_x86::Code::try_from(usize::from(op.code))
        .unwrap_or_default()
        .mnemonic()
}

fn scalar<L: Lane, const PLAN: usize>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let b = cpu.get_vector(op, op.b)?;
    let Some(plan) = plan(SCALAR[PLAN]) else {
        return Err(cpu.ud());
    };
    let mut environment = cpu.environment();
    let host = cpu.computes_on_host().then_some(plan.host);
    let a = cpu.xmm[usize::from(op.a.index) & 15];
    let mask = u128::from(u64::MAX >> (64 - L::BITS));
    let lanes = ((a & mask) as u64, (b & mask) as u64);
    let result = one::<L>(&mut environment, host, plan.function, lanes);
    cpu.settle_exceptions(&environment)?;
    cpu.put_vector(op.a, a & !mask | u128::from(result));
    Ok(())
}

fn packed<L: Lane>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let b = cpu.get_vector(op, op.b)?;
    let Some(plan) = plan(mnemonic_of(op)) else {
        return Err(cpu.ud());
    };
    let mut environment = cpu.environment();
    let host = cpu.computes_on_host().then_some(plan.host);
    let a = cpu.xmm[usize::from(op.a.index) & 15];
    let mut result = 0;
    for index in 0..128 / L::BITS {
        let shift = index * L::BITS;
        let mask = u64::MAX >> (64 - L::BITS);
        let lanes = ((a >> shift) as u64 & mask, (b >> shift) as u64 & mask);
        let lane = one::<L>(&mut environment, host, plan.function, lanes);
        result |= u128::from(lane) << shift;
    }
    cpu.settle_exceptions(&environment)?;
    cpu.put_vector(op.a, result);
    Ok(())
}

/// Applies `f` to the first lane or to all, keeps the others, and settles exceptions.
fn each<L: Lane, const PACKED: bool>(
    cpu: &mut Cpu,
    op: &Op,
    f: impl Fn(&mut Environment, u64, u64) -> u64,
) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let b = cpu.get_vector(op, op.b)?;
    let a = cpu.xmm[usize::from(op.a.index) & 15];
    let mut environment = cpu.environment();
    let mask = u128::from(u64::MAX >> (64 - L::BITS));
    let mut result = a;
    let count = if PACKED { 128 / L::BITS } else { 1 };
    for index in 0..count {
        let shift = index * L::BITS;
        let lane = f(
            &mut environment,
            (a >> shift & mask) as u64,
            (b >> shift & mask) as u64,
        );
        result = result & !(mask << shift) | u128::from(lane) << shift;
    }
    cpu.settle_exceptions(&environment)?;
    cpu.put_vector(op.a, result);
    Ok(())
}

/// `min` and `max`: the second operand where one is a NaN or both are zero (Intel SDM volume 2, `MINPD`). A denormal that counts as zero
/// is one in the result, too.
fn choose<L: Lane, const PACKED: bool, const LARGER: bool>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Trap> {
    each::<L, PACKED>(cpu, op, |environment, a, b| {
        let numbers = L::FORMAT.unpack_both(u128::from(a), u128::from(b));
        let wanted = if LARGER { Order::Greater } else { Order::Less };
        let chosen = if float::compare(environment, numbers, Quiet::No) == wanted {
            a
        } else {
            b
        };
        let number = L::FORMAT.unpack(u128::from(chosen));
        if number.denormal && environment.denormals_are_zero {
            return L::FORMAT.zero(number.negative) as u64;
        }
        chosen
    })
}

/// The predicates of `cmpps` and its kin: whether it holds for less, equal, greater and unordered, and whether quiet NaNs raise nothing.
const PREDICATES: [([bool; 4], Quiet); 8] = [
    ([false, true, false, false], Quiet::Yes),
    ([true, false, false, false], Quiet::No),
    ([true, true, false, false], Quiet::No),
    ([false, false, false, true], Quiet::Yes),
    ([true, false, true, true], Quiet::Yes),
    ([false, true, true, true], Quiet::No),
    ([false, false, true, true], Quiet::No),
    ([true, true, true, false], Quiet::Yes),
];

fn compare<L: Lane, const PACKED: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let (holds, quiet) = PREDICATES[(op.imm & 7) as usize];
    each::<L, PACKED>(cpu, op, |environment, a, b| {
        let numbers = L::FORMAT.unpack_both(u128::from(a), u128::from(b));
        let order = float::compare(environment, numbers, quiet);
        if holds[order as usize] {
            u64::MAX >> (64 - L::BITS)
        } else {
            0
        }
    })
}

fn compare_flags<L: Lane, const QUIET: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let b = cpu.get_vector(op, op.b)?;
    let a = cpu.xmm[usize::from(op.a.index) & 15];
    let mask = u128::from(u64::MAX >> (64 - L::BITS));
    let mut environment = cpu.environment();
    let quiet = if QUIET { Quiet::Yes } else { Quiet::No };
    let numbers = L::FORMAT.unpack_both(a & mask, b & mask);
    let order = float::compare(&mut environment, numbers, quiet);
    cpu.settle_exceptions(&environment)?;
    cpu.flags.0 = cpu.flags.0 & !STATUS | flags_of(order);
    Ok(())
}

/// ZF, PF and CF of a comparison.
pub(in crate::exec) fn flags_of(order: Order) -> u64 {
    match order {
        Order::Less => CF,
        Order::Equal => ZF,
        Order::Greater => 0,
        Order::Unordered => ZF | PF | CF,
    }
}

/// `hadd`, `hsub` and `addsub`: sums and differences of lanes that are not opposite each other.
fn across<L: Lane>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    use Mnemonic as M;
    cpu.require_vectors()?;
    let b = cpu.get_vector(op, op.b)?;
    let a = cpu.xmm[usize::from(op.a.index) & 15];
    let mnemonic = mnemonic_of(op);
    let mut environment = cpu.environment();
    let count = 128 / L::BITS;
    let get = |vector: u128, index: u32| {
        vector >> (index * L::BITS) & u128::from(u64::MAX >> (64 - L::BITS))
    };
    let mut result = 0;
    for index in 0..count {
        let (pair, subtract) = match mnemonic {
            M::Addsubps | M::Addsubpd => ((get(a, index), get(b, index)), index & 1 == 0),
            _ => {
                let from = if index < count / 2 { a } else { b };
                let first = index % (count / 2) * 2;
                let subtract = matches!(mnemonic, M::Hsubps | M::Hsubpd);
                ((get(from, first), get(from, first + 1)), subtract)
            }
        };
        let negate = if subtract {
            Negate::Second
        } else {
            Negate::None
        };
        let sum = float::add(
            L::FORMAT,
            &mut environment,
            L::FORMAT.unpack_both(pair.0, pair.1),
            negate,
            L::FORMAT.precision,
        );
        result |= sum << (index * L::BITS);
    }
    cpu.settle_exceptions(&environment)?;
    cpu.put_vector(op.a, result);
    Ok(())
}

/// Products of chosen lanes, summed in pairs, to chosen lanes.
fn dot_product<L: Lane>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    debug_assert_eq!(op.c.kind, Kind::Immediate);
    let b = cpu.get_vector(op, op.b)?;
    let a = cpu.xmm[usize::from(op.a.index) & 15];
    let count = 128 / L::BITS;
    let mut environment = cpu.environment();
    let get = |vector: u128, index: u32| {
        vector >> (index * L::BITS) & u128::from(u64::MAX >> (64 - L::BITS))
    };
    let precision = L::FORMAT.precision;
    let mut products = Vec::new();
    for index in 0..count {
        products.push(if op.imm >> (4 + index) & 1 != 0 {
            let pair = L::FORMAT.unpack_both(get(a, index), get(b, index));
            float::multiply(L::FORMAT, &mut environment, pair, precision)
        } else {
            0
        });
    }
    cpu.settle_exceptions(&environment)?;
    // Each lane adds its neighbour's, then that of the other half: of two NaNs it keeps its own.
    let mut distance = 1;
    while distance < products.len() {
        let mut sums = Vec::new();
        for index in 0..products.len() {
            let operands = L::FORMAT.unpack_both(products[index], products[index ^ distance]);
            let env = &mut environment;
            sums.push(float::add(
                L::FORMAT,
                env,
                operands,
                Negate::None,
                precision,
            ));
        }
        cpu.settle_exceptions(&environment)?;
        products = sums;
        distance *= 2;
    }
    let lanes = (0..count).map(|index| {
        if op.imm >> index & 1 != 0 {
            products[index as usize] as u64
        } else {
            0
        }
    });
    let result = if L::BITS == 32 {
        gather::<32>(lanes)
    } else {
        gather::<64>(lanes)
    };
    cpu.put_vector(op.a, result);
    let _ = lane::<32>;
    Ok(())
}

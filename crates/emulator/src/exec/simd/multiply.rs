//! Integer lanes that are multiplied or summed.

use iced_x86::Mnemonic;

use super::lanes::{gather, lane, saturate_signed, signed, zip};
use crate::op::VectorFunction;

pub(super) fn function(mnemonic: Mnemonic) -> Option<VectorFunction> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Pmullw => |a, b, _| zip::<16>(a, b, u64::wrapping_mul),
        M::Pmulld => |a, b, _| zip::<32>(a, b, u64::wrapping_mul),
        M::Pmulhw => |a, b, _| {
            zip::<16>(a, b, |x, y| {
                ((signed::<16>(x) * signed::<16>(y)) >> 16) as u64
            })
        },
        M::Pmulhuw => |a, b, _| zip::<16>(a, b, |x, y| (x * y) >> 16),
        M::Pmulhrsw => |a, b, _| {
            zip::<16>(a, b, |x, y| {
                ((((signed::<16>(x) * signed::<16>(y)) >> 14) + 1) >> 1) as u64
            })
        },
        M::Pmuludq => |a, b, _| zip::<64>(a, b, |x, y| (x & 0xFFFF_FFFF) * (y & 0xFFFF_FFFF)),
        M::Pmuldq => |a, b, _| zip::<64>(a, b, |x, y| (signed::<32>(x) * signed::<32>(y)) as u64),
        M::Pmaddwd => |a, b, _| {
            zip::<32>(a, b, |x, y| {
                let part = |shift: u32| signed::<16>(x >> shift) * signed::<16>(y >> shift);
                (part(0) + part(16)) as u64
            })
        },
        M::Pmaddubsw => |a, b, _| {
            zip::<16>(a, b, |x, y| {
                let part = |shift: u32| (x >> shift & 0xFF) as i64 * signed::<8>(y >> shift);
                saturate_signed::<16>(part(0) + part(8))
            })
        },
        M::Psadbw => |a, b, _| {
            zip::<64>(a, b, |x, y| {
                x.to_le_bytes()
                    .iter()
                    .zip(y.to_le_bytes())
                    .map(|(x, y)| u64::from(x.abs_diff(y)))
                    .sum()
            })
        },
        M::Phaddw => |a, b, _| pairs::<16>(a, b, |x, y| x + y),
        M::Phaddd => |a, b, _| pairs::<32>(a, b, |x, y| x + y),
        M::Phsubw => |a, b, _| pairs::<16>(a, b, |x, y| x - y),
        M::Phsubd => |a, b, _| pairs::<32>(a, b, |x, y| x - y),
        M::Phaddsw => |a, b, _| pairs::<16>(a, b, |x, y| saturate_signed::<16>(x + y) as i64),
        M::Phsubsw => |a, b, _| pairs::<16>(a, b, |x, y| saturate_signed::<16>(x - y) as i64),
        M::Mpsadbw => differences,
        M::Phminposuw => |_, b, _| smallest(b),
        M::Pclmulqdq => carryless,
        _ => return None,
    })
}

/// Combines neighbours of the first vector, then of the second.
fn pairs<const BITS: u32>(a: u128, b: u128, f: impl Fn(i64, i64) -> i64) -> u128 {
    let half = |vector: u128| {
        (0..64 / BITS)
            .map(|index| {
                let first = signed::<BITS>(lane::<BITS>(vector, index * 2));
                let second = signed::<BITS>(lane::<BITS>(vector, index * 2 + 1));
                f(first, second) as u64
            })
            .collect::<Vec<u64>>()
    };
    gather::<BITS>(half(a).into_iter().chain(half(b)))
}

/// `mpsadbw`: eight sums of differences to a block of four bytes.
fn differences(a: u128, b: u128, immediate: u8) -> u128 {
    let first = u32::from(immediate >> 2 & 1) * 4;
    let block = u32::from(immediate & 3) * 4;
    gather::<16>((0..8).map(|index| {
        (0..4)
            .map(|byte| {
                let x = lane::<8>(a, first + index + byte);
                x.abs_diff(lane::<8>(b, block + byte))
            })
            .sum()
    }))
}

/// `phminposuw`: the smallest word and where it is.
fn smallest(b: u128) -> u128 {
    let (value, index) = (0..8)
        .map(|index| (lane::<16>(b, index), index))
        .min()
        .unwrap_or((0, 0));
    u128::from(value) | u128::from(index) << 16
}

/// `pclmulqdq`: a product without carries.
fn carryless(a: u128, b: u128, immediate: u8) -> u128 {
    let x = lane::<64>(a, u32::from(immediate & 1));
    let y = lane::<64>(b, u32::from(immediate >> 4 & 1));
    (0..64)
        .filter(|bit| y >> bit & 1 != 0)
        .fold(0, |product, bit| product ^ u128::from(x) << bit)
}

//! Lanes in another order: packing, unpacking, shuffles, blends, extensions.

use iced_x86::Mnemonic;

use super::lanes::{gather, lane, signed, zip};
use crate::op::VectorFunction;

pub(super) fn function(mnemonic: Mnemonic) -> Option<VectorFunction> {
    unpack(mnemonic)
        .or_else(|| shuffle(mnemonic))
        .or_else(|| extend(mnemonic))
}

/// The lanes of both vectors, in half the bits each.
pub(super) fn pack<const FROM: u32, const TO: u32>(
    a: u128,
    b: u128,
    saturate: fn(i64) -> u64,
) -> u128 {
    let count = 128 / FROM;
    let lanes = (0..count)
        .map(|index| lane::<FROM>(a, index))
        .chain((0..count).map(|index| lane::<FROM>(b, index)));
    gather::<TO>(lanes.map(|it| saturate(signed::<FROM>(it))))
}

/// Lanes of both vectors by turns, from lane `first` on.
fn interleave<const BITS: u32>(a: u128, b: u128, first: u32) -> u128 {
    gather::<BITS>((0..128 / BITS).map(|index| {
        let from = if index & 1 == 0 { a } else { b };
        lane::<BITS>(from, first + index / 2)
    }))
}

fn unpack(mnemonic: Mnemonic) -> Option<VectorFunction> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Punpcklbw => |a, b, _| interleave::<8>(a, b, 0),
        M::Punpcklwd => |a, b, _| interleave::<16>(a, b, 0),
        M::Punpckldq | M::Unpcklps => |a, b, _| interleave::<32>(a, b, 0),
        M::Punpcklqdq | M::Unpcklpd => |a, b, _| interleave::<64>(a, b, 0),
        M::Punpckhbw => |a, b, _| interleave::<8>(a, b, 8),
        M::Punpckhwd => |a, b, _| interleave::<16>(a, b, 4),
        M::Punpckhdq | M::Unpckhps => |a, b, _| interleave::<32>(a, b, 2),
        M::Punpckhqdq | M::Unpckhpd => |a, b, _| interleave::<64>(a, b, 1),
        _ => return None,
    })
}

/// The lanes that two bits each of the immediate name.
fn quarters<const BITS: u32>(from: u128, immediate: u8) -> u128 {
    gather::<BITS>((0..4).map(|index| lane::<BITS>(from, u32::from(immediate >> (index * 2) & 3))))
}

fn blend<const BITS: u32>(a: u128, b: u128, immediate: u8) -> u128 {
    gather::<BITS>((0..128 / BITS).map(|index| {
        let from = if immediate >> index & 1 != 0 { b } else { a };
        lane::<BITS>(from, index)
    }))
}

fn shuffle(mnemonic: Mnemonic) -> Option<VectorFunction> {
    use Mnemonic as M;
    const LOW: u128 = u64::MAX as u128;
    Some(match mnemonic {
        M::Pshufd => |_, b, immediate| quarters::<32>(b, immediate),
        M::Pshuflw => |_, b, immediate| b & !LOW | quarters::<16>(b & LOW, immediate),
        M::Pshufhw => |_, b, immediate| b & LOW | quarters::<16>(b >> 64, immediate) << 64,
        M::Shufps => |a, b, immediate| {
            quarters::<32>(a, immediate) & LOW | quarters::<32>(b, immediate) & !LOW
        },
        M::Shufpd => |a, b, immediate| {
            let (low, high) = (u32::from(immediate & 1), u32::from(immediate >> 1 & 1));
            gather::<64>([lane::<64>(a, low), lane::<64>(b, high)])
        },
        M::Pshufb => |a, b, _| {
            gather::<8>((0..16).map(|index| match lane::<8>(b, index) {
                control @ 0..0x80 => lane::<8>(a, control as u32 & 15),
                _ => 0,
            }))
        },
        M::Palignr => |a, b, immediate| match u32::from(immediate) * 8 {
            0 => b,
            bits @ 1..128 => b >> bits | a << (128 - bits),
            bits @ 128..256 => a >> (bits - 128),
            _ => 0,
        },
        M::Pblendw => blend::<16>,
        M::Blendps => blend::<32>,
        M::Blendpd => blend::<64>,
        M::Insertps => insert_single,
        M::Movddup => |_, b, _| gather::<64>([b as u64, b as u64]),
        M::Movsldup => |_, b, _| quarters::<32>(b, 0b1010_0000),
        M::Movshdup => |_, b, _| quarters::<32>(b, 0b1111_0101),
        _ => return None,
    })
}

/// `insertps` from a register; from memory the lane is the only one there is.
fn insert_single(a: u128, b: u128, immediate: u8) -> u128 {
    let value = lane::<32>(b, u32::from(immediate >> 6));
    gather::<32>((0..4).map(|index| {
        if immediate >> index & 1 != 0 {
            0
        } else if index == u32::from(immediate >> 4 & 3) {
            value
        } else {
            lane::<32>(a, index)
        }
    }))
}

fn widen<const FROM: u32, const TO: u32>(b: u128, extend: fn(u64) -> u64) -> u128 {
    gather::<TO>((0..128 / TO).map(|index| extend(lane::<FROM>(b, index))))
}

fn extend(mnemonic: Mnemonic) -> Option<VectorFunction> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Pmovzxbw => |_, b, _| widen::<8, 16>(b, |it| it),
        M::Pmovzxbd => |_, b, _| widen::<8, 32>(b, |it| it),
        M::Pmovzxbq => |_, b, _| widen::<8, 64>(b, |it| it),
        M::Pmovzxwd => |_, b, _| widen::<16, 32>(b, |it| it),
        M::Pmovzxwq => |_, b, _| widen::<16, 64>(b, |it| it),
        M::Pmovzxdq => |_, b, _| widen::<32, 64>(b, |it| it),
        M::Pmovsxbw => |_, b, _| widen::<8, 16>(b, |it| signed::<8>(it) as u64),
        M::Pmovsxbd => |_, b, _| widen::<8, 32>(b, |it| signed::<8>(it) as u64),
        M::Pmovsxbq => |_, b, _| widen::<8, 64>(b, |it| signed::<8>(it) as u64),
        M::Pmovsxwd => |_, b, _| widen::<16, 32>(b, |it| signed::<16>(it) as u64),
        M::Pmovsxwq => |_, b, _| widen::<16, 64>(b, |it| signed::<16>(it) as u64),
        M::Pmovsxdq => |_, b, _| widen::<32, 64>(b, |it| signed::<32>(it) as u64),
        _ => return None,
    })
}

/// Lanes of `b` where the sign of the same lane of `mask` is set, else those of `a`.
pub(super) fn blend_by_sign<const BITS: u32>(a: u128, b: u128, mask: u128) -> u128 {
    let chosen = zip::<BITS>(
        mask,
        0,
        |it, _| if it >> (BITS - 1) != 0 { u64::MAX } else { 0 },
    );
    a & !chosen | b & chosen
}

//! Integer lanes: arithmetic, comparison, logic, shifts.

use iced_x86::Mnemonic;

use super::lanes::{map, saturate_signed, saturate_unsigned, signed, zip};
use crate::op::VectorFunction;

pub(super) fn function(mnemonic: Mnemonic) -> Option<VectorFunction> {
    add_and_subtract(mnemonic)
        .or_else(|| compare(mnemonic))
        .or_else(|| logic_and_shifts(mnemonic))
}

fn add_and_subtract(mnemonic: Mnemonic) -> Option<VectorFunction> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Paddb => |a, b, _| zip::<8>(a, b, u64::wrapping_add),
        M::Paddw => |a, b, _| zip::<16>(a, b, u64::wrapping_add),
        M::Paddd => |a, b, _| zip::<32>(a, b, u64::wrapping_add),
        M::Paddq => |a, b, _| zip::<64>(a, b, u64::wrapping_add),
        M::Psubb => |a, b, _| zip::<8>(a, b, u64::wrapping_sub),
        M::Psubw => |a, b, _| zip::<16>(a, b, u64::wrapping_sub),
        M::Psubd => |a, b, _| zip::<32>(a, b, u64::wrapping_sub),
        M::Psubq => |a, b, _| zip::<64>(a, b, u64::wrapping_sub),
        M::Paddsb => |a, b, _| {
            zip::<8>(a, b, |x, y| {
                saturate_signed::<8>(signed::<8>(x) + signed::<8>(y))
            })
        },
        M::Paddsw => |a, b, _| {
            zip::<16>(a, b, |x, y| {
                saturate_signed::<16>(signed::<16>(x) + signed::<16>(y))
            })
        },
        M::Psubsb => |a, b, _| {
            zip::<8>(a, b, |x, y| {
                saturate_signed::<8>(signed::<8>(x) - signed::<8>(y))
            })
        },
        M::Psubsw => |a, b, _| {
            zip::<16>(a, b, |x, y| {
                saturate_signed::<16>(signed::<16>(x) - signed::<16>(y))
            })
        },
        M::Paddusb => |a, b, _| zip::<8>(a, b, |x, y| (x + y).min(0xFF)),
        M::Paddusw => |a, b, _| zip::<16>(a, b, |x, y| (x + y).min(0xFFFF)),
        M::Psubusb => |a, b, _| zip::<8>(a, b, u64::saturating_sub),
        M::Psubusw => |a, b, _| zip::<16>(a, b, u64::saturating_sub),
        M::Pavgb => |a, b, _| zip::<8>(a, b, |x, y| (x + y + 1) >> 1),
        M::Pavgw => |a, b, _| zip::<16>(a, b, |x, y| (x + y + 1) >> 1),
        M::Pabsb => |_, b, _| map::<8>(b, |x| signed::<8>(x).unsigned_abs()),
        M::Pabsw => |_, b, _| map::<16>(b, |x| signed::<16>(x).unsigned_abs()),
        M::Pabsd => |_, b, _| map::<32>(b, |x| signed::<32>(x).unsigned_abs()),
        M::Psignb => |a, b, _| zip::<8>(a, b, |x, y| with_sign(x, signed::<8>(y))),
        M::Psignw => |a, b, _| zip::<16>(a, b, |x, y| with_sign(x, signed::<16>(y))),
        M::Psignd => |a, b, _| zip::<32>(a, b, |x, y| with_sign(x, signed::<32>(y))),
        _ => return None,
    })
}

fn with_sign(lane: u64, sign: i64) -> u64 {
    match sign.signum() {
        0 => 0,
        1 => lane,
        _ => lane.wrapping_neg(),
    }
}

fn all_if(condition: bool) -> u64 {
    if condition { u64::MAX } else { 0 }
}

fn compare(mnemonic: Mnemonic) -> Option<VectorFunction> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Pcmpeqb => |a, b, _| zip::<8>(a, b, |x, y| all_if(x == y)),
        M::Pcmpeqw => |a, b, _| zip::<16>(a, b, |x, y| all_if(x == y)),
        M::Pcmpeqd => |a, b, _| zip::<32>(a, b, |x, y| all_if(x == y)),
        M::Pcmpeqq => |a, b, _| zip::<64>(a, b, |x, y| all_if(x == y)),
        M::Pcmpgtb => |a, b, _| zip::<8>(a, b, |x, y| all_if(signed::<8>(x) > signed::<8>(y))),
        M::Pcmpgtw => |a, b, _| zip::<16>(a, b, |x, y| all_if(signed::<16>(x) > signed::<16>(y))),
        M::Pcmpgtd => |a, b, _| zip::<32>(a, b, |x, y| all_if(signed::<32>(x) > signed::<32>(y))),
        M::Pcmpgtq => |a, b, _| zip::<64>(a, b, |x, y| all_if(signed::<64>(x) > signed::<64>(y))),
        M::Pminub => |a, b, _| zip::<8>(a, b, u64::min),
        M::Pminuw => |a, b, _| zip::<16>(a, b, u64::min),
        M::Pminud => |a, b, _| zip::<32>(a, b, u64::min),
        M::Pmaxub => |a, b, _| zip::<8>(a, b, u64::max),
        M::Pmaxuw => |a, b, _| zip::<16>(a, b, u64::max),
        M::Pmaxud => |a, b, _| zip::<32>(a, b, u64::max),
        M::Pminsb => |a, b, _| zip::<8>(a, b, |x, y| signed::<8>(x).min(signed::<8>(y)) as u64),
        M::Pminsw => |a, b, _| zip::<16>(a, b, |x, y| signed::<16>(x).min(signed::<16>(y)) as u64),
        M::Pminsd => |a, b, _| zip::<32>(a, b, |x, y| signed::<32>(x).min(signed::<32>(y)) as u64),
        M::Pmaxsb => |a, b, _| zip::<8>(a, b, |x, y| signed::<8>(x).max(signed::<8>(y)) as u64),
        M::Pmaxsw => |a, b, _| zip::<16>(a, b, |x, y| signed::<16>(x).max(signed::<16>(y)) as u64),
        M::Pmaxsd => |a, b, _| zip::<32>(a, b, |x, y| signed::<32>(x).max(signed::<32>(y)) as u64),
        _ => return None,
    })
}

/// A shift count comes from the low 64 bits, and moves everything out from the lane's size on.
fn left<const BITS: u32>(a: u128, b: u128) -> u128 {
    let count = b as u64;
    map::<BITS>(a, |x| {
        if count < u64::from(BITS) {
            x << count
        } else {
            0
        }
    })
}

fn right<const BITS: u32>(a: u128, b: u128) -> u128 {
    let count = b as u64;
    map::<BITS>(a, |x| {
        if count < u64::from(BITS) {
            x >> count
        } else {
            0
        }
    })
}

fn right_signed<const BITS: u32>(a: u128, b: u128) -> u128 {
    let count = (b as u64).min(u64::from(BITS) - 1);
    map::<BITS>(a, |x| (signed::<BITS>(x) >> count) as u64)
}

fn logic_and_shifts(mnemonic: Mnemonic) -> Option<VectorFunction> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Pand | M::Andps | M::Andpd => |a, b, _| a & b,
        M::Pandn | M::Andnps | M::Andnpd => |a, b, _| !a & b,
        M::Por | M::Orps | M::Orpd => |a, b, _| a | b,
        M::Pxor | M::Xorps | M::Xorpd => |a, b, _| a ^ b,
        M::Psllw => |a, b, _| left::<16>(a, b),
        M::Pslld => |a, b, _| left::<32>(a, b),
        M::Psllq => |a, b, _| left::<64>(a, b),
        M::Psrlw => |a, b, _| right::<16>(a, b),
        M::Psrld => |a, b, _| right::<32>(a, b),
        M::Psrlq => |a, b, _| right::<64>(a, b),
        M::Psraw => |a, b, _| right_signed::<16>(a, b),
        M::Psrad => |a, b, _| right_signed::<32>(a, b),
        M::Pslldq => |a, b, _| if b < 16 { a << (b * 8) } else { 0 },
        M::Psrldq => |a, b, _| if b < 16 { a >> (b * 8) } else { 0 },
        M::Packsswb => |a, b, _| super::shuffle::pack::<16, 8>(a, b, saturate_signed::<8>),
        M::Packssdw => |a, b, _| super::shuffle::pack::<32, 16>(a, b, saturate_signed::<16>),
        M::Packuswb => |a, b, _| super::shuffle::pack::<16, 8>(a, b, saturate_unsigned::<8>),
        M::Packusdw => |a, b, _| super::shuffle::pack::<32, 16>(a, b, saturate_unsigned::<16>),
        _ => return None,
    })
}

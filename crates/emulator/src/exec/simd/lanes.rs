//! Vectors as lanes.

use iced_x86::Mnemonic;

/// Applies `f` to each pair of lanes of `BITS` bits. Lanes travel zero-extended.
#[inline]
pub(super) fn zip<const BITS: u32>(a: u128, b: u128, f: impl Fn(u64, u64) -> u64) -> u128 {
    let mask = u64::MAX >> (64 - BITS);
    (0..128 / BITS).fold(0, |result, index| {
        let shift = index * BITS;
        let lane = f((a >> shift) as u64 & mask, (b >> shift) as u64 & mask) & mask;
        result | u128::from(lane) << shift
    })
}

/// Applies `f` to each lane.
#[inline]
pub(super) fn map<const BITS: u32>(a: u128, f: impl Fn(u64) -> u64) -> u128 {
    zip::<BITS>(a, 0, |lane, _| f(lane))
}

/// One lane.
#[inline]
pub(super) fn lane<const BITS: u32>(a: u128, index: u32) -> u64 {
    (a >> (index * BITS)) as u64 & u64::MAX >> (64 - BITS)
}

/// A vector of lanes, the lowest first.
#[inline]
pub(super) fn gather<const BITS: u32>(lanes: impl IntoIterator<Item = u64>) -> u128 {
    let mask = u64::MAX >> (64 - BITS);
    lanes
        .into_iter()
        .zip(0..128 / BITS)
        .fold(0, |result, (lane, index)| {
            result | u128::from(lane & mask) << (index * BITS)
        })
}

/// A lane with its sign.
#[inline]
pub(super) fn signed<const BITS: u32>(lane: u64) -> i64 {
    ((lane << (64 - BITS)) as i64) >> (64 - BITS)
}

/// The nearest number that fits a signed lane.
pub(super) fn saturate_signed<const BITS: u32>(value: i64) -> u64 {
    let limit = 1_i64 << (BITS - 1);
    value.clamp(-limit, limit - 1) as u64
}

/// The nearest number that fits an unsigned lane.
pub(super) fn saturate_unsigned<const BITS: u32>(value: i64) -> u64 {
    value.clamp(0, (1 << BITS) - 1) as u64
}

/// Instructions whose lanes do not see each other, so that MMX needs nothing but fewer of them.
pub(super) fn works_on_64_bits(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Paddb
            | M::Paddw
            | M::Paddd
            | M::Paddq
            | M::Psubb
            | M::Psubw
            | M::Psubd
            | M::Psubq
            | M::Paddsb
            | M::Paddsw
            | M::Paddusb
            | M::Paddusw
            | M::Psubsb
            | M::Psubsw
            | M::Psubusb
            | M::Psubusw
            | M::Pmullw
            | M::Pmulhw
            | M::Pmulhuw
            | M::Pmuludq
            | M::Pmaddwd
            | M::Pcmpeqb
            | M::Pcmpeqw
            | M::Pcmpeqd
            | M::Pcmpgtb
            | M::Pcmpgtw
            | M::Pcmpgtd
            | M::Pminub
            | M::Pmaxub
            | M::Pminsw
            | M::Pmaxsw
            | M::Pavgb
            | M::Pavgw
            | M::Pand
            | M::Pandn
            | M::Por
            | M::Pxor
            | M::Psllw
            | M::Pslld
            | M::Psllq
            | M::Psrlw
            | M::Psrld
            | M::Psrlq
            | M::Psraw
            | M::Psrad
            | M::Psadbw
            | M::Punpcklbw
            | M::Pabsb
            | M::Pabsw
            | M::Pabsd
            | M::Psignb
            | M::Psignw
            | M::Psignd
            | M::Punpcklwd
            | M::Punpckldq
            | M::Pmulhrsw
            | M::Pmaddubsw
    )
}

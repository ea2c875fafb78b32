//! Messages of nothing but values of fixed size, which most are. They have one length and one header for each number of values,
//! so that they are written without a writer and recognised by one comparison. Whatever is not recognised is for
//! [`Message`](super::Message), which says what it is.

use zerocopy::{FromBytes, IntoBytes};

use super::{MAX_SLOTS, MessageHeader, MessageKind, Slot, slot_offset};
use crate::value::{ValueRef, ValueType};

impl MessageHeader {
    /// The header of a message of `slot_count` values of fixed size and nothing else.
    #[must_use]
    #[inline]
    pub const fn plain(kind: MessageKind, function: u32, slot_count: usize) -> Self {
        // A message has at most MAX_SLOTS; the callers in this module see to it, and for any other number this is no header of one.
        #[expect(clippy::cast_possible_truncation)]
        Self {
            kind: kind as u32,
            function,
            status: 0,
            slot_count: slot_count as u32,
            total_len_bytes: slot_offset(slot_count) as u32,
            reserved: [0; 3],
        }
    }
}

impl Slot {
    /// The slot of a value of fixed-size type `ty` with these bits.
    #[must_use]
    #[inline]
    pub const fn plain(ty: ValueType, bits: u64) -> Self {
        Self {
            ty: ty.code(),
            flags: 0,
            reserved: 0,
            len_bytes: 0,
            bits,
        }
    }

    /// The slot of a value of fixed size; `None` for any other.
    #[must_use]
    #[inline]
    pub const fn of_scalar(value: ValueRef<'_>) -> Option<Self> {
        match value.scalar_bits() {
            Some(bits) => Some(Self::plain(value.value_type(), bits)),
            None => None,
        }
    }

    /// The bits of a value of fixed-size type `ty`, if the slot is one of that type and nothing else is in it.
    #[inline]
    fn bits_of(self, ty: ValueType) -> Option<u64> {
        // Everything before the bits, compared at once; the type comes first.
        let [rest, bits]: [u64; 2] = zerocopy::transmute!(self);
        (u64::from_le(rest) == u64::from(ty.code())).then_some(bits)
    }

    /// The value of fixed-size type `ty`, if that is what the slot soundly holds.
    #[inline]
    pub(super) fn scalar(&self, ty: ValueType) -> Option<ValueRef<'static>> {
        ValueRef::from_scalar_bits(ty, self.bits_of(ty)?)
    }
}

/// Writes a message of values of fixed size and returns its length; `None`, and an unspecified beginning of the buffer, where it is none
/// or does not fit.
#[must_use]
#[inline]
pub fn write_plain(
    buffer: &mut [u8],
    kind: MessageKind,
    function: u32,
    values: &[ValueRef<'_>],
) -> Option<usize> {
    if values.len() > MAX_SLOTS || (kind.is_reply() && values.len() != 1) {
        return None;
    }
    let slots = start(buffer, kind, function, values.len())?;
    for (slot, value) in slots.chunks_exact_mut(Slot::LEN_BYTES).zip(values) {
        slot.copy_from_slice(Slot::of_scalar(*value)?.as_bytes());
    }
    Some(slot_offset(values.len()))
}

/// Writes the guest's reply to a call of `function` with a value of fixed size; `false` where the buffer does not even hold that.
#[must_use]
#[inline]
pub fn write_plain_reply(buffer: &mut [u8], function: u32, slot: Slot) -> bool {
    match start(buffer, MessageKind::Reply, function, 1) {
        Some(slots) => {
            slots.copy_from_slice(slot.as_bytes());
            true
        }
        None => false,
    }
}

/// Writes the header of a plain message and lends the bytes of its slots.
#[inline]
fn start(
    buffer: &mut [u8],
    kind: MessageKind,
    function: u32,
    slot_count: usize,
) -> Option<&mut [u8]> {
    let (header, slots) = buffer
        .get_mut(..slot_offset(slot_count))?
        .split_at_mut(MessageHeader::LEN_BYTES);
    header.copy_from_slice(MessageHeader::plain(kind, function, slot_count).as_bytes());
    Some(slots)
}

/// The slots of the message at the start of `bytes`, if it is one of `slot_count` values and has the header of a plain one; their types are
/// for [`plain_bits`] to check.
#[must_use]
#[inline]
pub fn plain_slots(
    bytes: &[u8],
    kind: MessageKind,
    function: u32,
    slot_count: usize,
) -> Option<&[u8]> {
    let (header, slots) = bytes
        .get(..slot_offset(slot_count))?
        .split_at(MessageHeader::LEN_BYTES);
    is_plain_header(header, kind, function, slot_count).then_some(slots)
}

/// Whether these are the bytes of [`MessageHeader::plain`]: compared as four numbers, each of which is known before it is read.
#[inline]
fn is_plain_header(bytes: &[u8], kind: MessageKind, function: u32, slot_count: usize) -> bool {
    let header = MessageHeader::plain(kind, function, slot_count);
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let Ok([first, second, third, fourth]) = <[u64; 4]>::read_from_bytes(bytes) else {
        return false;
    };
    u64::from_le(first) == pair(header.kind, header.function)
        && u64::from_le(second) == pair(header.status, header.slot_count)
        && u64::from_le(third) == pair(header.total_len_bytes, 0)
        && fourth == 0
}

/// The bits of the value in one of the slots that [`plain_slots`] found, if the slot is of type `ty` and nothing else is in it. Whether they
/// are a value is for [`ValueRef::from_scalar_bits`] to say.
#[must_use]
#[inline]
pub fn plain_bits(slots: &[u8], index: usize, ty: ValueType) -> Option<u64> {
    let at = index * Slot::LEN_BYTES;
    let slot = Slot::read_from_bytes(slots.get(at..at + Slot::LEN_BYTES)?).ok()?;
    slot.bits_of(ty)
}

#[cfg(test)]
mod tests;

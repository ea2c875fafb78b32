//! Calls, replies and errors in the two buffers.
//!
//! A message is a 32-byte [`MessageHeader`], then `slot_count` 16-byte [`Slot`]s, then the payload: the bytes of
//! inline strings and bytes. Offsets count from the start of the message. [`MessageWriter`] writes one, [`Message`]
//! reads one.
//!
//! | kind | direction | buffer | slots |
//! |---|---|---|---|
//! | [`MessageKind::Call`] | host to guest | input | the arguments |
//! | [`MessageKind::Reply`] | guest to host | output | one: the returned value, or the error text |
//! | [`MessageKind::HostCall`] | guest to host | output | the arguments |
//! | [`MessageKind::HostReply`] | host to guest | input | one: the returned value, or the error text |
//! | [`MessageKind::OneWay`] | guest to host | [outbox](crate::outbox) | the arguments, all inline |
//!
//! # Rules
//!
//! * `total_len_bytes` covers header, slots and payload, and lies inside the buffer and the reader's limits.
//! * Reserved fields and unknown flags are zero. A call has status 0.
//! * A slot of fixed size has `len_bytes` 0 and its value in `bits`: `i32` sign-extended, everything else
//!   zero-extended, `bool` 0 or 1, unit 0.
//! * An inline string or bytes lies at offset `bits`, `len_bytes` long, wholly between the end of the slots and the
//!   end of the message. Values may overlap and there may be gaps. Strings are UTF-8.
//! * A slot with [`FLAG_EXTERNAL`] is a string or bytes outside the message. From the guest, `bits` is its
//!   guest-virtual address. From the host, `bits` is the slot's own number, to be named in a
//!   [`FillRequest`](crate::fill::FillRequest). UTF-8 is then checked by whoever has the bytes.
//! * A message with a status other than 0 is an error: [`ErrorCode`] says what, its one slot is an inline string of
//!   at most [`MAX_ERROR_TEXT_LEN_BYTES`].

mod plain;
mod read;
mod write;

use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use self::plain::{plain_bits, plain_slots, write_plain, write_plain_reply};
pub use self::read::{
    Argument, Arguments, External, Limits, Message, MessageError, Outcome, Place,
};
pub use self::write::{MessageWriter, WriteError, write_error};

/// Most slots of a message, and so most parameters of a function.
pub const MAX_SLOTS: usize = 16;
/// Longest text of an error message; longer ones are cut.
pub const MAX_ERROR_TEXT_LEN_BYTES: usize = 1024;
/// Smallest message buffer: one page, which holds a header, all slots and the longest error text.
pub const MIN_BUFFER_LEN_BYTES: usize = 4096;
/// Slot flag: the value lies outside the message.
pub const FLAG_EXTERNAL: u8 = 1;

const _: () = assert!(
    MIN_BUFFER_LEN_BYTES
        >= MessageHeader::LEN_BYTES + MAX_SLOTS * Slot::LEN_BYTES + MAX_ERROR_TEXT_LEN_BYTES
);

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum MessageKind {
    /// The host calls a guest function.
    Call = 1,
    /// The guest answers a call.
    Reply = 2,
    /// The guest calls a host function.
    HostCall = 3,
    /// The host answers a host call.
    HostReply = 4,
    /// The guest calls a host function that has no answer.
    OneWay = 5,
}

impl MessageKind {
    /// Whether the message answers a call: it then has exactly one slot and may carry an error.
    #[must_use]
    #[inline]
    pub const fn is_reply(self) -> bool {
        matches!(self, Self::Reply | Self::HostReply)
    }

    /// Whether the guest writes messages of this kind.
    #[must_use]
    #[inline]
    pub const fn is_from_guest(self) -> bool {
        matches!(self, Self::Reply | Self::HostCall | Self::OneWay)
    }

    /// The kind with this number, or `None`.
    #[must_use]
    #[inline]
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Call,
            2 => Self::Reply,
            3 => Self::HostCall,
            4 => Self::HostReply,
            5 => Self::OneWay,
            _ => return None,
        })
    }
}

/// Why a call was not answered with a value. The text that comes with it is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[repr(u32)]
pub enum ErrorCode {
    /// No function has the index.
    #[error("unknown function")]
    UnknownFunction = 1,
    /// The number of arguments is not that of the parameters.
    #[error("wrong number of arguments")]
    ArgumentCount = 2,
    /// An argument's type is not that of its parameter.
    #[error("wrong argument type")]
    ArgumentType = 3,
    /// The message could not be decoded.
    #[error("malformed message")]
    MalformedMessage = 4,
    /// The function ran and returned an error of its own.
    #[error("function failed")]
    FunctionFailed = 5,
    /// The function panicked; only a host function can, a guest panic ends the call through its own port.
    #[error("function panicked")]
    FunctionPanicked = 6,
    /// The value is too large for the other side or for a message.
    #[error("value too large")]
    TooLarge = 7,
    /// Calls are not possible at this point, such as a host call before the first call.
    #[error("call not possible now")]
    NotNow = 8,
}

impl ErrorCode {
    /// Every code, in ascending order.
    pub const ALL: [Self; 8] = [
        Self::UnknownFunction,
        Self::ArgumentCount,
        Self::ArgumentType,
        Self::MalformedMessage,
        Self::FunctionFailed,
        Self::FunctionPanicked,
        Self::TooLarge,
        Self::NotNow,
    ];

    /// The number that stands for this code in a header; never 0.
    #[must_use]
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The code with this number, or `None`.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.number() == number)
    }
}

/// Start of every message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MessageHeader {
    /// A [`MessageKind`].
    pub kind: u32,
    /// Index of the function: of the guest's exports in calls and replies, of its imports in host calls and replies.
    pub function: u32,
    /// 0, or an [`ErrorCode`].
    pub status: u32,
    /// Number of slots.
    pub slot_count: u32,
    /// Length of header, slots and payload.
    pub total_len_bytes: u32,
    /// Zero.
    pub reserved: [u32; 3],
}

/// One value of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Slot {
    /// A [`ValueType`](crate::value::ValueType) code.
    pub ty: u8,
    /// 0 or [`FLAG_EXTERNAL`].
    pub flags: u8,
    /// Zero.
    pub reserved: u16,
    /// Length of a string or of bytes, else 0.
    pub len_bytes: u32,
    /// The value, its offset, its address or its slot number.
    pub bits: u64,
}

impl MessageHeader {
    /// Size of the structure.
    pub const LEN_BYTES: usize = 32;
}

impl Slot {
    /// Size of the structure.
    pub const LEN_BYTES: usize = 16;
}

const _: () = {
    assert!(
        size_of::<MessageHeader>() == MessageHeader::LEN_BYTES && align_of::<MessageHeader>() == 4
    );
    assert!(core::mem::offset_of!(MessageHeader, status) == 8);
    assert!(core::mem::offset_of!(MessageHeader, slot_count) == 12);
    assert!(core::mem::offset_of!(MessageHeader, total_len_bytes) == 16);
    assert!(size_of::<Slot>() == Slot::LEN_BYTES && align_of::<Slot>() == 8);
    assert!(core::mem::offset_of!(Slot, len_bytes) == 4);
    assert!(core::mem::offset_of!(Slot, bits) == 8);
};

/// Offset of slot `index`; the caller keeps `index` at or below [`MAX_SLOTS`].
#[inline]
const fn slot_offset(index: usize) -> usize {
    MessageHeader::LEN_BYTES + index * Slot::LEN_BYTES
}

#[cfg(test)]
mod tests;

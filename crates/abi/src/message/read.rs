//! Reading messages.

use thiserror::Error;
use zerocopy::FromBytes;

use super::{
    ErrorCode, FLAG_EXTERNAL, MAX_ERROR_TEXT_LEN_BYTES, MAX_SLOTS, MessageHeader, MessageKind,
    Slot, slot_offset,
};
use crate::value::{ValueRef, ValueType};

/// A message in bytes that the other side cannot change any more (a copy, or a buffer whose writer is stopped).
///
/// [`parse`](Self::parse) checks the header; each slot is checked when it is read, so that a reader that needs one
/// slot pays for one.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    bytes: &'a [u8],
    kind: MessageKind,
    error: Option<ErrorCode>,
    function: u32,
    slot_count: usize,
    limits: Limits,
}

/// How large a message and what it refers to may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest message, in bytes.
    pub message_len_bytes: usize,
    /// Longest external value, in bytes.
    pub external_len_bytes: u32,
}

/// A value in a message, or where to get it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument<'a> {
    /// The value is in the message.
    Value(ValueRef<'a>),
    /// The value is elsewhere.
    External(External),
}

/// A string or bytes outside the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct External {
    /// [`ValueType::String`] or [`ValueType::Bytes`].
    pub value_type: ValueType,
    /// Its length.
    pub len_bytes: u32,
    /// Where it is.
    pub place: Place,
}

/// Where an external value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In guest memory (messages from the guest). The address is unchecked.
    GuestMemory {
        /// Guest-virtual address of the first byte.
        gva: u64,
    },
    /// With the host (messages from the host).
    HostSlot {
        /// Number to name in a [`FillRequest`](crate::fill::FillRequest).
        slot: u32,
    },
}

/// What a reply says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome<'a> {
    /// The function returned this.
    Value(Argument<'a>),
    /// The call failed.
    Failed {
        /// Why.
        code: ErrorCode,
        /// For people; at most [`MAX_ERROR_TEXT_LEN_BYTES`] long.
        text: &'a str,
    },
}

/// A message that breaks the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MessageError {
    /// Fewer bytes than a header has.
    #[error(
        "message has {have_bytes} bytes, a header has {}",
        MessageHeader::LEN_BYTES
    )]
    TooShort {
        /// Bytes at hand.
        have_bytes: usize,
    },
    /// The kind has no meaning.
    #[error("message has unknown kind {0}")]
    UnknownKind(
        /// What was found.
        u32,
    ),
    /// The status has no meaning.
    #[error("message has unknown status {0}")]
    UnknownStatus(
        /// What was found.
        u32,
    ),
    /// A call with a status.
    #[error("call has status {0}, must be 0")]
    StatusOfCall(
        /// What was found.
        u32,
    ),
    /// A reserved field of the header is not zero.
    #[error("message has a reserved field that is not zero")]
    ReservedNotZero,
    /// More slots than a message may have.
    #[error("message has {0} slots, at most {MAX_SLOTS} are possible")]
    TooManySlots(
        /// What was found.
        u32,
    ),
    /// A reply has other than one slot.
    #[error("reply has {0} slots, must be 1")]
    SlotsOfReply(
        /// What was found.
        usize,
    ),
    /// The length is shorter than header and slots, or longer than bytes or limit allow.
    #[error("message says it has {total_len_bytes} bytes, possible are {min_bytes} to {max_bytes}")]
    Length {
        /// What the header says.
        total_len_bytes: u32,
        /// Header and slots.
        min_bytes: usize,
        /// Bytes at hand or limit.
        max_bytes: usize,
    },
    /// The message has no such slot.
    #[error("message has no slot {0}")]
    NoSlot(
        /// Which was asked for.
        usize,
    ),
    /// The message is not a reply, so it has no outcome.
    #[error("message is not a reply")]
    NotAReply,
    /// A slot has a type code that the ABI does not define.
    #[error("slot {slot} has unknown type code {code}")]
    UnknownType {
        /// Which slot.
        slot: usize,
        /// What was found.
        code: u8,
    },
    /// A slot has a flag that the ABI does not define, or a reserved field that is not zero.
    #[error("slot {slot} has flags {flags:#x} and reserved field {reserved:#x}")]
    SlotFlags {
        /// Which slot.
        slot: usize,
        /// Its flags.
        flags: u8,
        /// Its reserved field.
        reserved: u16,
    },
    /// A slot of fixed size has a length, the external flag, or bits that its type does not use.
    #[error(
        "slot {slot} of type {value_type} has bits {bits:#x} and length {len_bytes}, which encode no value"
    )]
    Scalar {
        /// Which slot.
        slot: usize,
        /// Its type.
        value_type: ValueType,
        /// Its bits.
        bits: u64,
        /// Its length.
        len_bytes: u32,
    },
    /// An inline value lies outside the payload.
    #[error("slot {slot} places {len_bytes} bytes at offset {offset:#x}, outside the payload")]
    Payload {
        /// Which slot.
        slot: usize,
        /// Its offset.
        offset: u64,
        /// Its length.
        len_bytes: u32,
    },
    /// A string is not UTF-8.
    #[error("string in slot {0} is not utf-8")]
    NotUtf8(
        /// Which slot.
        usize,
    ),
    /// An external value is longer than the limit.
    #[error("slot {slot} refers to {len_bytes} bytes, at most {limit_bytes} are allowed")]
    ExternalLength {
        /// Which slot.
        slot: usize,
        /// Its length.
        len_bytes: u32,
        /// The limit.
        limit_bytes: u32,
    },
    /// An external value of the host names another slot than its own.
    #[error("external slot {slot} of the host names slot {named}")]
    ExternalSlot {
        /// Which slot.
        slot: usize,
        /// The slot it names.
        named: u64,
    },
    /// The slot of an error is not an inline string of bounded length.
    #[error("error text is not an inline string of at most {MAX_ERROR_TEXT_LEN_BYTES} bytes")]
    ErrorText,
}

impl Limits {
    /// Messages up to the length of a buffer, external values of any length.
    #[must_use]
    pub const fn for_buffer(buffer_len_bytes: usize) -> Self {
        Self {
            message_len_bytes: buffer_len_bytes,
            external_len_bytes: u32::MAX,
        }
    }
}

impl External {
    /// The slot of the host that holds the value, if the host holds it.
    #[must_use]
    pub const fn host_slot(&self) -> Option<u32> {
        match self.place {
            Place::HostSlot { slot } => Some(slot),
            Place::GuestMemory { .. } => None,
        }
    }
}

impl Argument<'_> {
    /// Type of the value.
    #[must_use]
    pub const fn value_type(&self) -> ValueType {
        match self {
            Self::Value(value) => value.value_type(),
            Self::External(external) => external.value_type,
        }
    }
}

impl<'a> Message<'a> {
    /// Checks the header of the message at the start of `bytes`. Bytes past its length are ignored.
    ///
    /// # Errors
    /// The header breaks a rule of the [module documentation](super), or `limits`.
    #[inline]
    pub fn parse(bytes: &'a [u8], limits: Limits) -> Result<Self, MessageError> {
        let (header, _) =
            MessageHeader::read_from_prefix(bytes).map_err(|_| MessageError::TooShort {
                have_bytes: bytes.len(),
            })?;
        let kind =
            MessageKind::from_number(header.kind).ok_or(MessageError::UnknownKind(header.kind))?;
        if header.reserved != [0; 3] {
            return Err(MessageError::ReservedNotZero);
        }
        let error = parse_status(header.status, kind)?;
        let slot_count = header.slot_count as usize;
        if slot_count > MAX_SLOTS {
            return Err(MessageError::TooManySlots(header.slot_count));
        }
        if kind.is_reply() && slot_count != 1 {
            return Err(MessageError::SlotsOfReply(slot_count));
        }
        let len_bytes = header.total_len_bytes as usize;
        let (min_bytes, max_bytes) = (
            slot_offset(slot_count),
            bytes.len().min(limits.message_len_bytes),
        );
        match bytes.get(..len_bytes) {
            Some(bytes) if len_bytes >= min_bytes && len_bytes <= max_bytes => Ok(Self {
                bytes,
                kind,
                error,
                function: header.function,
                slot_count,
                limits,
            }),
            _ => {
                let total_len_bytes = header.total_len_bytes;
                Err(MessageError::Length {
                    total_len_bytes,
                    min_bytes,
                    max_bytes,
                })
            }
        }
    }

    /// How many bytes the message that starts with `header_bytes` covers, so that a reader across the trust boundary
    /// copies no more than it needs. The copy is then parsed as a whole.
    ///
    /// # Errors
    /// `header_bytes` are fewer than a header has, or the length is not between a header's and the limit.
    #[inline]
    pub fn len_of(header_bytes: &[u8], limits: Limits) -> Result<usize, MessageError> {
        let (header, _) =
            MessageHeader::read_from_prefix(header_bytes).map_err(|_| MessageError::TooShort {
                have_bytes: header_bytes.len(),
            })?;
        let len_bytes = header.total_len_bytes as usize;
        if !(MessageHeader::LEN_BYTES..=limits.message_len_bytes).contains(&len_bytes) {
            return Err(MessageError::Length {
                total_len_bytes: header.total_len_bytes,
                min_bytes: MessageHeader::LEN_BYTES,
                max_bytes: limits.message_len_bytes,
            });
        }
        Ok(len_bytes)
    }

    /// What the message is.
    #[must_use]
    #[inline]
    pub const fn kind(&self) -> MessageKind {
        self.kind
    }

    /// Index of the function that is called or answers.
    #[must_use]
    #[inline]
    pub const fn function(&self) -> u32 {
        self.function
    }

    /// Number of slots.
    #[must_use]
    #[inline]
    pub const fn slot_count(&self) -> usize {
        self.slot_count
    }

    /// Why there is no value, if this is an error reply; [`outcome`](Self::outcome) has the text, too.
    #[must_use]
    #[inline]
    pub const fn error(&self) -> Option<ErrorCode> {
        self.error
    }

    /// Length of the message.
    #[must_use]
    #[inline]
    pub const fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The value in slot `index`.
    ///
    /// # Errors
    /// There is no such slot, or it breaks a rule of the [module documentation](super).
    #[inline]
    pub fn argument(&self, index: usize) -> Result<Argument<'a>, MessageError> {
        let slot = self.slot(index).ok_or(MessageError::NoSlot(index))?;
        let value_type = ValueType::try_from(slot.ty).map_err(|_| unknown_type(index, &slot))?;
        if let Some(value) = slot.scalar(value_type) {
            return Ok(Argument::Value(value));
        }
        self.variable(index, &slot, value_type)
    }

    /// All slots in order.
    #[must_use]
    pub const fn arguments(&self) -> Arguments<'a> {
        Arguments {
            message: *self,
            next: 0,
        }
    }

    /// What a reply says.
    ///
    /// # Errors
    /// The message is not a reply, or its slot breaks a rule.
    #[inline]
    pub fn outcome(&self) -> Result<Outcome<'a>, MessageError> {
        if !self.kind.is_reply() {
            return Err(MessageError::NotAReply);
        }
        let argument = self.argument(0)?;
        let Some(code) = self.error else {
            return Ok(Outcome::Value(argument));
        };
        match argument {
            Argument::Value(ValueRef::String(text)) if text.len() <= MAX_ERROR_TEXT_LEN_BYTES => {
                Ok(Outcome::Failed { code, text })
            }
            _ => Err(MessageError::ErrorText),
        }
    }

    #[inline]
    fn slot(&self, index: usize) -> Option<Slot> {
        if index >= self.slot_count {
            return None;
        }
        let bytes = self.bytes.get(slot_offset(index)..slot_offset(index + 1))?;
        Slot::read_from_bytes(bytes).ok()
    }

    /// A string or bytes, or what is wrong with a slot that is not a sound scalar either.
    fn variable(
        &self,
        index: usize,
        slot: &Slot,
        value_type: ValueType,
    ) -> Result<Argument<'a>, MessageError> {
        if slot.flags & !FLAG_EXTERNAL != 0 || slot.reserved != 0 {
            return Err(slot_flags(index, slot));
        }
        if !value_type.is_variable() {
            return Err(bad_scalar(index, slot, value_type));
        }
        if slot.flags == FLAG_EXTERNAL {
            return self
                .external(index, slot, value_type)
                .map(Argument::External);
        }
        let bytes = self.payload(index, slot)?;
        Ok(Argument::Value(match value_type {
            ValueType::String => {
                let text = core::str::from_utf8(bytes).map_err(|_| MessageError::NotUtf8(index))?;
                ValueRef::String(text)
            }
            _ => ValueRef::Bytes(bytes),
        }))
    }

    fn payload(&self, index: usize, slot: &Slot) -> Result<&'a [u8], MessageError> {
        let error = MessageError::Payload {
            slot: index,
            offset: slot.bits,
            len_bytes: slot.len_bytes,
        };
        let start = usize::try_from(slot.bits).map_err(|_| error)?;
        let end = start.checked_add(slot.len_bytes as usize).ok_or(error)?;
        if start < slot_offset(self.slot_count) {
            return Err(error);
        }
        self.bytes.get(start..end).ok_or(error)
    }

    fn external(
        &self,
        index: usize,
        slot: &Slot,
        value_type: ValueType,
    ) -> Result<External, MessageError> {
        let limit_bytes = self.limits.external_len_bytes;
        if slot.len_bytes > limit_bytes {
            return Err(MessageError::ExternalLength {
                slot: index,
                len_bytes: slot.len_bytes,
                limit_bytes,
            });
        }
        let place = if self.kind.is_from_guest() {
            Place::GuestMemory { gva: slot.bits }
        } else {
            match u32::try_from(slot.bits) {
                Ok(named) if named as usize == index => Place::HostSlot { slot: named },
                _ => {
                    return Err(MessageError::ExternalSlot {
                        slot: index,
                        named: slot.bits,
                    });
                }
            }
        };
        Ok(External {
            value_type,
            len_bytes: slot.len_bytes,
            place,
        })
    }
}

#[cold]
const fn unknown_type(index: usize, slot: &Slot) -> MessageError {
    MessageError::UnknownType {
        slot: index,
        code: slot.ty,
    }
}

#[cold]
const fn slot_flags(index: usize, slot: &Slot) -> MessageError {
    MessageError::SlotFlags {
        slot: index,
        flags: slot.flags,
        reserved: slot.reserved,
    }
}

#[cold]
const fn bad_scalar(index: usize, slot: &Slot, value_type: ValueType) -> MessageError {
    MessageError::Scalar {
        slot: index,
        value_type,
        bits: slot.bits,
        len_bytes: slot.len_bytes,
    }
}

#[inline]
fn parse_status(status: u32, kind: MessageKind) -> Result<Option<ErrorCode>, MessageError> {
    if status == 0 {
        return Ok(None);
    }
    if !kind.is_reply() {
        return Err(MessageError::StatusOfCall(status));
    }
    ErrorCode::from_number(status)
        .map(Some)
        .ok_or(MessageError::UnknownStatus(status))
}

/// Iterator over the slots of a message. It goes on after a slot with an error.
#[derive(Clone, Debug)]
pub struct Arguments<'a> {
    message: Message<'a>,
    next: usize,
}

impl<'a> Iterator for Arguments<'a> {
    type Item = Result<Argument<'a>, MessageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.message.slot_count {
            return None;
        }
        let argument = self.message.argument(self.next);
        self.next += 1;
        Some(argument)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.message.slot_count - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Arguments<'_> {}

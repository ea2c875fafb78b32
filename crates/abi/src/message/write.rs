//! Writing messages.

use thiserror::Error;
use zerocopy::IntoBytes;

use super::{
    ErrorCode, FLAG_EXTERNAL, MAX_ERROR_TEXT_LEN_BYTES, MAX_SLOTS, MessageHeader, MessageKind,
    Slot, slot_offset,
};
use crate::value::{ValueRef, ValueType};

/// Writes one message into a buffer.
///
/// The number of slots is fixed at the start; each is then pushed in order. A push that fails leaves the message as
/// it was, so a value that does not fit can be pushed as an external one instead.
#[derive(Debug)]
pub struct MessageWriter<'a> {
    buffer: &'a mut [u8],
    header: MessageHeader,
    pushed: usize,
    end: usize,
}

/// A message that cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The buffer ends before the value does.
    #[error("message needs {need_bytes} bytes, the buffer has {have_bytes}")]
    BufferTooSmall {
        /// Length the message would have.
        need_bytes: usize,
        /// Length of the buffer.
        have_bytes: usize,
    },
    /// More slots than a message may have.
    #[error("message cannot have {0} slots, at most {MAX_SLOTS} are possible")]
    TooManySlots(
        /// What was asked for.
        usize,
    ),
    /// Other than one slot for a reply.
    #[error("reply cannot have {0} slots, must be 1")]
    SlotsOfReply(
        /// What was asked for.
        usize,
    ),
    /// One push more than there are slots.
    #[error("all {0} slots of the message are written")]
    NoSlotLeft(
        /// Number of slots.
        usize,
    ),
    /// Finished with fewer pushes than slots.
    #[error("message has {slots} slots, {pushed} are written")]
    SlotsLeft {
        /// Number of slots.
        slots: usize,
        /// Number written.
        pushed: usize,
    },
    /// A length that does not fit 32 bits.
    #[error("value of {0} bytes does not fit a message, the limit is 4 GiB - 1")]
    ValueTooLong(
        /// Its length.
        usize,
    ),
    /// A value of fixed size pushed as external.
    #[error("a value of type {0} cannot be external")]
    ExternalScalar(
        /// Its type.
        ValueType,
    ),
    /// An external value of the guest in a message of the host, or the other way round.
    #[error("external value of the wrong side for this kind of message")]
    WrongSide,
}

impl<'a> MessageWriter<'a> {
    /// Starts a message of `slot_count` slots.
    ///
    /// # Errors
    /// The buffer does not hold header and slots, or the number of slots is not possible.
    #[inline]
    pub fn new(
        buffer: &'a mut [u8],
        kind: MessageKind,
        function: u32,
        slot_count: usize,
    ) -> Result<Self, WriteError> {
        if slot_count > MAX_SLOTS {
            return Err(WriteError::TooManySlots(slot_count));
        }
        if kind.is_reply() && slot_count != 1 {
            return Err(WriteError::SlotsOfReply(slot_count));
        }
        let end = slot_offset(slot_count);
        if buffer.len() < end {
            return Err(WriteError::BufferTooSmall {
                need_bytes: end,
                have_bytes: buffer.len(),
            });
        }
        Ok(Self {
            buffer,
            // Its length grows with what is pushed.
            header: MessageHeader::plain(kind, function, slot_count),
            pushed: 0,
            end,
        })
    }

    /// Writes the next slot and, for a string or bytes, its payload.
    ///
    /// # Errors
    /// All slots are written, or the payload does not fit; the message is then unchanged.
    #[inline]
    pub fn push(&mut self, value: ValueRef<'_>) -> Result<(), WriteError> {
        if let Some(slot) = Slot::of_scalar(value) {
            return self.put_slot(slot);
        }
        let payload = value.payload();
        let (len_bytes, start) = (length(payload.len())?, self.end);
        let need_bytes = start.saturating_add(payload.len());
        let have_bytes = self.buffer.len();
        if need_bytes > have_bytes || u32::try_from(need_bytes).is_err() {
            return Err(WriteError::BufferTooSmall {
                need_bytes,
                have_bytes,
            });
        }
        let ty = value.value_type().code();
        self.put_slot(Slot {
            ty,
            flags: 0,
            reserved: 0,
            len_bytes,
            bits: start as u64,
        })?;
        self.buffer[start..need_bytes].copy_from_slice(payload);
        self.end = need_bytes;
        Ok(())
    }

    /// Writes the next slot of a guest's message: `len_bytes` bytes of type `value_type` at guest address `gva`.
    ///
    /// # Errors
    /// All slots are written, the type is of fixed size, the length exceeds 32 bits, or the message is the host's.
    pub fn push_guest_memory(
        &mut self,
        value_type: ValueType,
        gva: u64,
        len_bytes: usize,
    ) -> Result<(), WriteError> {
        if !self.is_from_guest() {
            return Err(WriteError::WrongSide);
        }
        self.push_external(value_type, gva, len_bytes)
    }

    /// Writes the next slot of a host's message: the guest gets its `len_bytes` bytes by naming the slot in a
    /// [`FillRequest`](crate::fill::FillRequest). Returns the slot's number.
    ///
    /// # Errors
    /// All slots are written, the type is of fixed size, the length exceeds 32 bits, or the message is the guest's.
    pub fn push_host_slot(
        &mut self,
        value_type: ValueType,
        len_bytes: usize,
    ) -> Result<u32, WriteError> {
        if self.is_from_guest() {
            return Err(WriteError::WrongSide);
        }
        // At most MAX_SLOTS.
        #[expect(clippy::cast_possible_truncation)]
        let slot = self.pushed as u32;
        self.push_external(value_type, u64::from(slot), len_bytes)?;
        Ok(slot)
    }

    /// Writes the header and returns the length of the message.
    ///
    /// # Errors
    /// Not all slots are written.
    #[inline]
    pub fn finish(mut self) -> Result<usize, WriteError> {
        let slots = self.header.slot_count as usize;
        if self.pushed != slots {
            return Err(WriteError::SlotsLeft {
                slots,
                pushed: self.pushed,
            });
        }
        self.header.total_len_bytes = length(self.end)?;
        self.buffer[..MessageHeader::LEN_BYTES].copy_from_slice(self.header.as_bytes());
        Ok(self.end)
    }

    fn push_external(
        &mut self,
        value_type: ValueType,
        bits: u64,
        len_bytes: usize,
    ) -> Result<(), WriteError> {
        if !value_type.is_variable() {
            return Err(WriteError::ExternalScalar(value_type));
        }
        let len_bytes = length(len_bytes)?;
        self.put_slot(Slot {
            ty: value_type.code(),
            flags: FLAG_EXTERNAL,
            reserved: 0,
            len_bytes,
            bits,
        })
    }

    #[inline]
    fn put_slot(&mut self, slot: Slot) -> Result<(), WriteError> {
        let slots = self.header.slot_count as usize;
        if self.pushed >= slots {
            return Err(WriteError::NoSlotLeft(slots));
        }
        let at = slot_offset(self.pushed);
        self.buffer[at..at + Slot::LEN_BYTES].copy_from_slice(slot.as_bytes());
        self.pushed += 1;
        Ok(())
    }

    fn is_from_guest(&self) -> bool {
        MessageKind::from_number(self.header.kind).is_some_and(MessageKind::is_from_guest)
    }
}

/// Writes an error reply and returns its length. The text is cut, between characters, to
/// [`MAX_ERROR_TEXT_LEN_BYTES`] and to the buffer.
///
/// # Errors
/// `kind` is not a reply, or the buffer does not even hold header and slot.
pub fn write_error(
    buffer: &mut [u8],
    kind: MessageKind,
    function: u32,
    code: ErrorCode,
    text: &str,
) -> Result<usize, WriteError> {
    if !kind.is_reply() {
        return Err(WriteError::SlotsOfReply(0));
    }
    let room_bytes = buffer.len().saturating_sub(slot_offset(1));
    let mut writer = MessageWriter::new(buffer, kind, function, 1)?;
    writer.header.status = code.number();
    writer.push(ValueRef::String(cut(
        text,
        room_bytes.min(MAX_ERROR_TEXT_LEN_BYTES),
    )))?;
    writer.finish()
}

/// The longest start of `text` that has at most `len_bytes` bytes and ends between characters.
fn cut(text: &str, len_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(len_bytes)]
}

fn length(len_bytes: usize) -> Result<u32, WriteError> {
    u32::try_from(len_bytes).map_err(|_| WriteError::ValueTooLong(len_bytes))
}

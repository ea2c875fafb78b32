//! What host and guest say to each other: the two message buffers and the outbox.

use vellum_abi::message::{MessageHeader, MessageKind, Slot};
use vellum_abi::outbox::{OutboxHeader, RECORDS_OFFSET};
use vellum_backend::memory::OutOfBounds;
use zerocopy::IntoBytes;

use super::{CowState, Instance};
use crate::error::Failure;

impl Instance {
    /// Writes a message at the start of the input buffer.
    #[inline]
    pub(crate) fn write_input(&mut self, message: &[u8]) -> Result<(), OutOfBounds> {
        self.note_input(message.len() as u64);
        if self.is_polled {
            return self.memory.scratch.write_words(self.input_offset, message);
        }
        self.memory.scratch.write(self.input_offset, message)
    }

    /// Writes a message of nothing but values of fixed size there.
    #[inline]
    pub(crate) fn write_plain_input(
        &mut self,
        kind: MessageKind,
        function: u32,
        slots: &[Slot],
    ) -> Result<(), OutOfBounds> {
        let header = MessageHeader::plain(kind, function, slots.len());
        self.note_input(header.total_len_bytes.into());
        let scratch = &self.memory.scratch;
        scratch.write_words(self.input_offset, header.as_bytes())?;
        let slots_offset = self.input_offset + MessageHeader::LEN_BYTES as u64;
        scratch.write_words(slots_offset, slots.as_bytes())
    }

    /// Remembers that the host writes to the start of the input buffer.
    #[inline]
    fn note_input(&mut self, len_bytes: u64) {
        if let CowState::Kernel(_) = self.cow {
            self.mark_input(len_bytes);
        }
        self.input_used = self.input_used.max(len_bytes);
    }

    /// Remembers for the restore of a kernel that the host writes to its physical memory.
    #[inline(never)]
    fn mark_input(&mut self, len_bytes: u64) {
        if let CowState::Kernel(physical) = &mut self.cow {
            physical.mark(self.geometry.plan.input().start(), len_bytes);
        }
    }

    /// What the host has written to the input buffer since it was last zero.
    pub(crate) fn input(&self) -> Result<Vec<u8>, OutOfBounds> {
        let offset = self.input_offset;
        let mut bytes = Vec::new();
        let len = usize::try_from(self.input_used).unwrap_or(usize::MAX);
        self.memory.scratch.append_to(offset, len, &mut bytes)?;
        Ok(bytes)
    }

    /// Copies bytes from the start of the output buffer.
    #[inline]
    pub(crate) fn read_output(&self, into: &mut [u8]) -> Result<(), OutOfBounds> {
        if self.is_polled {
            return self.memory.scratch.read_words(self.output_offset, into);
        }
        self.memory.scratch.read(self.output_offset, into)
    }

    /// Whether there is anything in the outbox, in one access.
    #[inline]
    pub(crate) fn outbox_header(&self) -> Result<OutboxHeader, OutOfBounds> {
        let raw = self.memory.scratch.read_u64(self.outbox_offset)?;
        Ok(zerocopy::transmute!(raw.to_le_bytes()))
    }

    /// Whether that is nothing. A memory that cannot be read is for whoever reads on.
    #[inline]
    pub(crate) fn is_outbox_empty(&self) -> bool {
        self.outbox_header() == Ok(OutboxHeader::default())
    }

    pub(crate) fn outbox_len_bytes(&self) -> u64 {
        self.geometry.view.outbox.len_bytes()
    }

    /// Copies this many bytes of records into `into`, which is empty.
    pub(crate) fn read_outbox(
        &self,
        len_bytes: usize,
        into: &mut Vec<u8>,
    ) -> Result<(), OutOfBounds> {
        let records = self.outbox_offset + RECORDS_OFFSET as u64;
        if self.is_polled {
            into.resize(len_bytes, 0);
            return self.memory.scratch.read_words(records, into);
        }
        self.memory.scratch.append_to(records, len_bytes, into)
    }

    /// Makes the outbox of a guest that waits empty.
    pub(crate) fn empty_outbox(&mut self) -> Result<(), Failure> {
        if let CowState::Kernel(physical) = &mut self.cow {
            physical.mark(self.geometry.outbox()?.start(), size_of::<u64>() as u64);
        }
        Ok(self.memory.scratch.write_u64(self.outbox_offset, 0)?)
    }
}

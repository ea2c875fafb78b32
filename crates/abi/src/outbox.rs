//! The outbox: what a guest tells its host without leaving to it.
//!
//! Log records, metrics and one-way host calls need no answer, so they need no exit. The guest appends them to a part of its
//! memory that the PEB names, and the host takes them out, in order, at the next exit, whatever that exit is for.
//!
//! ```text
//! 0    OutboxHeader
//! 128  records, one behind the other, each at a multiple of 8: RecordHeader, body, padding
//! ```
//!
//! # Rules
//!
//! * The guest writes a record behind the last one and then moves [`OutboxHeader::end_bytes`] behind it. Nothing before the end
//!   changes any more.
//! * The host empties the outbox, by setting the end to 0, only while the guest waits for it in an `out` of its own. A host that
//!   looks at another moment remembers how far it has read.
//! * A guest whose record does not fit leaves through [`Port::Drain`](crate::port::Port::Drain), after which the outbox is empty;
//!   a record that does not fit an empty outbox is cut, if it is text, or refused. Where the PEB has
//!   [`FLAG_OUTBOX_DROPS`](crate::peb::FLAG_OUTBOX_DROPS) the guest drops a log record or metric instead, and counts it in
//!   [`OutboxHeader::dropped`]. One-way calls are never dropped.
//! * Whoever restores a guest empties its outbox: it is no part of a snapshot.

use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::log::{LogRecord, RecordError};
use crate::message::{Limits, Message, MessageError, MessageKind};
use crate::metric::{MetricError, MetricRecord};

/// Where the records begin; two cache lines of 64 bytes, so that records share none with what both sides watch.
pub const RECORDS_OFFSET: usize = 128;
/// Every record begins at a multiple of this.
pub const RECORD_ALIGN: usize = 8;
/// Smallest outbox: one page.
pub const MIN_OUTBOX_LEN_BYTES: usize = 4096;
/// Largest outbox, so that what a host does for one exit is bounded: 16 MiB.
pub const MAX_OUTBOX_LEN_BYTES: usize = 16 << 20;

/// Start of the outbox.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(8))]
pub struct OutboxHeader {
    /// Where the last record ends, from the first record on; a multiple of [`RECORD_ALIGN`].
    pub end_bytes: u32,
    /// Records that the guest has dropped since the host last set this to 0.
    pub dropped: u32,
}

/// Start of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct RecordHeader {
    /// A [`RecordKind`].
    pub kind: u32,
    /// Length of the body, without header and padding.
    pub len_bytes: u32,
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum RecordKind {
    /// The body is a [log record](crate::log).
    Log = 1,
    /// The body is a [metric](crate::metric).
    Metric = 2,
    /// The body is a [message](crate::message) of kind [`MessageKind::OneWay`] with all its values inside.
    OneWay = 3,
}

impl OutboxHeader {
    /// Size of the structure.
    pub const LEN_BYTES: usize = 8;
}

impl RecordHeader {
    /// Size of the structure.
    pub const LEN_BYTES: usize = 8;
}

const _: () = {
    assert!(size_of::<OutboxHeader>() == OutboxHeader::LEN_BYTES);
    assert!(core::mem::offset_of!(OutboxHeader, dropped) == 4);
    assert!(size_of::<RecordHeader>() == RecordHeader::LEN_BYTES);
    assert!(RecordHeader::LEN_BYTES.is_multiple_of(RECORD_ALIGN));
    assert!(RECORDS_OFFSET.is_multiple_of(RECORD_ALIGN));
};

/// A record, parsed.
#[derive(Clone, Copy, Debug)]
pub enum Record<'a> {
    /// A log record.
    Log(LogRecord<'a>),
    /// A metric.
    Metric(MetricRecord<'a>),
    /// A one-way host call. Its values are unchecked, like those of any message.
    OneWay(Message<'a>),
}

/// An outbox that breaks the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// The end lies past the outbox, before what was read already, or not at a multiple of [`RECORD_ALIGN`].
    #[error(
        "outbox ends at {end_bytes:#x}, possible are multiples of 8 from {read_bytes:#x} to {room_bytes:#x}"
    )]
    End {
        /// What the header says.
        end_bytes: u32,
        /// Where reading began.
        read_bytes: u32,
        /// Room for records.
        room_bytes: usize,
    },
    /// A record reaches past the end of the records.
    #[error("record at {at:#x} of the outbox reaches past the last record")]
    Length {
        /// Its place.
        at: usize,
    },
    /// A record of an unknown kind.
    #[error("record at {at:#x} of the outbox has unknown kind {kind}")]
    UnknownKind {
        /// Its place.
        at: usize,
        /// What was found.
        kind: u32,
    },
    /// A log record that cannot be one.
    #[error("log record at {at:#x} of the outbox is malformed")]
    Log {
        /// Its place.
        at: usize,
        /// What is wrong with it.
        #[source]
        source: RecordError,
    },
    /// A metric that cannot be one.
    #[error("metric at {at:#x} of the outbox is malformed")]
    Metric {
        /// Its place.
        at: usize,
        /// What is wrong with it.
        #[source]
        source: MetricError,
    },
    /// A one-way call that cannot be one.
    #[error("one-way call at {at:#x} of the outbox is malformed")]
    OneWay {
        /// Its place.
        at: usize,
        /// What is wrong with it.
        #[source]
        source: MessageError,
    },
    /// A message that is no one-way call.
    #[error("message at {at:#x} of the outbox is no one-way call")]
    NotOneWay {
        /// Its place.
        at: usize,
    },
}

impl OutboxHeader {
    /// Which bytes of the records are new to a reader that has read `read_bytes` of them, where there is room for `room_bytes`.
    ///
    /// # Errors
    /// [`OutboxError::End`].
    pub fn unread(
        &self,
        read_bytes: u32,
        room_bytes: usize,
    ) -> Result<core::ops::Range<u32>, OutboxError> {
        let end = self.end_bytes;
        let sound = end >= read_bytes
            && end as usize <= room_bytes
            && (end as usize).is_multiple_of(RECORD_ALIGN);
        if sound {
            return Ok(read_bytes..end);
        }
        Err(OutboxError::End {
            end_bytes: end,
            read_bytes,
            room_bytes,
        })
    }
}

/// One record under construction, in the room behind the last one.
#[derive(Debug)]
pub struct RecordWriter<'a> {
    room: &'a mut [u8],
}

impl<'a> RecordWriter<'a> {
    /// A record at the start of `room`; `None` where not even an empty one fits.
    #[must_use]
    pub fn new(room: &'a mut [u8]) -> Option<Self> {
        let usable = room.len() - room.len() % RECORD_ALIGN;
        let room = room.get_mut(..usable)?;
        (usable > RecordHeader::LEN_BYTES).then_some(Self { room })
    }

    /// Room for the body.
    #[inline]
    pub fn body(&mut self) -> &mut [u8] {
        &mut self.room[RecordHeader::LEN_BYTES..]
    }

    /// Writes the header of a record whose body has `len_bytes`, at most as many as there was room for. Returns how many bytes the
    /// record takes with its padding.
    #[inline]
    pub fn finish(self, kind: RecordKind, len_bytes: usize) -> usize {
        let room_bytes = self.room.len() - RecordHeader::LEN_BYTES;
        let len_bytes = len_bytes.min(room_bytes);
        let header = RecordHeader {
            kind: kind as u32,
            // A slice of an outbox is shorter than 4 GiB.
            len_bytes: u32::try_from(len_bytes).unwrap_or(u32::MAX),
        };
        self.room[..RecordHeader::LEN_BYTES].copy_from_slice(header.as_bytes());
        RecordHeader::LEN_BYTES + len_bytes.next_multiple_of(RECORD_ALIGN)
    }
}

/// The records in a copy of (a part of) an outbox, in order. After an error there are no more.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Records<'a> {
    /// Records from the start of `bytes` to its end.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn parse(&mut self) -> Result<Record<'a>, OutboxError> {
        let at = self.at;
        // Whatever comes of this one, an error ends the iteration.
        self.at = self.bytes.len();
        let too_long = OutboxError::Length { at };
        let rest = self.bytes.get(at..).unwrap_or_default();
        let (header, rest) = RecordHeader::read_from_prefix(rest).map_err(|_| too_long)?;
        let len_bytes = header.len_bytes as usize;
        let (Some(body), Some(_padded)) = (
            rest.get(..len_bytes),
            len_bytes
                .checked_next_multiple_of(RECORD_ALIGN)
                .and_then(|len_bytes| rest.get(..len_bytes)),
        ) else {
            return Err(too_long);
        };
        let record = parse_body(at, header.kind, body)?;
        self.at = at + RecordHeader::LEN_BYTES + len_bytes.next_multiple_of(RECORD_ALIGN);
        Ok(record)
    }
}

fn parse_body(at: usize, kind: u32, body: &[u8]) -> Result<Record<'_>, OutboxError> {
    match kind {
        1 => LogRecord::parse(body)
            .map(Record::Log)
            .map_err(|source| OutboxError::Log { at, source }),
        2 => MetricRecord::parse(body)
            .map(Record::Metric)
            .map_err(|source| OutboxError::Metric { at, source }),
        3 => {
            let message = Message::parse(body, Limits::for_buffer(body.len()))
                .map_err(|source| OutboxError::OneWay { at, source })?;
            if message.kind() == MessageKind::OneWay {
                Ok(Record::OneWay(message))
            } else {
                Err(OutboxError::NotOneWay { at })
            }
        }
        kind => Err(OutboxError::UnknownKind { at, kind }),
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, OutboxError>;

    fn next(&mut self) -> Option<Self::Item> {
        (self.at < self.bytes.len()).then(|| self.parse())
    }
}

#[cfg(test)]
mod tests;

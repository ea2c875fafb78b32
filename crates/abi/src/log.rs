//! Log records and panic records.
//!
//! Both are a 16-byte header and two texts. A log record is a record of the [outbox](crate::outbox); a panic record lies at offset
//! 0 of the output buffer. The guest cuts texts that do not fit.

use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// How serious a log record is. Smaller is more serious.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Level {
    /// Something failed.
    Error = 1,
    /// Something is odd.
    Warn = 2,
    /// Something worth knowing happened.
    Info = 3,
    /// For whoever debugs the guest.
    Debug = 4,
    /// For whoever debugs the guest and has time.
    Trace = 5,
}

impl Level {
    /// The level with this number, or `None`.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Error,
            2 => Self::Warn,
            3 => Self::Info,
            4 => Self::Debug,
            5 => Self::Trace,
            _ => return None,
        })
    }
}

/// Start of a log record; `target_len_bytes` bytes of target and `message_len_bytes` bytes of message follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LogHeader {
    /// A [`Level`].
    pub level: u32,
    /// Length of the target, the name of the module that logs.
    pub target_len_bytes: u32,
    /// Length of the message.
    pub message_len_bytes: u32,
    /// Zero.
    pub reserved: u32,
}

/// Start of a panic record; `file_len_bytes` bytes of file name and `message_len_bytes` bytes of message follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PanicHeader {
    /// Line of the panic, from 1; 0 when unknown.
    pub line: u32,
    /// Column of the panic, from 1; 0 when unknown.
    pub column: u32,
    /// Length of the file name.
    pub file_len_bytes: u32,
    /// Length of the message.
    pub message_len_bytes: u32,
}

/// Length of both headers.
pub const HEADER_LEN_BYTES: usize = 16;

const _: () = {
    assert!(size_of::<LogHeader>() == HEADER_LEN_BYTES && align_of::<LogHeader>() == 4);
    assert!(size_of::<PanicHeader>() == HEADER_LEN_BYTES && align_of::<PanicHeader>() == 4);
};

/// A log record, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRecord<'a> {
    /// How serious it is.
    pub level: Level,
    /// Which part of the guest says it.
    pub target: &'a str,
    /// What it says.
    pub message: &'a str,
}

/// A panic record, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PanicRecord<'a> {
    /// Source file of the panic; empty when unknown.
    pub file: &'a str,
    /// Line, from 1; 0 when unknown.
    pub line: u32,
    /// Column, from 1; 0 when unknown.
    pub column: u32,
    /// The panic message.
    pub message: &'a str,
}

/// A log or panic record that cannot be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Header and texts need more bytes than there are.
    #[error("record needs {need_bytes} bytes, the buffer holds {have_bytes}")]
    TooShort {
        /// What the record claims.
        need_bytes: u64,
        /// Bytes at hand.
        have_bytes: usize,
    },
    /// The level is none of [`Level`].
    #[error("log record has unknown level {0}")]
    UnknownLevel(
        /// What was found.
        u32,
    ),
    /// The reserved field is not zero.
    #[error("log record has {0:#x} in its reserved field")]
    ReservedNotZero(
        /// What was found.
        u32,
    ),
    /// A text is not UTF-8.
    #[error("{0} of the record is not utf-8")]
    NotUtf8(
        /// Which text.
        &'static str,
    ),
}

impl<'a> LogRecord<'a> {
    /// Parses a copy of the record's body.
    ///
    /// # Errors
    /// Names what is wrong with the record.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let (header, rest) = split::<LogHeader>(bytes)?;
        let level =
            Level::from_number(header.level).ok_or(RecordError::UnknownLevel(header.level))?;
        if header.reserved != 0 {
            return Err(RecordError::ReservedNotZero(header.reserved));
        }
        let lens_bytes = [header.target_len_bytes, header.message_len_bytes];
        let [target, message] = texts(rest, lens_bytes, ["target", "message"])?;
        Ok(Self {
            level,
            target,
            message,
        })
    }
}

impl<'a> PanicRecord<'a> {
    /// Parses a copy of the output buffer.
    ///
    /// # Errors
    /// Names what is wrong with the record.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let (header, rest) = split::<PanicHeader>(bytes)?;
        let lens_bytes = [header.file_len_bytes, header.message_len_bytes];
        let [file, message] = texts(rest, lens_bytes, ["file", "message"])?;
        Ok(Self {
            file,
            line: header.line,
            column: header.column,
            message,
        })
    }

    /// How many bytes of the output buffer the record that starts with `header_bytes` covers, so that a host copies
    /// no more than it needs.
    ///
    /// # Errors
    /// `header_bytes` are fewer than a header has.
    pub fn len_bytes(header_bytes: &[u8]) -> Result<u64, RecordError> {
        let (header, _) = split::<PanicHeader>(header_bytes)?;
        Ok(record_len(header.file_len_bytes, header.message_len_bytes))
    }
}

fn split<T: FromBytes>(bytes: &[u8]) -> Result<(T, &[u8]), RecordError> {
    T::read_from_prefix(bytes).map_err(|_| RecordError::TooShort {
        need_bytes: HEADER_LEN_BYTES as u64,
        have_bytes: bytes.len(),
    })
}

fn record_len(first_bytes: u32, second_bytes: u32) -> u64 {
    HEADER_LEN_BYTES as u64 + u64::from(first_bytes) + u64::from(second_bytes)
}

/// The two texts at the start of `rest`, one behind the other.
fn texts<'a>(
    rest: &'a [u8],
    [first, second]: [u32; 2],
    names: [&'static str; 2],
) -> Result<[&'a str; 2], RecordError> {
    let too_short = RecordError::TooShort {
        need_bytes: record_len(first, second),
        have_bytes: rest.len() + HEADER_LEN_BYTES,
    };
    let len = (first as usize).checked_add(second as usize);
    let both = len.and_then(|len| rest.get(..len)).ok_or(too_short)?;
    // Short texts are checked faster together. Where one character would begin in the first and end in the second, neither is sound.
    let text = core::str::from_utf8(both).ok();
    match text.and_then(|text| text.split_at_checked(first as usize)) {
        Some((first, second)) => Ok([first, second]),
        None => Err(not_utf8(both, first as usize, names)),
    }
}

/// Which of the two texts is at fault.
#[cold]
fn not_utf8(both: &[u8], first_len: usize, [first, second]: [&'static str; 2]) -> RecordError {
    let is_first_sound = both
        .get(..first_len)
        .is_some_and(|text| core::str::from_utf8(text).is_ok());
    RecordError::NotUtf8(if is_first_sound { second } else { first })
}

#[cfg(test)]
mod tests;

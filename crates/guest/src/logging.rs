//! Log records on their way to the host, behind the `log` crate's macros.

use core::fmt::Write;
use core::sync::atomic::{AtomicBool, Ordering};

use log::{LevelFilter, Log, Metadata, Record};
use vellum_abi::log::{HEADER_LEN_BYTES, Level, LogHeader};
use vellum_abi::outbox::RecordKind;
use zerocopy::IntoBytes;

use crate::link::Link;
use crate::outbox::{Body, WhenFull};
use crate::runtime;
use crate::text::TextBuffer;

/// Whether a record is being formatted into the outbox. Formatting runs code of the guest's author (`Display` of a logged
/// value), which must not use the outbox in the meantime, nor leave to the host, which would empty it.
static WRITING: AtomicBool = AtomicBool::new(false);

struct HostLog;

/// Sends records up to `level` (as in [`Level`], 0 for none) to the host.
pub(crate) fn install(level: u32) {
    let filter = match Level::from_number(level) {
        Some(Level::Error) => LevelFilter::Error,
        Some(Level::Warn) => LevelFilter::Warn,
        Some(Level::Info) => LevelFilter::Info,
        Some(Level::Debug) => LevelFilter::Debug,
        Some(Level::Trace) => LevelFilter::Trace,
        None => LevelFilter::Off,
    };
    if log::set_logger(&HostLog).is_ok() {
        log::set_max_level(filter);
    }
}

/// Whether a record is being formatted right now.
pub(crate) fn is_writing() -> bool {
    WRITING.load(Ordering::Relaxed)
}

impl Log for HostLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if let Some(link) = runtime::link() {
            send(link, record);
        }
    }

    fn flush(&self) {}
}

/// Writes `record` to the outbox. A record logged while another is being formatted is dropped. Where the outbox has too little
/// room left the record is formatted a second time, after the host has emptied it.
fn send(link: &Link<'_>, record: &Record<'_>) {
    if WRITING.swap(true, Ordering::Relaxed) {
        return;
    }
    link.append(RecordKind::Log, WhenFull::MayDrop, |body| {
        write_record(body, record)
    });
    WRITING.store(false, Ordering::Relaxed);
}

fn write_record(body: &mut [u8], record: &Record<'_>) -> Body {
    let Some((header_bytes, text_bytes)) = body.split_at_mut_checked(HEADER_LEN_BYTES) else {
        return Body::TooLong;
    };
    let mut text = TextBuffer::new(text_bytes);
    let target_len_bytes = text.push(record.target());
    // A TextBuffer cuts instead of failing; an error can only be that of a value's own Display.
    let _ = text.write_fmt(*record.args());
    let header = LogHeader {
        level: level_number(record.level()),
        target_len_bytes: len32(target_len_bytes),
        message_len_bytes: len32(text.len_bytes() - target_len_bytes),
        reserved: 0,
    };
    header_bytes.copy_from_slice(header.as_bytes());
    let len_bytes = HEADER_LEN_BYTES + text.len_bytes();
    if text.is_full() {
        Body::Cut(len_bytes)
    } else {
        Body::Whole(len_bytes)
    }
}

fn level_number(level: log::Level) -> u32 {
    let level = match level {
        log::Level::Error => Level::Error,
        log::Level::Warn => Level::Warn,
        log::Level::Info => Level::Info,
        log::Level::Debug => Level::Debug,
        log::Level::Trace => Level::Trace,
    };
    level as u32
}

/// A length inside a buffer as the ABI writes it. Buffers are shorter than 4 GiB.
pub(crate) fn len32(len_bytes: usize) -> u32 {
    u32::try_from(len_bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;

//! Guest log records become `tracing` events of the host.

use vellum_abi::log::{Level, LogRecord};
use vellum_abi::message::ErrorCode;

use crate::metrics::Delivery;

/// Records that one call may log; what is more is counted and reported once.
const MAX_RECORDS_PER_CALL: u32 = 1000;

/// The log of one call.
#[derive(Debug, Default)]
pub(crate) struct LogSink {
    records: u32,
    dropped_by_guest: u64,
    failed_calls: u64,
    /// What the first of them said.
    first_failure: String,
}

impl LogSink {
    /// Hands a record on. Its text is made printable: it comes from a hostile guest.
    pub(crate) fn emit(&mut self, record: &LogRecord<'_>) -> Delivery {
        self.records = self.records.saturating_add(1);
        if self.records > MAX_RECORDS_PER_CALL {
            return Delivery::Refused;
        }
        if is_wanted(record.level) {
            write(record);
        }
        Delivery::Delivered
    }

    /// The guest has dropped records because it had no room for them.
    pub(crate) fn note_dropped(&mut self, dropped: u32) {
        self.dropped_by_guest += u64::from(dropped);
    }

    /// A one-way call has failed, which its guest is not told.
    pub(crate) fn note_failed_call(&mut self, code: ErrorCode, text: &str) {
        if self.failed_calls == 0 {
            self.first_failure = format!("{code}: {text}");
        }
        self.failed_calls += 1;
    }
}

/// Whether anybody listens to guests at this level: making a text printable costs more than asking.
fn is_wanted(level: Level) -> bool {
    match level {
        Level::Error => tracing::enabled!(target: "vellum::guest", tracing::Level::ERROR),
        Level::Warn => tracing::enabled!(target: "vellum::guest", tracing::Level::WARN),
        Level::Info => tracing::enabled!(target: "vellum::guest", tracing::Level::INFO),
        Level::Debug => tracing::enabled!(target: "vellum::guest", tracing::Level::DEBUG),
        Level::Trace => tracing::enabled!(target: "vellum::guest", tracing::Level::TRACE),
    }
}

fn write(record: &LogRecord<'_>) {
    let guest = printable(record.target);
    let text = printable(record.message);
    match record.level {
        Level::Error => tracing::error!(target: "vellum::guest", %guest, "{text}"),
        Level::Warn => tracing::warn!(target: "vellum::guest", %guest, "{text}"),
        Level::Info => tracing::info!(target: "vellum::guest", %guest, "{text}"),
        Level::Debug => tracing::debug!(target: "vellum::guest", %guest, "{text}"),
        Level::Trace => tracing::trace!(target: "vellum::guest", %guest, "{text}"),
    }
}

impl Drop for LogSink {
    /// Reports at the end of a call what its log lost: nothing, as a rule.
    #[inline]
    fn drop(&mut self) {
        let is_whole = self.records <= MAX_RECORDS_PER_CALL
            && self.dropped_by_guest == 0
            && self.failed_calls == 0;
        if !is_whole {
            self.report();
        }
    }
}

impl LogSink {
    #[cold]
    fn report(&self) {
        let dropped = self.records.saturating_sub(MAX_RECORDS_PER_CALL);
        if dropped > 0 {
            tracing::warn!(target: "vellum::guest", dropped, "log records of a call were dropped");
        }
        let dropped = self.dropped_by_guest;
        if dropped > 0 {
            tracing::warn!(target: "vellum::guest", dropped, "the guest dropped records for which its outbox had no room");
        }
        let (failed, first) = (self.failed_calls, &self.first_failure);
        if failed > 0 {
            tracing::warn!(target: "vellum::guest", failed, %first, "one-way host calls failed");
        }
    }
}

/// A text without control characters.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|character| {
            let plain = !character.is_control();
            let escaped = (!plain).then(|| character.escape_default());
            plain
                .then_some(character)
                .into_iter()
                .chain(escaped.into_iter().flatten())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn terminal_escapes_are_made_visible() {
        let cases = [
            ("plain text, Unicode äöü", "plain text, Unicode äöü"),
            ("\u{1b}[2Jgone", "\\u{1b}[2Jgone"),
            ("two\nlines\t", "two\\nlines\\t"),
            ("\u{9b}31m", "\\u{9b}31m"),
        ];
        for (text, expected) in cases {
            assert_eq!(printable(text), expected);
        }
    }
}

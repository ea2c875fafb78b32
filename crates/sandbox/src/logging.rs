//! Guest log records become `tracing` events of the host.

use vellum_abi::log::{Level, LogRecord};

/// Records that one call may log; what is more is counted and reported once.
const MAX_RECORDS_PER_CALL: u32 = 1000;

/// The log of one call.
#[derive(Debug, Default)]
pub(crate) struct LogSink {
    records: u32,
}

impl LogSink {
    /// Hands a record on. Its text is made printable: it comes from a hostile guest.
    pub(crate) fn emit(&mut self, record: &LogRecord<'_>) {
        self.records = self.records.saturating_add(1);
        if self.records > MAX_RECORDS_PER_CALL {
            return;
        }
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
}

impl Drop for LogSink {
    /// Reports at the end of a call what its log lost.
    fn drop(&mut self) {
        let dropped = self.records.saturating_sub(MAX_RECORDS_PER_CALL);
        if dropped > 0 {
            tracing::warn!(target: "vellum::guest", dropped, "log records of a call were dropped");
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

//! What a guest logs becomes events of the host.

use std::fmt::Write;
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::support::in_each_mode;

/// Collects the guest's events.
#[derive(Clone, Default)]
struct Collector {
    lines: Arc<Mutex<Vec<(Level, String)>>>,
}

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "vellum::guest"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        let mut lines = self.lines.lock().expect("no panic");
        lines.push((*event.metadata().level(), text.0));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0, "{}={value:?} ", field.name()).expect("a string takes anything");
    }
}

pub(crate) fn collected(run: impl FnOnce()) -> Vec<(Level, String)> {
    let collector = Collector::default();
    tracing::subscriber::with_default(collector.clone(), run);
    let lines = collector.lines.lock().expect("no panic");
    lines.clone()
}

#[test]
fn each_record_is_an_event_of_its_level() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let lines = collected(|| sandbox.call("log_levels", ()).expect("called"));
        let expected = [
            (Level::ERROR, "an error"),
            (Level::WARN, "a warning"),
            (Level::INFO, "an info"),
            (Level::DEBUG, "a debug record"),
            (Level::TRACE, "a trace record"),
        ];
        assert_eq!(lines.len(), expected.len(), "{lines:?}");
        for ((level, line), (expected_level, text)) in lines.iter().zip(expected) {
            assert_eq!(*level, expected_level);
            assert!(
                line.contains(text) && line.contains("guest=vellum_guest_rust"),
                "{line}"
            );
        }
    });
}

#[test]
fn a_flood_of_records_is_cut_and_the_loss_reported() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        for _ in 0..2 {
            let lines = collected(|| sandbox.call("log_lines", (1500_u32,)).expect("called"));
            assert_eq!(lines.len(), 1001);
            assert!(lines[999].1.contains("line 999"), "{:?}", lines[999]);
            let (level, last) = &lines[1000];
            assert!(
                *level == Level::WARN && last.contains("dropped=500"),
                "{last}"
            );
        }
    });
}

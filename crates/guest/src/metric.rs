//! Numbers that the guest reports to its host, by name.
//!
//! A report costs no exit: it is written to the outbox, which the host reads whenever the guest has left to it.
//!
//! ```no_run
//! use vellum_guest::metric::{Counter, Gauge, Histogram};
//!
//! static REQUESTS: Counter = Counter::new("requests.total");
//! static LOAD: Gauge = Gauge::new("load");
//! static SIZES: Histogram = Histogram::new("request.len_bytes");
//!
//! fn handle(request: &[u8]) {
//!     REQUESTS.add(1);
//!     SIZES.record(512.0);
//!     LOAD.set(0.5);
//! }
//! ```
//!
//! Names are 1 to 128 bytes of printable ASCII without space; in a static, another one fails the build. The host bounds how many
//! different names there may be.

use vellum_abi::function::MAX_NAME_LEN_BYTES;
use vellum_abi::metric::{MetricRecord, MetricValue};
use vellum_abi::outbox::RecordKind;

use crate::link::Link;
use crate::outbox::{Body, WhenFull};
use crate::{logging, runtime};

/// Counts how often something happens.
#[derive(Clone, Copy, Debug)]
pub struct Counter(Name);

/// A value that goes up and down.
#[derive(Clone, Copy, Debug)]
pub struct Gauge(Name);

/// A distribution, of which the guest reports the samples.
#[derive(Clone, Copy, Debug)]
pub struct Histogram(Name);

#[derive(Clone, Copy, Debug)]
struct Name(&'static str);

impl Counter {
    /// The counter with this name.
    ///
    /// # Panics
    /// When the name is none, see the module's documentation.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self(Name::new(name))
    }

    /// It happened `amount` times more.
    pub fn add(&self, amount: u64) {
        report(self.0, MetricValue::Counter(amount));
    }
}

impl Gauge {
    /// The gauge with this name.
    ///
    /// # Panics
    /// When the name is none, see the module's documentation.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self(Name::new(name))
    }

    /// This is the value now.
    pub fn set(&self, value: f64) {
        report(self.0, MetricValue::Gauge(value));
    }
}

impl Histogram {
    /// The histogram with this name.
    ///
    /// # Panics
    /// When the name is none, see the module's documentation.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self(Name::new(name))
    }

    /// One sample.
    pub fn record(&self, value: f64) {
        report(self.0, MetricValue::Sample(value));
    }
}

impl Name {
    const fn new(name: &'static str) -> Self {
        let bytes = name.as_bytes();
        assert!(
            !bytes.is_empty() && bytes.len() <= MAX_NAME_LEN_BYTES,
            "a metric's name has 1 to 128 bytes"
        );
        let mut index = 0;
        while index < bytes.len() {
            assert!(
                bytes[index].is_ascii_graphic(),
                "a metric's name is printable ascii without space"
            );
            index += 1;
        }
        Self(name)
    }
}

fn report(name: Name, value: MetricValue) {
    // A report from a value that is being formatted for the log would write over the record.
    if logging::is_writing() {
        return;
    }
    if let Some(link) = runtime::link() {
        send(
            link,
            MetricRecord {
                name: name.0,
                value,
            },
        );
    }
}

fn send(link: &Link<'_>, metric: MetricRecord<'_>) {
    link.append(RecordKind::Metric, WhenFull::MayDrop, |body| {
        // The name was checked when it was declared.
        match metric.write(body) {
            Ok(Some(len_bytes)) => Body::Whole(len_bytes),
            Ok(None) | Err(_) => Body::TooLong,
        }
    });
}

//! Numbers that guests report, on their way to the embedder.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vellum_abi::metric::{MetricRecord as Metric, MetricValue};

/// Takes the numbers that guests report: counters, gauges and samples, by name.
///
/// Any closure that takes a [`Metric`](crate::Metric) is one. It is called on the thread that makes the call, in the order of the
/// guest's reports, and must not block. What it is given comes from a hostile guest: a name of 1 to 128 bytes of printable ASCII
/// without space, one of a bounded number of names, and a finite number of any size, any number of times.
pub trait MetricSink: Send + Sync {
    /// Takes one number.
    fn record(&self, metric: Metric<'_>);
}

impl<F: Fn(Metric<'_>) + Send + Sync> MetricSink for F {
    fn record(&self, metric: Metric<'_>) {
        self(metric);
    }
}

/// A sink, and the names that it knows.
pub(crate) struct Metrics {
    sink: Box<dyn MetricSink>,
    max_names: usize,
    names: Mutex<BTreeSet<Box<str>>>,
    is_full: AtomicBool,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Metrics(at most {} names)", self.max_names)
    }
}

impl Metrics {
    pub(crate) fn new(sink: Box<dyn MetricSink>, max_names: usize) -> Arc<Self> {
        Arc::new(Self {
            sink,
            max_names,
            names: Mutex::default(),
            is_full: AtomicBool::new(max_names == 0),
        })
    }

    /// Adds a name, or finds it among the names of other sandboxes.
    fn admit(&self, name: &str) -> bool {
        // Nothing panics while the lock is held; were it so, the set would still be sound.
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.contains(name) {
            return true;
        }
        if names.len() >= self.max_names {
            self.is_full.store(true, Ordering::Relaxed);
            return false;
        }
        names.insert(name.into());
        true
    }
}

/// The names that one sandbox has used, so that it asks the set that all share once for each.
#[derive(Debug, Default)]
pub(crate) struct KnownNames {
    names: HashSet<Box<str>>,
    /// Whether the names that are not known were looked for since the shared set became full.
    is_complete: bool,
}

/// What became of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    Delivered,
    /// One name too many, no number, or a sink that panicked.
    Refused,
}

impl KnownNames {
    /// Hands a metric on.
    pub(crate) fn deliver(&mut self, metrics: &Metrics, metric: Metric<'_>) -> Delivery {
        let is_finite = match metric.value {
            MetricValue::Counter(_) => true,
            MetricValue::Gauge(value) | MetricValue::Sample(value) => value.is_finite(),
        };
        if !is_finite || !self.knows(metrics, metric.name) {
            return Delivery::Refused;
        }
        match catch_unwind(AssertUnwindSafe(|| metrics.sink.record(metric))) {
            Ok(()) => Delivery::Delivered,
            Err(_) => Delivery::Refused,
        }
    }

    fn knows(&mut self, metrics: &Metrics, name: &str) -> bool {
        if self.names.contains(name) {
            return true;
        }
        if self.is_complete {
            return false;
        }
        if metrics.is_full.load(Ordering::Relaxed) {
            // No name is added any more: learn all of them, and never ask again.
            let names = metrics.names.lock().unwrap_or_else(PoisonError::into_inner);
            self.names = names.iter().cloned().collect();
            self.is_complete = true;
            return self.names.contains(name);
        }
        let admitted = metrics.admit(name);
        if admitted {
            self.names.insert(name.into());
        }
        admitted
    }
}

#[cfg(test)]
mod tests;

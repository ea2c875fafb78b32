//! What a pool counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a pool has done since it was made, and how it stands. The numbers are read one after the other, while others change them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolMetrics {
    /// Sandboxes that wait to be taken.
    pub parked: usize,
    /// Sandboxes that exist, parked, taken, or on their way.
    pub live: usize,
    /// How many were taken.
    pub taken: u64,
    /// How many were given back.
    pub returned: u64,
    /// How many were made.
    pub made: u64,
    /// How often none was ready, so that the taker waited for one to be made.
    pub missed: u64,
    /// How many were restored in the background after a call that went wrong.
    pub healed: u64,
    /// How many could not be restored and were dropped.
    pub lost: u64,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters behind [`PoolMetrics`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) taken: Counter,
    pub(super) returned: Counter,
    pub(super) made: Counter,
    pub(super) missed: Counter,
    pub(super) healed: Counter,
    pub(super) lost: Counter,
}

impl Counters {
    pub(super) fn read(&self, parked: usize, live: usize) -> PoolMetrics {
        PoolMetrics {
            parked,
            live,
            taken: self.taken.get(),
            returned: self.returned.get(),
            made: self.made.get(),
            missed: self.missed.get(),
            healed: self.healed.get(),
            lost: self.lost.get(),
        }
    }
}

//! Polling: calls and host calls without exits, at the price of a core.
//!
//! The guest runs on a thread of its own and does not leave it to wait for its host: guest and host tell each other through
//! [words](vellum_abi::line) of shared memory. To the rest of the crate this is a [`Vm`](vellum_backend::Vm) like any other, whose
//! exits are sometimes none.

mod interrupter;
mod line;
mod runner;
mod vm;

use std::time::Duration;

pub(crate) use vm::PollingVm;

/// How a sandbox [polls](crate::Sandbox::into_polling).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Polling {
    pub(crate) spin: Duration,
}

impl Default for Polling {
    fn default() -> Self {
        Self::new()
    }
}

impl Polling {
    /// The caller's thread looks for 50 microseconds before it goes to sleep until the guest leaves.
    pub const fn new() -> Self {
        Self {
            spin: Duration::from_micros(50),
        }
    }

    /// For how long the caller's thread looks. The guest waits for some tens of microseconds, whatever this says.
    #[must_use]
    pub const fn spin(mut self, spin: Duration) -> Self {
        self.spin = spin;
        self
    }
}

//! Stopping a call from another thread.
//!
//! A call that can be stopped is *armed*: a serial number names it, so that a stop which comes late finds another serial and
//! does nothing. The lock is held while the vCPU is interrupted; the vCPU's thread takes it to disarm, and so cannot leave the
//! call, end, or begin the next one under the interrupter's hands. Uncontended, it costs no system call.

use std::sync::{Arc, Mutex, PoisonError};

use vellum_backend::Interrupter;

/// Why a call is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopReason {
    Cancelled,
    DeadlineExceeded,
}

/// The switch of one sandbox.
#[derive(Debug)]
pub(crate) struct Control {
    interrupter: Arc<dyn Interrupter>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    serial: u64,
    armed: bool,
    reason: Option<StopReason>,
}

impl Control {
    pub(crate) fn new(interrupter: Arc<dyn Interrupter>) -> Arc<Self> {
        Arc::new(Self {
            interrupter,
            state: Mutex::default(),
        })
    }

    /// Begins a call on this thread, and returns its serial number.
    pub(crate) fn arm(&self) -> u64 {
        let mut state = self.lock();
        self.interrupter.enter();
        state.serial += 1;
        state.armed = true;
        state.reason = None;
        state.serial
    }

    /// Ends the call.
    pub(crate) fn disarm(&self) {
        let mut state = self.lock();
        state.armed = false;
        // The next call may not arm, and must not take this reason for its own when a late signal interrupts it.
        state.reason = None;
        self.interrupter.leave();
    }

    /// Stops the call with this serial number, unless it has ended. The first reason counts.
    pub(crate) fn stop(&self, serial: u64, reason: StopReason) {
        let mut state = self.lock();
        if state.armed && state.serial == serial {
            state.reason.get_or_insert(reason);
            self.interrupter.interrupt();
        }
    }

    /// Why the current call is to end, if it is.
    pub(crate) fn reason(&self) -> Option<StopReason> {
        self.lock().reason
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing panics while the lock is held; were it so, the state would still be sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;

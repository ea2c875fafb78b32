//! Interrupting a guest that runs on a thread of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vellum_backend::Interrupter;

/// Stands between the thread that makes a call and the one that the guest runs on.
#[derive(Debug)]
pub(super) struct PollingInterrupter {
    inner: Arc<dyn Interrupter>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether the guest's thread is in the guest, or about to be.
    is_running: bool,
    /// An interruption was asked for and not yet withdrawn.
    is_wanted: bool,
    /// The guest is to leave for this once.
    is_kicked: bool,
}

impl PollingInterrupter {
    pub(super) fn new(inner: Arc<dyn Interrupter>) -> Self {
        Self {
            inner,
            state: Mutex::default(),
        }
    }

    /// The calling thread is about to enter the guest.
    pub(super) fn begin(&self) {
        let mut state = self.lock();
        self.inner.enter();
        state.is_running = true;
        if state.is_wanted || state.is_kicked {
            self.inner.interrupt();
        }
    }

    /// The calling thread has left the guest. Whether somebody had wanted that.
    pub(super) fn end(&self) -> bool {
        let mut state = self.lock();
        state.is_running = false;
        self.inner.leave();
        std::mem::take(&mut state.is_kicked) || state.is_wanted
    }

    /// Makes a running guest leave, once.
    pub(super) fn kick(&self) {
        let mut state = self.lock();
        state.is_kicked = true;
        if state.is_running {
            self.inner.interrupt();
        }
    }

    /// Withdraws what [`kick`](Self::kick) asked for, while no guest runs.
    pub(super) fn forget_kick(&self) {
        self.lock().is_kicked = false;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held; were it so, the state would still be sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Interrupter for PollingInterrupter {
    /// The caller's thread is not the one to interrupt.
    fn enter(&self) {}

    fn leave(&self) {
        self.lock().is_wanted = false;
    }

    fn interrupt(&self) {
        let mut state = self.lock();
        state.is_wanted = true;
        if state.is_running {
            self.inner.interrupt();
        }
    }
}

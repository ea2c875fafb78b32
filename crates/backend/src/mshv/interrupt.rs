//! Making a running vCPU return. There is no way to make the next entry return at once, and a signal that lands just before the entry is
//! lost: so the signal is sent again and again until the vCPU's thread has left.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use crate::signal;
use crate::vm::Interrupter;

/// Between two signals.
const PAUSE: Duration = Duration::from_micros(50);

/// What both threads know.
#[derive(Debug, Default)]
pub(super) struct MshvInterrupter {
    thread: AtomicI32,
    /// An interruption was asked for and not yet withdrawn.
    is_requested: AtomicBool,
    /// The vCPU's thread is in the guest, or about to enter it.
    is_running: AtomicBool,
}

impl MshvInterrupter {
    pub(super) fn new() -> io::Result<Self> {
        signal::install_handler()?;
        Ok(Self::default())
    }

    /// Announces an entry; `None` when an interruption is wanted instead. The entry ends when the value is dropped.
    ///
    /// Together with `interrupt`, which stores and loads the other way round: whichever comes last sees the other. A store followed
    /// by a load of another place needs sequential consistency for that.
    pub(super) fn entry(&self) -> Option<Entry<'_>> {
        self.is_running.store(true, Ordering::SeqCst);
        let entry = Entry(self);
        (!self.is_requested.load(Ordering::SeqCst)).then_some(entry)
    }
}

/// The vCPU's thread may be in the guest as long as this exists.
#[derive(Debug)]
pub(super) struct Entry<'a>(&'a MshvInterrupter);

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.0.is_running.store(false, Ordering::SeqCst);
    }
}

impl Interrupter for MshvInterrupter {
    fn enter(&self) {
        self.thread.store(signal::this_thread(), Ordering::Release);
    }

    fn leave(&self) {
        self.is_requested.store(false, Ordering::SeqCst);
    }

    /// Returns when the vCPU's thread has left the guest. It takes no lock on its way out, so that it does even when the caller holds one.
    fn interrupt(&self) {
        // Whoever asked first sends the signals.
        if self.is_requested.swap(true, Ordering::SeqCst) {
            return;
        }
        let vcpu_thread = self.thread.load(Ordering::Acquire);
        while self.is_running.load(Ordering::SeqCst) && self.is_requested.load(Ordering::SeqCst) {
            if signal::send(vcpu_thread).is_err() {
                return;
            }
            thread::sleep(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests;

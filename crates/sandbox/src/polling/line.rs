//! The host's end of the line.
#![expect(
    unsafe_code,
    reason = "reads and writes words that the guest may change at any time"
)]

use std::sync::atomic::{AtomicU32, Ordering};

use vellum_abi::line::{EAX_OFFSET, PORT_OFFSET, STATE_OFFSET, State};
use vellum_backend::memory::Hva;

/// The words of one guest's line.
#[derive(Debug)]
pub(super) struct Line {
    outbox: *mut u8,
}

// SAFETY: all accesses are atomic.
unsafe impl Send for Line {}

impl Line {
    /// The line of the outbox at `outbox`.
    ///
    /// # Safety
    /// The first page of the outbox stays mapped, readable and writable, as long as the value lives, and no reference to it exists.
    pub(super) unsafe fn new(outbox: Hva) -> Self {
        let address = usize::try_from(outbox.as_u64()).unwrap_or(0);
        Self {
            outbox: std::ptr::with_exposed_provenance_mut(address),
        }
    }

    /// Whether the line was in `from`; then it is in `to`.
    pub(super) fn change(&self, from: State, to: State) -> bool {
        self.word(STATE_OFFSET)
            .compare_exchange(from as u32, to as u32, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Sets the state of a line whose guest waits in an `out`.
    pub(super) fn set(&self, state: State) {
        self.word(STATE_OFFSET)
            .store(state as u32, Ordering::Release);
    }

    /// Takes what the guest has posted: port and EAX.
    #[inline]
    pub(super) fn take(&self) -> Option<(u32, u32)> {
        // Looking is cheaper than trying: it leaves the cache line shared.
        if self.word(STATE_OFFSET).load(Ordering::Relaxed) != State::Posted as u32
            || !self.change(State::Posted, State::Taken)
        {
            return None;
        }
        let port = self.word(PORT_OFFSET).load(Ordering::Relaxed);
        let eax = self.word(EAX_OFFSET).load(Ordering::Relaxed);
        Some((port, eax))
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: `new` required the page to be mapped; it is aligned, and the words lie in it. Every access of this program is
        // atomic and of this width; a guest is no part of this program.
        unsafe { AtomicU32::from_ptr(self.outbox.add(offset).cast()) }
    }
}

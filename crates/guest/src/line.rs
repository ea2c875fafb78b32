//! Waiting for the host without leaving, where it polls.

#![expect(
    unsafe_code,
    reason = "the line is memory shared with the host, known by address"
)]

use core::hint::spin_loop;
use core::sync::atomic::{AtomicU32, Ordering};

use vellum_abi::line::{EAX_OFFSET, GUEST_SPINS, PORT_OFFSET, STATE_OFFSET, State};
use vellum_abi::peb::Peb;
use vellum_abi::port::Port;

use crate::gate::Way;
use crate::link::address;

/// The line of this guest. It holds an address, not a reference.
#[derive(Clone, Copy)]
pub(crate) struct Line {
    outbox: *mut u8,
}

/// The states in which the host has not answered. After its answer it may have given up polling already, before the guest looks.
const WAITING: [State; 3] = [State::Posted, State::Taken, State::Leave];

fn is_waiting(state: u32) -> bool {
    WAITING.iter().any(|waiting| *waiting as u32 == state)
}

impl Line {
    /// The line in the outbox that `peb` names.
    ///
    /// # Safety
    /// As for the outbox, except that the host may change the line at any time.
    pub(crate) unsafe fn new(peb: &Peb) -> Self {
        Self {
            outbox: address(peb.outbox_ptr),
        }
    }

    /// Does what an `out` does, by the line if the host polls.
    #[inline]
    pub(crate) fn exit(self, way: Way<'_>, port: Port, eax: u32) {
        if self.word(STATE_OFFSET).load(Ordering::Relaxed) != State::Open as u32
            || !self.wait(port, eax)
        {
            way.exit(port, eax);
        }
    }

    /// Waits until the host has done what the port stands for; `false` when the guest has to leave for it after all.
    #[inline(never)]
    fn wait(self, port: Port, eax: u32) -> bool {
        self.word(PORT_OFFSET)
            .store(port.number().into(), Ordering::Relaxed);
        self.word(EAX_OFFSET).store(eax, Ordering::Relaxed);
        // What the host reads when it sees the new state was written before.
        if !self.change(State::Open, State::Posted) {
            return false;
        }
        for _ in 0..GUEST_SPINS {
            match self.state() {
                state if state == State::Leave as u32 => break,
                state if !is_waiting(state) => return true,
                _ => spin_loop(),
            }
        }
        // The host may have taken it, or answered, between two attempts.
        loop {
            if WAITING.iter().any(|from| self.change(*from, State::Left)) {
                return false;
            }
            if !is_waiting(self.state()) {
                return true;
            }
        }
    }

    fn state(self) -> u32 {
        self.word(STATE_OFFSET).load(Ordering::Acquire)
    }

    fn change(self, from: State, to: State) -> bool {
        self.word(STATE_OFFSET)
            .compare_exchange(from as u32, to as u32, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: `new` required the outbox to be mapped and writable; it is aligned to 8, and both sides access these words
        // atomically.
        unsafe { AtomicU32::from_ptr(self.outbox.add(offset).cast()) }
    }
}

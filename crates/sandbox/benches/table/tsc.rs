//! The time-stamp counter. In an emulated machine that counts instructions as nanoseconds it is the number of instructions
//! that the machine has executed: of this program, of its kernel and of the guest.
#![expect(
    unsafe_code,
    reason = "an instruction that the compiler knows as an intrinsic"
)]

use std::time::{Duration, Instant};

/// Its value. It is read in program order where that matters: an emulator knows no other order.
#[inline]
pub(crate) fn now() -> u64 {
    // SAFETY: the instruction has no precondition in ring 3 but that CR4.TSD is clear, as it is under Linux.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// How many nanoseconds a tick takes, measured for some milliseconds.
pub(crate) fn tick_ns() -> f64 {
    const TRIAL: Duration = Duration::from_millis(20);
    let (start, before) = (Instant::now(), now());
    while start.elapsed() < TRIAL {}
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let ticks = (now() - before) as f64;
    start.elapsed().as_secs_f64() * 1e9 / ticks
}

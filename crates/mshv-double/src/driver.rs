//! Which of Linux's drivers the double is like, where they differ.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The environment variable that makes the driver loop on violations, whatever its value.
pub const LOOPING_VARIABLE: &str = "VELLUM_MSHV_DOUBLE_LOOPS";

static LOOPS: LazyLock<AtomicBool> =
    LazyLock::new(|| AtomicBool::new(std::env::var_os(LOOPING_VARIABLE).is_some()));

/// From now on the driver is one that never reports a guest that writes to read-only memory or executes what it must not: it enters the guest
/// again, which does the same again, until the thread gets a signal.
///
/// Linux is so from the change that made memory regions movable until 7.0 (`drivers/hv/mshv_root_main.c`, "Fix infinite fault loop on permission-denied
/// GPA intercepts").
pub fn loop_on_violations() {
    LOOPS.store(true, Ordering::Relaxed);
}

pub(crate) fn loops_on_violations() -> bool {
    LOOPS.load(Ordering::Relaxed)
}

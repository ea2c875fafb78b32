//! The watchdog: one thread for all deadlines of the process.
//!
//! Setting a deadline must cost no system call on the usual path, so the thread is not woken for each: while deadlines come it
//! looks every millisecond, and a while after the last one it goes to sleep, to be woken by the next.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::control::{Control, StopReason};

/// How often the thread looks while there are deadlines.
const TICK: Duration = Duration::from_millis(1);
/// How many looks without a deadline it takes before the thread sleeps.
const IDLE_TICKS: u32 = 100;

/// A deadline that is being watched, until dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    key: (Instant, u64),
}

#[derive(Default)]
struct Watch {
    /// By time, then by a number that makes the key unique.
    deadlines: BTreeMap<(Instant, u64), (Weak<Control>, u64)>,
    next: u64,
    is_asleep: bool,
}

static WATCH: Mutex<Watch> = Mutex::new(Watch {
    deadlines: BTreeMap::new(),
    next: 0,
    is_asleep: false,
});
static WAKE: Condvar = Condvar::new();

/// Stops call `serial` of `control` at `at`.
pub(super) fn watch(at: Instant, control: &Arc<Control>, serial: u64) -> Ticket {
    start_thread();
    let mut watch = lock();
    watch.next += 1;
    let key = (at, watch.next);
    watch
        .deadlines
        .insert(key, (Arc::downgrade(control), serial));
    if watch.is_asleep {
        watch.is_asleep = false;
        WAKE.notify_one();
    }
    Ticket { key }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        lock().deadlines.remove(&self.key);
    }
}

fn lock() -> MutexGuard<'static, Watch> {
    WATCH.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start_thread() {
    static START: Once = Once::new();
    START.call_once(|| {
        let thread = std::thread::Builder::new().name("vellum-deadlines".into());
        if let Err(error) = thread.spawn(run) {
            tracing::error!(%error, "cannot start the deadline thread: deadlines will not be kept");
        }
    });
}

fn run() {
    let mut idle_ticks = 0;
    loop {
        let expired = take_expired(Instant::now());
        // The lock is not held: stopping a call takes the call's own lock, which a caller may hold while it sets a deadline.
        for (control, serial) in expired {
            if let Some(control) = control.upgrade() {
                control.stop(serial, StopReason::DeadlineExceeded);
            }
        }
        idle_ticks = if lock().deadlines.is_empty() {
            idle_ticks + 1
        } else {
            0
        };
        if idle_ticks < IDLE_TICKS {
            std::thread::sleep(TICK);
            continue;
        }
        sleep_until_needed();
        idle_ticks = 0;
    }
}

fn take_expired(now: Instant) -> Vec<(Weak<Control>, u64)> {
    let mut watch = lock();
    let later = watch.deadlines.split_off(&(now, u64::MAX));
    std::mem::replace(&mut watch.deadlines, later)
        .into_values()
        .collect()
}

fn sleep_until_needed() {
    let mut watch = lock();
    watch.is_asleep = watch.deadlines.is_empty();
    while watch.is_asleep {
        watch = WAKE.wait(watch).unwrap_or_else(PoisonError::into_inner);
    }
}

#[cfg(test)]
mod tests;

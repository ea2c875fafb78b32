//! What any guest can do: calls, state, host calls, panics.

use core::sync::atomic::{AtomicU64, Ordering};

use alloc::format;
use alloc::string::String;

use vellum_guest::metric::Counter;
use vellum_guest::{HostError, guest_function, host_functions, log};

#[host_functions]
extern "host" {
    fn host_add(a: i32, b: i32) -> i32;
}

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Does nothing; the cheapest call there is.
#[guest_function]
fn null() {}

#[guest_function]
fn add(a: i32, b: i32) -> i32 {
    a.wrapping_add(b)
}

#[guest_function]
fn greet(name: &str) -> String {
    format!("Hello, {name}!")
}

/// Adds to a static and returns the sum: state that a restore must undo.
#[guest_function]
pub(crate) fn counter_add(amount: u64) -> u64 {
    let sum = counter_get().wrapping_add(amount);
    COUNTER.store(sum, Ordering::Relaxed);
    sum
}

#[guest_function]
fn counter_get() -> u64 {
    COUNTER.load(Ordering::Relaxed)
}

#[guest_function]
pub(crate) fn call_host_add(a: i32, b: i32) -> Result<i32, HostError> {
    host_add(a, b)
}

#[guest_function]
fn sum_bytes(bytes: &[u8]) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte)).sum()
}

/// Half of a number, by integer instructions: the target has no others.
#[guest_function]
fn halve(value: f64) -> f64 {
    value / 2.0
}

#[guest_function]
fn do_panic(text: &str) {
    panic!("{text}");
}

static REPORTS: Counter = Counter::new("reports");

/// Writes `count` log records, and reports each.
#[guest_function]
fn log_and_report(count: u32) {
    for line in 0..count {
        log::info!("line {line}");
        REPORTS.add(u64::from(line));
    }
}

#[guest_function]
fn spin() {
    loop {
        core::hint::spin_loop();
    }
}

//! The Rust guest of Vellum's demo, tests and benchmarks.
//!
//! It exports small functions of every type, functions with state, functions that call the host, and functions that
//! misbehave in one way each.

#![no_std]
#![no_main]

extern crate alloc;

mod arena;
mod echo;
mod faults;
mod host;
mod host_state;
mod paging;
mod ports;
mod registers;
mod residue;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use vellum_guest::metric::{Counter, Gauge, Histogram};
use vellum_guest::{GuestError, guest_function, log};

vellum_guest::entry!(initialise);

/// Set before the guest's first idling.
static IS_INITIALISED: AtomicBool = AtomicBool::new(false);

static COUNTER: AtomicU64 = AtomicU64::new(0);

fn initialise() {
    IS_INITIALISED.store(true, Ordering::Relaxed);
}

/// Whether the function given to `entry!` has run.
#[guest_function]
fn is_initialised() -> bool {
    IS_INITIALISED.load(Ordering::Relaxed)
}

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
fn counter_add(amount: u64) -> u64 {
    COUNTER
        .fetch_add(amount, Ordering::Relaxed)
        .wrapping_add(amount)
}

#[guest_function]
fn counter_get() -> u64 {
    COUNTER.load(Ordering::Relaxed)
}

/// How many bytes there are; looks at none of them.
#[guest_function]
fn len_bytes(bytes: &[u8]) -> u64 {
    bytes.len() as u64
}

#[guest_function]
fn sum_bytes(bytes: &[u8]) -> u64 {
    bytes.iter().copied().map(u64::from).sum()
}

/// `len_bytes` bytes that count up from 0 and wrap.
#[guest_function]
fn make_bytes(len_bytes: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(faults::length(len_bytes));
    bytes.extend((0..len_bytes).map(|index| index.to_le_bytes()[0]));
    bytes
}

/// Writes `count` log records.
#[guest_function]
fn log_lines(count: u32) {
    for line in 0..count {
        log::info!("line {line}");
    }
}

/// Writes one log record of each level.
#[guest_function]
fn log_levels() {
    log::error!("an error");
    log::warn!("a warning");
    log::info!("an info");
    log::debug!("a debug record");
    log::trace!("a trace record");
}

static REPORTS: Counter = Counter::new("reports");
static LEVEL: Gauge = Gauge::new("level");
static SIZES: Histogram = Histogram::new("sizes");

/// Reports `count` numbers of each sort, with a log record behind each three.
#[guest_function]
fn report_metrics(count: u32) {
    for round in 0..count {
        REPORTS.add(u64::from(round));
        LEVEL.set(f64::from(round) / 2.0);
        SIZES.record(-f64::from(round));
        log::info!("round {round}");
    }
}

/// Logs, and then panics.
#[guest_function]
fn log_and_panic(text: &str) {
    log::warn!("before: {text}");
    panic!("{text}");
}

/// Logs, and then never returns.
#[guest_function]
fn log_and_spin(text: &str) {
    log::warn!("before: {text}");
    loop {
        core::hint::spin_loop();
    }
}

/// Returns an error with this text.
#[guest_function]
fn fail(text: String) -> Result<(), GuestError> {
    Err(GuestError::new(text))
}

/// The seed of this sandbox, which differs between clones.
#[guest_function]
fn seed() -> u64 {
    vellum_guest::seed()
}

/// The init data that the embedder gave.
#[guest_function]
fn init_data() -> Vec<u8> {
    Vec::from(vellum_guest::init_data())
}

//! A Rust guest of Vellum's tests: it tells its host things without leaving to it.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::string::{String, ToString};
use core::sync::atomic::{AtomicU32, Ordering};

use vellum_guest::metric::Counter;
use vellum_guest::{HostError, guest_function, host_functions, log};

vellum_guest::entry!(initialise);

#[host_functions]
extern "host" {
    /// Answers with what it was asked.
    fn ask(number: u32) -> u32;
    /// Takes a number and a text.
    #[one_way]
    fn tell(number: u32, text: &str);
    /// Takes bytes.
    #[one_way]
    fn tell_bytes(bytes: &[u8]);
}

static TOLD: Counter = Counter::new("told");

/// 1 when a one-way call before the first call was refused, else 2.
static REFUSED: AtomicU32 = AtomicU32::new(0);

fn initialise() {
    let refused = tell(0, "too early").is_err();
    REFUSED.store(if refused { 1 } else { 2 }, Ordering::Relaxed);
    log::info!("initialised");
}

/// Whether the one-way call before the first call was refused.
#[guest_function]
fn was_refused() -> bool {
    REFUSED.load(Ordering::Relaxed) == 1
}

/// Makes `count` one-way calls, with a metric and a log record behind each.
#[guest_function]
fn tell_all(count: u32) -> Result<(), HostError> {
    for number in 0..count {
        tell(number, "from Rust")?;
        TOLD.add(u64::from(number));
        log::info!("told {number}");
    }
    Ok(())
}

/// Makes `count` one-way calls, and nothing else.
#[guest_function]
fn tell_only(count: u32) -> Result<(), HostError> {
    for number in 0..count {
        tell(number, "")?;
    }
    Ok(())
}

/// Tells, asks, tells: the host must see it in this order.
#[guest_function]
fn tell_ask_tell() -> Result<u32, HostError> {
    tell(1, "before")?;
    let answer = ask(2)?;
    tell(3, "behind")?;
    Ok(answer)
}

/// Tells `len_bytes` bytes, or says why not.
#[guest_function]
fn tell_large(len_bytes: u32) -> String {
    let bytes = alloc::vec![7; len_bytes as usize];
    match tell_bytes(&bytes) {
        Ok(()) => String::new(),
        Err(error) => error.to_string(),
    }
}

/// Tells, and then panics.
#[guest_function]
fn tell_and_panic() -> Result<(), HostError> {
    tell(9, "the last words")?;
    panic!("after the last words");
}

/// Tells `count` times, and then never returns.
#[guest_function]
fn tell_and_spin(count: u32) -> Result<(), HostError> {
    tell_only(count)?;
    loop {
        core::hint::spin_loop();
    }
}

/// Puts these bytes at the start of the outbox, header included, and returns.
#[guest_function]
fn raw_outbox(bytes: &[u8]) {
    let peb = vellum_guest::rt::peb();
    let outbox: *mut u8 =
        core::ptr::with_exposed_provenance_mut(usize::try_from(peb.outbox_ptr).unwrap_or(0));
    let room_bytes = usize::try_from(peb.outbox_len_bytes).unwrap_or(0);
    // SAFETY: the host maps the outbox that the PEB names, writable; the library holds no reference to it meanwhile.
    unsafe { outbox.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len().min(room_bytes)) };
}

//! Functions that call the host.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use vellum_guest::{HostError, guest_function, host_functions, log};

#[host_functions]
extern "host" {
    fn host_add(a: i32, b: i32) -> i32;
    fn host_echo(bytes: &[u8]) -> Vec<u8>;
    fn host_fail(text: &str);
}

#[guest_function]
pub(crate) fn call_host_add(a: i32, b: i32) -> Result<i32, HostError> {
    host_add(a, b)
}

/// Counts to `count` with the host's help: one host call a step.
#[guest_function]
fn call_host_add_loop(count: u32) -> Result<i32, HostError> {
    let mut sum = 0;
    for _ in 0..count {
        sum = host_add(sum, 1)?;
    }
    Ok(sum)
}

#[guest_function]
fn call_host_echo(bytes: &[u8]) -> Result<Vec<u8>, HostError> {
    host_echo(bytes)
}

/// Calls a host function that fails and returns the host's words.
#[guest_function]
fn host_error_text() -> String {
    match host_fail("the guest asked for it") {
        Ok(()) => String::from("host_fail did not fail"),
        Err(error) => String::from(error.text()),
    }
}

/// Calls a host function that fails and passes its error on.
#[guest_function]
pub(crate) fn pass_host_error(text: &str) -> Result<(), HostError> {
    host_fail(text)
}

/// A value whose `Display` uses the host while it is being written into the output buffer.
struct Reentrant;

impl fmt::Display for Reentrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        log::info!("this record is dropped");
        match host_add(1, 2) {
            Ok(sum) => write!(f, "{sum}"),
            Err(error) => write!(f, "{error}"),
        }
    }
}

/// Logs a value that logs and calls the host while it is formatted.
#[guest_function]
fn log_reentrant() {
    log::info!("value: {Reentrant}");
}

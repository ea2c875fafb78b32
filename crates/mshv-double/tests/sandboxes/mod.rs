//! Sandboxes of the Rust guest and of kernels that import the same functions.

use vellum_sandbox::{Engine, Error, GuestImage, HostFunctions, Sandbox};

/// Bytes of heap: more than the calls of these tests need, and few to put back.
const HEAP_LEN_BYTES: u64 = 1 << 20;

/// The host functions that the guests import.
pub(crate) fn host() -> HostFunctions {
    HostFunctions::new()
        .with("host_add", i32::wrapping_add)
        .with("host_echo", |bytes: Vec<u8>| bytes)
        .with("host_fail", |text: String| Err::<(), String>(text))
}

pub(crate) fn new_sandbox(engine: &Engine, image: &GuestImage) -> Result<Sandbox, Error> {
    Sandbox::builder(image)
        .heap_len_bytes(HEAP_LEN_BYTES)
        .host_functions(&host())
        .build(engine)
}

/// Adds to the guest's counter.
pub(crate) fn count(sandbox: &mut Sandbox, amount: u64) -> Result<u64, Error> {
    sandbox.call("counter_add", (amount,))
}

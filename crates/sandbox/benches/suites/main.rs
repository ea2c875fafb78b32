//! Calls, snapshots and pools, for work on one of them: `cargo bench -p vellum-sandbox --bench suites -- call`.
//!
//! Figures in `docs/` come from `cargo xtask bench`, which puts each beside its floor, and from `cargo xtask vm-test --bench`, which
//! counts instructions.

mod call;
mod pool;
mod snapshot;

use vellum_sandbox::{Engine, GuestImage, HostFunctions, Sandbox};

/// Bytes of heap of every guest.
const HEAP_LEN_BYTES: u64 = 16 << 20;
/// Bytes of it that are in use.
const ARENA_LEN_BYTES: u64 = 8 << 20;

fn main() {
    match Engine::new() {
        Ok(engine) => {
            println!("{engine}");
            divan::main();
        }
        Err(error) => println!("SKIPPED: {error}"),
    }
}

fn engine() -> Engine {
    Engine::new().expect("there was one a moment ago")
}

fn host() -> HostFunctions {
    HostFunctions::new()
        .with("host_add", i32::wrapping_add)
        .with("host_echo", |bytes: Vec<u8>| bytes)
        .with("host_fail", Err::<(), String>)
}

/// A sandbox whose guest has written all of its arena.
fn sandbox() -> Sandbox {
    let image =
        GuestImage::from_bytes(vellum_test_guests::rust_user()).expect("the guest is valid");
    let mut sandbox = Sandbox::builder(&image)
        .heap_len_bytes(HEAP_LEN_BYTES)
        .host_functions(&host())
        .build(&engine())
        .expect("built");
    let _: u64 = sandbox.call("reserve", (ARENA_LEN_BYTES,)).expect("called");
    sandbox
}

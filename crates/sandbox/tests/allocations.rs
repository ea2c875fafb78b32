//! Calls with arguments of fixed size allocate nothing on the host.
//!
//! A test binary of its own, because the allocator that counts is the whole program's.
#![expect(unsafe_code, reason = "counts in a global allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{self, Write as _};

use vellum_sandbox::{CowMode, Engine, ErrorKind, GuestImage, HostFunctions, Sandbox};

/// The system's allocator, which counts what each thread asks of it.
struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

fn note() {
    // A thread that ends may allocate after its counter is gone.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every method hands its arguments to the system's allocator unchanged; the counter allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's contract is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        note();
        // SAFETY: the caller's contract is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_len_bytes: usize) -> *mut u8 {
        note();
        // SAFETY: the caller's contract is the system's.
        unsafe { System.realloc(pointer, layout, new_len_bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often this thread asks the allocator for something while `run` runs.
fn counted(run: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    run();
    COUNT.get() - before
}

fn skip(cow: CowMode, reason: &str) {
    // Written directly, because the harness hides what a passing test prints.
    let _ = writeln!(io::stderr(), "SKIPPED {cow} copy-on-write: {reason}");
}

fn sandbox(cow: CowMode) -> Option<Sandbox> {
    // The emulator allocates as it decodes.
    let builder = Engine::builder().require_hardware().cow_mode(cow);
    let engine = match builder.build() {
        Ok(engine) => engine,
        Err(error) if error.kind() == ErrorKind::NoHypervisor => {
            skip(cow, &format!("{error:?}"));
            return None;
        }
        Err(error) => panic!("{error:?}"),
    };
    if cow == CowMode::GuestSide && !engine.capabilities().read_only_memory {
        skip(cow, "this hypervisor has no read-only memory");
        return None;
    }
    let host = HostFunctions::new()
        .with("host_add", i32::wrapping_add)
        .with("host_echo", |bytes: Vec<u8>| bytes)
        .with("host_fail", |text: String| Err::<(), String>(text));
    let image =
        GuestImage::from_bytes(vellum_test_guests::rust_user()).expect("the guest is valid");
    let builder = Sandbox::builder(&image).heap_len_bytes(4 << 20);
    Some(
        builder
            .host_functions(&host)
            .build(&engine)
            .expect("a sandbox can be built"),
    )
}

#[test]
fn calls_of_fixed_size_allocate_nothing() {
    for mut sandbox in [CowMode::HostSide, CowMode::GuestSide]
        .into_iter()
        .filter_map(sandbox)
    {
        let null = sandbox.function::<(), ()>("null").expect("exported");
        let echo = sandbox
            .function::<(f64,), f64>("echo_f64")
            .expect("exported");
        let add = sandbox
            .function::<(i32, i32), i32>("call_host_add")
            .expect("exported");
        let log = sandbox
            .function::<(u32,), ()>("report_metrics")
            .expect("exported");
        let mut perform = |count: u32| {
            for _ in 0..count {
                null.call(&mut sandbox, ()).expect("called");
                assert!(echo.call(&mut sandbox, (0.5,)).expect("called") > 0.4);
                assert_eq!(add.call(&mut sandbox, (40, 2)).expect("called"), 42);
                // Into an outbox to which nobody listens.
                log.call(&mut sandbox, (1,)).expect("called");
            }
        };
        assert!(counted(|| perform(2)) > 0, "warming up grows a buffer");
        assert_eq!(counted(|| perform(100)), 0);
    }
    // The negative control.
    assert!(counted(|| drop(std::hint::black_box(vec![1]))) >= 2);
}

//! A driver that does not report a write to read-only memory, but lets the guest write for ever: only an interruption ends the run. A sandbox
//! whose call has a deadline gets one, and then all is as after any other call that took too long.

#![expect(unsafe_code, reason = "sends a signal to a thread")]

mod double;
mod machine;
mod sandboxes;
mod subject;

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use mshv_ioctls::MshvError;
use vellum_conformance::{Need, Outcome, Quirk, checks};
use vellum_mshv_double::driver;
use vellum_sandbox::{
    CallOptions, Engine, EngineKind, ErrorKind, Gpa, GuestImage, Mapping, SharedMemory,
};

use machine::{EXECUTABLE, WRITABLE, device, machine};
use sandboxes::{count, new_sandbox};

const NAME: &str = "mshv-double, looping";
const PAGE_LEN_BYTES: u64 = 4096;
/// Clear of the guest's own memory.
const AT: Gpa = Gpa::literal(0x4000_0000);

extern "C" fn ignore(_: libc::c_int) {}

/// Runs `body`, while this thread gets one signal after the other from another.
fn interrupted<T>(body: impl FnOnce() -> T) -> T {
    const SIGNAL: libc::c_int = libc::SIGUSR1;
    let handler = ignore as extern "C" fn(libc::c_int);
    // SAFETY: the handler does nothing, and stays.
    unsafe { libc::signal(SIGNAL, handler as libc::sighandler_t) };
    // SAFETY: no precondition.
    let this = unsafe { libc::pthread_self() };
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Acquire) {
                // SAFETY: the thread waits for this one, so it is alive; the signal has a handler.
                unsafe { libc::pthread_kill(this, SIGNAL) };
                thread::sleep(Duration::from_millis(1));
            }
        });
        let result = body();
        is_over.store(true, Ordering::Release);
        result
    })
}

#[test]
fn a_run_that_violates_returns_only_for_a_signal() {
    /// `mov [0x80], al`, in real mode.
    const STORE: [u8; 3] = [0xA2, 0x80, 0x00];
    driver::loop_on_violations();
    let Some(device) = device() else { return };
    for (what, flags) in [("not executable", WRITABLE), ("read-only", EXECUTABLE)] {
        let mut machine = machine(&device, flags);
        machine.memory.0[..STORE.len()].copy_from_slice(&STORE);
        machine.reset_extended_state();
        for _ in 0..2 {
            let errno = match interrupted(|| machine.vcpu.run()) {
                Err(MshvError::Errno(error)) => Some(error.errno()),
                _ => None,
            };
            assert_eq!(errno, Some(libc::EINTR), "{what}");
        }
        assert_eq!(machine.memory.0[0x80], 0, "{what}");
    }
}

#[test]
fn checks_of_read_only_memory_pass_when_interruptions_end_the_loop() {
    driver::loop_on_violations();
    let subject = subject::subject(NAME).but(
        Quirk::ViolationsMayLoop,
        "Linux until 7.0 enters a guest again that writes to read-only memory",
    );
    let concerned = checks()
        .iter()
        .filter(|check| check.needs.contains(&Need::ReadOnlyMemory));
    let mut passed = 0;
    for check in concerned {
        match check.on(&subject) {
            Outcome::Passed => passed += 1,
            Outcome::NotHere(reason) => {
                let _ = writeln!(std::io::stderr(), "SKIPPED on {NAME}: {reason}");
                return;
            }
            Outcome::Failed(failure) => panic!("{}: {failure}", check.name),
        }
    }
    assert!(passed >= 4, "{passed}");
}

/// A kernel without page tables of its own, which nothing but the region's flags keeps from writing.
fn kernel() -> Option<(Engine, GuestImage)> {
    driver::loop_on_violations();
    let skip = |reason: &str| {
        let _ = writeln!(std::io::stderr(), "SKIPPED on {NAME}: {reason}");
    };
    if let Err(reason) = double::open() {
        skip(&reason);
        return None;
    }
    let Some(elf) = vellum_test_guests::i686_c() else {
        skip("no compiler for the guest");
        return None;
    };
    let engine = Engine::builder().kind(EngineKind::Mshv).build();
    let image = GuestImage::from_bytes(elf).expect("a guest");
    Some((engine.expect("an engine"), image))
}

#[test]
fn a_deadline_ends_a_sandbox_that_writes_to_read_only_memory() {
    let Some((engine, image)) = kernel() else {
        return;
    };
    let mut neighbour = new_sandbox(&engine, &image).expect("a sandbox");
    let mut sandbox = new_sandbox(&engine, &image).expect("a sandbox");
    let ready = sandbox.snapshot().expect("a snapshot");
    let memory = SharedMemory::new(PAGE_LEN_BYTES).expect("memory");
    memory.store(0, 7).expect("in bounds");
    let mapping = Mapping::region("read-only", &memory).expect("a mapping");
    sandbox.map(AT, &mapping).expect("mapped");
    let deadline = CallOptions::new().timeout(Duration::from_millis(20));
    for round in 0..3 {
        assert_eq!(count(&mut sandbox, 1).expect("counts"), 1, "{round}");
        let error = sandbox
            .function::<(u64, u64), ()>("write_address")
            .expect("exported")
            .call_with(&mut sandbox, (AT.as_u64(), 8), &deadline)
            .expect_err("it never ends by itself");
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error:?}");
        assert!(!sandbox.is_ready());
        let refused = sandbox
            .call::<_, u64>("counter_get", ())
            .expect_err("it must be restored first");
        assert_eq!(refused.kind(), ErrorKind::NeedsRestore);
        assert_eq!(memory.load(0).expect("in bounds"), 7, "nothing was written");
        let of_neighbour = count(&mut neighbour, 1).expect("the neighbour lives");
        assert_eq!(of_neighbour, round + 1);
        sandbox.restore(&ready).expect("restored");
    }
}

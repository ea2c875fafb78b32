//! Deadlines and cancellation.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use vellum_sandbox::{
    CallOptions, CancelToken, EngineKind, Error, ErrorKind, GuestImage, HostFunctions, Sandbox,
    Snapshot, Value,
};

use super::support::{add_to_counter, counter, host, in_each_mode, refused};

fn spin(sandbox: &mut Sandbox, options: &CallOptions) -> Error {
    refused("spin", sandbox.call_dynamic("spin", &[], options))
}

fn add(sandbox: &mut Sandbox, options: &CallOptions) -> Result<Value, Error> {
    sandbox.call_dynamic("add", &[Value::I32(40), Value::I32(2)], options)
}

/// A restore makes a sandbox usable again, whatever ended its last call.
fn assert_heals(sandbox: &mut Sandbox, snapshot: &Snapshot) {
    sandbox.restore(snapshot).expect("restored");
    let sum = add(sandbox, &CallOptions::new()).expect("called");
    assert_eq!(sum, Value::I32(42));
}

/// Cancels from another thread what `call` begins at the same time.
fn cancel_during(token: &CancelToken, call: impl FnOnce() -> Error) {
    let begin = Barrier::new(2);
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            begin.wait();
            token.cancel();
        });
        begin.wait();
        call()
    });
    assert_eq!(error.kind(), ErrorKind::Cancelled);
}

#[test]
fn a_deadline_ends_an_endless_loop_and_a_restore_heals() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        add_to_counter(&mut sandbox, 5);
        let snapshot = sandbox.snapshot().expect("taken");
        for timeout in [
            Duration::from_nanos(1),
            Duration::from_micros(100),
            Duration::from_millis(10),
        ] {
            let error = spin(&mut sandbox, &CallOptions::new().timeout(timeout));
            assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
            assert_eq!(
                refused("add", add(&mut sandbox, &CallOptions::new())).kind(),
                ErrorKind::NeedsRestore
            );
            sandbox.restore(&snapshot).expect("restored");
            assert_eq!(counter(&mut sandbox), 5);
        }
    });
}

#[test]
fn a_deadline_of_zero_ends_the_call_before_the_guest_runs() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let options = CallOptions::new().timeout(Duration::ZERO);
        let error = refused(
            "counter_add",
            sandbox.call_dynamic("counter_add", &[Value::U64(1)], &options),
        );
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        assert!(sandbox.is_ready());
        assert_eq!(counter(&mut sandbox), 0);
    });
}

#[test]
fn a_call_that_ends_before_its_deadline_is_not_touched() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        for timeout in [Duration::from_hours(1), Duration::MAX] {
            let options = CallOptions::new().timeout(timeout);
            for _ in 0..100 {
                assert_eq!(add(&mut sandbox, &options).expect("called"), Value::I32(42));
            }
        }
    });
}

#[test]
fn many_deadlines_at_once_are_all_kept() {
    in_each_mode(|lab| {
        std::thread::scope(|scope| {
            for number in 0..4_u64 {
                scope.spawn(move || {
                    let mut sandbox = lab.sandbox();
                    let snapshot = sandbox.snapshot().expect("taken");
                    for round in 0..5 {
                        let timeout = Duration::from_millis(1 + (number * 7 + round * 3) % 11);
                        let error = spin(&mut sandbox, &CallOptions::new().timeout(timeout));
                        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
                        sandbox.restore(&snapshot).expect("restored");
                    }
                });
            }
        });
    });
}

#[test]
fn another_thread_cancels_an_endless_loop() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let snapshot = sandbox.snapshot().expect("taken");
        for _ in 0..20 {
            let token = CancelToken::new();
            let options = CallOptions::new().cancel_token(&token);
            cancel_during(&token, || spin(&mut sandbox, &options));
            // The cancellation may have come before the guest ran, and then there is nothing to heal.
            assert_heals(&mut sandbox, &snapshot);
        }
    });
}

#[test]
fn a_token_that_is_cancelled_ends_the_call_before_the_guest_runs() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let token = CancelToken::new();
        token.cancel();
        assert!(token.is_cancelled());
        let options = CallOptions::new().cancel_token(&token);
        for _ in 0..3 {
            let error = refused(
                "counter_add",
                sandbox.call_dynamic("counter_add", &[Value::U64(1)], &options),
            );
            assert_eq!(error.kind(), ErrorKind::Cancelled);
            assert!(sandbox.is_ready());
        }
        assert_eq!(counter(&mut sandbox), 0);
    });
}

#[test]
fn a_cancellation_after_the_call_never_reaches_the_next() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        for round in 0..500 {
            let token = CancelToken::new();
            let options = CallOptions::new().cancel_token(&token);
            assert_eq!(add(&mut sandbox, &options).expect("called"), Value::I32(42));
            token.cancel();
            let next = if round % 2 == 0 {
                CallOptions::new()
            } else {
                CallOptions::new().cancel_token(&CancelToken::new())
            };
            assert_eq!(add(&mut sandbox, &next).expect("called"), Value::I32(42));
        }
    });
}

/// Tells a thread to end, also when the test fails.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Hands tokens to a thread that cancels each after a short while, without ever sleeping: a thread that must be woken would
/// always come late.
struct Canceller {
    next: Mutex<Option<(CancelToken, u32)>>,
    is_done: AtomicBool,
}

impl Canceller {
    fn run(&self) {
        while !self.is_done.load(Ordering::Relaxed) {
            let next = self.next.lock().expect("no panic").take();
            let Some((token, spins)) = next else {
                std::hint::spin_loop();
                continue;
            };
            for _ in 0..spins {
                std::hint::spin_loop();
            }
            token.cancel();
        }
    }

    fn give(&self, token: &CancelToken, spins: u32) {
        *self.next.lock().expect("no panic") = Some((token.clone(), spins));
    }
}

/// A cancellation that races the end of a call either ends that call or does nothing; the calls that follow, with a token
/// of their own or with none, are not touched, and nothing hangs.
#[test]
fn a_cancellation_that_races_the_end_of_a_call_ends_that_call_or_none() {
    const ROUNDS: u32 = 3000;
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let snapshot = sandbox.snapshot().expect("taken");
        let canceller = Canceller {
            next: Mutex::new(None),
            is_done: AtomicBool::new(false),
        };
        let (mut before, mut inside) = (0, 0);
        std::thread::scope(|scope| {
            let _ending = Ending(&canceller.is_done);
            scope.spawn(|| canceller.run());
            for round in 0..ROUNDS {
                let token = CancelToken::new();
                canceller.give(&token, round * 7919 % 2000);
                match add(&mut sandbox, &CallOptions::new().cancel_token(&token)) {
                    Ok(value) => assert_eq!(value, Value::I32(42)),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error:?}");
                        *(if sandbox.is_ready() {
                            &mut before
                        } else {
                            &mut inside
                        }) += 1;
                        sandbox.restore(&snapshot).expect("restored");
                    }
                }
                let next = if round % 2 == 0 {
                    CallOptions::new()
                } else {
                    CallOptions::new().cancel_token(&CancelToken::new())
                };
                let result = add(&mut sandbox, &next);
                assert_eq!(
                    result.expect("the next call"),
                    Value::I32(42),
                    "round {round}"
                );
            }
        });
        println!(
            "of {ROUNDS} calls, {before} were cancelled before the guest ran, {inside} inside"
        );
    });
}

#[test]
fn a_loop_of_host_calls_is_cancelled_from_outside_and_by_deadline() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let snapshot = sandbox.snapshot().expect("taken");
        let endless = [Value::U32(u32::MAX)];
        let options = CallOptions::new().timeout(Duration::from_millis(20));
        let error = refused(
            "host calls",
            sandbox.call_dynamic("call_host_add_loop", &endless, &options),
        );
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        sandbox.restore(&snapshot).expect("restored");

        let token = CancelToken::new();
        let options = CallOptions::new().cancel_token(&token);
        cancel_during(&token, || {
            let result = sandbox.call_dynamic("call_host_add_loop", &endless, &options);
            refused("host calls", result)
        });
        assert_heals(&mut sandbox, &snapshot);
    });
}

#[test]
fn a_loop_of_log_records_is_ended_by_a_deadline() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let snapshot = sandbox.snapshot().expect("taken");
        let options = CallOptions::new().timeout(Duration::from_millis(20));
        let error = refused(
            "log",
            sandbox.call_dynamic("log_lines", &[Value::U32(u32::MAX)], &options),
        );
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        sandbox.restore(&snapshot).expect("restored");
        assert_eq!(counter(&mut sandbox), 0);
    });
}

#[test]
fn a_host_function_can_cancel_the_call_that_it_serves() {
    in_each_mode(|lab| {
        let token = CancelToken::new();
        let calls = Arc::new(AtomicU32::new(0));
        let (inner, counted) = (token.clone(), calls.clone());
        let host = HostFunctions::new()
            .with("host_add", move |a: i32, b: i32| {
                if counted.fetch_add(1, Ordering::Relaxed) == 9 {
                    inner.cancel();
                }
                a + b
            })
            .with("host_echo", |bytes: Vec<u8>| bytes)
            .with("host_fail", |_: String| ());
        let mut sandbox = lab
            .builder()
            .host_functions(&host)
            .build(&lab.engine)
            .expect("built");
        let options = CallOptions::new().cancel_token(&token);
        let args = [Value::U32(1_000_000)];
        let error = refused(
            "host calls",
            sandbox.call_dynamic("call_host_add_loop", &args, &options),
        );
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(
            calls.load(Ordering::Relaxed),
            10,
            "the guest does not run on"
        );
    });
}

#[test]
fn one_token_ends_the_calls_of_several_sandboxes() {
    in_each_mode(|lab| {
        let token = CancelToken::new();
        let begin = Barrier::new(4);
        std::thread::scope(|scope| {
            let calls: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let mut sandbox = lab.sandbox();
                        begin.wait();
                        spin(&mut sandbox, &CallOptions::new().cancel_token(&token)).kind()
                    })
                })
                .collect();
            begin.wait();
            token.cancel();
            for call in calls {
                assert_eq!(call.join().expect("no panic"), ErrorKind::Cancelled);
            }
        });
    });
}

#[test]
fn a_token_outlives_its_sandbox() {
    in_each_mode(|lab| {
        let token = CancelToken::new();
        let mut sandbox = lab.sandbox();
        add(&mut sandbox, &CallOptions::new().cancel_token(&token)).expect("called");
        drop(sandbox);
        token.cancel();
        assert!(token.is_cancelled());
    });
}

#[test]
fn a_sandbox_that_moved_to_another_thread_and_vm_can_still_be_cancelled() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox_with_heap(16 << 20);
        let small = sandbox.snapshot().expect("taken");
        let _: u64 = sandbox.call("touch_pages", (2500_u64,)).expect("called");
        // Larger than the VM has room for, so this moves the sandbox to a new one.
        drop(sandbox.snapshot().expect("taken"));
        let timeout = CallOptions::new().timeout(Duration::from_millis(2));
        assert_eq!(
            spin(&mut sandbox, &timeout).kind(),
            ErrorKind::DeadlineExceeded
        );
        std::thread::scope(|scope| {
            scope.spawn(|| {
                sandbox.restore(&small).expect("restored");
                assert_eq!(
                    spin(&mut sandbox, &timeout).kind(),
                    ErrorKind::DeadlineExceeded
                );
            });
        });
    });
}

/// Signals of the host program's own reach the thread in the guest and end nothing.
#[test]
#[expect(unsafe_code, reason = "sends a signal to a thread of this process")]
fn signals_that_are_not_ours_do_not_end_a_call() {
    in_each_mode(|lab| {
        if lab.engine.kind() == Some(EngineKind::Emulator) {
            return Err("the emulator is interrupted by a flag, and has no handler for any signal");
        }
        let mut sandbox = lab.sandbox();
        let done = AtomicBool::new(false);
        // SAFETY: `pthread_self` has no preconditions.
        let thread = unsafe { libc::pthread_self() };
        std::thread::scope(|scope| {
            let _ending = Ending(&done);
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    // SAFETY: the thread is the one that waits for this scope to end, so it lives; the signal has a handler
                    // that does nothing, which the backend installed when the sandbox was made.
                    unsafe { libc::pthread_kill(thread, libc::SIGRTMIN()) };
                    std::thread::sleep(Duration::from_micros(50));
                }
            });
            for round in 0..300 {
                let token = CancelToken::new();
                let options = match round % 3 {
                    0 => CallOptions::new(),
                    1 => CallOptions::new().cancel_token(&token),
                    _ => CallOptions::new().timeout(Duration::from_hours(1)),
                };
                let args = [Value::U32(20)];
                let result = sandbox.call_dynamic("call_host_add_loop", &args, &options);
                assert_eq!(result.expect("called"), Value::I32(20));
            }
        });
        Ok(())
    });
}

#[test]
fn a_guest_that_never_finishes_its_initialisation_is_stopped() {
    in_each_mode(|lab| {
        let mut elf = vellum_test_guests::rust_user().to_vec();
        let entry = file_offset_of_entry(&elf);
        // jmp to itself
        elf[entry..entry + 2].copy_from_slice(&[0xEB, 0xFE]);
        let image = GuestImage::from_bytes(&elf).expect("still a valid file");
        let builder = Sandbox::builder(&image).host_functions(&host());
        let late = CallOptions::new().timeout(Duration::from_millis(5));
        let error = builder
            .clone()
            .boot_options(&late)
            .build(&lab.engine)
            .expect_err("stopped");
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
        let token = CancelToken::new();
        token.cancel();
        let cancelled = CallOptions::new().cancel_token(&token);
        let error = builder
            .boot_options(&cancelled)
            .build(&lab.engine)
            .expect_err("stopped");
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    });
}

/// Where the first instruction lies in a 64-bit ELF file: e_entry, sought in the program headers.
fn file_offset_of_entry(elf: &[u8]) -> usize {
    let word = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().expect("8 bytes"));
    let half = |at: usize| {
        usize::from(u16::from_le_bytes(
            elf[at..at + 2].try_into().expect("2 bytes"),
        ))
    };
    let (entry, headers, count) = (word(24), word(32), half(56));
    let offset = (0..count)
        .map(|index| usize::try_from(headers).expect("an offset") + index * 56)
        .filter(|header| elf[*header] == 1)
        .find_map(|header| {
            let (offset, address, len_bytes) =
                (word(header + 8), word(header + 16), word(header + 32));
            (address..address + len_bytes)
                .contains(&entry)
                .then(|| offset + entry - address)
        });
    usize::try_from(offset.expect("the entry lies in a segment")).expect("an offset")
}

#[test]
fn a_thread_that_blocks_all_signals_is_stopped_all_the_same() {
    in_each_mode(|lab| {
        let lab = lab.clone();
        let thread = std::thread::spawn(move || {
            block_all_signals();
            let mut sandbox = lab.sandbox();
            spin(
                &mut sandbox,
                &CallOptions::new().timeout(Duration::from_millis(5)),
            )
        });
        let error = thread.join().expect("the thread ends");
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    });
}

#[expect(unsafe_code, reason = "changes this thread's signal mask")]
fn block_all_signals() {
    // SAFETY: the set is initialised by sigfillset before it is read; only the calling thread's mask changes.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
    }
}

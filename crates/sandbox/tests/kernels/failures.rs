//! Kernels that fail: each failure is named, and a restore heals.

use std::time::Duration;

use vellum_sandbox::{CallOptions, CancelToken, ErrorKind, Value};

use super::support::{call, count, counter, refused, with_each_identity, with_each_kernel};

#[test]
fn a_kernel_that_fails_is_named_and_healed() {
    with_each_kernel(|lab| {
        let mut sandbox = lab.sandbox();
        count(&mut sandbox, 7);
        let snapshot = sandbox.snapshot().expect("a snapshot");
        let cases: [(&str, &[Value], ErrorKind); 3] = [
            ("halt", &[], ErrorKind::Halted),
            ("triple_fault", &[], ErrorKind::Crashed),
            (
                "do_panic",
                &[Value::String("on purpose".into())],
                ErrorKind::GuestPanic,
            ),
        ];
        for (function, args, expected) in cases {
            let error = refused(&mut sandbox, function, args);
            assert_eq!(error.kind(), expected, "{function}: {error}");
            let again = refused(&mut sandbox, "counter_get", &[]);
            assert_eq!(again.kind(), ErrorKind::NeedsRestore);
            let error = sandbox.snapshot().expect_err("not restored");
            assert_eq!(error.kind(), ErrorKind::NeedsRestore);
            sandbox.restore(&snapshot).expect("restored");
            assert_eq!(counter(&mut sandbox), 7, "after {function}");
        }
    });
}

#[test]
fn memory_that_is_not_there_ends_a_kernel_without_paging() {
    with_each_identity(|lab| {
        let mut sandbox = lab.sandbox();
        let snapshot = sandbox.snapshot().expect("a snapshot");
        // Behind the image and far below the scratch; the page at 0; the page of the local APIC.
        for address in [0x8000_0000, 0, 0xFEE0_0000] {
            let args = [Value::U64(address), Value::U64(1)];
            let error = refused(&mut sandbox, "write_address", &args);
            assert_eq!(error.kind(), ErrorKind::Crashed, "{address:#x}: {error}");
            assert!(
                error.to_string().contains(&format!("{address:#x}")),
                "{error}"
            );
            sandbox.restore(&snapshot).expect("restored");
            assert_eq!(counter(&mut sandbox), 0);
        }
    });
}

#[test]
fn an_endless_kernel_is_stopped_by_deadline_and_by_token() {
    with_each_kernel(|lab| {
        let mut sandbox = lab.sandbox();
        let snapshot = sandbox.snapshot().expect("a snapshot");
        let spin = sandbox.function::<(), ()>("spin").expect("exported");
        let deadline = CallOptions::new().timeout(Duration::from_millis(5));
        let error = spin
            .call_with(&mut sandbox, (), &deadline)
            .expect_err("stopped");
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        sandbox.restore(&snapshot).expect("restored");
        assert_eq!(call::<_, i32>(&mut sandbox, "add", (40, 2)), 42);
        let token = CancelToken::new();
        let other = std::thread::spawn({
            let token = token.clone();
            move || token.cancel()
        });
        let options = CallOptions::new().cancel_token(&token);
        let error = spin
            .call_with(&mut sandbox, (), &options)
            .expect_err("stopped");
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        other.join().expect("the other thread ends");
        sandbox.restore(&snapshot).expect("restored");
        assert_eq!(counter(&mut sandbox), 0);
    });
}

#[test]
fn a_neighbour_does_not_notice() {
    with_each_kernel(|lab| {
        let mut sandbox = lab.sandbox();
        count(&mut sandbox, 1);
        let snapshot = sandbox.snapshot().expect("a snapshot");
        let mut neighbour = lab.fork(&snapshot);
        for function in ["halt", "triple_fault"] {
            refused(&mut sandbox, function, &[]);
            count(&mut neighbour, 1);
            sandbox.restore(&snapshot).expect("restored");
        }
        assert_eq!((counter(&mut sandbox), counter(&mut neighbour)), (1, 3));
    });
}

//! Exceptions of kernels with paging: those that the guest's library reports, by their names, and those that nobody can.

use vellum_sandbox::{Error, ErrorKind, Sandbox, Value};

use super::support::{Kernel, MIB, call, count, counter, peb, refused, with_each_paged};

/// Fails as told, then heals.
fn expect_panic(sandbox: &mut Sandbox, function: &str, args: &[Value], says: &str) -> Error {
    let error = refused(sandbox, function, args);
    assert_eq!(error.kind(), ErrorKind::GuestPanic, "{function}: {error:?}");
    assert!(error.to_string().contains(says), "{function}: {error}");
    error
}

#[test]
fn an_exception_is_reported_by_its_name_with_address_and_access() {
    with_each_paged(|lab| {
        let mut sandbox = lab.sandbox();
        count(&mut sandbox, 7);
        let snapshot = sandbox.snapshot().expect("a snapshot");
        let below_stack = {
            let peb = peb(&mut sandbox);
            peb.stack_top - peb.stack_len_bytes - 8
        };
        let write = |address: u64| vec![Value::U64(address), Value::U64(1)];
        let mut cases = vec![
            (
                "invalid_opcode",
                Vec::new(),
                "invalid opcode (#UD)".to_owned(),
            ),
            (
                "write_code",
                Vec::new(),
                "write to a page that is not writable".to_owned(),
            ),
            (
                "write_address",
                write(16),
                "page fault (#PF) at 0x10: write to a page that is not mapped".to_owned(),
            ),
            (
                "read_address",
                vec![Value::U64(0x7000_0000)],
                "0x70000000: read of a page that is not mapped".to_owned(),
            ),
            (
                "write_address",
                write(below_stack),
                format!("{below_stack:#x}: write to a page that is not mapped"),
            ),
        ];
        if lab.kernel == Kernel::Amd64 {
            // 2-level tables cannot forbid execution.
            cases.push((
                "execute_heap",
                Vec::new(),
                "execution of a page that is not executable".to_owned(),
            ));
        }
        for (function, args, says) in cases {
            expect_panic(&mut sandbox, function, &args, &says);
            sandbox.restore(&snapshot).expect("restored");
            assert_eq!(counter(&mut sandbox), 7, "after {function}");
        }
    });
}

#[test]
fn a_stack_overflow_ends_in_a_report_or_in_a_crash_and_heals() {
    with_each_paged(|lab| {
        let mut sandbox = lab.sandbox();
        count(&mut sandbox, 7);
        let snapshot = sandbox.snapshot().expect("a snapshot");
        if lab.kernel == Kernel::Amd64 {
            // Exceptions have a stack of their own.
            expect_panic(&mut sandbox, "overflow_stack", &[], "double fault (#DF)");
        } else {
            let error = refused(&mut sandbox, "overflow_stack", &[]);
            assert_eq!(error.kind(), ErrorKind::Crashed, "{error:?}");
        }
        sandbox.restore(&snapshot).expect("restored");
        assert_eq!(counter(&mut sandbox), 7);
    });
}

#[test]
fn a_kernel_without_frames_says_what_to_give_it() {
    with_each_paged(|lab| {
        let mut sandbox = lab.sandbox();
        let snapshot = sandbox.snapshot().expect("a snapshot");
        let taken: u64 = call(&mut sandbox, "exhaust_frames", ());
        assert!(taken > 0);
        assert_eq!(call::<_, u64>(&mut sandbox, "exhaust_frames", ()), 0);
        let word = Value::U64(4 * MIB / 8);
        if lab.copies_itself() {
            let args = [word, Value::U64(1)];
            expect_panic(&mut sandbox, "set_heap_word", &args, "out of frames");
        } else {
            // Nothing of its own needs a frame, but a root does.
            let error = refused(&mut sandbox, "make_root", &[]);
            assert_eq!(error.kind(), ErrorKind::GuestError, "{error:?}");
        }
        sandbox.restore(&snapshot).expect("restored");
        assert_eq!(
            call::<_, u64>(&mut sandbox, "exhaust_frames", ()),
            taken,
            "all are back"
        );
    });
}

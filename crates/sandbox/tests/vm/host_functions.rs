//! Calls from the guest to the host.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vellum_sandbox::{ErrorKind, HostFunctions, Sandbox};

use super::support::{Lab, host, in_each_mode, pattern, refused};

fn with_host(lab: &Lab, host: &HostFunctions) -> Sandbox {
    lab.builder()
        .host_functions(host)
        .build(&lab.engine)
        .expect("built")
}

#[test]
fn a_guest_calls_the_host_and_uses_the_result() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        for (a, b) in [(40, 2), (i32::MAX, 1), (-5, 5)] {
            assert_eq!(
                sandbox
                    .call::<_, i32>("call_host_add", (a, b))
                    .expect("called"),
                a.wrapping_add(b)
            );
        }
        assert_eq!(
            sandbox
                .call::<_, i32>("call_host_add_loop", (500_u32,))
                .expect("called"),
            500
        );
    });
}

#[test]
fn bytes_larger_than_the_buffers_go_to_the_host_and_back() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox_with_heap(16 << 20);
        for len_bytes in [0, 1, 4096, 16 << 10, (16 << 10) + 1, 100_000, 1 << 20] {
            let bytes = pattern(len_bytes);
            let echo: Vec<u8> = sandbox
                .call("call_host_echo", (&bytes[..],))
                .expect("called");
            assert!(echo == bytes, "{len_bytes} bytes");
        }
    });
}

#[test]
fn buffers_of_one_page_carry_everything_too() {
    in_each_mode(|lab| {
        let mut sandbox = lab
            .builder()
            .buffer_len_bytes(4096, 4096)
            .build(&lab.engine)
            .expect("built");
        for len_bytes in [0, 4000, 4096, 5000, 300_000] {
            let bytes = vec![0xA5_u8; len_bytes];
            let echo: Vec<u8> = sandbox
                .call("call_host_echo", (&bytes[..],))
                .expect("called");
            assert!(echo == bytes, "{len_bytes} bytes");
        }
    });
}

#[test]
fn the_error_of_a_host_function_reaches_the_guest_and_the_guests_caller() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let text: String = sandbox.call("host_error_text", ()).expect("called");
        assert_eq!(text, "the guest asked for it");
        let error = refused(
            "pass_host_error",
            sandbox.call::<_, ()>("pass_host_error", ("disk full",)),
        );
        assert_eq!(error.kind(), ErrorKind::GuestError);
        assert!(error.to_string().contains("disk full"), "{error}");
        assert!(sandbox.is_ready());
    });
}

#[test]
fn a_host_function_that_panics_is_an_error_to_the_guest_and_can_be_called_again() {
    in_each_mode(|lab| {
        let host = HostFunctions::new()
            .with("host_add", |a: i32, _: i32| {
                assert!(a != 13, "thirteen is refused");
                a
            })
            .with("host_echo", |bytes: Vec<u8>| bytes)
            .with("host_fail", |text: String| -> () {
                std::panic::panic_any(text.len())
            });
        let mut sandbox = with_host(lab, &host);
        let error = refused(
            "call_host_add",
            sandbox.call::<_, i32>("call_host_add", (13, 0)),
        );
        assert_eq!(error.kind(), ErrorKind::GuestError);
        assert!(error.to_string().contains("thirteen is refused"), "{error}");
        assert_eq!(
            sandbox
                .call::<_, i32>("call_host_add", (12, 0))
                .expect("called"),
            12
        );
        // A panic whose payload is no text.
        let text: String = sandbox.call("host_error_text", ()).expect("called");
        assert_eq!(text, "host function panicked");
        assert!(sandbox.is_ready());
    });
}

#[test]
fn the_text_of_a_host_error_is_bounded() {
    in_each_mode(|lab| {
        let host = host();
        let host = HostFunctions::new()
            .with("host_add", i32::wrapping_add)
            .with("host_echo", |bytes: Vec<u8>| bytes)
            .with("host_fail", move |_: String| {
                let _ = &host;
                Err::<(), String>("ß".repeat(1 << 20))
            });
        let mut sandbox = with_host(lab, &host);
        let text: String = sandbox.call("host_error_text", ()).expect("called");
        assert!(
            text.chars().all(|character| character == 'ß') && (1000..=1024).contains(&text.len()),
            "{}",
            text.len()
        );
    });
}

#[test]
fn a_missing_host_function_is_named_before_the_guest_runs() {
    in_each_mode(|lab| {
        let host = HostFunctions::new()
            .with("host_add", i32::wrapping_add)
            .with("host_echo", |bytes: Vec<u8>| bytes);
        let error = refused(
            "build",
            lab.builder().host_functions(&host).build(&lab.engine),
        );
        assert_eq!(error.kind(), ErrorKind::MissingHostFunction);
        assert!(
            error.to_string().contains("host_fail(string) -> ()"),
            "{error}"
        );
        let snapshot = lab.sandbox().snapshot().expect("taken");
        let error = refused(
            "from_snapshot",
            Sandbox::from_snapshot(&lab.engine, &snapshot, &host),
        );
        assert_eq!(error.kind(), ErrorKind::MissingHostFunction);
    });
}

#[test]
fn a_host_function_of_other_types_is_refused() {
    in_each_mode(|lab| {
        let others = [
            HostFunctions::new().with("host_add", |a: i32| a),
            HostFunctions::new().with("host_add", |a: i32, b: i32| i64::from(a) + i64::from(b)),
            HostFunctions::new().with("host_add", |a: u32, b: u32| i32::from(a > b)),
            HostFunctions::new().with("host_add", |_: i32, _: i32| ()),
        ];
        for host in others {
            let host = host
                .with("host_echo", |bytes: Vec<u8>| bytes)
                .with("host_fail", |_: String| ());
            let error = refused(
                "build",
                lab.builder().host_functions(&host).build(&lab.engine),
            );
            assert_eq!(error.kind(), ErrorKind::MissingHostFunction);
            assert!(
                error.to_string().contains("host_add(i32, i32) -> i32"),
                "{error}"
            );
        }
    });
}

#[test]
fn functions_that_the_guest_does_not_need_are_allowed() {
    in_each_mode(|lab| {
        let host = host().with("host_extra", || 1_u64);
        assert!(with_host(lab, &host).is_ready());
    });
}

#[test]
fn a_bad_set_of_host_functions_is_refused_when_it_is_used() {
    in_each_mode(|lab| {
        let long = "x".repeat(1 << 20);
        let names = [
            "",
            " ",
            "with space",
            "tab\t",
            "nul\0",
            "ünicode",
            "\u{1b}[2J",
            &"x".repeat(129),
            &long,
        ];
        for name in names {
            let error = refused(
                "build",
                lab.builder().host_function(name, || ()).build(&lab.engine),
            );
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{name:?}");
        }
        let error = refused(
            "build",
            lab.builder()
                .host_function("host_add", || ())
                .build(&lab.engine),
        );
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(
            error.to_string().contains("host_add") && error.to_string().contains("twice"),
            "{error}"
        );
    });
}

#[test]
fn one_set_serves_many_sandboxes() {
    in_each_mode(|lab| {
        let calls = Arc::new(AtomicU32::new(0));
        let counted = calls.clone();
        let host = HostFunctions::new()
            .with("host_add", move |a: i32, b: i32| {
                counted.fetch_add(1, Ordering::Relaxed);
                a + b
            })
            .with("host_echo", |bytes: Vec<u8>| bytes)
            .with("host_fail", |_: String| ());
        let mut sandboxes = [
            with_host(lab, &host),
            with_host(lab, &host),
            with_host(lab, &host),
        ];
        for sandbox in &mut sandboxes {
            assert_eq!(
                sandbox
                    .call::<_, i32>("call_host_add_loop", (10_u32,))
                    .expect("called"),
                10
            );
        }
        assert_eq!(calls.load(Ordering::Relaxed), 30);
    });
}

#[test]
fn a_host_function_may_use_another_sandbox() {
    in_each_mode(|lab| {
        let inner = std::sync::Mutex::new(lab.sandbox());
        let host = HostFunctions::new()
            .with("host_add", move |a: i32, b: i32| {
                let mut inner = inner.lock().map_err(|error| error.to_string())?;
                inner
                    .call::<_, i32>("add", (a, b))
                    .map_err(|error| error.to_string())
            })
            .with("host_echo", |bytes: Vec<u8>| bytes)
            .with("host_fail", |_: String| ());
        let mut outer = with_host(lab, &host);
        assert_eq!(
            outer
                .call::<_, i32>("call_host_add", (40, 2))
                .expect("called"),
            42
        );
    });
}

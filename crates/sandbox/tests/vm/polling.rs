//! Sandboxes whose guests need not leave to be served.

use std::time::Duration;

use vellum_abi::message::{MessageKind, MessageWriter};
use vellum_abi::value::ValueRef;
use vellum_sandbox::{CallOptions, CancelToken, EngineKind, ErrorKind, Polling, Sandbox, Snapshot};

use super::logging::collected;
use super::support::{Lab, add_to_counter, counter, host, in_each_mode, pattern, refused};

/// A polled sandbox, and a snapshot that was taken of it before.
fn polled(lab: &Lab) -> (Sandbox, Snapshot) {
    polled_as(lab, Polling::new())
}

fn polled_as(lab: &Lab, polling: Polling) -> (Sandbox, Snapshot) {
    let mut sandbox = lab.sandbox();
    let snapshot = sandbox.snapshot().expect("taken");
    let sandbox = sandbox.into_polling(polling).expect("a thread");
    (sandbox, snapshot)
}

/// Long enough for both sides to give up looking.
fn rest() {
    std::thread::sleep(Duration::from_millis(20));
}

#[test]
fn calls_and_host_calls_have_the_same_results() {
    in_each_mode(|lab| {
        let (mut sandbox, _) = polled(lab);
        for round in 0..200 {
            assert_eq!(
                sandbox.call::<_, i32>("add", (round, 2)).expect("called"),
                round + 2
            );
            if round % 50 == 0 {
                rest();
            }
        }
        let sum: i32 = sandbox
            .call("call_host_add_loop", (300_u32,))
            .expect("called");
        assert_eq!(sum, 300);
        let bytes = pattern(100_000);
        let echo: Vec<u8> = sandbox
            .call("call_host_echo", (&bytes[..],))
            .expect("called");
        assert!(echo == bytes);
        let text: String = sandbox.call("host_error_text", ()).expect("called");
        assert_eq!(text, "the guest asked for it");
        let lines = collected(|| sandbox.call("log_lines", (300_u32,)).expect("called"));
        assert_eq!(lines.len(), 300);
    });
}

#[test]
fn snapshots_and_restores_find_a_guest_that_stands_still() {
    in_each_mode(|lab| {
        let (mut sandbox, clean) = polled(lab);
        for round in 0..10 {
            add_to_counter(&mut sandbox, 5);
            if round % 3 == 0 {
                rest();
            }
            let five = sandbox.snapshot().expect("taken");
            add_to_counter(&mut sandbox, 2);
            sandbox.restore(&five).expect("restored");
            assert_eq!(counter(&mut sandbox), 5);
            // What a polled guest waited in is no part of a copy.
            let mut copy = Sandbox::from_snapshot(&lab.engine, &five, &host()).expect("made");
            assert_eq!(counter(&mut copy), 5);
            sandbox.restore(&clean).expect("restored");
            assert_eq!(counter(&mut sandbox), 0);
        }
    });
}

#[test]
fn deadlines_and_tokens_end_polled_calls_wherever_they_are() {
    in_each_mode(|lab| {
        let (mut sandbox, snapshot) = polled(lab);
        let spin = sandbox.function::<(), ()>("spin").expect("exported");
        let null = sandbox.function::<(), ()>("null").expect("exported");
        let loops = sandbox
            .function::<(u32,), i32>("call_host_add_loop")
            .expect("exported");
        let timeout = CallOptions::new().timeout(Duration::from_millis(20));
        let ample = CallOptions::new().timeout(Duration::from_mins(5));
        for _ in 0..3 {
            let error = refused("spinning", spin.call_with(&mut sandbox, (), &timeout));
            assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
            sandbox.restore(&snapshot).expect("restored");
            let result = loops.call_with(&mut sandbox, (u32::MAX,), &timeout);
            let error = refused("calling the host", result);
            assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
            sandbox.restore(&snapshot).expect("restored");
            null.call_with(&mut sandbox, (), &ample).expect("in time");
        }
        let token = CancelToken::new();
        let options = CallOptions::new().cancel_token(&token);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                rest();
                token.cancel();
            });
            let error = refused("spinning", spin.call_with(&mut sandbox, (), &options));
            assert_eq!(error.kind(), ErrorKind::Cancelled);
        });
        sandbox.restore(&snapshot).expect("restored");
        null.call(&mut sandbox, ()).expect("called");
    });
}

#[test]
fn a_guest_that_misbehaves_is_healed_and_its_thread_goes_with_it() {
    in_each_mode(|lab| {
        let (mut sandbox, snapshot) = polled(lab);
        for _ in 0..2 {
            let error = refused("a panic", sandbox.call::<_, ()>("log_and_panic", ("x",)));
            assert_eq!(error.kind(), ErrorKind::GuestPanic);
            sandbox.restore(&snapshot).expect("restored");
            assert_eq!(counter(&mut sandbox), 0);
        }
        add_to_counter(&mut sandbox, 1);
        drop(sandbox);
    });
}

/// A reply to the function with this name, which returns nothing.
fn reply_of(sandbox: &Sandbox, name: &str) -> Vec<u8> {
    let exports = sandbox.image().exports();
    let index = exports.iter().position(|it| it.name() == name);
    let index = u32::try_from(index.expect("exported")).expect("few");
    let mut bytes = vec![0; 64];
    let mut writer = MessageWriter::new(&mut bytes, MessageKind::Reply, index, 1).expect("room");
    writer.push(ValueRef::Unit).expect("room");
    let len_bytes = writer.finish().expect("complete");
    bytes.truncate(len_bytes);
    bytes
}

#[test]
fn a_guest_that_breaks_the_line_harms_itself_only() {
    in_each_mode(|lab| {
        let one_processor = std::thread::available_parallelism().is_ok_and(|it| it.get() < 2);
        if one_processor || lab.engine.kind() == Some(EngineKind::Emulator) {
            return Err("nothing is polled on one processor, or in the emulator");
        }
        // The host looks for so long that it is looking whenever the guest does something.
        let polling = Polling::new().spin(Duration::from_mins(1));
        let (mut sandbox, snapshot) = polled_as(lab, polling);
        let spoil = sandbox
            .function::<(u32,), ()>("spoil_line")
            .expect("exported");
        let timeout = CallOptions::new().timeout(Duration::from_millis(200));
        for count in [1, 2, 3, 4, 5, 6, 7, 1000] {
            // Nonsense may end the call in any way; what counts is that it ends and heals.
            let _ = spoil.call_with(&mut sandbox, (count,), &timeout);
            sandbox.restore(&snapshot).expect("restored");
            assert_eq!(counter(&mut sandbox), 0);
        }
        // One that replies and goes on has its reply taken, and is found out when it is to stand still.
        let reply = reply_of(&sandbox, "reply_and_go_on");
        let () = sandbox
            .call("reply_and_go_on", (&reply[..],))
            .expect("a sound reply");
        let error = refused("a snapshot", sandbox.snapshot());
        assert_eq!(error.kind(), ErrorKind::NeedsRestore);
        sandbox.restore(&snapshot).expect("restored");
        assert_eq!(counter(&mut sandbox), 0);
        // Or at the next call, which it does not hear.
        let () = sandbox
            .call("reply_and_go_on", (&reply[..],))
            .expect("a sound reply");
        let null = sandbox.function::<(), ()>("null").expect("exported");
        let error = refused("a call", null.call_with(&mut sandbox, (), &timeout));
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        sandbox.restore(&snapshot).expect("restored");
        assert_eq!(counter(&mut sandbox), 0);
        // Or never.
        let () = sandbox
            .call("reply_and_go_on", (&reply[..],))
            .expect("a sound reply");
        drop(sandbox);
        Ok(())
    });
}

//! Snapshots that the guest itself asks for, and copies that go on behind the request.

use std::time::Duration;

use vellum_sandbox::{CallOptions, Checkpoint, ErrorKind, Sandbox, Snapshot, Suspension};

use super::support::{add_to_counter, counter, host, in_each_mode, refused};

/// Counts 5, then calls the function that asks for a snapshot and adds 7: what it returned, and the snapshot.
fn ask(sandbox: &mut Sandbox) -> (u64, Checkpoint) {
    add_to_counter(sandbox, 5);
    let returned = sandbox
        .call("checkpoint_then_count", (0xC0DE_u32, 7_u64))
        .expect("called");
    let checkpoint = sandbox.take_checkpoint().expect("kept");
    (returned, checkpoint)
}

fn resume(sandbox: &mut Sandbox) -> u64 {
    sandbox.resume(&CallOptions::new()).expect("resumed")
}

fn suspended_in(snapshot: &Snapshot) -> &str {
    match snapshot.suspension() {
        Some(Suspension::Calling(function)) => function.name(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn original_and_copies_go_on_and_can_tell_which_they_are() {
    in_each_mode(|lab| {
        let mut original = lab.builder().keep_checkpoints().build(&lab.engine);
        let original = original.as_mut().expect("a sandbox can be built");
        let (returned, checkpoint) = ask(original);
        assert_eq!(returned, 12, "the original keeps generation 0");
        assert_eq!(checkpoint.tag(), 0xC0DE);
        assert_eq!(suspended_in(checkpoint.snapshot()), "checkpoint_then_count");
        assert!(original.take_checkpoint().is_none(), "it was taken out");
        let mut copy = Sandbox::from_snapshot(&lab.engine, checkpoint.snapshot(), &host())
            .expect("a sandbox can be made");
        assert!(!copy.is_ready());
        assert_eq!(resume(&mut copy), 1012, "a copy has generation 1");
        assert!(copy.is_ready());
        // Both go their own ways.
        add_to_counter(&mut copy, 100);
        add_to_counter(original, 1);
        assert_eq!((counter(original), counter(&mut copy)), (13, 112));
        // The original becomes a copy by going back; and again.
        for _ in 0..2 {
            original.restore(checkpoint.snapshot()).expect("restored");
            assert_eq!(resume(original), 1012);
            assert_eq!(counter(original), 12);
        }
    });
}

#[test]
fn a_request_that_nobody_wants_changes_nothing() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let returned: u64 = sandbox
            .call("checkpoint_then_count", (1_u32, 7_u64))
            .expect("called");
        assert_eq!(returned, 7);
        assert!(sandbox.take_checkpoint().is_none());
        sandbox.keep_checkpoints();
        assert!(sandbox.take_checkpoint().is_none());
        let _: u64 = sandbox
            .call("checkpoint_then_count", (2_u32, 7_u64))
            .expect("called");
        assert_eq!(sandbox.take_checkpoint().expect("kept").tag(), 2);
    });
}

#[test]
fn a_suspended_guest_takes_no_other_call_and_one_that_idles_is_not_resumed() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        sandbox.keep_checkpoints();
        let idle = sandbox.snapshot().expect("taken");
        let error = refused("resuming", sandbox.resume::<u64>(&CallOptions::new()));
        assert_eq!(error.kind(), ErrorKind::Suspended);
        let (_, checkpoint) = ask(&mut sandbox);
        sandbox.restore(checkpoint.snapshot()).expect("restored");
        let error = refused("a call", sandbox.call::<_, u64>("counter_get", ()));
        assert_eq!(error.kind(), ErrorKind::Suspended);
        assert!(
            error.to_string().contains("checkpoint_then_count"),
            "{error}"
        );
        let error = refused("a snapshot", sandbox.snapshot());
        assert_eq!(error.kind(), ErrorKind::Suspended);
        let error = refused("a string", sandbox.resume::<String>(&CallOptions::new()));
        assert_eq!(error.kind(), ErrorKind::TypeMismatch);
        // None of it has spoilt anything.
        assert_eq!(resume(&mut sandbox), 2012, "the second snapshot in a row");
        sandbox.restore(checkpoint.snapshot()).expect("restored");
        sandbox.restore(&idle).expect("restored while suspended");
        assert_eq!(counter(&mut sandbox), 0);
    });
}

#[test]
fn a_copy_that_is_stopped_is_dirty_and_can_be_resumed_again_after_a_restore() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        sandbox.keep_checkpoints();
        let (_, checkpoint) = ask(&mut sandbox);
        sandbox.restore(checkpoint.snapshot()).expect("restored");
        let never = CallOptions::new().timeout(Duration::ZERO);
        let error = refused("resuming", sandbox.resume::<u64>(&never));
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        sandbox.restore(checkpoint.snapshot()).expect("restored");
        assert_eq!(resume(&mut sandbox), 1012);
    });
}

#[test]
fn the_latest_of_many_requests_is_kept_and_a_copy_can_ask_again() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        sandbox.keep_checkpoints();
        for tag in 0..40_u32 {
            let _: u64 = sandbox.call("checkpoint", (tag,)).expect("called");
            add_to_counter(&mut sandbox, 1);
        }
        let latest = sandbox.take_checkpoint().expect("kept");
        assert_eq!(latest.tag(), 39);
        let mut copy = Sandbox::from_snapshot(&lab.engine, latest.snapshot(), &host())
            .expect("a sandbox can be made");
        copy.keep_checkpoints();
        assert_eq!(resume(&mut copy), 1);
        assert_eq!(counter(&mut copy), 39);
        let generation: u64 = copy.call("checkpoint", (7_u32,)).expect("called");
        assert_eq!(generation, 1, "it is the original of this one");
        let second = copy.take_checkpoint().expect("kept");
        copy.restore(second.snapshot()).expect("restored");
        assert_eq!(resume(&mut copy), 2);
        assert_eq!(counter(&mut copy), 39);
    });
}

#[test]
fn the_original_keeps_its_generation_when_the_host_takes_a_snapshot() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let generation =
            |sandbox: &mut Sandbox| -> u64 { sandbox.call("generation", ()).expect("called") };
        let first = sandbox.snapshot().expect("taken");
        assert_eq!(generation(&mut sandbox), 0);
        let second = sandbox.snapshot().expect("taken");
        assert_eq!(generation(&mut sandbox), 0);
        sandbox.restore(&second).expect("restored");
        assert_eq!(generation(&mut sandbox), 2);
        sandbox.restore(&first).expect("restored");
        assert_eq!(generation(&mut sandbox), 1);
    });
}

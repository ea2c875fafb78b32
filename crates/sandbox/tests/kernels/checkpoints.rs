//! Snapshots that a kernel asks for in the middle of a call.

use vellum_sandbox::{CallOptions, ErrorKind, Suspension};

use super::support::{call, counter, with_each_kernel};

#[test]
fn the_original_goes_on_and_a_copy_is_resumed_behind_the_request() {
    with_each_kernel(|lab| {
        let mut sandbox = lab.sandbox();
        sandbox.keep_checkpoints();
        let generation: u64 = call(&mut sandbox, "generation", ());
        let original: u64 = call(&mut sandbox, "checkpoint_then_count", (7_u32, 5_u64));
        assert_eq!(original, generation * 1000 + 5);
        let checkpoint = sandbox.take_checkpoint().expect("the guest asked for one");
        assert_eq!(checkpoint.tag(), 7);
        let snapshot = checkpoint.snapshot();
        assert!(
            matches!(snapshot.suspension(), Some(Suspension::Calling(function))
            if function.name() == "checkpoint_then_count")
        );
        let copy = snapshot.generation();
        assert_ne!(copy, generation);

        let mut fork = lab.fork(snapshot);
        for round in 1..=2 {
            let error = fork.call::<_, ()>("null", ()).expect_err("suspended");
            assert_eq!(error.kind(), ErrorKind::Suspended);
            let value: u64 = fork.resume(&CallOptions::new()).expect("resumed");
            assert_eq!(value, copy * 1000 + 5, "round {round}");
            assert!(fork.is_ready());
            assert_eq!(call::<_, u64>(&mut fork, "generation", ()), copy);
            fork.restore(snapshot)
                .expect("restored to the middle of the call");
        }
        sandbox
            .restore(snapshot)
            .expect("the original goes back to it as well");
        let value: u64 = sandbox.resume(&CallOptions::new()).expect("resumed");
        assert_eq!(value, copy * 1000 + 5);
    });
}

#[test]
fn what_was_written_after_the_request_is_not_in_the_copy() {
    with_each_kernel(|lab| {
        let mut sandbox = lab.sandbox();
        sandbox.keep_checkpoints();
        for round in 1..=3_u64 {
            let _: u64 = call(&mut sandbox, "counter_add", (round,));
            let _: u64 = call(&mut sandbox, "checkpoint", (1_u32,));
        }
        let _: u64 = call(&mut sandbox, "counter_add", (100_u64,));
        let checkpoint = sandbox.take_checkpoint().expect("the guest asked for one");
        let mut fork = lab.fork(checkpoint.snapshot());
        let _: u64 = fork.resume(&CallOptions::new()).expect("resumed");
        assert_eq!((counter(&mut sandbox), counter(&mut fork)), (106, 6));
        let ordinary = fork
            .snapshot()
            .expect("a resumed copy has snapshots of its own");
        assert_eq!(counter(&mut lab.fork(&ordinary)), 6);
    });
}

#[test]
fn without_an_interested_host_the_request_changes_nothing() {
    with_each_kernel(|lab| {
        let mut sandbox = lab.sandbox();
        let generation: u64 = call(&mut sandbox, "generation", ());
        assert_eq!(
            call::<_, u64>(&mut sandbox, "checkpoint", (1_u32,)),
            generation
        );
        assert!(sandbox.take_checkpoint().is_none());
    });
}

#[test]
fn a_kernel_is_told_which_snapshot_it_comes_from_and_the_original_keeps_its_number() {
    with_each_kernel(|lab| {
        let mut sandbox = lab.sandbox();
        let mut snapshots = Vec::new();
        for _ in 0..2 {
            snapshots.push(sandbox.snapshot().expect("a snapshot"));
            let generation: u64 = call(&mut sandbox, "generation", ());
            assert_eq!(generation, 0, "the guest has booted");
        }
        for snapshot in snapshots.iter().rev() {
            let mut fork = lab.fork(snapshot);
            sandbox.restore(snapshot).expect("restored");
            for sandbox in [&mut fork, &mut sandbox] {
                let generation: u64 = call(sandbox, "generation", ());
                assert_eq!(generation, snapshot.generation());
            }
        }
    });
}

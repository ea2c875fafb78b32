//! Mappings belong to a sandbox: what snapshots and restores do to them, and what not.

use vellum_sandbox::{CallOptions, Gpa, Mapping, Sandbox, SharedMemory};

use crate::support::*;

fn shared(value: u64) -> SharedMemory {
    let memory = SharedMemory::new(PAGE).expect("memory");
    memory.store(0, value).expect("in bounds");
    memory
}

fn region(label: &str, value: u64) -> Mapping {
    Mapping::region(label, &shared(value)).expect("mapped")
}

#[test]
fn every_restore_leaves_them_where_they_are() {
    with_each_guest(|lab| {
        let mut sandbox = lab.sandbox();
        let first = sandbox.snapshot().expect("a snapshot");
        let second = sandbox.snapshot().expect("a snapshot");
        sandbox.map(AT, &region("m", 7)).expect("mapped");
        for snapshot in [&second, &first, &second, &second, &first] {
            sandbox.restore(snapshot).expect("restored");
            assert_eq!(mapping_count(&mut sandbox), 1);
            let at = lab.locate(&mut sandbox, "m");
            assert_eq!(word(&mut sandbox, at), 7);
        }
        let dirty = read(&mut sandbox, 0x6000_0000);
        assert_stopped("a read of nothing", &sandbox, dirty);
        sandbox.restore(&first).expect("restored");
        let at = lab.locate(&mut sandbox, "m");
        assert_eq!(word(&mut sandbox, at), 7);
    });
}

#[test]
fn a_snapshot_forgets_them() {
    with_each_guest(|lab| {
        let mut sandbox = lab.sandbox();
        sandbox.map(AT, &region("m", 7)).expect("mapped");
        let at = lab.locate(&mut sandbox, "m");
        assert_eq!(word(&mut sandbox, at), 7);
        let snapshot = sandbox.snapshot().expect("a snapshot");
        // Twice: the second sandbox is given tables that the first one has built.
        for _ in 0..2 {
            let mut copy =
                Sandbox::from_snapshot(&lab.engine, &snapshot, &host()).expect("a sandbox");
            assert_eq!(mapping_count(&mut copy), 0);
            assert_eq!(copy.mappings().count(), 0);
            let result = read(&mut copy, at);
            assert_stopped("a read", &copy, result);
            copy.restore(&snapshot).expect("restored");
            copy.map(AT, &region("other", 8)).expect("mapped");
            let at = lab.locate(&mut copy, "other");
            assert_eq!(word(&mut copy, at), 8);
        }
        assert_eq!(word(&mut sandbox, at), 7, "the original keeps it");
    });
}

#[test]
fn they_come_and_go_between_restores() {
    with_each_guest(|lab| {
        let mut sandbox = lab.sandbox();
        let ready = sandbox.snapshot().expect("a snapshot");
        for round in 0..4 {
            sandbox.map(AT, &region("m", round)).expect("mapped");
            let at = lab.locate(&mut sandbox, "m");
            assert_eq!(u64::from(word(&mut sandbox, at)), round);
            if round % 2 == 0 {
                sandbox.unmap("m").expect("unmapped");
                sandbox.restore(&ready).expect("restored");
            } else {
                sandbox.restore(&ready).expect("restored");
                sandbox.unmap("m").expect("unmapped");
            }
            assert_eq!(mapping_count(&mut sandbox), 0);
            let result = read(&mut sandbox, at);
            assert_stopped("a read", &sandbox, result);
            sandbox.restore(&ready).expect("restored");
        }
    });
}

#[test]
fn a_sandbox_that_failed_can_be_given_and_relieved_of_them() {
    with_each_guest(|lab| {
        let mut sandbox = lab.sandbox();
        let ready = sandbox.snapshot().expect("a snapshot");
        sandbox.map(AT, &region("goes", 7)).expect("mapped");
        let dirty = read(&mut sandbox, 0x6000_0000);
        assert_stopped("a read of nothing", &sandbox, dirty);
        sandbox.unmap("goes").expect("unmapped");
        sandbox.map(ELSEWHERE, &region("comes", 8)).expect("mapped");
        sandbox.restore(&ready).expect("restored");
        assert_eq!(mapping_count(&mut sandbox), 1);
        let at = lab.locate(&mut sandbox, "comes");
        assert_eq!(word(&mut sandbox, at), 8);
    });
}

#[test]
fn a_guest_that_is_suspended_finds_what_it_is_given_when_it_goes_on() {
    with_each_guest(|lab| {
        let mut sandbox = lab.sandbox();
        sandbox.keep_checkpoints();
        let _: u64 = sandbox
            .call("checkpoint_then_count", (1_u32, 5_u64))
            .expect("called");
        let checkpoint = sandbox.take_checkpoint().expect("the guest asked");
        let mut copy =
            Sandbox::from_snapshot(&lab.engine, checkpoint.snapshot(), &host()).expect("a sandbox");
        copy.map(AT, &region("m", 7)).expect("mapped");
        let _: u64 = copy.resume(&CallOptions::new()).expect("resumed");
        let at = lab.locate(&mut copy, "m");
        assert_eq!(word(&mut copy, at), 7);
    });
}

/// The image of a user guest grows with its snapshots, and once in a while takes a new VM.
#[test]
fn they_move_with_a_sandbox_that_outgrows_its_vm() {
    with_guests(
        |guest| guest == Guest::User,
        |lab| {
            let builder = lab.builder().heap_len_bytes(64 * MIB);
            let mut sandbox = builder.build(&lab.engine).expect("a sandbox");
            let file = TempPath::numbered(PAGE);
            let private = Mapping::file("rw", file.path()).expect("mapped").writable();
            sandbox.map(AT, &region("m", 7)).expect("mapped");
            sandbox.map(ELSEWHERE, &private).expect("mapped");
            let at = lab.locate(&mut sandbox, "rw");
            write(&mut sandbox, at, 9).expect("written");
            let small = sandbox.snapshot().expect("a snapshot");
            let _: u64 = sandbox.call("touch_pages", (4000_u64,)).expect("called");
            let large = sandbox.snapshot().expect("a snapshot");
            assert!(large.len_bytes() > small.len_bytes() + 8 * MIB);
            assert_eq!(word(&mut sandbox, at), 9, "private writes moved, too");
            let shared = lab.locate(&mut sandbox, "m");
            assert_eq!(word(&mut sandbox, shared), 7);
            for snapshot in [&small, &large] {
                sandbox.restore(snapshot).expect("restored");
                assert_eq!(word(&mut sandbox, at), number_at(0));
                assert_eq!(word(&mut sandbox, shared), 7);
            }
        },
    );
}

/// Where the memories of a larger snapshot would lie.
#[test]
fn a_restore_that_leaves_no_room_for_them_is_refused_and_changes_nothing() {
    with_guests(
        |guest| guest == Guest::User,
        |lab| {
            let builder = || lab.builder().heap_len_bytes(64 * MIB);
            let mut grown = builder().build(&lab.engine).expect("a sandbox");
            let small = grown.snapshot().expect("a snapshot");
            let _: u64 = grown.call("touch_pages", (8000_u64,)).expect("called");
            let large = grown.snapshot().expect("a snapshot");

            let mut sandbox =
                Sandbox::from_snapshot(&lab.engine, &small, &host()).expect("a sandbox");
            // Right behind the image, which is found by being refused.
            let behind = (1..1024)
                .map(|index| Gpa::new(index * MIB).expect("an address"))
                .find(|gpa| sandbox.map(*gpa, &region("m", 7)).is_ok())
                .expect("the image ends");
            let error = refused("a restore", sandbox.restore(&large));
            assert!(error.to_string().contains("overlaps the image"), "{error}");
            assert!(sandbox.is_ready());
            let at = lab.locate(&mut sandbox, "m");
            assert_eq!(word(&mut sandbox, at), 7);
            sandbox.unmap("m").expect("unmapped");
            sandbox.restore(&large).expect("restored");
            assert!(sandbox.map(behind, &region("m", 7)).is_err());
        },
    );
}

//! Snapshots, going back to them, and sandboxes made from them.

use vellum_sandbox::{CowMode, Engine, Sandbox, Snapshot};

use super::support::{
    PAGE, call, count, counter, host, peb, with_each_identity, with_each_kernel, with_each_paged,
};

/// Writes to pages of the heap.
fn dirty_heap(sandbox: &mut Sandbox, pages: u64) {
    let _: u64 = call(sandbox, "touch_pages", (pages,));
}

#[test]
fn snapshots_restores_and_forks_work_as_for_any_guest() {
    with_each_kernel(|lab| {
        let mut first = lab.sandbox();
        count(&mut first, 5);
        let five = first.snapshot().expect("a snapshot");
        count(&mut first, 1);
        dirty_heap(&mut first, 64);
        let six = first.snapshot().expect("a snapshot");
        first.restore(&five).expect("restored to an older snapshot");
        assert_eq!(counter(&mut first), 5);
        for _ in 0..3 {
            count(&mut first, 1);
            first.restore(&five).expect("restored");
            assert_eq!(counter(&mut first), 5);
        }
        let mut second = lab.fork(&six);
        count(&mut second, 10);
        assert_eq!((counter(&mut first), counter(&mut second)), (5, 16));
        first
            .restore(&six)
            .expect("restored to a snapshot that another sandbox was made from");
        assert_eq!((counter(&mut first), counter(&mut second)), (6, 16));
    });
}

#[test]
fn a_second_snapshot_after_a_restore_holds_what_came_after_it() {
    with_each_kernel(|lab| {
        let mut sandbox = lab.sandbox();
        count(&mut sandbox, 1);
        let one = sandbox.snapshot().expect("a snapshot");
        count(&mut sandbox, 100);
        sandbox.restore(&one).expect("restored");
        count(&mut sandbox, 1);
        dirty_heap(&mut sandbox, 8);
        let two = sandbox.snapshot().expect("a snapshot after a restore");
        count(&mut sandbox, 1);
        let three = sandbox.snapshot().expect("a snapshot");
        let generations = [&one, &two, &three].map(Snapshot::generation);
        assert!(
            generations.is_sorted_by(|left, right| left < right),
            "{generations:?}"
        );
        for (snapshot, expected) in [(&two, 2), (&one, 1), (&three, 3), (&two, 2)] {
            sandbox.restore(snapshot).expect("restored");
            assert_eq!(counter(&mut sandbox), expected);
            assert_eq!(counter(&mut lab.fork(snapshot)), expected);
        }
    });
}

#[test]
fn a_chain_of_twenty_snapshots_keeps_every_state() {
    with_each_kernel(|lab| {
        let mut sandbox = lab.sandbox();
        let mut snapshots = Vec::new();
        for step in 1..=20_u64 {
            count(&mut sandbox, 1);
            dirty_heap(&mut sandbox, step % 5);
            snapshots.push((step, sandbox.snapshot().expect("a snapshot")));
            assert_eq!(counter(&mut sandbox), step, "a snapshot changes nothing");
        }
        // Each layer of its own, flattened ones, and both orders.
        for (step, snapshot) in snapshots
            .iter()
            .step_by(3)
            .chain(snapshots.iter().rev().step_by(4))
        {
            sandbox.restore(snapshot).expect("restored");
            assert_eq!(counter(&mut sandbox), *step);
            count(&mut sandbox, 1000);
        }
        let (_, last) = snapshots.pop().expect("twenty");
        drop(snapshots);
        drop(sandbox);
        assert_eq!(
            counter(&mut lab.fork(&last)),
            20,
            "a snapshot outlives its parents"
        );
    });
}

#[test]
fn a_snapshot_of_one_mode_runs_on_an_engine_of_the_other() {
    with_each_paged(|lab| {
        let mut sandbox = lab.sandbox();
        count(&mut sandbox, 5);
        let snapshot = sandbox.snapshot().expect("a snapshot");
        let other = match lab.engine.cow_mode() {
            CowMode::HostSide => CowMode::GuestSide,
            CowMode::GuestSide => CowMode::HostSide,
        };
        let other = Engine::builder()
            .chosen_by_environment()
            .cow_mode(other)
            .build()
            .expect("opened");
        let mut fork = Sandbox::from_snapshot(&other, &snapshot, &host()).expect("a fork");
        let mut restored = lab.builder().build(&other).expect("built");
        count(&mut restored, 1);
        restored.restore(&snapshot).expect("restored");
        for sandbox in [&mut fork, &mut restored] {
            dirty_heap(sandbox, 4);
            count(sandbox, 1);
            assert_eq!(counter(sandbox), 6);
            sandbox.restore(&snapshot).expect("restored");
            assert_eq!(counter(sandbox), 5);
        }
    });
}

#[test]
fn a_snapshot_holds_what_changed_and_not_what_is_mapped() {
    with_each_kernel(|lab| {
        let mut sandbox = lab.sandbox();
        let first = sandbox.snapshot().expect("a snapshot");
        count(&mut sandbox, 1);
        let second = sandbox.snapshot().expect("a snapshot");
        let grown = second.len_bytes() - first.len_bytes();
        // The counter's page, stack, output buffer, and what the library notes about a call.
        assert!((PAGE..=16 * PAGE).contains(&grown), "{grown} bytes");
        let third = sandbox.snapshot().expect("a snapshot");
        assert_eq!(third.len_bytes(), second.len_bytes(), "nothing changed");
    });
}

#[test]
fn a_restore_puts_back_all_memory_that_a_kernel_without_paging_can_write() {
    with_each_identity(|lab| {
        let mut sandbox = lab.sandbox();
        let snapshot = sandbox.snapshot().expect("a snapshot");
        let peb_address: u64 = call(&mut sandbox, "peb_address", ());
        let peb = peb(&mut sandbox);
        // Low memory that no segment covers, the end of the output buffer, a free frame, the page of the block itself.
        let places = [
            0x2000,
            0x8_0000,
            peb.output_ptr + peb.output_len_bytes - 8,
            peb_address + PAGE,
            peb_address + PAGE - 16,
        ];
        restores_words(&mut sandbox, &snapshot, &places);
    });
}

#[test]
fn a_restore_puts_back_all_memory_that_a_kernel_with_paging_can_write() {
    with_each_paged(|lab| {
        let mut sandbox = lab.sandbox();
        let snapshot = sandbox.snapshot().expect("a snapshot");
        let peb_address: u64 = call(&mut sandbox, "peb_address", ());
        let peb = peb(&mut sandbox);
        // The end of the output buffer, the last free frame, the page of the block itself, the lowest page of the stack.
        let places = [
            peb.output_ptr + peb.output_len_bytes - 8,
            peb.scratch_ptr + (peb.scratch_len_bytes - vellum_layout::SCRATCH_TOP_LEN_BYTES - PAGE),
            peb_address + PAGE - 16,
            peb.stack_top - peb.stack_len_bytes,
        ];
        restores_words(&mut sandbox, &snapshot, &places);
    });
}

/// Writes to each place, restores, and finds what was there before.
fn restores_words(sandbox: &mut Sandbox, snapshot: &Snapshot, places: &[u64]) {
    let words = |sandbox: &mut Sandbox| -> Vec<u64> {
        let read = |place: &u64| call(sandbox, "read_address", (*place,));
        places.iter().map(read).collect()
    };
    let before = words(sandbox);
    for place in places {
        let () = call(sandbox, "write_address", (*place, 0xBAD_u64));
    }
    assert_eq!(words(sandbox), vec![0xBAD; places.len()]);
    sandbox.restore(snapshot).expect("restored");
    assert_eq!(words(sandbox), before);
}

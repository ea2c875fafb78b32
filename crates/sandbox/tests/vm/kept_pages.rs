//! Pages that a sandbox keeps through restores, and large pages that are split: whatever was there before, a restore shows the
//! snapshot.

use vellum_layout::amd64::user;
use vellum_sandbox::{CowMode, RingZero, Sandbox, Snapshot};

use super::support::{Lab, host, in_each_mode};

const PAGE_LEN_BYTES: u64 = 4096;
/// Six large pages, or more.
const PAGES: u64 = 3200;

/// A snapshot of a guest whose arena is filled, each page with its number plus one.
fn filled(lab: &Lab) -> (Sandbox, Snapshot) {
    let builder = lab.builder().heap_len_bytes(16 << 20);
    let mut sandbox = builder.build(&lab.engine).expect("built");
    let _: u64 = sandbox
        .call("reserve", (PAGES * PAGE_LEN_BYTES,))
        .expect("called");
    let snapshot = sandbox.snapshot().expect("taken");
    (sandbox, snapshot)
}

/// The first word of each page of the arena.
fn words(sandbox: &mut Sandbox) -> Vec<u64> {
    let word = |page: u64| {
        sandbox
            .call("read_arena", (page * PAGE_LEN_BYTES,))
            .expect("called")
    };
    (0..PAGES).step_by(61).map(word).collect()
}

fn expected(changed: impl Fn(u64) -> Option<u64>) -> Vec<u64> {
    (0..PAGES)
        .step_by(61)
        .map(|page| changed(page).unwrap_or(page + 1))
        .collect()
}

#[test]
fn a_write_into_a_large_page_changes_one_small_page() {
    in_each_mode(|lab| {
        let (_, snapshot) = filled(lab);
        let mut sandbox = Sandbox::from_snapshot(&lab.engine, &snapshot, &host()).expect("made");
        for round in 0..3 {
            assert_eq!(words(&mut sandbox), expected(|_| None), "round {round}");
            let _: u64 = sandbox.call("touch_pages", (700_u64,)).expect("called");
            let touched = |page| (page < 700).then_some(0x5EED + page);
            assert_eq!(words(&mut sandbox), expected(touched), "round {round}");
            sandbox.restore(&snapshot).expect("restored");
        }
    });
}

/// Many small sets of pages in turn: each restore undoes its own, also where the flags of earlier runs are still set, and where they
/// were cleared in between.
#[test]
fn sets_of_different_sizes_are_each_undone() {
    in_each_mode(|lab| {
        let (mut sandbox, snapshot) = filled(lab);
        for count in [1_u64, 1, 60, 3, 64, 2, 2, 100, 1, 0, 5] {
            let _: u64 = sandbox.call("touch_pages", (count,)).expect("called");
            sandbox.restore(&snapshot).expect("restored");
            assert_eq!(words(&mut sandbox), expected(|_| None), "after {count}");
        }
    });
}

#[test]
fn snapshots_in_place_hold_what_was_written_since_the_last_one() {
    in_each_mode(|lab| {
        let (mut sandbox, first) = filled(lab);
        let _: u64 = sandbox.call("touch_pages", (100_u64,)).expect("called");
        let second = sandbox.snapshot().expect("taken");
        let added = second.len_bytes() - first.len_bytes();
        // The pages of the arena, and a few of stack and statics.
        assert!((100..120).contains(&(added / PAGE_LEN_BYTES)), "{added:#x}");
        let third = sandbox.snapshot().expect("taken");
        assert!(third.len_bytes() - second.len_bytes() < 8 * PAGE_LEN_BYTES);
        let touched = |page| (page < 100).then_some(0x5EED + page);
        for snapshot in [&third, &second] {
            sandbox.restore(snapshot).expect("restored");
            assert_eq!(words(&mut sandbox), expected(touched));
            let mut copy = Sandbox::from_snapshot(&lab.engine, snapshot, &host()).expect("made");
            assert_eq!(words(&mut copy), expected(touched));
        }
        sandbox.restore(&first).expect("restored");
        assert_eq!(words(&mut sandbox), expected(|_| None));
    });
}

/// What the host writes to a page that the guest has written before, but not in this run, is undone too.
#[test]
fn what_the_host_writes_to_a_kept_page_is_undone() {
    in_each_mode(|lab| {
        let (mut sandbox, snapshot) = filled(lab);
        let heap = user::HEAP_BASE.as_u64();
        let mut before = vec![0; 64 * 4096];
        // More pages than are copied back between two looks at the flags.
        let _: u64 = sandbox.call("touch_pages", (200_u64,)).expect("called");
        sandbox.restore(&snapshot).expect("restored");
        sandbox.read_memory(heap, &mut before).expect("mapped");
        for _ in 0..2 {
            let bytes = vec![0xA5; before.len()];
            sandbox.write_memory(heap, &bytes).expect("mapped");
            sandbox.restore(&snapshot).expect("restored");
            let mut after = vec![0; before.len()];
            sandbox.read_memory(heap, &mut after).expect("mapped");
            assert!(before == after, "the heap is that of the snapshot");
        }
        assert_eq!(words(&mut sandbox), expected(|_| None));
    });
}

/// More pages than are kept: the frames are taken back, and a sandbox that went on in place maps its snapshot anew.
#[test]
fn a_flood_of_pages_is_undone_too() {
    const FLOOD: u64 = 5000;
    in_each_mode(|lab| {
        let slow = lab.engine.capabilities().ring_zero == RingZero::Emulated;
        if slow && lab.engine.cow_mode() == CowMode::GuestSide {
            return Err("an emulated monitor takes a minute for so many pages");
        }
        let builder = lab.builder().heap_len_bytes(32 << 20);
        let mut sandbox = builder.build(&lab.engine).expect("built");
        let _: u64 = sandbox
            .call("reserve", (FLOOD * PAGE_LEN_BYTES,))
            .expect("called");
        let first = sandbox.snapshot().expect("taken");
        let mut copy = Sandbox::from_snapshot(&lab.engine, &first, &host()).expect("made");
        for sandbox in [&mut sandbox, &mut copy] {
            for _ in 0..2 {
                let _: u64 = sandbox.call("touch_pages", (FLOOD,)).expect("called");
                sandbox.restore(&first).expect("restored");
                assert_eq!(words(sandbox), expected(|_| None));
            }
        }
        Ok(())
    });
}

/// With scratch for a few pages only, what one run used is there for the next.
#[test]
fn a_small_scratch_serves_run_after_run() {
    in_each_mode(|lab| {
        let builder = lab.builder().scratch_len_bytes(2 << 20);
        let mut sandbox = builder.build(&lab.engine).expect("built");
        let snapshot = sandbox.snapshot().expect("taken");
        let heap = user::HEAP_BASE.as_u64();
        for run in 0..6 {
            // Other pages each time: together they would not fit.
            for page in 0..80 {
                let at = heap + (200 + run * 80 + page) * PAGE_LEN_BYTES;
                sandbox
                    .call::<_, ()>("poke", (at, &[1_u8; 8][..]))
                    .expect("called");
            }
            sandbox.restore(&snapshot).expect("restored");
        }
    });
}

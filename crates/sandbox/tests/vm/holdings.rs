//! What snapshots hold, to the page, and many sandboxes at once.

use vellum_sandbox::{Sandbox, Snapshot};

use super::support::{add_to_counter, counter, host, in_each_mode};

const PAGE_LEN_BYTES: u64 = 4096;
/// Pages that the guest's function is told to write before each snapshot.
const STAMPED: u64 = 16;

#[test]
fn a_hundred_snapshots_hold_the_pages_that_were_written_before_each_and_no_more() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let _: u64 = sandbox.call("reserve", (1_u64 << 20,)).expect("called");
        let stamp = sandbox
            .function::<(u64, u64), u64>("stamp_pages")
            .expect("such a function");
        let mut held = |pages: u64, value: u64| -> Snapshot {
            stamp.call(&mut sandbox, (pages, value)).expect("called");
            sandbox.snapshot().expect("taken")
        };
        // What a call writes besides, its stack for one: the same for every call.
        let before = held(0, 1).len_bytes();
        let besides = held(0, 2).len_bytes() - before;
        assert!(besides <= 2 * PAGE_LEN_BYTES, "{besides} bytes");
        let first = held(0, 3);
        let chain: Vec<Snapshot> = (0..100).map(|round| held(STAMPED, 1000 + round)).collect();
        let mut below = first.len_bytes();
        for (round, snapshot) in chain.iter().enumerate() {
            let own = snapshot.len_bytes() - below;
            let stamped = STAMPED * PAGE_LEN_BYTES;
            // The guest may have left its stack as it was, or write a page there that it left as it was before.
            assert!(
                (stamped..=stamped + 2 * PAGE_LEN_BYTES).contains(&own),
                "snapshot {round} of the chain holds {own} bytes of its own"
            );
            below = snapshot.len_bytes();
        }
        // They are all there.
        for round in [0, 1, 50, 99] {
            let mut copy =
                Sandbox::from_snapshot(&lab.engine, &chain[round], &host()).expect("made");
            let word: u64 = copy.call("read_arena", (PAGE_LEN_BYTES,)).expect("called");
            assert_eq!(word, 1001 + round as u64);
        }
    });
}

#[test]
fn two_hundred_sandboxes_of_one_snapshot_live_at_once_and_keep_their_own_state() {
    in_each_mode(|lab| {
        let mut parent = lab.sandbox();
        let _: u64 = parent.call("reserve", (1_u64 << 20,)).expect("called");
        let snapshot = parent.snapshot().expect("taken");
        let mut sandboxes: Vec<Sandbox> = (0..200)
            .map(|_| Sandbox::from_snapshot(&lab.engine, &snapshot, &host()).expect("made"))
            .collect();
        for (number, sandbox) in (1..).zip(&mut sandboxes) {
            add_to_counter(sandbox, number);
        }
        for (number, sandbox) in (1..).zip(&mut sandboxes) {
            assert_eq!(counter(sandbox), number);
        }
    });
}

//! Pools of ready sandboxes.

use std::thread;
use std::time::Duration;

use vellum_sandbox::{CowMode, ErrorKind, Gpa, Mapping, Pool, PoolMetrics, SharedMemory, Snapshot};

use super::support::{Lab, add_to_counter, counter, host, in_each_mode, in_mode, refused};

/// A snapshot whose counter is 10.
fn ten(lab: &Lab) -> Snapshot {
    let mut sandbox = lab.sandbox();
    add_to_counter(&mut sandbox, 10);
    sandbox.snapshot().expect("taken")
}

fn pool(lab: &Lab, ready: usize, max_live: usize) -> Pool {
    Pool::builder(&lab.engine, &ten(lab), &host())
        .ready(ready)
        .max_live(max_live)
        .build()
        .expect("a pool can be made")
}

/// Waits until the keeper has brought the pool to a state. A pool that never gets there hangs the test, which its harness shows.
fn wait_for(pool: &Pool, state: impl Fn(&PoolMetrics) -> bool) -> PoolMetrics {
    loop {
        let metrics = pool.metrics();
        if state(&metrics) {
            return metrics;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_a_user_did_to_a_sandbox_is_undone_before_the_next_one_gets_it() {
    in_each_mode(|lab| {
        let pool = pool(lab, 1, 1);
        for _ in 0..10 {
            let mut sandbox = pool.take().expect("the one that came back");
            assert_eq!(counter(&mut sandbox), 10);
            add_to_counter(&mut sandbox, 5);
            let _: u64 = sandbox.call("touch_pages", (8_u64,)).expect("called");
        }
        let metrics = pool.metrics();
        assert_eq!((metrics.made, metrics.taken, metrics.returned), (1, 10, 10));
        assert_eq!((metrics.parked, metrics.live, metrics.missed), (1, 1, 0));
    });
}

#[test]
fn a_sandbox_that_failed_is_healed_in_the_background() {
    in_each_mode(|lab| {
        let pool = pool(lab, 1, 1);
        let mut sandbox = pool.take().expect("ready");
        let error = refused(
            "a panic",
            sandbox.call::<_, ()>("do_panic", ("on purpose",)),
        );
        assert_eq!(error.kind(), ErrorKind::GuestPanic);
        drop(sandbox);
        let metrics = wait_for(&pool, |metrics| metrics.parked == 1);
        assert_eq!((metrics.healed, metrics.made, metrics.lost), (1, 1, 0));
        assert_eq!(counter(&mut pool.take().expect("healed")), 10);
    });
}

#[test]
fn a_pool_makes_more_when_none_is_ready_and_no_more_than_it_may() {
    in_each_mode(|lab| {
        let pool = pool(lab, 2, 3);
        let mut taken: Vec<_> = (0..3).map(|_| pool.take().expect("one of three")).collect();
        let error = refused("the fourth", pool.take());
        assert_eq!(error.kind(), ErrorKind::PoolExhausted);
        for sandbox in &mut taken {
            assert_eq!(counter(sandbox), 10);
        }
        taken.pop();
        let _again = pool.take().expect("one came back");
        drop(taken);
        // Two wait and one is in use: the bound holds, and nothing is lost.
        let metrics = wait_for(&pool, |metrics| metrics.parked == 2);
        assert_eq!(metrics.live, 3);
        assert_eq!(metrics.lost, 0);
    });
}

#[test]
fn sandboxes_beyond_those_that_wait_are_torn_down() {
    in_each_mode(|lab| {
        let pool = pool(lab, 1, 8);
        let taken: Vec<_> = (0..4).map(|_| pool.take().expect("made")).collect();
        drop(taken);
        let metrics = wait_for(&pool, |metrics| metrics.live == 1);
        assert_eq!(metrics.parked, 1);
    });
}

#[test]
fn many_threads_take_and_give_back_at_once() {
    in_each_mode(|lab| {
        let pool = pool(lab, 4, 8);
        thread::scope(|scope| {
            for thread in 0..4_u64 {
                let pool = &pool;
                scope.spawn(move || {
                    for round in 0..25 {
                        let mut sandbox = pool.take().expect("four of eight");
                        add_to_counter(&mut sandbox, thread * 100 + round);
                        assert_eq!(counter(&mut sandbox), 10 + thread * 100 + round);
                    }
                });
            }
        });
        let metrics = pool.metrics();
        assert_eq!((metrics.taken, metrics.returned), (100, 100));
        assert!(metrics.live <= 8);
    });
}

#[test]
fn a_sandbox_outlives_its_pool() {
    in_each_mode(|lab| {
        let pool = pool(lab, 2, 4);
        let mut sandbox = pool.take().expect("ready");
        drop(pool);
        add_to_counter(&mut sandbox, 1);
        assert_eq!(counter(&mut sandbox), 11);
    });
}

#[test]
fn a_sandbox_that_was_restored_to_something_else_comes_back_right() {
    in_each_mode(|lab| {
        let pool = pool(lab, 1, 1);
        let mut sandbox = pool.take().expect("ready");
        add_to_counter(&mut sandbox, 1);
        let _own = sandbox.snapshot().expect("taken");
        drop(sandbox);
        assert_eq!(counter(&mut pool.take().expect("restored")), 10);
    });
}

#[test]
fn nothing_of_one_user_reaches_the_next() {
    in_each_mode(|lab| {
        let pool = pool(lab, 1, 1);
        let secret = SharedMemory::new(4096).expect("a memory");
        let mapping = Mapping::region("secret", &secret).expect("a mapping");
        let mut first = pool.take().expect("ready");
        first
            .map(Gpa::literal(0x4000_0000), &mapping)
            .expect("mapped");
        first.keep_checkpoints();
        let _: u64 = first.call("checkpoint", (7_u32,)).expect("called");
        drop(first);
        let mut second = pool.take().expect("given back");
        assert_eq!(second.mappings().count(), 0);
        assert_eq!(
            second.call::<_, u64>("mapping_count", ()).expect("called"),
            0
        );
        assert!(second.take_checkpoint().is_none());
        let _: u64 = second.call("checkpoint", (8_u32,)).expect("called");
        assert!(
            second.take_checkpoint().is_none(),
            "nobody asked to keep it"
        );
    });
}

#[test]
fn a_sandbox_that_was_exchanged_for_another_is_not_given_to_anybody() {
    in_each_mode(|lab| {
        let pool = pool(lab, 1, 2);
        let mut own = lab.sandbox();
        let mut taken = pool.take().expect("ready");
        std::mem::swap(&mut *taken, &mut own);
        drop(taken);
        let metrics = wait_for(&pool, |metrics| metrics.lost == 1 && metrics.parked == 1);
        assert_eq!(metrics.made, 2);
    });
}

#[test]
fn an_unused_sandbox_of_a_suspended_snapshot_comes_back_at_once() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        sandbox.keep_checkpoints();
        let _: u64 = sandbox.call("checkpoint", (1_u32,)).expect("called");
        let checkpoint = sandbox.take_checkpoint().expect("kept");
        let pool = Pool::builder(&lab.engine, checkpoint.snapshot(), &host())
            .ready(1)
            .max_live(1)
            .build()
            .expect("a pool can be made");
        for _ in 0..5 {
            drop(pool.take().expect("it came back"));
        }
        assert_eq!(pool.metrics().healed, 0);
    });
}

#[test]
fn numbers_that_make_no_pool_are_refused() {
    in_mode(CowMode::HostSide, |lab| {
        let snapshot = ten(lab);
        for (ready, max_live) in [(0, 4), (5, 4), (1 << 17, 1 << 18)] {
            let built = Pool::builder(&lab.engine, &snapshot, &host())
                .ready(ready)
                .max_live(max_live)
                .build();
            let error = refused("the pool", built);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
        }
        let without = vellum_sandbox::HostFunctions::new();
        let built = Pool::builder(&lab.engine, &snapshot, &without).build();
        let error = refused("the pool", built);
        assert_eq!(error.kind(), ErrorKind::MissingHostFunction, "{error}");
    });
}

//! Snapshots, going back to them, and sandboxes made from them.

use vellum_sandbox::{CowMode, CpuProfile, Engine, ErrorKind, GuestImage, Sandbox};

use super::support::{
    NO_C_COMPILER, add_to_counter, another_image, counter, host, in_each_mode, in_mode, refused,
};

#[test]
fn a_restore_undoes_what_was_done_since_the_snapshot() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        add_to_counter(&mut sandbox, 5);
        let snapshot = sandbox.snapshot().expect("taken");
        assert_eq!(counter(&mut sandbox), 5, "a snapshot changes nothing");
        for round in 1..=20 {
            add_to_counter(&mut sandbox, round);
            let _: u64 = sandbox.call("touch_pages", (round * 3,)).expect("called");
            sandbox.restore(&snapshot).expect("restored");
            assert_eq!(counter(&mut sandbox), 5, "round {round}");
        }
        // Twice in a row, without a call in between.
        sandbox.restore(&snapshot).expect("restored");
        sandbox.restore(&snapshot).expect("restored");
        assert_eq!(counter(&mut sandbox), 5);
    });
}

#[test]
fn ten_sandboxes_of_one_snapshot_do_not_see_each_other() {
    in_each_mode(|lab| {
        let mut parent = lab.sandbox();
        add_to_counter(&mut parent, 100);
        let _: u64 = parent.call("reserve", (64_u64 << 10,)).expect("called");
        let snapshot = parent.snapshot().expect("taken");
        let mut sandboxes: Vec<Sandbox> = (0..10)
            .map(|_| Sandbox::from_snapshot(&lab.engine, &snapshot, &host()).expect("made"))
            .collect();
        for (number, sandbox) in (0..).zip(&mut sandboxes) {
            add_to_counter(sandbox, number);
            let _: u64 = sandbox.call("touch_pages", (number,)).expect("called");
        }
        add_to_counter(&mut parent, 1000);
        for (number, sandbox) in (0..).zip(&mut sandboxes) {
            assert_eq!(counter(sandbox), 100 + number);
            for page in 0..16_u64 {
                let word: u64 = sandbox.call("read_arena", (page * 4096,)).expect("called");
                let first = if page < number { 0x5EED } else { 1 };
                assert_eq!(word, page + first, "sandbox {number}, page {page}");
            }
        }
        for sandbox in &mut sandboxes {
            sandbox.restore(&snapshot).expect("restored");
            assert_eq!(counter(sandbox), 100);
        }
        assert_eq!(counter(&mut parent), 1100);
    });
}

#[test]
fn a_sandbox_goes_over_to_the_snapshot_of_another_and_to_an_older_one() {
    in_each_mode(|lab| {
        let (mut first, mut second) = (lab.sandbox(), lab.sandbox());
        add_to_counter(&mut first, 1);
        let one = first.snapshot().expect("taken");
        add_to_counter(&mut first, 1);
        let two = first.snapshot().expect("taken");
        add_to_counter(&mut second, 70);
        let seventy = second.snapshot().expect("taken");
        // Every order of own, older and foreign snapshots, in both sandboxes.
        for (snapshot, expected) in [
            (&one, 1),
            (&seventy, 70),
            (&two, 2),
            (&one, 1),
            (&two, 2),
            (&seventy, 70),
            (&one, 1),
        ] {
            for sandbox in [&mut first, &mut second] {
                add_to_counter(sandbox, 1_000_000);
                sandbox.restore(snapshot).expect("restored");
                assert_eq!(counter(sandbox), expected);
            }
        }
    });
}

#[test]
fn a_snapshot_outlives_its_sandbox_and_its_parents() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        add_to_counter(&mut sandbox, 1);
        drop(sandbox.snapshot().expect("taken"));
        add_to_counter(&mut sandbox, 1);
        let snapshot = sandbox.snapshot().expect("taken");
        drop(sandbox);
        let mut again = Sandbox::from_snapshot(&lab.engine, &snapshot, &host()).expect("made");
        drop(snapshot);
        assert_eq!(counter(&mut again), 2);
    });
}

#[test]
fn a_chain_of_forty_snapshots_keeps_every_state_and_counts_generations() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let mut snapshots = Vec::new();
        for step in 1..=40_u64 {
            add_to_counter(&mut sandbox, 1);
            let _: u64 = sandbox.call("touch_pages", (step % 7,)).expect("called");
            let snapshot = sandbox.snapshot().expect("taken");
            assert_eq!(snapshot.generation(), step);
            assert_eq!(counter(&mut sandbox), step);
            snapshots.push(snapshot);
        }
        for step in (1..=40).step_by(3).chain((1..=40).rev().step_by(7)) {
            let snapshot = &snapshots[step - 1];
            sandbox.restore(snapshot).expect("restored");
            assert_eq!(counter(&mut sandbox), step as u64);
            let mut fresh = Sandbox::from_snapshot(&lab.engine, snapshot, &host()).expect("made");
            assert_eq!(counter(&mut fresh), step as u64);
        }
    });
}

#[test]
fn the_size_of_a_snapshot_is_bounded_by_what_the_guest_holds() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let first = sandbox.snapshot().expect("taken");
        let mut largest = 0;
        for _ in 0..60 {
            let _: u64 = sandbox.call("touch_pages", (8_u64,)).expect("called");
            largest = largest.max(sandbox.snapshot().expect("taken").len_bytes());
        }
        // Sixteen layers of at most 8 arena pages and 16 others, then they become one.
        assert!(largest <= first.len_bytes() + 17 * 24 * 4096, "{largest}");
    });
}

#[test]
fn a_snapshot_without_a_change_holds_no_page_of_its_own() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let first = sandbox.snapshot().expect("taken");
        for _ in 0..30 {
            sandbox.restore(&first).expect("restored");
            let next = sandbox.snapshot().expect("taken");
            assert_eq!(next.len_bytes(), first.len_bytes());
        }
    });
}

#[test]
fn a_snapshot_that_does_not_fit_the_vm_moves_the_sandbox_to_another() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox_with_heap(16 << 20);
        let small = sandbox.snapshot().expect("taken");
        add_to_counter(&mut sandbox, 9);
        // More pages than a VM keeps room for.
        let _: u64 = sandbox.call("touch_pages", (2500_u64,)).expect("called");
        let large = sandbox.snapshot().expect("taken");
        assert!(large.len_bytes() > 2500 * 4096);
        assert_eq!(counter(&mut sandbox), 9);
        sandbox.restore(&small).expect("restored");
        assert_eq!(counter(&mut sandbox), 0);
        sandbox.restore(&large).expect("restored");
        assert_eq!(
            sandbox
                .call::<_, u64>("read_arena", (2499_u64 * 4096,))
                .expect("called"),
            2499 + 0x5EED
        );
    });
}

#[test]
fn an_incompatible_snapshot_is_refused_and_the_sandbox_stays_as_it_was() {
    in_each_mode(|lab| {
        let of_another = Sandbox::builder(&another_image())
            .heap_len_bytes(super::support::HEAP_LEN_BYTES)
            .host_functions(&host())
            .build(&lab.engine)
            .expect("built")
            .snapshot()
            .expect("taken");
        let larger_heap = lab
            .builder()
            .heap_len_bytes(8 << 20)
            .build(&lab.engine)
            .expect("built")
            .snapshot();
        let larger_stack = lab
            .builder()
            .stack_len_bytes(2 << 20)
            .build(&lab.engine)
            .expect("built")
            .snapshot();
        let larger_buffers = lab
            .builder()
            .buffer_len_bytes(8192, 8192)
            .build(&lab.engine)
            .expect("built")
            .snapshot();
        let mut sandbox = lab.sandbox();
        add_to_counter(&mut sandbox, 3);
        let own = sandbox.snapshot().expect("taken");
        add_to_counter(&mut sandbox, 1);
        for other in [
            of_another,
            larger_heap.expect("taken"),
            larger_stack.expect("taken"),
            larger_buffers.expect("taken"),
        ] {
            let error = refused("restore", sandbox.restore(&other));
            assert_eq!(error.kind(), ErrorKind::Incompatible);
            assert!(sandbox.is_ready());
            assert_eq!(counter(&mut sandbox), 4);
        }
        // A sandbox that asks for a restore stays as it was, too, and still can be restored.
        refused("read_null", sandbox.call::<_, ()>("read_null", ()));
        assert_eq!(
            refused("restore", sandbox.restore(&larger_snapshot(&sandbox))).kind(),
            ErrorKind::Incompatible
        );
        assert!(!sandbox.is_ready());
        sandbox.restore(&own).expect("restored");
        assert_eq!(counter(&mut sandbox), 3);
    });
}

fn larger_snapshot(like: &Sandbox) -> vellum_sandbox::Snapshot {
    Sandbox::builder(like.image())
        .host_functions(&host())
        .build(like.engine())
        .expect("built")
        .snapshot()
        .expect("taken")
}

#[test]
fn a_snapshot_serves_engines_of_both_modes() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        add_to_counter(&mut sandbox, 11);
        let _: u64 = sandbox.call("touch_pages", (5_u64,)).expect("called");
        let snapshot = sandbox.snapshot().expect("taken");
        for cow in [CowMode::HostSide, CowMode::GuestSide] {
            in_mode(cow, |other| {
                let mut fresh =
                    Sandbox::from_snapshot(&other.engine, &snapshot, &host()).expect("made");
                assert_eq!(counter(&mut fresh), 11);
                assert_eq!(
                    fresh
                        .call::<_, u64>("read_arena", (4_u64 * 4096,))
                        .expect("called"),
                    4 + 0x5EED
                );
            });
        }
    });
}

/// A snapshot holds registers that only the CPU profile it was taken under has.
#[test]
fn a_snapshot_of_another_cpu_profile_is_refused_and_the_sandbox_stays_as_it_was() {
    in_each_mode(|lab| {
        let profile = |profile| {
            Engine::builder()
                .chosen_by_environment()
                .cow_mode(lab.engine.cow_mode())
                .cpu_profile(profile)
                .build()
        };
        let (Ok(plain), Ok(rich)) = (profile(CpuProfile::V1), profile(CpuProfile::Host)) else {
            return Err("this hypervisor has one CPU profile only");
        };
        let build = |engine: &Engine| lab.builder().build(engine).expect("built");
        let (mut in_plain, mut in_rich) = (build(&plain), build(&rich));
        let (of_plain, of_rich) = (
            in_plain.snapshot().expect("taken"),
            in_rich.snapshot().expect("taken"),
        );
        for (sandbox, foreign) in [(&mut in_plain, &of_rich), (&mut in_rich, &of_plain)] {
            add_to_counter(sandbox, 2);
            assert_eq!(
                refused("restore", sandbox.restore(foreign)).kind(),
                ErrorKind::Incompatible
            );
            assert!(sandbox.is_ready());
            assert_eq!(counter(sandbox), 2);
            let made = Sandbox::from_snapshot(sandbox.engine(), foreign, &host());
            assert_eq!(
                refused("from_snapshot", made).kind(),
                ErrorKind::Incompatible
            );
        }
        Ok(())
    });
}

#[test]
fn two_images_run_side_by_side() {
    in_each_mode(|lab| {
        let Some(elf) = vellum_test_guests::c_user() else {
            return Err(NO_C_COMPILER);
        };
        let image = GuestImage::from_bytes(elf).expect("valid");
        let mut in_c = Sandbox::builder(&image)
            .heap_len_bytes(1 << 20)
            .host_functions(&host())
            .build(&lab.engine)
            .expect("built");
        let mut in_rust = lab.sandbox();
        let (of_c, of_rust) = (
            in_c.snapshot().expect("taken"),
            in_rust.snapshot().expect("taken"),
        );
        for round in 0..10 {
            assert_eq!(
                in_c.call::<_, i32>("c_add", (round, 1)).expect("called"),
                round + 1
            );
            assert_eq!(
                in_rust.call::<_, i32>("add", (round, 2)).expect("called"),
                round + 2
            );
            in_c.restore(&of_c).expect("restored");
            in_rust.restore(&of_rust).expect("restored");
        }
        assert_eq!(
            refused("restore", in_c.restore(&of_rust)).kind(),
            ErrorKind::Incompatible
        );
        assert_eq!(
            refused("c_add in rust", in_rust.call::<_, i32>("c_add", (1, 1))).kind(),
            ErrorKind::UnknownFunction
        );
        Ok(())
    });
}

#[test]
fn a_sandbox_moves_between_threads() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let snapshot = sandbox.snapshot().expect("taken");
        for round in 1..=5 {
            let mine = snapshot.clone();
            sandbox = std::thread::spawn(move || {
                add_to_counter(&mut sandbox, round);
                assert_eq!(counter(&mut sandbox), round);
                if round % 2 == 0 {
                    refused("int3", sandbox.call::<_, ()>("int3", ()));
                }
                sandbox.restore(&mine).expect("restored");
                sandbox
            })
            .join()
            .expect("no panic");
            assert_eq!(counter(&mut sandbox), 0);
        }
        // Dropped where it was not made.
        std::thread::spawn(move || drop(sandbox))
            .join()
            .expect("no panic");
    });
}

#[test]
fn eight_threads_restore_one_snapshot_at_once() {
    in_each_mode(|lab| {
        let mut parent = lab.sandbox();
        add_to_counter(&mut parent, 7);
        let snapshot = parent.snapshot().expect("taken");
        std::thread::scope(|scope| {
            for number in 0..8 {
                let snapshot = &snapshot;
                scope.spawn(move || {
                    let mut sandbox =
                        Sandbox::from_snapshot(&lab.engine, snapshot, &host()).expect("made");
                    for round in 0..20 {
                        add_to_counter(&mut sandbox, number * 100 + round);
                        assert_eq!(counter(&mut sandbox), 7 + number * 100 + round);
                        sandbox.restore(snapshot).expect("restored");
                    }
                });
            }
        });
    });
}

#[test]
fn restores_without_a_call_between_them_put_back_what_was_written_before() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        add_to_counter(&mut sandbox, 1);
        for round in 0..3 {
            let snapshot = sandbox.snapshot().expect("taken");
            add_to_counter(&mut sandbox, 10);
            for _ in 0..=round {
                sandbox.restore(&snapshot).expect("restored");
            }
            // A translation that outlived the restores would show the page of before.
            assert_eq!(counter(&mut sandbox), 1);
            add_to_counter(&mut sandbox, 100);
            assert_eq!(counter(&mut sandbox), 101);
            sandbox.restore(&snapshot).expect("restored");
            assert_eq!(counter(&mut sandbox), 1);
        }
    });
}

#[test]
fn a_sandbox_goes_back_to_a_snapshot_that_is_larger_than_its_image_slot() {
    in_each_mode(|lab| {
        for first in [2000_u64, 3000] {
            let mut sandbox = lab.sandbox_with_heap(64 << 20);
            let _: u64 = sandbox.call("touch_pages", (first,)).expect("called");
            add_to_counter(&mut sandbox, 5);
            let snapshot = sandbox.snapshot().expect("taken");
            for _ in 0..2 {
                // More than are put back one by one.
                let _: u64 = sandbox.call("touch_pages", (6000_u64,)).expect("called");
                add_to_counter(&mut sandbox, 5);
                sandbox.restore(&snapshot).expect("restored");
                assert_eq!(counter(&mut sandbox), 5, "{first} pages");
            }
        }
    });
}

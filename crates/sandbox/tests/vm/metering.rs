//! Instructions as a measure and as a limit: exact in the emulator, a time elsewhere.

use vellum_sandbox::{CallOptions, CowMode, Engine, EngineKind, ErrorKind, Sandbox, Snapshot};

use super::engines;
use super::support::{Lab, add_to_counter, counter, host, in_each_mode, refused};

/// Runs `test` in the emulator, whatever engine the other tests run on, in the mode that it prefers.
fn in_the_emulator(test: impl Fn(&Lab)) {
    let builder = Engine::builder().kind(EngineKind::Emulator);
    let engine = builder.build().expect("it needs nothing");
    assert_eq!(engine.cow_mode(), CowMode::HostSide);
    let lab = Lab::on(engine);
    test(&lab);
    engines::report("metering", CowMode::HostSide, Some(&lab.engine), Ok(()));
}

fn executed(sandbox: &mut Sandbox) -> u64 {
    sandbox.executed_instructions().expect("it counts")
}

/// Instructions of a call that computes, calls the host, and writes pages.
fn cost(sandbox: &mut Sandbox) -> u64 {
    let before = executed(sandbox);
    work(sandbox, &CallOptions::new()).expect("called");
    executed(sandbox) - before
}

fn work(sandbox: &mut Sandbox, options: &CallOptions) -> Result<(), vellum_sandbox::Error> {
    let function = sandbox.function::<(u32,), i32>("call_host_add_loop")?;
    function.call_with(sandbox, (20,), options).map(drop)
}

fn prepare(lab: &Lab) -> (Sandbox, Snapshot) {
    let mut sandbox = lab.sandbox();
    add_to_counter(&mut sandbox, 5);
    let snapshot = sandbox.snapshot().expect("taken");
    (sandbox, snapshot)
}

#[test]
fn the_same_call_on_the_same_state_executes_the_same_instructions() {
    in_the_emulator(|lab| {
        let (mut sandbox, snapshot) = prepare(lab);
        let expected = cost(&mut sandbox);
        assert!(expected > 1000, "{expected}");
        for _ in 0..3 {
            sandbox.restore(&snapshot).expect("restored");
            assert_eq!(cost(&mut sandbox), expected);
            let fork = Sandbox::from_snapshot(&lab.engine, &snapshot, &host());
            assert_eq!(cost(&mut fork.expect("made")), expected);
        }
        // And one that boots itself.
        let (mut other, _) = prepare(lab);
        assert_eq!(cost(&mut other), expected);
    });
}

#[test]
fn fuel_suffices_to_the_instruction_and_covers_all_of_a_call() {
    in_the_emulator(|lab| {
        let (mut sandbox, snapshot) = prepare(lab);
        let cost = cost(&mut sandbox);
        for (fuel, suffices) in [
            (cost, true),
            (cost - 1, false),
            (cost / 2, false),
            (0, false),
        ] {
            sandbox.restore(&snapshot).expect("restored");
            let before = executed(&mut sandbox);
            let result = work(&mut sandbox, &CallOptions::new().fuel(fuel));
            if suffices {
                result.expect("it suffices");
            } else {
                assert_eq!(refused("fuel", result).kind(), ErrorKind::DeadlineExceeded);
            }
            assert_eq!(executed(&mut sandbox) - before, fuel);
        }
        // The limit is one of its call.
        sandbox.restore(&snapshot).expect("restored");
        assert_eq!(counter(&mut sandbox), 5);
        work(&mut sandbox, &CallOptions::new()).expect("called");
    });
}

#[test]
fn fuel_ends_a_call_that_never_ends_on_every_engine() {
    in_each_mode(|lab| {
        let (mut sandbox, snapshot) = prepare(lab);
        let options = CallOptions::new().fuel(2_000_000);
        for _ in 0..2 {
            let result = sandbox.call_dynamic("spin", &[], &options);
            assert_eq!(refused("spin", result).kind(), ErrorKind::DeadlineExceeded);
            sandbox.restore(&snapshot).expect("restored");
            assert_eq!(counter(&mut sandbox), 5);
        }
        // More than enough, whether it is counted or measured.
        let plenty = CallOptions::new().fuel(60_000_000_000);
        work(&mut sandbox, &plenty).expect("called");
    });
}

#[test]
fn coverage_is_the_blocks_that_ran() {
    in_the_emulator(|lab| {
        let (_, snapshot) = prepare(lab);
        let covered = |call: fn(&mut Sandbox)| {
            let fork = Sandbox::from_snapshot(&lab.engine, &snapshot, &host());
            let mut fork = fork.expect("made");
            assert!(fork.traced_blocks().is_empty(), "nothing was asked for");
            assert!(fork.trace_blocks());
            call(&mut fork);
            fork.traced_blocks()
        };
        let count = |sandbox: &mut Sandbox| assert_eq!(counter(sandbox), 5);
        let greet = |sandbox: &mut Sandbox| {
            let _: String = sandbox.call("greet", ("you",)).expect("called");
        };
        let (counting, greeting) = (covered(count), covered(greet));
        assert!(counting.is_sorted() && !counting.is_empty());
        assert_eq!(counting, covered(count), "the same each time");
        assert!(
            greeting.iter().any(|block| !counting.contains(block)),
            "another function has blocks of its own"
        );
    });
}

#[test]
fn hypervisors_count_and_trace_nothing() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let counts = lab.engine.capabilities().instruction_counts;
        assert_eq!(sandbox.executed_instructions().is_some(), counts);
        assert_eq!(sandbox.trace_blocks(), counts);
    });
}

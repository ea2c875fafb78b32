//! What one run wrote cannot be read in the next.

use vellum_sandbox::{CallOptions, CpuProfile, Engine, Sandbox, Snapshot, Value};

use super::support::{Lab, host, in_each_mode, refused};

const SECRET: u64 = 0x5EC2_E75E_C2E7_5EC2;

/// How the run that left the secret ended, before the restore.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Cleanly,
    ByFault,
    ByDeadline,
}

const ENDINGS: [Ending; 3] = [Ending::Cleanly, Ending::ByFault, Ending::ByDeadline];

fn end(sandbox: &mut Sandbox, ending: Ending) {
    match ending {
        Ending::Cleanly => {}
        Ending::ByFault => drop(refused("ud2", sandbox.call::<_, ()>("invalid_opcode", ()))),
        Ending::ByDeadline => {
            let options = CallOptions::new().timeout(std::time::Duration::from_millis(5));
            refused("spin", sandbox.call_dynamic("spin", &[], &options));
        }
    }
}

fn make(lab: &Lab, engine: &Engine) -> (Sandbox, Snapshot) {
    let mut sandbox = lab.builder().build(engine).expect("built");
    let snapshot = sandbox.snapshot().expect("taken");
    (sandbox, snapshot)
}

/// Lets `set` leave the secret, restores, and compares what `get` then finds with what it finds in a fresh sandbox.
fn check_register(sandbox: &mut Sandbox, snapshot: &Snapshot, set: &str, get: &str) {
    let mut fresh = Sandbox::from_snapshot(sandbox.engine(), snapshot, &host()).expect("made");
    let expected: u64 = fresh.call(get, ()).expect("called");
    for ending in ENDINGS {
        let () = sandbox.call(set, (SECRET,)).expect("called");
        assert_eq!(
            sandbox.call::<_, u64>(get, ()).expect("called"),
            SECRET,
            "{set} has an effect"
        );
        end(sandbox, ending);
        sandbox.restore(snapshot).expect("restored");
        assert_eq!(
            sandbox.call::<_, u64>(get, ()).expect("called"),
            expected,
            "{get} after a run that ended {ending:?}"
        );
        sandbox.restore(snapshot).expect("restored");
    }
}

#[test]
fn sse_registers_are_put_back() {
    in_each_mode(|lab| {
        let (mut sandbox, snapshot) = make(lab, &lab.engine);
        check_register(&mut sandbox, &snapshot, "set_xmm", "get_xmm");
    });
}

#[test]
fn avx_registers_are_put_back() {
    in_each_mode(|lab| {
        let engine = Engine::builder()
            .chosen_by_environment()
            .cow_mode(lab.engine.cow_mode())
            .cpu_profile(CpuProfile::Host)
            .build();
        let engine = engine.expect("the host's own profile is always possible");
        let (mut sandbox, snapshot) = make(lab, &engine);
        if sandbox.call::<_, u64>("get_avx", ()).is_err() {
            return Err("guests of this hypervisor have no AVX");
        }
        sandbox.restore(&snapshot).expect("restored");
        check_register(&mut sandbox, &snapshot, "set_avx", "get_avx");
        Ok(())
    });
}

#[test]
fn registers_of_the_snapshot_come_back_and_not_only_zeroes() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let () = sandbox.call("set_xmm", (77_u64,)).expect("called");
        let snapshot = sandbox.snapshot().expect("taken");
        for ending in ENDINGS {
            let () = sandbox.call("set_xmm", (SECRET,)).expect("called");
            end(&mut sandbox, ending);
            sandbox.restore(&snapshot).expect("restored");
            assert_eq!(sandbox.call::<_, u64>("get_xmm", ()).expect("called"), 77);
        }
    });
}

#[test]
fn the_direction_flag_is_put_back() {
    in_each_mode(|lab| {
        let (mut sandbox, snapshot) = make(lab, &lab.engine);
        // The flag breaks the calling convention, so whatever the call gives is accepted.
        let _ = sandbox.call::<_, ()>("set_flags_df", ());
        sandbox.restore(&snapshot).expect("restored");
        assert!(!sandbox.call::<_, bool>("get_flags_df", ()).expect("called"));
    });
}

#[test]
fn heap_that_was_written_reads_as_zero_again() {
    const PAGES: u64 = 64;
    in_each_mode(|lab| {
        let (mut sandbox, snapshot) = make(lab, &lab.engine);
        for ending in ENDINGS {
            let _: u64 = sandbox.call("reserve", (PAGES * 4096,)).expect("called");
            end(&mut sandbox, ending);
            sandbox.restore(&snapshot).expect("restored");
            // Makes the arena anew: the last page is touched, the ones before it are not.
            assert!(
                sandbox.call::<_, u64>("read_arena", (0_u64,)).is_err(),
                "the arena is gone"
            );
            let address = arena_address(&mut sandbox, PAGES);
            sandbox.restore(&snapshot).expect("restored");
            for page in 0..PAGES {
                let word: u64 = sandbox
                    .call("read_address", (address + page * 4096,))
                    .expect("heap can be read");
                assert_eq!(word, 0, "page {page} after a run that ended {ending:?}");
            }
            sandbox.restore(&snapshot).expect("restored");
        }
    });
}

/// Where the guest's allocator puts an arena of this many pages: found by its content.
fn arena_address(sandbox: &mut Sandbox, pages: u64) -> u64 {
    let heap = vellum_layout::amd64::user::HEAP_BASE.as_u64();
    let _: u64 = sandbox.call("reserve", (pages * 4096,)).expect("called");
    (heap..heap + super::support::HEAP_LEN_BYTES)
        .step_by(4096)
        .find(|&address| {
            sandbox
                .call::<_, u64>("read_address", (address,))
                .expect("heap can be read")
                == 1
                && sandbox
                    .call::<_, u64>("read_address", (address + 4096,))
                    .expect("heap can be read")
                    == 2
        })
        .expect("the arena lies in the heap")
}

/// Where a buffer lies in the guest.
fn buffers() -> vellum_layout::amd64::user::IoArea {
    vellum_layout::amd64::user::io_area(16 << 10, (16 + 8) << 10).expect("the default sizes")
}

#[test]
fn the_buffers_hold_nothing_of_the_run_before() {
    in_each_mode(|lab| {
        let (mut sandbox, snapshot) = make(lab, &lab.engine);
        let secret = vec![0xEE_u8; 16_000];
        for ending in ENDINGS {
            let _: Vec<u8> = sandbox
                .call("call_host_echo", (&secret[..],))
                .expect("called");
            end(&mut sandbox, ending);
            sandbox.restore(&snapshot).expect("restored");
            // The message of the call itself lies in the first 64 bytes of the input buffer.
            for (start, skip) in [
                (buffers().input.start().as_u64(), 64),
                (buffers().output.start().as_u64(), 64),
            ] {
                for offset in (skip..16 << 10).step_by(8 * 61) {
                    let word: u64 = sandbox
                        .call("read_address", (start + offset,))
                        .expect("buffers can be read");
                    assert_eq!(
                        word, 0,
                        "offset {offset:#x} of {start:#x} after a run that ended {ending:?}"
                    );
                }
            }
            sandbox.restore(&snapshot).expect("restored");
        }
    });
}

#[test]
fn a_shorter_message_does_not_uncover_a_longer_one_of_the_run_before() {
    in_each_mode(|lab| {
        let (mut sandbox, snapshot) = make(lab, &lab.engine);
        let text = Value::String("S".repeat(10_000));
        for name in ["echo_string", "fail", "greet"] {
            let _ = sandbox.call_dynamic(name, std::slice::from_ref(&text), &CallOptions::new());
            sandbox.restore(&snapshot).expect("restored");
            let start = buffers().output.start().as_u64();
            for offset in [64, 512, 1024, 9_992] {
                assert_eq!(
                    sandbox
                        .call::<_, u64>("read_address", (start + offset,))
                        .expect("called"),
                    0
                );
            }
        }
    });
}

#[test]
fn seeds_differ_between_clones_and_between_restores() {
    in_each_mode(|lab| {
        let (mut sandbox, snapshot) = make(lab, &lab.engine);
        let mut seeds = Vec::new();
        for _ in 0..5 {
            seeds.push(sandbox.call::<_, u64>("seed", ()).expect("called"));
            sandbox.restore(&snapshot).expect("restored");
            let mut clone = Sandbox::from_snapshot(&lab.engine, &snapshot, &host()).expect("made");
            seeds.push(clone.call("seed", ()).expect("called"));
        }
        let (before, elsewhere) = (
            sandbox.call::<_, u64>("seed", ()).expect("called"),
            lab.sandbox().snapshot(),
        );
        sandbox
            .restore(&elsewhere.expect("taken"))
            .expect("restored");
        seeds.extend([before, sandbox.call("seed", ()).expect("called")]);
        let count = seeds.len();
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), count);
    });
}

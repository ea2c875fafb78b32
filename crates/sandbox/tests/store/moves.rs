//! Snapshots that move between the machine's hypervisor and the emulator, in both directions, on disk and in memory.

use vellum_sandbox::{
    CallOptions, CowMode, CpuProfile, Engine, EngineKind, Error, ErrorKind, GuestImage, Sandbox,
    Snapshot,
};

use super::engines;
use super::support::{Directory, count, counter, each_way, fork, host, kernels, refused};

/// What the table of engines calls these tests.
const SUITE: &str = "moves";

/// A guest, and two engines between which its snapshots move.
struct Move {
    guest: &'static str,
    image: GuestImage,
    from: Engine,
    to: Engine,
}

impl Move {
    fn sandbox(&self, engine: &Engine) -> Sandbox {
        Sandbox::builder(&self.image)
            .heap_len_bytes(8 << 20)
            .host_functions(&host())
            .build(engine)
            .expect("a sandbox can be built")
    }

    fn is_user(&self) -> bool {
        self.guest == USER
    }
}

const USER: &str = "amd64-user";

/// Runs `test` for every guest that both engines run, with each profile that both have, in each mode and in both directions.
fn with_each_move(test: impl Fn(&Move)) {
    for cow in [CowMode::HostSide, CowMode::GuestSide] {
        for profile in [CpuProfile::V1, CpuProfile::V2] {
            let builder = Engine::builder().cow_mode(cow).cpu_profile(profile);
            let emulator = builder.clone().kind(EngineKind::Emulator).build();
            let emulator = emulator.expect("it needs nothing");
            let hardware = match builder.require_hardware().build() {
                Ok(hardware) => hardware,
                // None here, or one without the profile.
                Err(error) if is_lacking(&error) => {
                    engines::report(SUITE, cow, None, Err(&format!("{error:?}")));
                    continue;
                }
                Err(error) => panic!("{error:?}"),
            };
            for (guest, elf) in guests(&hardware, profile) {
                for (from, to) in [(&hardware, &emulator), (&emulator, &hardware)] {
                    println!("{guest} with {}, from {from} to {to}", profile.name());
                    test(&Move {
                        guest,
                        image: GuestImage::from_bytes(elf).expect("the guest is valid"),
                        from: from.clone(),
                        to: to.clone(),
                    });
                }
            }
            engines::report(SUITE, cow, Some(&hardware), Ok(()));
        }
    }
}

fn is_lacking(error: &Error) -> bool {
    error.kind() == ErrorKind::NoHypervisor || format!("{error:?}").contains("cpu profile")
}

/// The guests that both engines run: what the hypervisor runs, because the emulator runs all. Kernels have the same registers with any profile, so
/// one is enough for them.
fn guests(hardware: &Engine, profile: CpuProfile) -> Vec<(&'static str, &'static [u8])> {
    let mut guests = vec![(USER, vellum_test_guests::rust_user())];
    if profile == CpuProfile::V1 {
        guests.extend(kernels().into_iter().filter_map(|(name, elf, _)| {
            let runs = name != "i686-paged" || hardware.capabilities().two_level_paging;
            Some((name, elf?)).filter(|_| runs)
        }));
    }
    guests
}

/// Changes state that lies in memory and, in user guests, in registers.
fn mark(it: &Move, sandbox: &mut Sandbox) {
    count(sandbox, 41);
    if it.is_user() {
        let () = sandbox.call("set_xmm", (0x5EED_u64,)).expect("called");
    }
}

/// The guest has the state that it was marked with, calls the host, and goes on.
fn goes_on(it: &Move, sandbox: &mut Sandbox) {
    if it.is_user() {
        let xmm: u64 = sandbox.call("get_xmm", ()).expect("called");
        assert_eq!(xmm, 0x5EED, "{}", it.guest);
    }
    assert_eq!(counter(sandbox), 41, "{}", it.guest);
    let sum: i32 = sandbox.call("call_host_add", (40, 2)).expect("called");
    assert_eq!(sum, 42, "{}", it.guest);
    count(sandbox, 1);
    assert_eq!(counter(sandbox), 42, "{}", it.guest);
}

#[test]
fn a_saved_snapshot_goes_on_in_the_other_engine_and_comes_back() {
    with_each_move(|it| {
        let directory = Directory::new();
        let mut original = it.sandbox(&it.from);
        mark(it, &mut original);
        let taken = original.snapshot().expect("taken");
        taken.save(directory.path(), "away").expect("saved");
        for options in each_way() {
            let loaded = |tag| Snapshot::load(directory.path(), tag, &options).expect("loaded");
            let mut moved = fork(&it.to, &loaded("away"));
            goes_on(it, &mut moved);
            let next = moved.snapshot().expect("taken");
            next.save(directory.path(), "back").expect("saved");
            let mut back = fork(&it.from, &loaded("back"));
            assert_eq!(counter(&mut back), 42, "{}", it.guest);
        }
    });
}

#[test]
fn a_snapshot_in_memory_is_shared_by_sandboxes_of_both_engines() {
    with_each_move(|it| {
        let mut original = it.sandbox(&it.from);
        mark(it, &mut original);
        let taken = original.snapshot().expect("taken");
        let mut moved = fork(&it.to, &taken);
        goes_on(it, &mut moved);
        // And one that had a life of its own there.
        let mut other = it.sandbox(&it.to);
        count(&mut other, 7);
        for sandbox in [&mut moved, &mut other, &mut original] {
            sandbox.restore(&taken).expect("restored");
            goes_on(it, sandbox);
        }
    });
}

#[test]
fn a_guest_in_the_middle_of_a_call_ends_it_in_the_other_engine() {
    with_each_move(|it| {
        let mut original = it.sandbox(&it.from);
        original.keep_checkpoints();
        let args = (9_u32, 7_u64);
        let _: u64 = original
            .call("checkpoint_then_count", args)
            .expect("called");
        let checkpoint = original.take_checkpoint().expect("kept");
        let snapshot = checkpoint.snapshot();
        let mut moved = fork(&it.to, snapshot);
        let value: u64 = moved.resume(&CallOptions::new()).expect("resumed");
        assert_eq!(value, snapshot.generation() * 1000 + 7, "{}", it.guest);
    });
}

#[test]
fn a_move_to_another_cpu_profile_is_refused_by_the_names_of_both() {
    let engine = |profile| {
        let builder = Engine::builder().kind(EngineKind::Emulator);
        builder
            .cpu_profile(profile)
            .build()
            .expect("it needs nothing")
    };
    let image = GuestImage::from_bytes(vellum_test_guests::rust_user()).expect("valid");
    let build = |engine: &Engine| {
        let builder = Sandbox::builder(&image).host_functions(&host());
        builder.build(engine).expect("built")
    };
    let (plain, rich) = (engine(CpuProfile::V1), engine(CpuProfile::V2));
    let taken = build(&rich).snapshot().expect("taken");
    let mut sandbox = build(&plain);
    count(&mut sandbox, 3);
    for error in [
        refused(Sandbox::from_snapshot(&plain, &taken, &host())),
        refused(sandbox.restore(&taken)),
    ] {
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        let text = error.to_string();
        assert!(
            text.contains("x86-64-v1") && text.contains("x86-64-v2"),
            "{text}"
        );
    }
    assert_eq!(counter(&mut sandbox), 3);
}

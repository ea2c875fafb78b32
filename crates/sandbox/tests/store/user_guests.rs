//! User guests that go to disk and come back.

use vellum_sandbox::{
    CallOptions, CowMode, ErrorKind, GuestImage, HostFunctions, Sandbox, Snapshot,
};

use super::support::{
    Directory, PAGE, count, counter, each_way, host, refused, touch, with_user_guest,
};

#[test]
fn a_loaded_snapshot_makes_sandboxes_without_the_elf_file() {
    with_user_guest(|lab| {
        let directory = Directory::new();
        let mut original = lab.sandbox();
        count(&mut original, 41);
        touch(&mut original, 20);
        let taken = original.snapshot().expect("taken");
        taken.save(directory.path(), "warm").expect("saved");
        for options in each_way() {
            let loaded = Snapshot::load(directory.path(), "warm", &options).expect("loaded");
            assert_eq!(loaded.generation(), taken.generation());
            assert_eq!(loaded.len_bytes(), taken.len_bytes());
            assert_eq!(loaded.image().exports(), lab.image.exports());
            assert_eq!(loaded.image().imports(), lab.image.imports());
            assert_eq!(loaded.image().kind(), lab.image.kind());
            assert!(loaded.difference(&taken).expect("comparable").is_empty());
            let mut copies = [lab.fork(&loaded), lab.fork(&loaded)];
            for (number, copy) in (0..).zip(&mut copies) {
                assert_eq!(counter(copy), 41);
                count(copy, number);
                let word: u64 = copy.call("read_arena", (19 * PAGE,)).expect("called");
                assert_eq!(word, 19 + 0x5EED);
                let sum: i32 = copy.call("call_host_add", (40, 2)).expect("called");
                assert_eq!(sum, 42);
            }
            for (number, copy) in (0..).zip(&mut copies) {
                assert_eq!(counter(copy), 41 + number);
                copy.restore(&loaded).expect("restored");
                assert_eq!(counter(copy), 41);
            }
            // It is a snapshot like any other: the next one builds on it.
            count(&mut copies[0], 1);
            let next = copies[0].snapshot().expect("taken");
            assert_eq!(next.generation(), taken.generation() + 1);
            assert_eq!(counter(&mut lab.fork(&next)), 42);
        }
    });
}

#[test]
fn a_sandbox_of_the_elf_file_is_restored_to_a_loaded_snapshot_and_back() {
    with_user_guest(|lab| {
        let directory = Directory::new();
        let mut sandbox = lab.sandbox();
        count(&mut sandbox, 5);
        let taken = sandbox.snapshot().expect("taken");
        taken.save(directory.path(), "five").expect("saved");
        count(&mut sandbox, 1);
        let own = sandbox.snapshot().expect("taken");
        for options in each_way() {
            let loaded = Snapshot::load(directory.path(), "five", &options).expect("loaded");
            for _ in 0..2 {
                sandbox.restore(&loaded).expect("restored");
                assert_eq!(counter(&mut sandbox), 5);
                count(&mut sandbox, 10);
                sandbox.restore(&own).expect("restored");
                assert_eq!(counter(&mut sandbox), 6);
            }
        }
    });
}

#[test]
fn a_loaded_image_makes_new_sandboxes_that_boot() {
    with_user_guest(|lab| {
        let directory = Directory::new();
        let mut sandbox = lab.sandbox();
        count(&mut sandbox, 7);
        let taken = sandbox.snapshot().expect("taken");
        taken.save(directory.path(), "seven").expect("saved");
        for options in each_way() {
            let loaded = Snapshot::load(directory.path(), "seven", &options).expect("loaded");
            let mut fresh = Sandbox::builder(loaded.image())
                .heap_len_bytes(8 << 20)
                .host_functions(&host())
                .build(&lab.engine)
                .expect("built");
            assert_eq!(counter(&mut fresh), 0);
            fresh.restore(&taken).expect("the same image");
            assert_eq!(counter(&mut fresh), 7);
        }
    });
}

#[test]
fn a_snapshot_of_one_mode_is_loaded_by_an_engine_of_the_other() {
    with_user_guest(|lab| {
        let directory = Directory::new();
        let mut sandbox = lab.sandbox();
        count(&mut sandbox, 3);
        let taken = sandbox.snapshot().expect("taken");
        taken.save(directory.path(), "three").expect("saved");
        let cow = lab.engine.cow_mode();
        with_user_guest(|other| {
            let loaded = Snapshot::load(directory.path(), "three", &each_way()[0]);
            let mut copy = other.fork(&loaded.expect("loaded"));
            assert_eq!(counter(&mut copy), 3, "from {cow}");
        });
        assert!(matches!(cow, CowMode::GuestSide | CowMode::HostSide));
    });
}

#[test]
fn a_checkpoint_is_resumed_after_loading() {
    with_user_guest(|lab| {
        let directory = Directory::new();
        let mut original = lab.sandbox();
        original.keep_checkpoints();
        count(&mut original, 5);
        let args = (9_u32, 7_u64);
        let _: u64 = original
            .call("checkpoint_then_count", args)
            .expect("called");
        let checkpoint = original.take_checkpoint().expect("kept");
        let saved = checkpoint.snapshot();
        saved.save(directory.path(), "middle").expect("saved");
        for options in each_way() {
            let loaded = Snapshot::load(directory.path(), "middle", &options).expect("loaded");
            assert!(loaded.suspension().is_some());
            assert_eq!(loaded.suspension(), saved.suspension());
            let mut copy = lab.fork(&loaded);
            assert_eq!(
                refused(copy.call::<_, u64>("counter_get", ())).kind(),
                ErrorKind::Suspended
            );
            let value: u64 = copy.resume(&CallOptions::new()).expect("resumed");
            assert_eq!(value, 1012);
            assert_eq!(counter(&mut copy), 12);
        }
    });
}

#[test]
fn what_does_not_fit_is_refused_and_the_sandbox_stays_as_it_was() {
    with_user_guest(|lab| {
        let directory = Directory::new();
        let taken = lab.sandbox().snapshot().expect("taken");
        taken.save(directory.path(), "small").expect("saved");
        let loaded = Snapshot::load(directory.path(), "small", &each_way()[0]).expect("loaded");
        let none = HostFunctions::new();
        let error = refused(Sandbox::from_snapshot(&lab.engine, &loaded, &none));
        assert_eq!(error.kind(), ErrorKind::MissingHostFunction);
        let larger = Sandbox::builder(&lab.image)
            .heap_len_bytes(16 << 20)
            .host_functions(&host())
            .build(&lab.engine);
        let mut larger = larger.expect("built");
        // One bit of a constant: another guest.
        let mut elf = lab.elf.to_vec();
        let at = elf
            .windows(8)
            .position(|window| window == b"counter_")
            .expect("a function name");
        elf[at] = b'C';
        let other = GuestImage::from_bytes(&elf).expect("still valid");
        let mut other = Sandbox::builder(&other)
            .heap_len_bytes(8 << 20)
            .host_functions(&host())
            .build(&lab.engine)
            .expect("built");
        for sandbox in [&mut larger, &mut other] {
            let before: i32 = sandbox.call("echo_i32", (5,)).expect("called");
            let error = refused(sandbox.restore(&loaded));
            assert_eq!(error.kind(), ErrorKind::Incompatible, "{error:?}");
            assert!(sandbox.is_ready());
            let after: i32 = sandbox.call("echo_i32", (5,)).expect("called");
            assert_eq!((before, after), (5, 5));
        }
    });
}

//! Kernels that go to disk and come back.

use vellum_sandbox::{CallOptions, Gpa, GpaRange, Sandbox, Snapshot};

use super::support::{Directory, count, counter, each_way, host, with_each_kernel};

#[test]
fn a_kernel_comes_back_as_it_was() {
    with_each_kernel(|lab| {
        let directory = Directory::new();
        let mut original = lab.sandbox();
        count(&mut original, 41);
        let first = original.snapshot().expect("taken");
        count(&mut original, 1);
        let second = original.snapshot().expect("taken");
        first.save(directory.path(), "first").expect("saved");
        second.save(directory.path(), "second").expect("saved");
        for options in each_way() {
            let loaded = |tag| Snapshot::load(directory.path(), tag, &options).expect("loaded");
            let (one, two) = (loaded("first"), loaded("second"));
            assert!(one.difference(&first).expect("comparable").is_empty());
            assert!(two.difference(&second).expect("comparable").is_empty());
            assert!(!two.difference(&one).expect("comparable").is_empty());
            let mut copy = lab.fork(&one);
            assert_eq!(counter(&mut copy), 41, "{}", lab.name);
            // From one to the other, in its own sandbox and in the original's.
            for sandbox in [&mut copy, &mut original] {
                sandbox.restore(&two).expect("restored");
                assert_eq!(counter(sandbox), 42);
                sandbox.restore(&one).expect("restored");
                assert_eq!(counter(sandbox), 41);
                count(sandbox, 100);
                sandbox.restore(&one).expect("restored");
                assert_eq!(counter(sandbox), 41);
            }
            let next = copy.snapshot().expect("taken");
            assert_eq!(next.generation(), one.generation() + 1);
        }
    });
}

#[test]
fn a_kernel_is_resumed_behind_its_request_after_loading() {
    with_each_kernel(|lab| {
        let directory = Directory::new();
        let mut original = lab.sandbox();
        original.keep_checkpoints();
        let args = (7_u32, 5_u64);
        let _: u64 = original
            .call("checkpoint_then_count", args)
            .expect("called");
        let checkpoint = original.take_checkpoint().expect("kept");
        let saved = checkpoint.snapshot();
        saved.save(directory.path(), "middle").expect("saved");
        for options in each_way() {
            let loaded = Snapshot::load(directory.path(), "middle", &options).expect("loaded");
            let mut copy = lab.fork(&loaded);
            let value: u64 = copy.resume(&CallOptions::new()).expect("resumed");
            assert_eq!(value, loaded.generation() * 1000 + 5, "{}", lab.name);
        }
    });
}

#[test]
fn reserved_ranges_come_back_without_their_names() {
    with_each_kernel(|lab| {
        let directory = Directory::new();
        let start = Gpa::new(0x4000_0000).expect("an address");
        let range = GpaRange::new(start, 0x2000).expect("a range");
        let build = |name| {
            Sandbox::builder(&lab.image)
                .heap_len_bytes(8 << 20)
                .host_functions(&host())
                .reserve(name, range)
                .build(&lab.engine)
                .expect("built")
        };
        let mut original = build("one name");
        count(&mut original, 9);
        let taken = original.snapshot().expect("taken");
        taken.save(directory.path(), "reserved").expect("saved");
        let loaded = Snapshot::load(directory.path(), "reserved", &each_way()[0]).expect("loaded");
        let mut other = build("another name");
        other.restore(&loaded).expect("restored");
        assert_eq!(counter(&mut other), 9);
    });
}

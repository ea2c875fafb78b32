//! Looking into a store.

use vellum_sandbox::{ErrorKind, LoadOptions};

use super::support::{Directory, PAGE, count, refused, touch, with_each_kernel, with_user_guest};

#[test]
fn a_store_lists_and_describes_what_it_has() {
    with_user_guest(|lab| {
        let directory = Directory::new();
        let store = directory.store();
        assert_eq!(store.list().expect("listed"), []);
        let mut sandbox = lab.sandbox();
        let one = sandbox.snapshot().expect("taken");
        count(&mut sandbox, 1);
        let two = sandbox.snapshot().expect("taken");
        store.save(&one, "one").expect("saved");
        store.save(&two, "two").expect("saved");
        store.save(&one, "copy/of:one").expect("saved");
        let listed = store.list().expect("listed");
        let tags: Vec<_> = listed.iter().map(|it| it.tag.as_str()).collect();
        assert_eq!(tags, ["one", "two", "copy/of:one"]);
        assert_eq!(listed[0].digest, listed[2].digest);
        assert_ne!(listed[0].digest, listed[1].digest);
        let info = store.inspect("two").expect("inspected");
        assert_eq!(info.guest_kind, "amd64 user");
        assert_eq!(info.generation, two.generation());
        assert_eq!(info.heap_len_bytes, 8 << 20);
        assert_eq!(info.cpu_profile, lab.engine.cpu_profile().name());
        assert!(info.exports.iter().any(|name| name == "counter_get"));
        assert!(info.imports.iter().any(|name| name == "host_add"));
        assert!(!info.is_suspended);
        let pages: u64 = info.layers.iter().map(|layer| layer.pages).sum();
        assert_eq!(pages * PAGE, two.len_bytes());
        // A tag moves, and goes.
        store.save(&two, "one").expect("saved");
        assert_eq!(
            store.inspect("one").expect("inspected").digest,
            listed[1].digest
        );
        store.remove("one").expect("removed");
        let error = refused(store.load("one", &LoadOptions::new()));
        assert_eq!(error.kind(), ErrorKind::UnknownSnapshot);
        let error = refused(store.remove("one"));
        assert_eq!(error.kind(), ErrorKind::UnknownSnapshot);
        store.load("two", &LoadOptions::new()).expect("still there");
    });
}

#[test]
fn the_difference_of_two_snapshots_is_what_was_written_between_them() {
    with_user_guest(|lab| {
        let directory = Directory::new();
        let store = directory.store();
        let mut sandbox = lab.sandbox();
        store
            .save(&sandbox.snapshot().expect("taken"), "before")
            .expect("saved");
        touch(&mut sandbox, 30);
        store
            .save(&sandbox.snapshot().expect("taken"), "after")
            .expect("saved");
        let options = LoadOptions::new();
        let difference = store.diff("before", "after", &options).expect("compared");
        assert!((30..70).contains(&difference.pages()), "{difference}");
        assert!(
            difference.runs().iter().any(|(_, pages)| *pages >= 30),
            "{difference}"
        );
        let back = store.diff("after", "before", &options).expect("compared");
        assert_eq!(difference, back);
        let none = store.diff("after", "after", &options).expect("compared");
        assert!(none.is_empty());
    });
}

#[test]
fn guests_of_different_kinds_are_not_compared() {
    with_each_kernel(|lab| {
        let kernel = lab.sandbox().snapshot().expect("taken");
        with_user_guest(|user| {
            let user = user.sandbox().snapshot().expect("taken");
            let error = refused(kernel.difference(&user));
            assert_eq!(error.kind(), ErrorKind::Incompatible);
        });
    });
}

//! What is stored: each layer once, and no zeroes.

use std::fs;

use vellum_sandbox::{LoadOptions, StoreProgress};

use super::support::{
    Directory, PAGE, count, counter, each_way, touch, with_each_kernel, with_user_guest,
};

/// Bytes of the index of a layer with few runs.
const INDEX: u64 = PAGE;
/// Configuration and manifest.
const BLOBS_PER_SNAPSHOT: usize = 2;

#[test]
fn a_chain_shares_the_layers_that_its_snapshots_share() {
    with_user_guest(|lab| {
        let directory = Directory::new();
        let store = directory.store();
        let mut sandbox = lab.sandbox();
        let mut own_bytes = 0;
        for step in 0..10_u64 {
            count(&mut sandbox, 1);
            touch(&mut sandbox, 3);
            let snapshot = sandbox.snapshot().expect("taken");
            let mut last = None;
            store
                .save_with(&snapshot, &format!("step-{step}"), |it| last = Some(it))
                .expect("saved");
            let StoreProgress {
                layers,
                all_layers,
                written_bytes,
                ..
            } = last.expect("there are layers");
            assert_eq!(layers, all_layers);
            own_bytes += written_bytes;
            if step > 0 {
                // The counter's page, three of the arena, and what a call dirties beside; not the parents'.
                assert!(written_bytes <= INDEX + 40 * PAGE, "{written_bytes}");
            }
            let blobs = directory.blobs().len();
            // The image, a layer for each snapshot, and what each has for itself.
            let steps = usize::try_from(step).expect("small") + 1;
            assert_eq!(blobs, 1 + steps + steps * BLOBS_PER_SNAPSHOT);
        }
        let small: u64 = directory.stored_bytes() - own_bytes;
        assert!(small <= 10 * 64 * 1024, "{small}");
        // The last one again, under another tag: nothing is written.
        let before = directory.blobs();
        let loaded = store.load("step-9", &LoadOptions::new()).expect("loaded");
        store.save(&loaded, "again").expect("saved");
        assert_eq!(directory.blobs(), before);
        for options in each_way() {
            for step in [0, 4, 9] {
                let loaded = store.load(&format!("step-{step}"), &options);
                assert_eq!(counter(&mut lab.fork(&loaded.expect("loaded"))), step + 1);
            }
        }
    });
}

#[test]
fn a_flattened_chain_is_stored_and_loaded() {
    with_user_guest(|lab| {
        let directory = Directory::new();
        let store = directory.store();
        let mut sandbox = lab.sandbox();
        for step in 1..=20_u64 {
            count(&mut sandbox, 1);
            let snapshot = sandbox.snapshot().expect("taken");
            store.save(&snapshot, "latest").expect("saved");
            for options in each_way() {
                let loaded = store.load("latest", &options).expect("loaded");
                assert_eq!(counter(&mut lab.fork(&loaded)), step);
            }
        }
        assert_eq!(store.list().expect("listed").len(), 1);
    });
}

#[test]
fn pages_of_zeroes_are_not_stored() {
    with_each_kernel(|lab| {
        let directory = Directory::new();
        let mut sandbox = lab.sandbox();
        let snapshot = sandbox.snapshot().expect("taken");
        snapshot.save(directory.path(), "zeroes").expect("saved");
        let store = directory.store();
        let info = store.inspect("zeroes").expect("inspected");
        for layer in &info.layers {
            let path = directory.file(&format!("blobs/{}", layer.digest.replace(':', "/")));
            let bytes = fs::read(path).expect("the blob is there");
            assert_eq!(bytes.len() as u64, layer.stored_bytes);
            let pages = bytes.chunks(4096).skip(1);
            assert!(pages.clone().all(|page| page.iter().any(|&byte| byte != 0)));
            assert!(pages.len() as u64 <= layer.pages);
        }
    });
}

#[test]
fn guest_memory_full_of_zeroes_takes_no_room() {
    with_user_guest(|lab| {
        let directory = Directory::new();
        let store = directory.store();
        let mut sandbox = lab.sandbox();
        store
            .save(&sandbox.snapshot().expect("taken"), "before")
            .expect("saved");
        let before = directory.stored_bytes();
        touch(&mut sandbox, 500);
        let full = sandbox.snapshot().expect("taken");
        let address: u64 = sandbox.call("reserve", (4096_u64,)).expect("called");
        assert_ne!(address, 0);
        store.save(&full, "full").expect("saved");
        let with_data = directory.stored_bytes();
        assert!(with_data - before >= 500 * PAGE);
        // The same pages, dirty and zero: written by the host where the guest had data.
        let runs = full
            .difference(&store.load("before", &LoadOptions::new()).expect("loaded"))
            .expect("comparable");
        let (start, pages) = *(runs.runs().iter())
            .max_by_key(|(_, pages)| *pages)
            .expect("pages differ");
        assert!(pages >= 400, "{runs}");
        let zeroes = vec![0; usize::try_from(pages * PAGE).expect("small")];
        sandbox
            .write_memory(start, &zeroes)
            .expect("the guest has this memory");
        store
            .save(&sandbox.snapshot().expect("taken"), "zeroed")
            .expect("saved");
        let grown = directory.stored_bytes() - with_data;
        assert!(grown <= 60 * PAGE, "{grown} bytes for {pages} zero pages");
        for options in each_way() {
            let loaded = store.load("zeroed", &options).expect("loaded");
            let mut copy = lab.fork(&loaded);
            let mut bytes = vec![1; zeroes.len()];
            copy.read_memory(start, &mut bytes).expect("mapped");
            assert!(bytes == zeroes);
        }
    });
}

#[test]
fn snapshots_that_are_loaded_together_share_memory() {
    with_user_guest(|lab| {
        let directory = Directory::new();
        let store = directory.store();
        let mut sandbox = lab.sandbox();
        store
            .save(&sandbox.snapshot().expect("taken"), "one")
            .expect("saved");
        touch(&mut sandbox, 100);
        store
            .save(&sandbox.snapshot().expect("taken"), "two")
            .expect("saved");
        let one = store.load("one", &LoadOptions::new()).expect("loaded");
        let two_bytes = store.inspect("two").expect("inspected");
        let last = two_bytes.layers.last().expect("a layer").stored_bytes;
        // There is room for what is new in the second one, and for nothing that the first one has.
        let tight = LoadOptions::new().max_len_bytes(last);
        store.load("two", &tight).expect("the rest is in memory");
        let other = directory.store();
        assert!(other.load("two", &tight).is_err());
        drop(one);
        assert!(store.load("two", &tight).is_err(), "nobody has it any more");
    });
}

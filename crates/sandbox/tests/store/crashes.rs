//! What is left behind, what is in the way, and what cannot be written.

use std::fs::{self, File};
use std::os::unix::fs::symlink;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use vellum_sandbox::{ErrorKind, LoadOptions, Snapshot, SnapshotStore};

use super::support::{Directory, count, counter, each_way, refused, with_user_guest};

#[test]
fn temporary_files_that_a_crash_left_are_never_looked_at() {
    with_user_guest(|lab| {
        let directory = Directory::new();
        let store = directory.store();
        let mut sandbox = lab.sandbox();
        count(&mut sandbox, 1);
        let snapshot = sandbox.snapshot().expect("taken");
        let leave = || {
            // Names that this very process would choose next, empty and half written.
            for number in 0..50 {
                let process = std::process::id();
                for name in ["index.json", "oci-layout"] {
                    let name = format!(".{name}.{process}.{number}.tmp");
                    fs::write(directory.file(&name), "{\"schemaVersion\":").expect("written");
                }
            }
            fs::write(directory.file("blobs/sha256/.half.1.0.tmp"), [0; 100]).expect("written");
        };
        leave();
        store.save(&snapshot, "one").expect("saved");
        leave();
        store.save(&snapshot, "two").expect("saved");
        for tag in ["one", "two"] {
            let loaded = Snapshot::load(directory.path(), tag, &LoadOptions::new());
            assert_eq!(counter(&mut lab.fork(&loaded.expect("loaded"))), 1);
        }
    });
}

#[test]
fn blobs_without_an_index_entry_are_no_snapshot_and_are_used_by_the_next_save() {
    with_user_guest(|lab| {
        let directory = Directory::new();
        let store = directory.store();
        let empty = fs::read(directory.file("index.json")).expect("an index");
        let snapshot = lab.sandbox().snapshot().expect("taken");
        store.save(&snapshot, "lost").expect("saved");
        // As after a crash before the last step.
        fs::write(directory.file("index.json"), empty).expect("written");
        let error = refused(store.load("lost", &LoadOptions::new()));
        assert_eq!(error.kind(), ErrorKind::UnknownSnapshot);
        let blobs = directory.blobs();
        store.save(&snapshot, "found").expect("saved");
        assert_eq!(directory.blobs(), blobs);
        store.load("found", &LoadOptions::new()).expect("loaded");
    });
}

#[test]
fn a_layer_that_was_cut_short_is_written_again() {
    with_user_guest(|lab| {
        let directory = Directory::new();
        let store = directory.store();
        let snapshot = lab.sandbox().snapshot().expect("taken");
        store.save(&snapshot, "one").expect("saved");
        let blobs = directory.blobs();
        for (name, len_bytes) in &blobs {
            let path = directory.file(&format!("blobs/sha256/{name}"));
            let file = File::options().write(true).open(path).expect("opened");
            file.set_len(len_bytes / 2).expect("cut");
        }
        assert!(store.load("one", &LoadOptions::new()).is_err());
        store.save(&snapshot, "one").expect("saved");
        assert_eq!(directory.blobs(), blobs);
        store.load("one", &LoadOptions::new()).expect("whole again");
    });
}

#[test]
fn what_cannot_be_written_is_an_error_that_names_the_file() {
    with_user_guest(|lab| {
        let directory = Directory::new();
        let snapshot = lab.sandbox().snapshot().expect("taken");
        let parent = Directory::new();
        fs::create_dir_all(parent.path()).expect("made");
        let file = parent.file("file");
        fs::write(&file, "in the way").expect("written");
        for path in [
            file.clone(),
            file.join("below"),
            // A file system that lets nobody make anything.
            "/proc/vellum-snapshots".into(),
        ] {
            let error = refused(snapshot.save(&path, "tag"));
            assert_eq!(error.kind(), ErrorKind::Io, "{error:?}");
            assert!(error.to_string().contains("cannot"), "{error}");
        }
        // Something else where a blob is to be.
        let store = directory.store();
        fs::remove_dir_all(directory.file("blobs")).expect("removed");
        let error = refused(store.save(&snapshot, "tag"));
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains("blobs/sha256"), "{error}");
        assert_eq!(store.list().expect("listed"), [], "nothing was named");
    });
}

#[test]
fn odd_tags_are_refused_before_anything_is_touched() {
    with_user_guest(|lab| {
        let directory = Directory::new();
        let store = directory.store();
        let snapshot = lab.sandbox().snapshot().expect("taken");
        let long = "x".repeat(129);
        for tag in ["", ".", "../up", "a b", "a\0", "ä", "\"", "a//b", &long] {
            for result in [
                store.save(&snapshot, tag),
                store.load(tag, &LoadOptions::new()).map(|_| ()),
                store.remove(tag),
            ] {
                assert_eq!(refused(result).kind(), ErrorKind::InvalidConfig, "{tag:?}");
            }
        }
        assert_eq!(directory.blobs(), []);
    });
}

#[test]
fn links_fifos_and_directories_in_place_of_files_are_refused_and_never_waited_for() {
    with_user_guest(|lab| {
        let snapshot = lab.sandbox().snapshot().expect("taken");
        let good = Directory::new();
        snapshot.save(good.path(), "tag").expect("saved");
        let names = good.blobs().into_iter();
        let names = names.map(|(name, _)| format!("blobs/sha256/{name}"));
        let fixed = ["index.json", "oci-layout"].map(str::to_owned);
        for name in names.chain(fixed) {
            for kind in ["link", "fifo", "directory", "missing"] {
                let path = good.file(&name);
                let aside = good.file("aside");
                fs::rename(&path, &aside).expect("renamed");
                match kind {
                    "link" => symlink(&aside, &path).expect("made"),
                    "directory" => fs::create_dir(&path).expect("made"),
                    "fifo" => {
                        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).expect("made");
                    }
                    _ => {}
                }
                for options in each_way() {
                    let error = refused(Snapshot::load(good.path(), "tag", &options));
                    assert_eq!(error.kind(), ErrorKind::Io, "{kind} {name}: {error:?}");
                    assert!(error.to_string().contains(&name), "{error}");
                }
                match kind {
                    "directory" => fs::remove_dir(&path).expect("removed"),
                    "missing" => {}
                    _ => fs::remove_file(&path).expect("removed"),
                }
                fs::rename(&aside, &path).expect("renamed");
            }
        }
        Snapshot::load(good.path(), "tag", &LoadOptions::new()).expect("all is back");
    });
}

#[test]
fn a_directory_that_is_no_store_is_not_opened() {
    let directory = Directory::new();
    let error = refused(SnapshotStore::open(directory.path()));
    assert_eq!(error.kind(), ErrorKind::Io);
    fs::create_dir_all(directory.path()).expect("made");
    let error = refused(SnapshotStore::open(directory.path()));
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("oci-layout"), "{error}");
}

#[test]
fn writers_in_several_threads_lose_no_tag() {
    with_user_guest(|lab| {
        let directory = Directory::new();
        let snapshot = lab.sandbox().snapshot().expect("taken");
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (directory, snapshot) = (&directory, &snapshot);
                scope.spawn(move || {
                    for round in 0..4 {
                        let tag = format!("t{thread}-{round}");
                        snapshot.save(directory.path(), &tag).expect("saved");
                    }
                });
            }
        });
        let mut tags: Vec<_> = directory.store().list().expect("listed");
        tags.sort_by(|left, right| left.tag.cmp(&right.tag));
        let tags: Vec<_> = tags.iter().map(|it| it.tag.as_str()).collect();
        assert_eq!(tags.len(), 16, "{tags:?}");
    });
}

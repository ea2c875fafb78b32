//! Files of the host in a guest.

use std::fs;

use vellum_sandbox::{ErrorKind, Mapping};

use crate::support::*;

#[test]
fn a_guest_reads_a_file_and_zeroes_behind_its_end() {
    let file = TempPath::numbered(2 * PAGE + 12);
    let mapping = Mapping::file("data.bin", file.path()).expect("mapped");
    with_each_guest(|lab| {
        let mut sandbox = lab.sandbox();
        sandbox.map(AT, &mapping).expect("mapped");
        assert_eq!(mapping_count(&mut sandbox), 1);
        assert_eq!(ask(&mut sandbox, "mapping_gpa", "data.bin"), AT.as_u64());
        assert_eq!(ask(&mut sandbox, "mapping_len", "data.bin"), 2 * PAGE + 12);
        let at = lab.locate(&mut sandbox, "data.bin");
        for offset in [0, 4, PAGE, 2 * PAGE + 8] {
            assert_eq!(word(&mut sandbox, at + offset), number_at(offset));
        }
        for offset in [2 * PAGE + 12, 3 * PAGE - 8] {
            assert_eq!(word(&mut sandbox, at + offset), 0);
        }
    });
}

#[test]
fn a_file_is_there_when_the_guest_initialises_itself() {
    let file = TempPath::numbered(PAGE);
    let mapping = Mapping::file("early", file.path()).expect("mapped");
    with_each_guest(|lab| {
        let builder = lab.builder().map(AT, &mapping);
        let mut sandbox = builder.build(&lab.engine).expect("a sandbox");
        let at = lab.locate(&mut sandbox, "early");
        assert_eq!(word(&mut sandbox, at + 8), number_at(8));
    });
}

#[test]
fn a_file_that_is_to_be_read_cannot_be_written() {
    let file = TempPath::numbered(PAGE);
    let mapping = Mapping::file("ro", file.path()).expect("mapped");
    with_each_guest(|lab| {
        let mut sandbox = lab.sandbox();
        let ready = sandbox.snapshot().expect("a snapshot");
        sandbox.map(AT, &mapping).expect("mapped");
        let at = lab.locate(&mut sandbox, "ro");
        let result = write(&mut sandbox, at, 7);
        assert_stopped("a write", &sandbox, result);
        sandbox.restore(&ready).expect("restored");
        let at = lab.locate(&mut sandbox, "ro");
        assert_eq!(word(&mut sandbox, at), number_at(0));
    });
    assert_eq!(fs::read(file.path()).expect("read")[..4], number(0));
}

#[test]
fn what_a_guest_writes_to_a_file_stays_its_own() {
    let file = TempPath::numbered(2 * PAGE);
    let mapping = Mapping::file("rw", file.path()).expect("mapped").writable();
    with_each_guest(|lab| {
        let (mut one, mut other) = (lab.sandbox(), lab.sandbox());
        one.map(AT, &mapping).expect("mapped");
        other.map(AT, &mapping).expect("mapped");
        let at = lab.locate(&mut one, "rw");
        write(&mut one, at + PAGE, 7).expect("the guest may write");
        assert_eq!(word(&mut one, at + PAGE), 7);
        assert_eq!(word(&mut one, at + PAGE + 8), number_at(PAGE + 8));
        let at = lab.locate(&mut other, "rw");
        assert_eq!(word(&mut other, at + PAGE), number_at(PAGE));
        let content = fs::read(file.path()).expect("read");
        assert_eq!(
            content[usize::try_from(PAGE).expect("small")..][..4],
            number(PAGE)
        );
    });
}

#[test]
fn a_restore_drops_private_writes_and_a_snapshot_does_not() {
    let file = TempPath::numbered(PAGE);
    let mapping = Mapping::file("rw", file.path()).expect("mapped").writable();
    with_each_guest(|lab| {
        let mut sandbox = lab.sandbox();
        sandbox.map(AT, &mapping).expect("mapped");
        let at = lab.locate(&mut sandbox, "rw");
        write(&mut sandbox, at, 7).expect("written");
        let ready = sandbox.snapshot().expect("a snapshot");
        assert_eq!(word(&mut sandbox, at), 7, "after the snapshot");
        // Twice: once with nothing written since.
        for round in 0..2 {
            sandbox.restore(&ready).expect("restored");
            // The kernel's own tables, which map it, are part of the snapshot.
            assert_eq!(word(&mut sandbox, at), number_at(0), "restore {round}");
        }
    });
}

#[test]
fn a_large_file_is_seen_whole_at_any_page() {
    const LEN: u64 = 7 * MIB + 5;
    let file = TempPath::numbered(LEN);
    let mapping = Mapping::file("large", file.path()).expect("mapped");
    // Large pages in the middle, small ones at both ends; large ones from the start; small ones only.
    for start in [AT.as_u64() + 3 * PAGE, AT.as_u64(), AT.as_u64() - PAGE] {
        let gpa = vellum_sandbox::Gpa::new(start).expect("an address");
        with_each_guest(|lab| {
            let mut sandbox = lab.sandbox();
            sandbox.map(gpa, &mapping).expect("mapped");
            let at = lab.locate(&mut sandbox, "large");
            for offset in [
                0,
                PAGE,
                2 * MIB - 4 * PAGE,
                4 * MIB,
                6 * MIB + 4,
                7 * MIB - 8,
            ] {
                let found = word(&mut sandbox, at + offset);
                assert_eq!(found, number_at(offset), "{start:#x} + {offset:#x}");
            }
        });
    }
}

#[test]
fn a_guest_that_uses_what_was_truncated_fails_alone() {
    with_each_guest(|lab| {
        let file = TempPath::numbered(4 * PAGE);
        let mapping = Mapping::file("shrinks", file.path()).expect("mapped");
        let mut sandbox = lab.sandbox();
        let ready = sandbox.snapshot().expect("a snapshot");
        sandbox.map(AT, &mapping).expect("mapped");
        let at = lab.locate(&mut sandbox, "shrinks");
        assert_eq!(word(&mut sandbox, at + 3 * PAGE), number_at(3 * PAGE));
        file.truncate(PAGE + 100);
        let error = refused("a read", read(&mut sandbox, at + 3 * PAGE));
        assert_eq!(error.kind(), ErrorKind::Io, "{error:?}");
        assert!(error.to_string().contains("\"shrinks\""), "{error}");
        let error = refused("a call", sandbox.call::<_, u64>("mapping_count", ()));
        assert_eq!(error.kind(), ErrorKind::NeedsRestore);

        sandbox.restore(&ready).expect("restored");
        let at = lab.locate(&mut sandbox, "shrinks");
        // What the file still has is there, and the rest of its last page is zero.
        assert_eq!(word(&mut sandbox, at + PAGE + 96), number_at(PAGE + 96));
        assert_eq!(word(&mut sandbox, at + PAGE + 104), 0);
        let error = refused("a read", read(&mut sandbox, at + 2 * PAGE));
        assert_eq!(error.kind(), ErrorKind::Io, "{error:?}");
        sandbox.restore(&ready).expect("restored");
        sandbox.unmap("shrinks").expect("unmapped");
        assert_eq!(mapping_count(&mut sandbox), 0);
    });
}

#[test]
fn a_private_write_to_what_was_truncated_fails_too() {
    with_each_guest(|lab| {
        let file = TempPath::numbered(2 * PAGE);
        let mapping = Mapping::file("rw", file.path()).expect("mapped").writable();
        let mut sandbox = lab.sandbox();
        sandbox.map(AT, &mapping).expect("mapped");
        let ready = sandbox.snapshot().expect("a snapshot");
        file.truncate(0);
        let at = lab.locate(&mut sandbox, "rw");
        let error = refused("a write", write(&mut sandbox, at + PAGE, 7));
        assert_eq!(error.kind(), ErrorKind::Io, "{error:?}");
        sandbox.restore(&ready).expect("restored");
        assert_eq!(mapping_count(&mut sandbox), 1);
    });
}

#[test]
fn a_file_stays_mapped_when_its_name_is_gone() {
    with_each_guest(|lab| {
        let file = TempPath::numbered(PAGE);
        let mapping = Mapping::file("gone", file.path()).expect("mapped");
        drop(file);
        let mut sandbox = lab.sandbox();
        sandbox.map(AT, &mapping).expect("mapped");
        drop(mapping);
        let at = lab.locate(&mut sandbox, "gone");
        assert_eq!(word(&mut sandbox, at + 16), number_at(16));
    });
}

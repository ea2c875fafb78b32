//! Guest images from files and bytes that are none. No hypervisor is needed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use vellum_sandbox::{ErrorKind, GuestImage, MAX_FILE_LEN_BYTES};

/// A directory for one test, removed at its end.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("image_files_{test}_{}", std::process::id()));
        fs::create_dir_all(&path).expect("the target directory can be written");
        Self(path)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).expect("the directory can be written");
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed lies in the target directory and harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn kind_of(path: &Path) -> ErrorKind {
    let error = GuestImage::from_file(path).expect_err("refused");
    assert!(
        error.to_string().contains(&path.display().to_string()) || error.kind() != ErrorKind::Io,
        "{error:?}"
    );
    error.kind()
}

#[test]
fn a_guest_is_the_same_from_a_file_and_from_bytes() {
    let directory = Directory::new("same");
    let path = directory.file("guest.elf", vellum_test_guests::rust_user());
    let from_file = GuestImage::from_file(&path).expect("valid");
    let from_bytes = GuestImage::from_bytes(vellum_test_guests::rust_user()).expect("valid");
    assert_eq!(from_file.exports(), from_bytes.exports());
    assert_eq!(from_file.imports(), from_bytes.imports());
    assert!(
        from_file
            .exports()
            .iter()
            .any(|function| function.name() == "echo_i32")
    );
    assert!(
        from_file
            .imports()
            .iter()
            .any(|function| function.name() == "host_add")
    );
}

#[test]
fn what_is_not_a_regular_file_is_refused_and_never_waited_for() {
    let directory = Directory::new("special");
    let fifo = directory.0.join("fifo");
    let made = Command::new("mkfifo")
        .arg(&fifo)
        .status()
        .expect("mkfifo can be started");
    assert!(made.success());
    let symlink = directory.0.join("loop");
    std::os::unix::fs::symlink(&symlink, &symlink).expect("the directory can be written");
    let paths = [
        directory.0.clone(),
        directory.0.join("missing"),
        directory.0.join("nul\0"),
        PathBuf::new(),
        fifo,
        symlink,
        PathBuf::from("/dev/zero"),
        PathBuf::from("/dev/null"),
    ];
    for path in paths {
        let error = GuestImage::from_file(&path).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Io, "{}: {error:?}", path.display());
    }
}

#[test]
fn a_file_beyond_the_limit_is_refused() {
    let directory = Directory::new("large");
    let path = directory.file("large.elf", vellum_test_guests::rust_user());
    // Sparse: only its length is large.
    let file = File::options()
        .write(true)
        .open(&path)
        .expect("it is there");
    file.set_len(MAX_FILE_LEN_BYTES + 1)
        .expect("the file system has sparse files");
    assert_eq!(kind_of(&path), ErrorKind::Io);
}

#[test]
fn files_that_are_no_guest_are_refused_with_a_reason() {
    let directory = Directory::new("bad");
    let guest = vellum_test_guests::rust_user();
    let with = |at: usize, byte: u8| {
        let mut bytes = guest.to_vec();
        bytes[at] = byte;
        bytes
    };
    let cases = [
        ("empty", Vec::new(), "too short"),
        ("short", guest[..40].to_vec(), "too short"),
        ("text", b"#!/bin/sh\necho no guest\n".to_vec(), "not elf"),
        ("big_endian", with(5, 2), "big-endian"),
        ("other_machine", with(18, 183), "machine 183"),
        ("shared_object", with(16, 3), "type 3"),
        ("half", guest[..guest.len() / 2].to_vec(), ""),
    ];
    for (name, bytes, says) in cases {
        let path = directory.file(name, &bytes);
        assert_eq!(kind_of(&path), ErrorKind::InvalidImage, "{name}");
        let error = GuestImage::from_bytes(&bytes).expect_err("refused");
        assert!(format!("{error:?}").contains(says), "{name}: {error:?}");
    }
}

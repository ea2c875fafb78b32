use std::io::Write as _;
use std::os::fd::OwnedFd;

use rustix::fs::MemfdFlags;

use super::*;

/// A file in memory, so that the test needs no directory.
fn file(content: &[u8]) -> File {
    let fd: OwnedFd =
        rustix::fs::memfd_create("vellum-test", MemfdFlags::CLOEXEC).expect("a memfd");
    let mut file = File::from(fd);
    file.write_all(content).expect("written");
    file
}

fn byte(memory: &FileMemory, offset: u64) -> u8 {
    let mut byte = [0];
    memory.memory.read(offset, &mut byte).expect("in bounds");
    byte[0]
}

#[test]
fn the_last_page_is_filled_up_with_zeroes() {
    let memory = FileMemory::map(&file(&[7; 5000]), 5000).expect("mapped");
    assert_eq!(memory.len_bytes(), 8192);
    assert!(memory.hva().is_page_aligned());
    let found = [0, 4999, 5000, 8191].map(|offset| byte(&memory, offset));
    assert_eq!(found, [7, 7, 0, 0]);
}

#[test]
fn what_is_written_is_private_and_can_be_dropped() {
    let file = file(&[7; 4096]);
    let memory = FileMemory::map(&file, 4096).expect("mapped");
    let other = FileMemory::map(&file, 4096).expect("mapped");
    memory.memory.write(100, &[1]).expect("in bounds");
    assert_eq!((byte(&memory, 100), byte(&other, 100)), (1, 7));
    memory.discard_copies().expect("dropped");
    assert_eq!(byte(&memory, 100), 7);
}

#[test]
fn impossible_lengths_are_refused() {
    let file = file(&[7]);
    for len_bytes in [0, 1 << 60, u64::MAX] {
        assert!(FileMemory::map(&file, len_bytes).is_err(), "{len_bytes:#x}");
    }
}

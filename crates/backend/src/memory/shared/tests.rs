use std::sync::Arc;
use std::thread;

use proptest::prelude::*;

use super::*;

fn shared(len_bytes: u64) -> SharedMemory {
    SharedMemory::zeroed(len_bytes).expect("memory")
}

fn content(memory: &SharedMemory) -> Vec<u8> {
    let len = usize::try_from(memory.len_bytes()).expect("small");
    let mut bytes = vec![0xFF; len];
    memory.read(0, &mut bytes).expect("in bounds");
    bytes
}

#[test]
fn fresh_memory_is_zero_and_aligned() {
    let memory = shared(5000);
    assert_eq!(content(&memory), vec![0; 5000]);
    assert!(memory.hva().is_page_aligned());
    assert_eq!(memory.len_bytes(), 5000);
}

#[test]
fn impossible_lengths_are_refused() {
    for len_bytes in [0, 1 << 60, u64::MAX] {
        assert!(SharedMemory::zeroed(len_bytes).is_err(), "{len_bytes:#x}");
    }
}

#[test]
fn accesses_end_where_the_memory_was_asked_to_end() {
    let memory = shared(21);
    memory.write(0, &[1; 21]).expect("in bounds");
    memory.write(21, &[]).expect("nothing at the end");
    for (offset, len) in [(0, 22), (21, 1), (22, 0), (u64::MAX, 1), (u64::MAX, 0)] {
        let mut into = vec![7; len];
        let refused = OutOfBounds {
            offset,
            len_bytes: len as u64,
            memory_len_bytes: 21,
        };
        assert_eq!(memory.read(offset, &mut into), Err(refused));
        assert_eq!(memory.write(offset, &into), Err(refused));
    }
    assert_eq!(content(&memory), vec![1; 21], "nothing was written");
}

#[test]
fn numbers_are_little_endian_and_aligned() {
    let memory = shared(24);
    memory.store(8, 0x1122_3344_5566_7788).expect("in bounds");
    assert_eq!(content(&memory)[8..12], [0x88, 0x77, 0x66, 0x55]);
    assert_eq!(memory.load(8), Ok(0x1122_3344_5566_7788));
    for offset in [1, 4, 7, 17, 24, u64::MAX] {
        assert!(memory.load(offset).is_err(), "{offset:#x}");
        assert!(memory.store(offset, 1).is_err(), "{offset:#x}");
    }
}

#[test]
fn threads_that_write_bytes_of_one_word_do_not_lose_each_others() {
    const ROUNDS: u8 = 200;
    let memory = Arc::new(shared(8));
    thread::scope(|scope| {
        for byte in 0..8 {
            let memory = &memory;
            scope.spawn(move || {
                for round in 1..=ROUNDS {
                    memory.write(byte, &[round]).expect("in bounds");
                    let mut found = [0];
                    memory.read(byte, &mut found).expect("in bounds");
                    assert_eq!(found, [round]);
                }
            });
        }
    });
    assert_eq!(content(&memory), [ROUNDS; 8]);
}

proptest! {
    #[test]
    fn it_holds_what_an_array_would_hold(
        writes in prop::collection::vec((0_usize..70, prop::collection::vec(any::<u8>(), 0..40)), 1..8),
    ) {
        let memory = shared(71);
        let mut model = [0; 71];
        for (offset, bytes) in &writes {
            let end = offset + bytes.len();
            let written = memory.write(*offset as u64, bytes);
            prop_assert_eq!(written.is_ok(), end <= model.len());
            if let Some(place) = model.get_mut(*offset..end) {
                place.copy_from_slice(bytes);
                let mut part = vec![0; bytes.len()];
                memory.read(*offset as u64, &mut part).expect("in bounds");
                prop_assert_eq!(&part, bytes);
            }
        }
        prop_assert_eq!(content(&memory), model);
    }
}

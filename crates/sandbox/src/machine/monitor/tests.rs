use vellum_layout::amd64::user::{MONITOR_CODE_AREA, PHYSICAL_WINDOW};
use vellum_layout::{Gpa, GpaRange, Gva, MONITOR_DATA_LEN_BYTES, PAGE_SIZE};
use vellum_vmem::Attrs;

use super::{DemandZero, MAX_AREAS, MAX_CODE_LEN_BYTES, MonitorData, code, stub_address};

/// Vectors for which the processor pushes an error code (Intel SDM volume 3, table 6-1; 29 and 30 are AMD's, APM volume 2,
/// section 8.2).
const WITH_ERROR_CODE: [usize; 10] = [8, 10, 11, 12, 13, 14, 17, 21, 29, 30];

/// The target of the jump at an offset of the code.
fn jump_target(at: usize) -> usize {
    let code = code();
    let (length, displacement) = match code[at] {
        0xEB => (2, i32::from(code[at + 1].cast_signed())),
        0xE9 => (
            5,
            i32::from_le_bytes(code[at + 1..at + 5].try_into().expect("four bytes")),
        ),
        other => panic!("no jump at {at:#x}: {other:#x}"),
    };
    (at + length)
        .checked_add_signed(displacement as isize)
        .expect("inside the code")
}

/// Where the stub of a vector goes, after checking what it pushes.
fn handler(vector: usize) -> usize {
    const PUSH_BYTE: u8 = 0x6A;
    let code = code();
    let mut at = vector * 16;
    if !WITH_ERROR_CODE.contains(&vector) {
        assert_eq!(code[at..at + 2], [PUSH_BYTE, 0], "vector {vector}");
        at += 2;
    }
    let number = u8::try_from(vector).expect("small");
    assert_eq!(code[at..at + 2], [PUSH_BYTE, number], "vector {vector}");
    jump_target(at + 2)
}

#[test]
fn the_code_fits_its_page() {
    assert!(code().len() as u64 <= MAX_CODE_LEN_BYTES);
    const { assert!(MAX_CODE_LEN_BYTES <= PAGE_SIZE) };
    assert!(code().len() > 32 * 16);
}

#[test]
fn each_vector_has_a_stub_that_makes_its_frame_uniform() {
    let report = handler(0);
    for vector in 0..32 {
        assert_eq!(
            stub_address(vector),
            MONITOR_CODE_AREA.start().as_u64() + vector as u64 * 16
        );
        let target = handler(vector);
        assert!((32 * 16..code().len()).contains(&target), "vector {vector}");
        assert_eq!(
            target == report,
            vector != 14,
            "only page faults have a handler of their own"
        );
    }
}

#[test]
fn the_code_leaves_through_the_fault_port_and_iretq_only() {
    let code = code();
    let count = |pattern: &[u8]| {
        code.windows(pattern.len())
            .filter(|window| *window == pattern)
            .count()
    };
    // `out 0xE7, eax` and the loop behind it; `iretq`.
    assert_eq!(count(&[0xE7, 0xE7, 0xEB, 0xFE]), 1);
    assert_eq!(count(&[0x48, 0xCF]), 1);
    // No `hlt`, which would be an exit of another kind, and no `syscall`.
    assert_eq!(count(&[0x0F, 0x05]), 0);
}

fn data(areas: usize) -> MonitorData {
    let area = |index: usize| DemandZero {
        first: Gva::new(0x40_0000_0000 + index as u64 * 0x1_0000).expect("canonical"),
        last: Gva::new(0x40_0000_FFFF + index as u64 * 0x1_0000).expect("canonical"),
        rights: Attrs::WRITE | Attrs::NO_EXECUTE,
    };
    MonitorData {
        frames: GpaRange::new(Gpa::literal(0x10_0000), 0x8000).expect("a range"),
        log: Gpa::literal(0xF_0000),
        areas: (0..areas).map(area).collect(),
    }
}

#[test]
fn the_data_begins_with_frames_log_and_number_of_areas() {
    let words: Vec<u64> = data(0).words().collect();
    let window = PHYSICAL_WINDOW.start().as_u64();
    assert_eq!(words, [0x10_8000, 0x10_0000, window + 0xF_0000, 0]);
}

#[test]
fn each_area_is_three_words_whose_last_is_a_page_table_entry_without_frame() {
    let words: Vec<u64> = data(2).words().collect();
    assert_eq!(words.len(), 4 + 2 * 3);
    assert_eq!(words[3], 2);
    // Present, writable, user, accessed, dirty, not executable (Intel SDM volume 3, table 4-20).
    let entry = 1 | 1 << 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 63;
    assert_eq!(words[4..7], [0x40_0000_0000, 0x40_0000_FFFF, entry]);
    assert_eq!(words[7..9], [0x40_0001_0000, 0x40_0001_FFFF]);
}

#[test]
fn more_areas_than_there_is_room_for_are_not_written() {
    for areas in [MAX_AREAS, MAX_AREAS + 1, MAX_AREAS * 10] {
        let words: Vec<u64> = data(areas).words().collect();
        assert_eq!(words[3], MAX_AREAS as u64);
        assert!(words.len() as u64 * 8 <= MONITOR_DATA_LEN_BYTES);
    }
}

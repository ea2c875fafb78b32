use std::mem::offset_of;

use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection};
use proptest::collection::vec;
use proptest::prelude::*;
use vellum_abi::function::{EXPORTS_SECTION, FunctionEntry, FunctionError};
use vellum_abi::note::{Note, NoteError};
use vellum_layout::{GuestKind, GvaRange};
use vellum_vmem::Attrs;
use zerocopy::{Immutable, IntoBytes};

use super::{ImageError, Parsed, Segment, parse};

/// Where the fields lie in the file header (System V gABI, chapter 4, "ELF Header").
mod header {
    pub(super) const CLASS: usize = 4;
    pub(super) const DATA: usize = 5;
    pub(super) const TYPE: usize = 16;
    pub(super) const MACHINE: usize = 18;
    pub(super) const ENTRY: usize = 24;
    pub(super) const PHOFF: usize = 32;
    pub(super) const SHOFF: usize = 40;
    pub(super) const PHENTSIZE: usize = 54;
    pub(super) const PHNUM: usize = 56;
    pub(super) const SHNUM: usize = 60;
}

/// Where the fields lie in a program header (chapter 5, "Program Header").
mod program {
    pub(super) const TYPE: usize = 0;
    pub(super) const FLAGS: usize = 4;
    pub(super) const OFFSET: usize = 8;
    pub(super) const VADDR: usize = 16;
    pub(super) const FILESZ: usize = 32;
    pub(super) const MEMSZ: usize = 40;
}

const HEADER_LEN_BYTES: usize = 64;
const PROGRAM_LEN_BYTES: usize = 56;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
const PT_TLS: u32 = 7;
const PF_X: u32 = 1;
const PF_W: u32 = 2;
const PF_R: u32 = 4;

/// The smallest guest: a page of code at 0x20_0000, a page of data at 0x30_0000 of which 16 bytes are in the file, a note.
struct File {
    bytes: Vec<u8>,
}

const CODE: usize = 0;
const DATA: usize = 1;
const NOTE: usize = 2;
/// Offset of the contents.
const CONTENTS: u64 = 0x1000;

impl File {
    fn new() -> Self {
        let mut file = Self {
            bytes: vec![0; 0x1100],
        };
        file.bytes[..8].copy_from_slice(&[0x7F, b'E', b'L', b'F', 2, 1, 1, 0]);
        file.put(header::TYPE, 2_u16);
        file.put(header::MACHINE, 62_u16);
        file.put(20, 1_u32);
        file.put(header::ENTRY, 0x20_0000_u64);
        file.put(header::PHOFF, HEADER_LEN_BYTES as u64);
        file.put(52, 64_u16);
        file.put(header::PHENTSIZE, 56_u16);
        file.put(header::PHNUM, 3_u16);
        file.put(58, 64_u16);
        file.segment(
            CODE,
            (PT_LOAD, PF_R | PF_X),
            (CONTENTS, 0x100),
            (0x20_0000, 0x100),
        );
        file.segment(
            DATA,
            (PT_LOAD, PF_R | PF_W),
            (CONTENTS, 0x10),
            (0x30_0000, 0x800),
        );
        file.segment(
            NOTE,
            (PT_NOTE, PF_R),
            (CONTENTS + 0x80, size_of::<Note>() as u64),
            (0, 0),
        );
        let at = usize::try_from(CONTENTS).expect("small") + 0x80;
        file.bytes[at..at + size_of::<Note>()].copy_from_slice(Note::AMD64_USER.as_bytes());
        file
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "a number is shorter without a reference"
    )]
    fn put(&mut self, at: usize, value: impl IntoBytes + Immutable) {
        let bytes = value.as_bytes();
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_segment(&mut self, segment: usize, field: usize, value: impl IntoBytes + Immutable) {
        self.put(
            HEADER_LEN_BYTES + segment * PROGRAM_LEN_BYTES + field,
            value,
        );
    }

    fn segment(
        &mut self,
        index: usize,
        (kind, flags): (u32, u32),
        file: (u64, u64),
        memory: (u64, u64),
    ) {
        self.put_segment(index, program::TYPE, kind);
        self.put_segment(index, program::FLAGS, flags);
        self.put_segment(index, program::OFFSET, file.0);
        self.put_segment(index, program::FILESZ, file.1);
        self.put_segment(index, program::VADDR, memory.0);
        self.put_segment(index, program::MEMSZ, memory.1);
    }

    fn parse(&self) -> Result<Parsed, ImageError> {
        parse(&self.bytes)
    }
}

impl Segment {
    /// A segment of zeroes, for tests of what is made of segments.
    pub(crate) const fn for_test(range: GvaRange, rights: Attrs, first_page: u64) -> Self {
        Self {
            range,
            rights,
            first_page,
            lead_len_bytes: 0,
            file: 0..0,
        }
    }
}

/// What parsing says of a file that was changed.
fn error_of(change: impl FnOnce(&mut File)) -> String {
    let mut file = File::new();
    change(&mut file);
    let error = file.parse().expect_err("refused");
    // The variant's name is the row's expectation.
    format!("{error:?}")
}

#[test]
fn the_smallest_guest_is_taken() {
    let parsed = File::new().parse().expect("valid");
    assert_eq!(parsed.entry.as_u64(), 0x20_0000);
    assert_eq!(parsed.segments.len(), 2);
    let [code, data] = &parsed.segments[..] else {
        unreachable!()
    };
    assert_eq!(
        (code.range.start().as_u64(), code.first_page, code.pages()),
        (0x20_0000, 0, 1)
    );
    assert_eq!(
        (data.range.start().as_u64(), data.first_page, data.pages()),
        (0x30_0000, 1, 1)
    );
    assert!(code.rights.bits() == 0, "code can be read and executed");
    assert_eq!(data.file.len(), 0x10);
    assert!(parsed.exports.is_empty() && parsed.imports.is_empty());
}

#[test]
fn a_segment_that_begins_inside_a_page_is_widened_to_whole_pages() {
    let mut file = File::new();
    file.put_segment(DATA, program::VADDR, 0x30_0FF8_u64);
    file.put_segment(DATA, program::MEMSZ, 0x10_u64);
    let parsed = file.parse().expect("valid");
    let data = &parsed.segments[1];
    assert_eq!(
        (
            data.range.start().as_u64(),
            data.pages(),
            data.lead_len_bytes
        ),
        (0x30_0000, 2, 0xFF8)
    );
}

#[test]
fn what_is_not_an_amd64_executable_is_refused_by_its_name() {
    check(&[
        ("NotElf", |file| file.bytes[0] = 0),
        ("NotElf", |file| file.bytes[3] = b'f'),
        ("Class32", |file| file.bytes[header::CLASS] = 1),
        ("BigEndian", |file| file.bytes[header::DATA] = 2),
        ("Malformed", |file| file.bytes[header::CLASS] = 0),
        ("Malformed", |file| file.bytes[header::DATA] = 3),
        ("Malformed", |file| file.bytes[6] = 9),
        ("Machine(183)", |file| file.put(header::MACHINE, 183_u16)),
        ("Machine(3)", |file| file.put(header::MACHINE, 3_u16)),
        ("Machine(65535)", |file| file.put(header::MACHINE, u16::MAX)),
        ("Type(0)", |file| file.put(header::TYPE, 0_u16)),
        ("Type(1)", |file| file.put(header::TYPE, 1_u16)),
        ("Type(3)", |file| file.put(header::TYPE, 3_u16)),
        ("Type(4)", |file| file.put(header::TYPE, 4_u16)),
    ]);
}

type Change = fn(&mut File);

/// Each change makes the file one that is refused with the variant of that name.
fn check(cases: &[(&str, Change)]) {
    for (number, (expected, change)) in cases.iter().enumerate() {
        let error = error_of(change);
        assert!(
            error.starts_with(expected),
            "row {number}, {expected}: {error}"
        );
    }
}

#[test]
fn bad_program_headers_are_refused() {
    check(&[
        ("NoSegments", |file| file.put(header::PHNUM, 0_u16)),
        ("NoSegments", |file| {
            file.put_segment(CODE, program::TYPE, 6_u32);
            file.put_segment(DATA, program::TYPE, 0_u32);
        }),
        ("NoSegments", |file| {
            file.segment(CODE, (PT_LOAD, PF_R | PF_X), (0, 0), (0x20_0000, 0));
            file.segment(DATA, (PT_LOAD, PF_R | PF_W), (0, 0), (0x30_0000, 0));
        }),
        ("Malformed", |file| file.put(header::PHNUM, 0xFFFE_u16)),
        ("Malformed", |file| file.put(header::PHNUM, u16::MAX)),
        ("Malformed", |file| file.put(header::PHENTSIZE, 32_u16)),
        ("Malformed", |file| file.put(header::PHENTSIZE, 0_u16)),
        ("Malformed", |file| file.put(header::PHOFF, u64::MAX)),
        ("Malformed", |file| file.put(header::PHOFF, 0x10F0_u64)),
        ("TooManyHeaders(129)", |file| {
            file.bytes.resize(0x4000, 0);
            file.put(header::PHNUM, 129_u16);
        }),
        ("Unsupported", |file| {
            file.put_segment(NOTE, program::TYPE, PT_INTERP);
        }),
        ("Unsupported", |file| {
            file.put_segment(NOTE, program::TYPE, PT_TLS);
        }),
        ("Malformed", |file| {
            file.put(header::SHOFF, u64::MAX);
            file.put(header::SHNUM, 1_u16);
        }),
        ("Malformed", |file| {
            file.put(header::SHOFF, 0x1000_u64);
            file.put(header::SHNUM, 0xFEFF_u16);
        }),
    ]);
}

#[test]
fn segments_outside_the_file_are_refused() {
    check(&[
        ("FileLargerThanMemory", |file| {
            file.put_segment(DATA, program::FILESZ, 0x801_u64);
        }),
        ("FileLargerThanMemory", |file| {
            file.put_segment(DATA, program::FILESZ, u64::MAX);
        }),
        ("FileLargerThanMemory", |file| {
            file.put_segment(DATA, program::MEMSZ, 0_u64);
        }),
        ("OutsideFile", |file| {
            file.put_segment(DATA, program::OFFSET, 0x10F1_u64);
        }),
        ("OutsideFile", |file| {
            file.put_segment(DATA, program::OFFSET, 0x1101_u64);
        }),
        ("OutsideFile", |file| {
            file.put_segment(DATA, program::OFFSET, u64::MAX);
        }),
        ("OutsideFile", |file| {
            file.put_segment(DATA, program::OFFSET, u64::MAX - 0xF);
        }),
        ("OutsideFile", |file| {
            file.put_segment(DATA, program::MEMSZ, 0x10_0000_u64);
            file.put_segment(DATA, program::FILESZ, 0x10_0000_u64);
        }),
    ]);
}

#[test]
fn segments_outside_the_guests_area_are_refused() {
    check(&[
        ("OutsideArea", |file| {
            file.put_segment(DATA, program::VADDR, 0_u64);
        }),
        ("OutsideArea", |file| {
            file.put_segment(DATA, program::VADDR, 0xFFFF_u64);
        }),
        ("OutsideArea", |file| {
            file.put_segment(DATA, program::VADDR, 0x40_0000_0000_u64);
        }),
        ("OutsideArea", |file| {
            file.put_segment(DATA, program::VADDR, 0x3F_FFFF_F801_u64);
        }),
        ("OutsideArea", |file| {
            file.put_segment(DATA, program::VADDR, 1_u64 << 45);
        }),
        ("OutsideArea", |file| {
            file.put_segment(DATA, program::VADDR, 1_u64 << 47);
        }),
        ("OutsideArea", |file| {
            file.put_segment(DATA, program::VADDR, u64::MAX);
        }),
        ("OutsideArea", |file| {
            file.put_segment(DATA, program::VADDR, u64::MAX - 0x7FF);
        }),
        ("OutsideArea", |file| {
            file.put_segment(DATA, program::MEMSZ, u64::MAX);
        }),
        ("OutsideArea", |file| {
            file.put_segment(DATA, program::MEMSZ, u64::MAX - 0x30_0000);
        }),
        ("TooLarge", |file| {
            file.put_segment(DATA, program::MEMSZ, 8_u64 << 30);
        }),
        ("TooLarge", |file| {
            file.put_segment(DATA, program::MEMSZ, 1_u64 << 30);
        }),
    ]);
}

#[test]
fn segments_that_overlap_or_can_be_written_and_executed_are_refused() {
    check(&[
        ("WritableCode", |file| {
            file.put_segment(CODE, program::FLAGS, PF_R | PF_W | PF_X);
        }),
        ("WritableCode", |file| {
            file.put_segment(DATA, program::FLAGS, PF_W | PF_X);
        }),
        ("Overlap(2097152)", |file| {
            file.put_segment(DATA, program::VADDR, 0x20_0000_u64);
        }),
        ("Overlap(2097152)", |file| {
            file.put_segment(DATA, program::VADDR, 0x20_0800_u64);
        }),
        ("Overlap", |file| {
            file.put_segment(DATA, program::VADDR, 0x1F_0000_u64);
            file.put_segment(DATA, program::MEMSZ, 0x1_0001_u64);
        }),
        ("Overlap", |file| {
            file.put_segment(CODE, program::MEMSZ, 0x10_0001_u64);
        }),
    ]);
}

#[test]
fn an_entry_outside_of_code_is_refused() {
    check(&[
        ("Entry(0)", |file| file.put(header::ENTRY, 0_u64)),
        ("Entry", |file| file.put(header::ENTRY, 0x1F_FFFF_u64)),
        ("Entry", |file| file.put(header::ENTRY, 0x20_1000_u64)),
        ("Entry", |file| file.put(header::ENTRY, 0x30_0000_u64)),
        ("Entry", |file| file.put_segment(CODE, program::FLAGS, PF_R)),
        ("Address(140737488355328", |file| {
            file.put(header::ENTRY, 1_u64 << 47);
        }),
    ]);
    let error = error_of(|file| file.put(header::ENTRY, u64::MAX));
    assert!(
        error.starts_with("Entry") || error.starts_with("Address"),
        "{error}"
    );
}

#[test]
fn a_file_without_the_right_note_is_refused() {
    let with_note = |note: Note| {
        let mut file = File::new();
        file.put(0x1080, note);
        file.parse()
    };
    let missing = error_of(|file| file.put_segment(NOTE, program::TYPE, 0_u32));
    assert_eq!(
        missing,
        format!("{:?}", ImageError::Note(NoteError::Missing))
    );
    let outside = error_of(|file| file.put_segment(NOTE, program::OFFSET, u64::MAX));
    assert_eq!(
        outside,
        format!("{:?}", ImageError::Note(NoteError::Missing))
    );
    let truncated = error_of(|file| file.put_segment(NOTE, program::FILESZ, 20_u64));
    assert_eq!(
        truncated,
        format!("{:?}", ImageError::Note(NoteError::Truncated { offset: 0 }))
    );
    let version = error_of(|file| file.put(0x1080 + 20, 99_u32));
    assert_eq!(
        version,
        format!("{:?}", ImageError::Note(NoteError::Version { guest: 99 }))
    );
    let unknown = error_of(|file| file.put(0x1080 + 24, 99_u32));
    assert_eq!(
        unknown,
        format!("{:?}", ImageError::Note(NoteError::UnknownKind(99)))
    );
    for kind in [GuestKind::I686Identity, GuestKind::I686Paged] {
        let error = with_note(Note::new(kind)).expect_err("refused");
        assert!(
            matches!(error, ImageError::Kind(named) if named == kind),
            "{error:?}"
        );
    }
    for kind in [GuestKind::Amd64User, GuestKind::Amd64Kernel] {
        assert!(with_note(Note::new(kind)).is_ok());
    }
}

#[test]
fn a_file_that_ends_early_is_refused_or_valid_and_never_a_panic() {
    let file = File::new();
    for len_bytes in 0..file.bytes.len() {
        let result = parse(&file.bytes[..len_bytes]);
        assert!(result.is_err(), "{len_bytes} bytes");
        if len_bytes < HEADER_LEN_BYTES {
            assert!(
                matches!(result, Err(ImageError::TooShort { len_bytes: said }) if said == len_bytes),
                "{len_bytes}"
            );
        }
    }
    let guest = vellum_test_guests::rust_user();
    assert!(parse(guest).is_ok());
    for len_bytes in (0..guest.len())
        .step_by(7)
        .chain(guest.len() - 200..guest.len())
    {
        // Its section headers come last, so nothing but the whole file is valid.
        assert!(parse(&guest[..len_bytes]).is_err(), "{len_bytes} bytes");
    }
}

/// The Rust guest, and where its table of exports lies in the file.
fn guest_and_table() -> (Vec<u8>, usize, usize) {
    let elf = vellum_test_guests::rust_user().to_vec();
    let (at, len_bytes) = ElfFile64::<Endianness>::parse(&elf[..])
        .expect("valid")
        .section_by_name(EXPORTS_SECTION)
        .and_then(|section| section.file_range())
        .expect("the table is in the file");
    let small = |value| usize::try_from(value).expect("small");
    (elf, small(at), small(len_bytes))
}

#[test]
fn bad_entries_of_a_function_table_are_refused() {
    let (guest, table, len_bytes) = guest_and_table();
    assert!(len_bytes > 3 * FunctionEntry::LEN_BYTES);
    // Offset in entry 2, and the byte to write there.
    let cases = [
        (
            offset_of!(FunctionEntry, param_count),
            17,
            "TooManyParameters(17)",
        ),
        (offset_of!(FunctionEntry, ret), 10, "ReturnType(10)"),
        (offset_of!(FunctionEntry, flags), 2, "ReservedNotZero"),
        // The third entry may return something, which then is wrong first.
        (offset_of!(FunctionEntry, flags), 1, "OneWay"),
        (offset_of!(FunctionEntry, params) + 15, 1, "ReservedNotZero"),
        (offset_of!(FunctionEntry, name_len_bytes), 0, "NameLength"),
        (offset_of!(FunctionEntry, name_len_bytes), 129, "NameLength"),
        (
            offset_of!(FunctionEntry, name_len_bytes) + 3,
            0x7F,
            "NameOutsideImage",
        ),
        (
            offset_of!(FunctionEntry, name_ptr) + 7,
            0x7F,
            "NameOutsideImage",
        ),
    ];
    for (offset, byte, expected) in cases {
        let mut elf = guest.clone();
        elf[table + 2 * FunctionEntry::LEN_BYTES + offset] = byte;
        let error = format!("{:?}", parse(&elf).expect_err("refused"));
        assert!(
            error.contains(expected) && error.contains("index: 2"),
            "{expected}: {error}"
        );
    }
}

#[test]
fn a_function_that_is_exported_twice_is_refused() {
    let (mut elf, table, _) = guest_and_table();
    let first = elf[table..table + FunctionEntry::LEN_BYTES].to_vec();
    elf[table + FunctionEntry::LEN_BYTES..table + 2 * FunctionEntry::LEN_BYTES]
        .copy_from_slice(&first);
    assert!(matches!(
        parse(&elf),
        Err(ImageError::DuplicateFunction { .. })
    ));
}

#[test]
fn a_function_table_of_another_length_or_place_is_refused() {
    let (guest, table, _) = guest_and_table();
    let section = section_header_of(&guest, table);
    let (address, size) = (section + 16, section + 32);
    let change = |at: usize, value: u64| {
        let mut elf = guest.clone();
        elf[at..at + 8].copy_from_slice(&value.to_le_bytes());
        parse(&elf)
    };
    let length = change(size, 41);
    assert!(
        matches!(
            &length,
            Err(ImageError::Function {
                source: FunctionError::TableLength { len_bytes: 41 },
                ..
            })
        ),
        "{length:?}"
    );
    for (at, value) in [
        (size, u64::MAX),
        (size, 1 << 40),
        (address, 0),
        (address, u64::MAX),
        (address, 1 << 45),
    ] {
        let result = change(at, value);
        assert!(
            matches!(result, Err(ImageError::TableOutsideImage { .. })),
            "{value:#x}: {result:?}"
        );
    }
}

/// Offset of the section header whose contents lie at an offset of the file.
fn section_header_of(elf: &[u8], contents: usize) -> usize {
    let word = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().expect("eight bytes"));
    let first = usize::try_from(word(header::SHOFF)).expect("small");
    let count = usize::from(u16::from_le_bytes([
        elf[header::SHNUM],
        elf[header::SHNUM + 1],
    ]));
    (0..count)
        .map(|index| first + index * 64)
        .find(|at| word(at + 24) == contents as u64 && word(at + 32) > 0)
        .expect("the section is listed")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Changed bytes give an error or an image within the limits, and never a panic.
    #[test]
    fn a_file_with_some_bytes_changed_is_refused_or_sound(
        changes in vec((0..HEADER_LEN_BYTES + 3 * PROGRAM_LEN_BYTES, any::<u8>()), 1..6),
    ) {
        let mut file = File::new();
        for (at, byte) in changes {
            file.bytes[at] = byte;
        }
        if let Ok(parsed) = file.parse() {
            let pages: u64 = parsed.segments.iter().map(super::Segment::pages).sum();
            prop_assert!(pages <= super::MAX_IMAGE_LEN_BYTES / 4096);
            for segment in &parsed.segments {
                prop_assert!(super::ELF_AREA.contains_range(&segment.range));
                prop_assert!(segment.file.end <= file.bytes.len());
                let room = segment.range.len_bytes() - segment.lead_len_bytes;
                prop_assert!(segment.file.len() as u64 <= room);
            }
        }
    }
}

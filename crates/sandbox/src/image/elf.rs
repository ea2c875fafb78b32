//! Parsing of guest ELF files.
//!
//! `object` reads the headers; everything that it does not promise is checked here: that segments lie inside the file and the
//! guest's address space, do not overlap, are not writable and executable at once, and that the entry point is code. The work is
//! linear in the number of headers, the memory in the size of the segments, which is limited.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use object::LittleEndian;
use object::elf::{
    ELFCLASS32, ELFDATA2MSB, EM_386, EM_X86_64, ET_EXEC, FileHeader32, FileHeader64, Machine, PF_R,
    PF_W, PF_X, PT_INTERP, PT_LOAD, PT_NOTE, PT_TLS,
};
use object::read::elf::{FileHeader, ProgramHeader};
use vellum_abi::function::FunctionError;
use vellum_abi::note::{GuestNote, NoteError};
use vellum_layout::amd64::user::ELF_AREA;
use vellum_layout::{AddressError, GuestKind, Gva, GvaRange, PAGE_SIZE, amd64, i686};
use vellum_vmem::Attrs;

use super::{Function, MAX_FILE_LEN_BYTES, functions};

/// Bytes that all segments may occupy together.
const MAX_IMAGE_LEN_BYTES: u64 = 1 << 30;
/// Program headers that are looked at.
const MAX_HEADERS: usize = 128;

/// What a valid file says.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) kind: GuestKind,
    pub(super) entry: Gva,
    pub(super) segments: Vec<Segment>,
    pub(super) exports: Vec<Function>,
    pub(super) imports: Vec<Function>,
}

/// A loadable segment, widened to whole pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Where it is loaded.
    pub(crate) range: GvaRange,
    /// What the guest may do there.
    pub(crate) rights: Attrs,
    /// Its first page in the image.
    pub(crate) first_page: u64,
    /// Zeroes before its first byte.
    pub(super) lead_len_bytes: u64,
    /// Its bytes in the file.
    pub(super) file: Range<usize>,
}

impl Segment {
    /// One that comes back without its file.
    pub(super) const fn loaded(range: GvaRange, rights: Attrs, first_page: u64) -> Self {
        Self {
            range,
            rights,
            first_page,
            lead_len_bytes: 0,
            file: 0..0,
        }
    }

    pub(crate) fn pages(&self) -> u64 {
        self.range.pages()
    }
}

/// Why a file is no guest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("file of {len_bytes} bytes is too short for an elf header")]
    TooShort { len_bytes: usize },
    #[error("file is not elf")]
    NotElf,
    #[error("elf file is 32-bit but not for the 386; link for amd64 or for i686")]
    Class32,
    #[error("elf file is big-endian")]
    BigEndian,
    #[error("elf file is for machine {0}, not amd64 (62) or 386 (3)")]
    Machine(u16),
    #[error(
        "elf file has type {0}; link the guest statically at a fixed address (type 2, executable)"
    )]
    Type(u16),
    #[error("elf headers are malformed: {0}")]
    Malformed(object::read::Error),
    #[error("elf file has {0} program headers, at most {MAX_HEADERS} are read")]
    TooManyHeaders(usize),
    #[error("elf file has no loadable segment")]
    NoSegments,
    #[error(
        "elf file needs {0}, which a guest cannot have; link it statically without start files"
    )]
    Unsupported(&'static str),
    #[error(
        "segment {index} has {file_len_bytes:#x} bytes in the file but {memory_len_bytes:#x} in memory"
    )]
    FileLargerThanMemory {
        index: usize,
        file_len_bytes: u64,
        memory_len_bytes: u64,
    },
    #[error(
        "segment {index} at file offset {offset:#x} with {len_bytes:#x} bytes ends past the file"
    )]
    OutsideFile {
        index: usize,
        offset: u64,
        len_bytes: u64,
    },
    #[error(
        "segment {index} at {address:#x} with {len_bytes:#x} bytes lies outside of the area that images of its architecture may use"
    )]
    OutsideArea {
        index: usize,
        address: u64,
        len_bytes: u64,
    },
    #[error("segment {index} at {address:#x} is writable and executable")]
    WritableCode { index: usize, address: u64 },
    #[error("segments share the page at {0:#x}; align segments to 4096 bytes")]
    Overlap(u64),
    #[error("segments occupy {len_bytes:#x} bytes, the limit is {MAX_IMAGE_LEN_BYTES:#x}")]
    TooLarge { len_bytes: u64 },
    #[error("entry point {0:#x} is not in an executable segment")]
    Entry(u64),
    #[error("vellum note")]
    Note(#[from] NoteError),
    #[error("vellum note says {0}, which is a guest of the other architecture")]
    Kind(GuestKind),
    #[error("function table {section}, entry {index}")]
    Function {
        section: &'static str,
        index: usize,
        #[source]
        source: FunctionError,
    },
    #[error("function table {section} is not in the loaded image")]
    TableOutsideImage { section: &'static str },
    #[error(
        "function table {section}, entry {index}: name at {address:#x} is not in the loaded image"
    )]
    NameOutsideImage {
        section: &'static str,
        index: usize,
        address: u64,
    },
    #[error("function {name} is in table {section} twice")]
    DuplicateFunction { section: &'static str, name: String },
    #[error("function table {section} has {count} entries, the limit is {limit}")]
    TooManyFunctions {
        section: &'static str,
        count: usize,
        limit: usize,
    },
    #[error("address {0:#x} is not canonical")]
    Address(u64, #[source] AddressError),
}

/// Reads a regular file of limited size.
pub(super) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    // Opening a FIFO blocks: look before.
    if !path.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_FILE_LEN_BYTES + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_LEN_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "larger than 256 MiB",
        ));
    }
    Ok(bytes)
}

/// Checks a file and finds its segments and functions.
pub(super) fn parse(elf: &[u8]) -> Result<Parsed, ImageError> {
    match check_identity(elf)? {
        Class::Bits64 => parse_class::<FileHeader64<LittleEndian>>(elf, &AMD64),
        Class::Bits32 => parse_class::<FileHeader32<LittleEndian>>(elf, &I686),
    }
}

/// What distinguishes the guests of an architecture.
struct Target {
    machine: Machine,
    /// The kinds of guests, and where the segments of each may lie.
    kinds: &'static [(GuestKind, GvaRange)],
}

const AMD64: Target = Target {
    machine: EM_X86_64,
    kinds: &[
        (GuestKind::Amd64User, ELF_AREA),
        (GuestKind::Amd64Kernel, AMD64_KERNEL_AREA),
    ],
};
const I686: Target = Target {
    machine: EM_386,
    kinds: &[
        (GuestKind::I686Identity, I686_IDENTITY_AREA),
        (GuestKind::I686Paged, I686_PAGED_AREA),
    ],
};

/// The lower half of the address space.
const AMD64_KERNEL_AREA: GvaRange =
    GvaRange::literal(Gva::literal(amd64::BASE_ADDRESS.as_u64()), 0x7FFF_FFFF_E000);
/// Everything below the reserved pages of the last gigabyte; the plan knows what else is in the way.
const I686_IDENTITY_AREA: GvaRange = GvaRange::literal(
    Gva::literal(i686::BASE_ADDRESS.as_u64()),
    i686::MAX_GPA.as_u64() + 1 - i686::BASE_ADDRESS.as_u64(),
);
/// Everything that 32 bits reach; the plan knows where scratch is.
const I686_PAGED_AREA: GvaRange = GvaRange::literal(
    Gva::literal(i686::BASE_ADDRESS.as_u64()),
    i686::MAX_GVA_PAGED.as_u64() + 1 - i686::BASE_ADDRESS.as_u64(),
);

/// Checks segments that were loaded earlier and come back without their file, one behind the other in a layer; finds the entry point.
pub(super) fn check_loaded(
    kind: GuestKind,
    entry: u64,
    segments: &[Segment],
) -> Result<Gva, ImageError> {
    let kinds = [&AMD64, &I686].into_iter().flat_map(|target| target.kinds);
    let area = kinds.into_iter().find(|(known, _)| *known == kind);
    let (_, area) = area.ok_or(ImageError::Kind(kind))?;
    if segments.len() > MAX_HEADERS {
        return Err(ImageError::TooManyHeaders(segments.len()));
    }
    if segments.is_empty() {
        return Err(ImageError::NoSegments);
    }
    for (index, segment) in segments.iter().enumerate() {
        let address = segment.range.start().as_u64();
        if !area.contains_range(&segment.range) {
            return Err(ImageError::OutsideArea {
                index,
                address,
                len_bytes: segment.range.len_bytes(),
            });
        }
        if segment.rights.contains(Attrs::WRITE) && !segment.rights.contains(Attrs::NO_EXECUTE) {
            return Err(ImageError::WritableCode { index, address });
        }
    }
    check_disjoint(segments)?;
    // They are disjoint, so that the sum does not overflow.
    let len_bytes: u64 = segments.iter().map(|it| it.range.len_bytes()).sum();
    if len_bytes > MAX_IMAGE_LEN_BYTES {
        return Err(ImageError::TooLarge { len_bytes });
    }
    entry_point(entry, segments)
}

fn parse_class<Header: FileHeader<Endian = LittleEndian>>(
    elf: &[u8],
    target: &Target,
) -> Result<Parsed, ImageError> {
    let header = Header::parse(elf).map_err(ImageError::Malformed)?;
    let endian = header.endian().map_err(ImageError::Malformed)?;
    let machine = header.e_machine(endian);
    if machine != target.machine {
        return Err(ImageError::Machine(machine.0));
    }
    let elf_type = header.e_type(endian);
    if elf_type != ET_EXEC {
        return Err(ImageError::Type(elf_type.0));
    }
    let headers = header
        .program_headers(endian, elf)
        .map_err(ImageError::Malformed)?;
    if headers.len() > MAX_HEADERS {
        return Err(ImageError::TooManyHeaders(headers.len()));
    }
    check_supported(endian, headers)?;
    let kind = find_note(elf, endian, headers)?.kind;
    let known = target.kinds.iter().find(|(known, _)| *known == kind);
    let (_, area) = known.ok_or(ImageError::Kind(kind))?;
    let segments = load_segments(elf, endian, headers, *area)?;
    let entry = entry_point(header.e_entry(endian).into(), &segments)?;
    let sections = header
        .sections(endian, elf)
        .map_err(ImageError::Malformed)?;
    let (exports, imports) = functions::parse::<Header>(elf, endian, &sections, &segments)?;
    Ok(Parsed {
        kind,
        entry,
        segments,
        exports,
        imports,
    })
}

/// The identification bytes, checked first so that each mistake has its own message.
fn check_identity(elf: &[u8]) -> Result<Class, ImageError> {
    const CLASS: usize = 4;
    const DATA: usize = 5;
    const MACHINE: usize = 18;
    if !elf.starts_with(&object::elf::ELFMAG) {
        return Err(if elf.len() < 4 {
            ImageError::TooShort {
                len_bytes: elf.len(),
            }
        } else {
            ImageError::NotElf
        });
    }
    let too_short = ImageError::TooShort {
        len_bytes: elf.len(),
    };
    let (Some(&class), Some(&data)) = (elf.get(CLASS), elf.get(DATA)) else {
        return Err(too_short);
    };
    if data == ELFDATA2MSB.0 {
        return Err(ImageError::BigEndian);
    }
    if elf.len() < size_of::<FileHeader64<LittleEndian>>() {
        return Err(too_short);
    }
    // The machine lies at the same place in both classes.
    let is_386 = elf.get(MACHINE..MACHINE + 2) == Some(&EM_386.0.to_le_bytes()[..]);
    match (class == ELFCLASS32.0, is_386) {
        (false, _) => Ok(Class::Bits64),
        (true, true) => Ok(Class::Bits32),
        (true, false) => Err(ImageError::Class32),
    }
}

/// The two classes of ELF files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Bits32,
    Bits64,
}

/// Checks that the file is linked as a guest must be, whose note says more.
fn check_supported<H: ProgramHeader<Endian = LittleEndian>>(
    endian: LittleEndian,
    headers: &[H],
) -> Result<(), ImageError> {
    for header in headers {
        match header.p_type(endian) {
            PT_INTERP => return Err(ImageError::Unsupported("an interpreter")),
            PT_TLS => return Err(ImageError::Unsupported("thread-local storage")),
            _ => {}
        }
    }
    if headers.iter().any(|header| is_loaded(endian, header)) {
        Ok(())
    } else {
        Err(ImageError::NoSegments)
    }
}

/// Whether a header describes a segment that takes room.
fn is_loaded<H: ProgramHeader<Endian = LittleEndian>>(endian: LittleEndian, header: &H) -> bool {
    let is_empty = header.p_memsz(endian).into() == 0 && header.p_filesz(endian).into() == 0;
    header.p_type(endian) == PT_LOAD && !is_empty
}

fn load_segments<H: ProgramHeader<Endian = LittleEndian>>(
    elf: &[u8],
    endian: LittleEndian,
    headers: &[H],
    area: GvaRange,
) -> Result<Vec<Segment>, ImageError> {
    let mut segments = Vec::new();
    let mut pages = 0;
    for (index, header) in headers.iter().enumerate() {
        if !is_loaded(endian, header) {
            continue;
        }
        let segment = segment(elf, endian, header, area, (index, pages))?;
        pages += segment.pages();
        if pages > MAX_IMAGE_LEN_BYTES / PAGE_SIZE {
            return Err(ImageError::TooLarge {
                len_bytes: pages.saturating_mul(PAGE_SIZE),
            });
        }
        segments.push(segment);
    }
    check_disjoint(&segments)?;
    Ok(segments)
}

/// One segment: the `index`-th header, whose first page in the image is `first_page`.
fn segment<H: ProgramHeader<Endian = LittleEndian>>(
    elf: &[u8],
    endian: LittleEndian,
    header: &H,
    area: GvaRange,
    (index, first_page): (usize, u64),
) -> Result<Segment, ImageError> {
    let (address, memory_len_bytes): (u64, u64) =
        (header.p_vaddr(endian).into(), header.p_memsz(endian).into());
    let (offset, file_len_bytes): (u64, u64) = (
        header.p_offset(endian).into(),
        header.p_filesz(endian).into(),
    );
    if file_len_bytes > memory_len_bytes {
        return Err(ImageError::FileLargerThanMemory {
            index,
            file_len_bytes,
            memory_len_bytes,
        });
    }
    let file = file_range(elf, offset, file_len_bytes).ok_or(ImageError::OutsideFile {
        index,
        offset,
        len_bytes: file_len_bytes,
    })?;
    let outside = ImageError::OutsideArea {
        index,
        address,
        len_bytes: memory_len_bytes,
    };
    let range = whole_pages(address, memory_len_bytes)
        .filter(|range| area.contains_range(range))
        .ok_or(outside)?;
    let flags = header.p_flags(endian);
    if flags.contains(PF_W) && flags.contains(PF_X) {
        return Err(ImageError::WritableCode { index, address });
    }
    let mut rights = Attrs::empty();
    rights.set(Attrs::WRITE, flags.contains(PF_W));
    rights.set(Attrs::NO_EXECUTE, !flags.contains(PF_X));
    let _ = PF_R; // Every mapped page can be read: x86 has no execute-only pages without protection keys.
    Ok(Segment {
        range,
        rights,
        first_page,
        lead_len_bytes: address % PAGE_SIZE,
        file,
    })
}

fn file_range(elf: &[u8], offset: u64, len_bytes: u64) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(len_bytes).ok()?)?;
    elf.get(start..end).map(|_| start..end)
}

fn whole_pages(address: u64, len_bytes: u64) -> Option<GvaRange> {
    let start = address - address % PAGE_SIZE;
    let end = address
        .checked_add(len_bytes)?
        .checked_next_multiple_of(PAGE_SIZE)?;
    GvaRange::new(Gva::new(start).ok()?, end - start).ok()
}

fn check_disjoint(segments: &[Segment]) -> Result<(), ImageError> {
    let mut sorted: Vec<&Segment> = segments.iter().collect();
    sorted.sort_unstable_by_key(|segment| segment.range.start());
    sorted
        .windows(2)
        .find(|pair| pair[0].range.overlaps(&pair[1].range))
        .map_or(Ok(()), |pair| {
            Err(ImageError::Overlap(pair[1].range.start().as_u64()))
        })
}

fn find_note<H: ProgramHeader<Endian = LittleEndian>>(
    elf: &[u8],
    endian: LittleEndian,
    headers: &[H],
) -> Result<GuestNote, ImageError> {
    let mut last = NoteError::Missing;
    for header in headers
        .iter()
        .filter(|header| header.p_type(endian) == PT_NOTE)
    {
        let range = file_range(
            elf,
            header.p_offset(endian).into(),
            header.p_filesz(endian).into(),
        );
        let bytes = range.and_then(|range| elf.get(range)).unwrap_or_default();
        match GuestNote::parse(bytes) {
            Ok(note) => return Ok(note),
            Err(NoteError::Missing) => {}
            Err(error) => last = error,
        }
    }
    Err(last.into())
}

fn entry_point(entry: u64, segments: &[Segment]) -> Result<Gva, ImageError> {
    let gva = Gva::new(entry).map_err(|source| ImageError::Address(entry, source))?;
    segments
        .iter()
        .find(|segment| segment.range.contains(gva) && !segment.rights.contains(Attrs::NO_EXECUTE))
        .map(|_| gva)
        .ok_or(ImageError::Entry(entry))
}

#[cfg(test)]
mod tests;

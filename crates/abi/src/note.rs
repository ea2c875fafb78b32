//! The ELF note that marks a file as a Vellum guest.
//!
//! Section [`NOTE_SECTION`], in a `PT_NOTE` segment: owner `Vellum`, type 1, and as descriptor the ABI version and
//! the guest kind. Layout of notes: System V gABI, chapter 5, "Note Section"; names and descriptors are padded to
//! four bytes.

use thiserror::Error;
use vellum_layout::GuestKind;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ABI_VERSION;

/// ELF section that holds the note.
pub const NOTE_SECTION: &str = ".note.vellum";
/// Owner name of the note, with its terminating zero.
pub const NOTE_OWNER: [u8; 7] = *b"Vellum\0";
/// Type of the note.
pub const NOTE_TYPE: u32 = 1;

/// The whole note as it lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Note {
    owner_len_bytes: u32,
    descriptor_len_bytes: u32,
    type_number: u32,
    owner: [u8; 8],
    abi_version: u32,
    guest_kind: u32,
}

const _: () = assert!(size_of::<Note>() == 28 && align_of::<Note>() == 4);

/// What a guest's note says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestNote {
    /// The kind of machine that the guest expects.
    pub kind: GuestKind,
}

/// Notes that do not describe a guest this version can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NoteError {
    /// The notes end inside a note.
    #[error("elf note at offset {offset:#x} ends past its segment")]
    Truncated {
        /// Where the note starts.
        offset: usize,
    },
    /// There is no note of Vellum's.
    #[error("elf file has no vellum note; build it with the guest library or vellum.h")]
    Missing,
    /// There are several.
    #[error("elf file has more than one vellum note")]
    Several,
    /// The descriptor has another length than this version's.
    #[error("vellum note has a descriptor of {len_bytes} bytes, needs 8")]
    DescriptorLength {
        /// Its length.
        len_bytes: u32,
    },
    /// The guest was built for another ABI.
    #[error("guest was built for abi version {guest}, this host has {ABI_VERSION}")]
    Version {
        /// The guest's version.
        guest: u32,
    },
    /// The kind has no meaning in this version.
    #[error("vellum note names unknown guest kind {0}")]
    UnknownKind(
        /// What was found.
        u32,
    ),
}

impl Note {
    /// The note of an amd64 user guest.
    pub const AMD64_USER: Self = Self::new(GuestKind::Amd64User);

    /// The note of an amd64 kernel on page tables that the host has built.
    pub const AMD64_KERNEL: Self = Self::new(GuestKind::Amd64Kernel);

    /// The note of an i686 kernel without paging.
    pub const I686_IDENTITY: Self = Self::new(GuestKind::I686Identity);

    /// The note of an i686 kernel on page tables that the host has built.
    pub const I686_PAGED: Self = Self::new(GuestKind::I686Paged);

    /// The note of a guest of kind `kind`, for this version of the ABI.
    #[must_use]
    pub const fn new(kind: GuestKind) -> Self {
        Self {
            owner_len_bytes: 7,
            descriptor_len_bytes: 8,
            type_number: NOTE_TYPE,
            owner: *b"Vellum\0\0",
            abi_version: ABI_VERSION,
            guest_kind: kind_number(kind),
        }
    }
}

impl GuestNote {
    /// Finds the one Vellum note among the notes of a `PT_NOTE` segment; notes of other owners are passed over.
    /// Takes one step per note, so time is bounded by the segment's length.
    ///
    /// # Errors
    /// There is no such note, more than one, or it is malformed or of another version.
    pub fn parse(segment: &[u8]) -> Result<Self, NoteError> {
        let mut found = None;
        let mut offset = 0;
        while offset < segment.len() {
            let (note_type, owner, descriptor, next) =
                split_note(segment, offset).ok_or(NoteError::Truncated { offset })?;
            if note_type == NOTE_TYPE && owner == NOTE_OWNER {
                if found.is_some() {
                    return Err(NoteError::Several);
                }
                found = Some(parse_descriptor(descriptor)?);
            }
            offset = next;
        }
        found.ok_or(NoteError::Missing)
    }
}

/// Type, owner and descriptor of the note at `offset`, and the offset of the next one.
fn split_note(segment: &[u8], offset: usize) -> Option<(u32, &[u8], &[u8], usize)> {
    let ([owner_len, descriptor_len, note_type], rest) =
        <[u32; 3]>::read_from_prefix(segment.get(offset..)?).ok()?;
    let (owner_len, descriptor_len) = (owner_len as usize, descriptor_len as usize);
    let owner = rest.get(..owner_len)?;
    let descriptor_at = owner_len.checked_next_multiple_of(4)?;
    let descriptor_end = descriptor_at.checked_add(descriptor_len)?;
    let descriptor = rest.get(descriptor_at..descriptor_end)?;
    // The last note of a segment may lack its trailing padding.
    let next = offset
        .checked_add(12)?
        .checked_add(descriptor_end.checked_next_multiple_of(4)?)?;
    Some((note_type, owner, descriptor, next))
}

fn parse_descriptor(descriptor: &[u8]) -> Result<GuestNote, NoteError> {
    let len_bytes = u32::try_from(descriptor.len()).unwrap_or(u32::MAX);
    let [version, kind] = <[u32; 2]>::read_from_bytes(descriptor)
        .map_err(|_| NoteError::DescriptorLength { len_bytes })?;
    if version != ABI_VERSION {
        return Err(NoteError::Version { guest: version });
    }
    let kind = match kind {
        1 => GuestKind::Amd64User,
        2 => GuestKind::Amd64Kernel,
        3 => GuestKind::I686Identity,
        4 => GuestKind::I686Paged,
        other => return Err(NoteError::UnknownKind(other)),
    };
    Ok(GuestNote { kind })
}

const fn kind_number(kind: GuestKind) -> u32 {
    match kind {
        GuestKind::Amd64User => 1,
        GuestKind::Amd64Kernel => 2,
        GuestKind::I686Identity => 3,
        GuestKind::I686Paged => 4,
    }
}

#[cfg(test)]
mod tests;

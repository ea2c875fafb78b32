//! Errors of the mapper: one small enum for each operation.

use vellum_layout::{Gpa, Gva, GvaRange, PageSize};

use crate::attrs::Attrs;
use crate::entry::{DecodeError, EncodeError};
use crate::format::Level;
use crate::lookup::TranslateError;
use crate::store::StoreError;

/// What is wrong with the tables that an operation works on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TableError {
    /// A table cannot be read or written.
    #[error("a page table is out of reach")]
    Store(#[from] StoreError),
    /// The processor would refuse the entry.
    #[error("the page-table entry at {:#x} is malformed", .at.as_u64())]
    Malformed {
        /// Where the entry lies.
        at: Gpa,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// The frame source has no more frames.
    #[error("no frame left for a level-{} page table: give the frame source more memory", .level.number())]
    OutOfFrames {
        /// Level of the table that was to be made.
        level: Level,
    },
    /// An entry that follows from valid ones cannot be written: the frame source gave a frame that
    /// the format cannot address, or a 4 MiB leaf above 4 GiB was to be split.
    #[error("a page-table entry for {:#x} cannot be made", .frame.as_u64())]
    Frame {
        /// The frame that the entry was to point to.
        frame: Gpa,
        /// Why not.
        source: EncodeError,
    },
    /// An entry is no longer what it was when the operation validated it. Either somebody else
    /// edits the tables, or a table contains itself or is shared within the range. Parts of the range
    /// may have been changed.
    #[error("the page-table entry at {:#x} changed during the operation", .at.as_u64())]
    Changed {
        /// Where the entry lies.
        at: Gpa,
    },
}

/// Why [`Mapper::map`](crate::Mapper::map) refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MapError {
    /// The format cannot translate the whole range.
    #[error("cannot map {range}: it is beyond 32-bit paging")]
    OutOfReach {
        /// The range asked for.
        range: GvaRange,
    },
    /// The target does not start at a page boundary.
    #[error("cannot map to {:#x}: it is not a multiple of 0x1000", .frame.as_u64())]
    UnalignedFrame {
        /// The target asked for.
        frame: Gpa,
    },
    /// The target is too long for the physical address space.
    #[error("cannot map {len_bytes:#x} bytes to {:#x}: physical addresses end before", .frame.as_u64())]
    FramePastEnd {
        /// The target asked for.
        frame: Gpa,
        /// Its length.
        len_bytes: u64,
    },
    /// The format has no such attributes, or no such frames.
    #[error("cannot map with these attributes")]
    Unencodable(#[from] EncodeError),
    /// A page of the range is mapped already. Unmap it first.
    #[error("cannot map {:#x}: it is mapped already", .gva.as_u64())]
    AlreadyMapped {
        /// The first such page.
        gva: Gva,
    },
    /// A table above the page takes away a right that the page should have.
    #[error("cannot map {:#x}: a table above it denies attribute bits {:#x}", .gva.as_u64(), .denied.bits())]
    Restricted {
        /// First address under the restricting table.
        gva: Gva,
        /// The rights that would be lost; `NO_EXECUTE` stands for the right to execute.
        denied: Attrs,
    },
    /// The tables are not usable.
    #[error("cannot map")]
    Tables(#[from] TableError),
}

/// Why [`Mapper::unmap`](crate::Mapper::unmap) refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnmapError {
    /// The format cannot translate the whole range.
    #[error("cannot unmap {range}: it is beyond 32-bit paging")]
    OutOfReach {
        /// The range asked for.
        range: GvaRange,
    },
    /// A page of the range is not mapped.
    #[error("cannot unmap {:#x}: it is not mapped", .gva.as_u64())]
    NotMapped {
        /// The first such page.
        gva: Gva,
    },
    /// The tables are not usable.
    #[error("cannot unmap")]
    Tables(#[from] TableError),
}

/// Why [`Mapper::protect`](crate::Mapper::protect) refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProtectError {
    /// The format cannot translate the whole range.
    #[error("cannot protect {range}: it is beyond 32-bit paging")]
    OutOfReach {
        /// The range asked for.
        range: GvaRange,
    },
    /// The format has no such attributes.
    #[error("cannot protect with these attributes")]
    Unencodable(#[from] EncodeError),
    /// A page of the range is not mapped.
    #[error("cannot protect {:#x}: it is not mapped", .gva.as_u64())]
    NotMapped {
        /// The first such page.
        gva: Gva,
    },
    /// A table above the page takes away a right that the page should get.
    #[error("cannot protect {:#x}: a table above it denies attribute bits {:#x}", .gva.as_u64(), .denied.bits())]
    Restricted {
        /// First address under the restricting table.
        gva: Gva,
        /// The rights that would be lost; `NO_EXECUTE` stands for the right to execute.
        denied: Attrs,
    },
    /// The tables are not usable.
    #[error("cannot protect")]
    Tables(#[from] TableError),
}

/// Why [`Mapper::remap_leaf`](crate::Mapper::remap_leaf) refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RemapError {
    /// The address has no leaf to replace.
    #[error("cannot remap a page")]
    Lookup(#[from] TranslateError),
    /// The page lies where no range can end: it is the last one of a half of the address space.
    #[error("cannot remap {:#x}: it is in the last page below the canonical gap or of all", .gva.as_u64())]
    OutOfReach {
        /// The address asked for.
        gva: Gva,
    },
    /// The frame or the attributes do not fit a leaf of this size. Split the leaf first if it is
    /// large.
    #[error("cannot remap {:#x}, a page of {:#x} bytes", .gva.as_u64(), .size.bytes())]
    Unencodable {
        /// The address asked for.
        gva: Gva,
        /// Size of its page.
        size: PageSize,
        /// What does not fit.
        source: EncodeError,
    },
    /// A table above the page takes away a right that the page should have.
    #[error("cannot remap {:#x}: a table above it denies attribute bits {:#x}", .gva.as_u64(), .denied.bits())]
    Restricted {
        /// The address asked for.
        gva: Gva,
        /// The rights that would be lost; `NO_EXECUTE` stands for the right to execute.
        denied: Attrs,
    },
    /// The leaf cannot be written.
    #[error("cannot remap a page")]
    Tables(#[from] TableError),
}

/// Why [`Mapper::split_leaf`](crate::Mapper::split_leaf) refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SplitError {
    /// The address has no leaf to split.
    #[error("cannot split a page")]
    Lookup(#[from] TranslateError),
    /// The page lies where no range can end: it is the last one of a half of the address space.
    #[error("cannot split the page at {:#x}: it is the last one below the canonical gap or of all", .gva.as_u64())]
    OutOfReach {
        /// The address asked for.
        gva: Gva,
    },
    /// The format has no pages of the asked size.
    #[error("cannot split into pages of {:#x} bytes: this page-table format has none", .size.bytes())]
    NoSuchSize {
        /// The size asked for.
        size: PageSize,
    },
    /// The tables are not usable.
    #[error("cannot split a page")]
    Tables(#[from] TableError),
}

/// Why [`Mapper::share_table`](crate::Mapper::share_table) refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ShareError {
    /// The format cannot translate the address.
    #[error("cannot share a table at {:#x}: it is beyond 32-bit paging", .gva.as_u64())]
    OutOfReach {
        /// The address asked for.
        gva: Gva,
    },
    /// Tables of this level hang under no other table.
    #[error("cannot share a table of level {}: it must be below the root", .level.number())]
    NotBelowRoot {
        /// The level asked for.
        level: Level,
    },
    /// Something is mapped, or another table hangs, where the table should go.
    #[error("cannot share a table at {:#x}: the place is taken", .gva.as_u64())]
    Occupied {
        /// First address under the entry that is in the way.
        gva: Gva,
    },
    /// The tables are not usable.
    #[error("cannot share a table")]
    Tables(#[from] TableError),
}

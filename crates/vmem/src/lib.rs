//! Page tables of amd64 and i686 guests: codec, translation, walker and mapper.
//!
//! The crate works on tables that live anywhere, for anyone: a host that prepares or inspects a
//! guest's memory, or a guest kernel that edits its own tables. It knows nothing of hypervisors, allocates
//! nothing, contains no unsafe code and needs no standard library. Two small traits connect it to the world:
//! [`TableStore`] reads and writes entries, [`FrameSource`] gives frames for new tables.
//!
//! | to do this | use |
//! |---|---|
//! | read or make one entry | [`Format::decode`], [`Format::encode`] and [`Entry`] |
//! | translate one address | [`translate`] |
//! | see all that is mapped | [`Walker`], with a [`Budget`] |
//! | change what is mapped | [`Mapper`], which returns a [`TlbFlush`] |
//!
//! The *format* of tables is a value, [`Format`]: 4-level paging with 4 KiB, 2 MiB and 1 GiB
//! pages, or 2-level paging with 4 KiB and, with CR4.PSE, 4 MiB pages. Code for all of them is always
//! compiled, so that one host serves both kinds of guest.
//!
//! # Hostile tables
//!
//! A guest can point CR3 at anything. Whatever a table holds, decoding agrees with the processor
//! or refuses; no address is accessed except through the store, which decides what is memory;
//! translation reads one entry a level; a walk has a budget of tables and leaves, notices tables that
//! contain themselves, and reads each entry once. Nothing panics.
//!
//! # Cost
//!
//! Mapping writes each level-1 table with one call of [`TableStore::fill_entries`], so that a store
//! with a vectorised fill maps at the speed of memory. A walk reads entries in short runs
//! ([`TableStore::read_entries`]) and a translation reads one entry a level.
//! `cargo bench -p vellum-vmem` prints the times on a machine, beside a plain fill of as many bytes.
//!
//! # Sources
//!
//! Comments cite the Intel SDM (Software Developer's Manual, volume 3A, in the numbering of 2025,
//! where paging is chapter 5; it was chapter 4 before) and the AMD APM (Architecture Programmer's
//! Manual, volume 2). Where the two vendors differ, the codec refuses what one of them refuses.
//!
//! # Example
//!
//! ```
//! use vellum_layout::{Gpa, GpaRange, Gva, GvaRange};
//! use vellum_vmem::{
//!     AttrChange, Attrs, Budget, Format, FrameRange, Mapper, SliceStore, Walker,
//! };
//!
//! let format = Format::FOUR_LEVEL;
//! let root = Gpa::literal(0x10_0000);
//! let mut memory = vec![0u64; 8 * 512]; // eight frames, the root is the first
//! let mut store = SliceStore::new(root, &mut memory);
//! let frames = FrameRange::new(GpaRange::new(Gpa::literal(0x10_1000), 7 * 0x1000)?);
//!
//! // 4 MiB of heap: two 2 MiB leaves.
//! let heap = GvaRange::new(Gva::literal(0x4000_0000), 0x40_0000)?;
//! let mut mapper = Mapper::new(&mut store, frames, root, format)?;
//! mapper
//!     .map(heap, Gpa::literal(0x20_0000), Attrs::WRITE | Attrs::USER | Attrs::NO_EXECUTE)?
//!     .ignore("no vCPU has run yet");
//!
//! // One page of it becomes read-only: its large leaf is split.
//! let page = GvaRange::new(Gva::literal(0x4000_3000), 0x1000)?;
//! mapper
//!     .protect(page, AttrChange::clear(Attrs::WRITE).and_set(Attrs::COW))?
//!     .flush_pages(|gva| println!("invlpg {gva}"));
//!
//! let walker = Walker::new(&store, root, format, Budget { tables: 8, leaves: 1000 })?;
//! let leaves = walker.leaves().collect::<Result<Vec<_>, _>>()?;
//! assert_eq!(leaves.len(), 512 + 1);
//! assert!(leaves[3].leaf.attrs.contains(Attrs::COW));
//! # Ok::<(), Box<dyn core::error::Error>>(())
//! ```
#![no_std]
#![forbid(unsafe_code)]

pub use attrs::{AttrChange, Attrs};
pub use entry::{DecodeError, EncodeError, Entry, Leaf};
pub use format::{EntryWidth, Format, FormatError, Level, RootError};
pub use index::TableIndex;
pub use lookup::{Mapping, TranslateError, translate};
pub use map::{
    MapError, Mapper, ProtectError, RemapError, ShareError, SplitError, TableError, UnmapError,
};
pub use seen::{SeenFull, SeenTables};
pub use store::{EntryRun, FrameRange, FrameSource, NoFrames, SliceStore, StoreError, TableStore};
pub use tlb::{Change, TlbFlush};
pub use walk::{Budget, LeafStep, SelfReference, Step, TableStep, WalkError, Walker};

mod attrs;
mod entry;
mod format;
mod index;
mod lookup;
mod map;
mod seen;
mod store;
mod tlb;
mod walk;

//! The two memories of a guest: image and scratch, lent to the VM.

mod access;
mod contents;
mod extents;
pub(crate) mod identity;
mod layers;
mod space;

pub(crate) use access::{GuestMemory, TableAccess};
pub(crate) use contents::{AddressIndex, Contents};
pub(crate) use extents::{Area, Backing, Extent, Extents};
pub(crate) use layers::{Layer, Layers};
pub(crate) use space::{FixedFrame, Geometry, Placement, Sizes, SpaceError};

/// Bytes of a page, as a `usize` for slices.
pub(crate) const PAGE_LEN_BYTES: usize = 4096;

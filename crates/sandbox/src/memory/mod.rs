//! The two memories of a guest: image and scratch, lent to the VM.

mod access;
mod extents;
mod layers;
mod space;

pub(crate) use access::{GuestMemory, TableAccess, zero_offset};
pub(crate) use extents::{Area, Backing, Extent, Extents};
pub(crate) use layers::{Layer, Layers};
pub(crate) use space::{FixedFrame, Geometry, Sizes, SpaceError};

/// Bytes of a page, as a `usize` for slices.
pub(crate) const PAGE_LEN_BYTES: usize = 4096;

//! The two memories of a guest: image and scratch, lent to the VM.

mod access;
mod areas;
mod config;
mod contents;
mod extents;
mod kernel;
mod layers;
mod space;
mod user;

pub(crate) use access::{GuestMemory, TableAccess};
pub(crate) use areas::{Area, Backing, UserSpace};
pub use config::OutboxOverflow;
pub(crate) use config::{Config, Sizes};
pub(crate) use contents::{AddressIndex, Contents};
pub(crate) use extents::{Extent, Extents, PageAddress, padding, placed};
pub(crate) use kernel::Paging;
pub(crate) use layers::{Layer, Layers, PageSource, Run};
pub(crate) use space::{Geometry, GuestView, Parts, SpaceError};
pub(crate) use user::{FixedFrame, UserParts};

/// Bytes of a page, as a `usize` for slices.
pub(crate) const PAGE_LEN_BYTES: usize = 4096;

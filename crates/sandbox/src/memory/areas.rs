//! The address space of a user guest, from which the host makes its page tables: areas, and the extents in them.
//!
//! An [`Area`] is a range that the guest may use (a segment of the ELF file, the heap, the stack). Where an area holds
//! anything but zeroes, an [`Extent`](super::Extent) says which pages of the image hold it. Page tables are derived from both
//! and can be rebuilt at any time.

use vellum_layout::{Gva, GvaRange};
use vellum_vmem::Attrs;

use super::Extents;

/// A range of guest-virtual addresses with one set of permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    /// Where.
    pub(crate) range: GvaRange,
    /// What ring 3 may do there: WRITE, NO_EXECUTE.
    pub(crate) rights: Attrs,
    /// Where pages that no extent covers come from.
    pub(crate) backing: Backing,
}

impl Area {
    /// Whether the guest may write.
    pub(crate) fn is_writable(&self) -> bool {
        self.rights.contains(Attrs::WRITE)
    }
}

/// Where the untouched pages of an area come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Extents cover the whole area.
    Image,
    /// Zeroes, on demand. The number is the area's first page in the zero region of a sandbox with host-side copy-on-write.
    Zero {
        /// Index of the first page.
        first_page: u64,
    },
}

/// Areas, sorted by address, without overlap, and the extents that lie in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UserSpace {
    areas: Vec<Area>,
    extents: Extents<Gva>,
}

impl UserSpace {
    /// From areas in any order; the caller has checked that they do not overlap.
    pub(crate) fn new(mut areas: Vec<Area>, extents: Extents<Gva>) -> Self {
        areas.sort_unstable_by_key(|area| area.range.start());
        Self { areas, extents }
    }

    /// The same areas with other contents.
    pub(crate) fn with_extents(&self, extents: Extents<Gva>) -> Self {
        Self {
            areas: self.areas.clone(),
            extents,
        }
    }

    pub(crate) fn areas(&self) -> &[Area] {
        &self.areas
    }

    pub(crate) fn extents(&self) -> &Extents<Gva> {
        &self.extents
    }

    /// The area that holds `gva`.
    pub(crate) fn area_of(&self, gva: Gva) -> Option<&Area> {
        let after = self.areas.partition_point(|area| area.range.start() <= gva);
        self.areas[..after]
            .last()
            .filter(|area| area.range.contains(gva))
    }
}

#[cfg(test)]
mod tests;

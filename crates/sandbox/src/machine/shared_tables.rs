//! Page tables that the sandboxes of a snapshot share.
//!
//! Tables are derived data: equal geometry and equal extents give equal tables. The first sandbox that is made from a snapshot
//! builds them and leaves a sealed copy with the snapshot; the next ones map it, privately, instead of building and holding
//! tables of their own.

use std::io;

use vellum_backend::SealedMemory;
use vellum_layout::{GpaRange, PAGE_SIZE};

use crate::memory::{Geometry, GuestMemory};

/// A sealed copy of tables, and the geometry that they are right for.
#[derive(Debug)]
pub(crate) struct SharedTables {
    geometry: Geometry,
    sealed: SealedMemory,
}

impl SharedTables {
    /// Copies the first `used` pages of an instance's table region.
    pub(crate) fn copy_of(
        memory: &GuestMemory,
        geometry: &Geometry,
        tables: GpaRange,
        used: u64,
    ) -> io::Result<Self> {
        let start = memory.scratch_offset(tables);
        let len_bytes = used * PAGE_SIZE;
        let sealed = SealedMemory::create("vellum-tables", len_bytes, |copy| {
            copy.copy_from(0, &memory.scratch, start, len_bytes)
        })?;
        Ok(Self {
            geometry: geometry.clone(),
            sealed,
        })
    }

    /// Whether they are right for a sandbox of this geometry.
    pub(crate) fn fit(&self, geometry: &Geometry) -> bool {
        self.geometry == *geometry
    }

    /// Maps them into a table region that holds nothing yet. Returns the number of pages used.
    pub(crate) fn map_into(&self, memory: &mut GuestMemory, tables: GpaRange) -> io::Result<u64> {
        let start = memory.scratch_offset(tables);
        memory.scratch.overlay(start, &self.sealed)?;
        Ok(self.sealed.len_bytes() / PAGE_SIZE)
    }
}

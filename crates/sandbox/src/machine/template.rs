//! The template of a user guest's scratch, which the sandboxes of a snapshot share.
//!
//! Page tables and the frames around them are derived data: equal geometry and an equal snapshot give equal ones. The first sandbox that is
//! made from a snapshot builds them and leaves a sealed copy with the snapshot; the next ones map it, privately, instead of building and
//! holding their own.

use std::io;

use vellum_backend::{Piece, SealedMemory};
use vellum_layout::{GpaRange, PAGE_SIZE};

use crate::memory::{Geometry, GuestMemory, SpaceError, UserParts};

/// A sealed copy of tables and fixed frames, and the geometry that they are right for.
#[derive(Debug)]
pub(crate) struct Template {
    geometry: Geometry,
    sealed: SealedMemory,
    range: GpaRange,
    tables_len_bytes: u64,
}

impl Template {
    /// Copies the first `tables_used` pages of an instance's table region, and its fixed frames.
    pub(crate) fn copy_of(
        memory: &GuestMemory,
        geometry: &Geometry,
        user: &UserParts,
        tables_used: u64,
    ) -> io::Result<Self> {
        let range = user.template().map_err(io::Error::other)?;
        let frames = user.fixed_frames().map_err(io::Error::other)?;
        let tables_len_bytes = tables_used * PAGE_SIZE;
        let start = memory.scratch_offset(range);
        let frames_start = memory.scratch_offset(frames);
        let sealed = SealedMemory::create("vellum-template", range.len_bytes(), |copy| {
            copy.copy_from(0, &memory.scratch, start, tables_len_bytes)?;
            let at = frames_start - start;
            copy.copy_from(at, &memory.scratch, frames_start, frames.len_bytes())
        })?;
        Ok(Self {
            geometry: geometry.clone(),
            sealed,
            range,
            tables_len_bytes,
        })
    }

    /// Whether it is right for a sandbox of this geometry.
    pub(crate) fn fits(&self, geometry: &Geometry) -> bool {
        self.geometry == *geometry
    }

    /// What the scratch of a new sandbox is made of.
    pub(crate) fn pieces_of(&self, scratch: GpaRange) -> Result<[Piece<'_>; 3], SpaceError> {
        let offset = scratch.offset_of(self.range.start());
        let offset = offset.ok_or(SpaceError::Overflow)?;
        let whole = self.range.len_bytes();
        let rest = scratch.len_bytes().checked_sub(offset + whole);
        Ok([
            Piece::Zeroes(offset),
            Piece::Sealed(&self.sealed, 0..whole),
            Piece::Zeroes(rest.ok_or(SpaceError::Overflow)?),
        ])
    }

    /// Maps the tables alone into the table region of a sandbox that was made for another snapshot.
    pub(crate) fn map_tables_into(&self, memory: &mut GuestMemory) -> io::Result<()> {
        let start = memory.scratch_offset(self.range);
        (memory.scratch).overlay_part(start, &self.sealed, 0..self.tables_len_bytes)
    }
}

#[cfg(test)]
mod tests;

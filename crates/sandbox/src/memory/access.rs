//! Guest-physical access to the two memories of a sandbox.

use std::io;

use vellum_backend::memory::OutOfBounds;
use vellum_backend::{HostMemory, Piece};
use vellum_layout::{Gpa, GpaRange, PAGE_SIZE};
use vellum_vmem::{EntryRun, EntryWidth, StoreError, TableStore};

use super::{Extent, Extents, Geometry, Layers};
use crate::machine::Template;

/// The memories that a VM maps, and where they are.
#[derive(Debug)]
pub(crate) struct GuestMemory {
    pub(crate) image: HostMemory,
    pub(crate) scratch: HostMemory,
    image_range: GpaRange,
    scratch_range: GpaRange,
}

impl GuestMemory {
    /// Zeroed memory.
    pub(crate) fn zeroed(geometry: &Geometry) -> io::Result<Self> {
        let plan = &geometry.plan;
        Self::of_pieces(
            geometry,
            &[
                Piece::Zeroes(plan.image().len_bytes()),
                Piece::Zeroes(plan.scratch().len_bytes()),
            ],
        )
    }

    /// The memory of a user guest: layers one behind the other in the image, and scratch after a template if there is one.
    pub(crate) fn of_layers(
        geometry: &Geometry,
        layers: &Layers,
        template: Option<&Template>,
    ) -> io::Result<Self> {
        let scratch_range = geometry.plan.scratch();
        let mut pieces = Vec::with_capacity(layers.len() + 4);
        for (_, layer) in layers.iter() {
            layer.add_pieces(0..layer.pages(), &mut pieces);
        }
        let behind = (layers.pages().checked_mul(PAGE_SIZE))
            .and_then(|len_bytes| geometry.plan.image().len_bytes().checked_sub(len_bytes));
        pieces.push(Piece::Zeroes(behind.ok_or(io::ErrorKind::InvalidInput)?));
        match template {
            Some(template) => {
                let scratch = template.pieces_of(scratch_range);
                pieces.extend(scratch.map_err(io::Error::other)?);
            }
            None => pieces.push(Piece::Zeroes(scratch_range.len_bytes())),
        }
        Self::of_pieces(geometry, &pieces)
    }

    /// The image, and right behind it scratch: what meets there is one mapping.
    fn of_pieces(geometry: &Geometry, pieces: &[Piece<'_>]) -> io::Result<Self> {
        let image_range = geometry.plan.image();
        let mut image = HostMemory::of_pieces(pieces)?;
        let scratch = image.split_off(image_range.len_bytes())?;
        Ok(Self {
            image,
            scratch,
            image_range,
            scratch_range: geometry.plan.scratch(),
        })
    }

    /// Maps the layers of a snapshot, one behind the other, that `present` does not have at the same place.
    pub(crate) fn stack_layers(&mut self, layers: &Layers, present: &Layers) -> io::Result<()> {
        let mut old = present.iter();
        for (first_page, layer) in layers.iter() {
            let same = old
                .next()
                .is_some_and(|(_, present)| std::sync::Arc::ptr_eq(present, layer));
            if !same {
                layer.map_into(&mut self.image, first_page * PAGE_SIZE, 0..layer.pages())?;
                // Layers behind a changed one lie elsewhere.
                old = EMPTY.iter();
            }
        }
        Ok(())
    }

    /// Maps the pages of a snapshot at their guest-physical addresses, and zeroes everywhere else.
    pub(crate) fn place_layers(
        &mut self,
        layers: &Layers,
        extents: &Extents<Gpa>,
    ) -> io::Result<()> {
        for (memory, range) in [
            (&mut self.image, self.image_range),
            (&mut self.scratch, self.scratch_range),
        ] {
            memory.overlay_zeroed(0, memory.len_bytes())?;
            for extent in extents.as_slice() {
                place_extent(memory, range, layers, extent)?;
            }
        }
        Ok(())
    }

    /// The memory that holds `gpa`, and the offset in it.
    pub(crate) fn locate(&self, gpa: Gpa) -> Option<(&HostMemory, u64)> {
        if let Some(offset) = self.scratch_range.offset_of(gpa) {
            return Some((&self.scratch, offset));
        }
        Some((&self.image, self.image_range.offset_of(gpa)?))
    }

    /// The offset of a range in scratch.
    pub(crate) fn scratch_offset(&self, range: GpaRange) -> u64 {
        self.scratch_range
            .offset_of(range.start())
            .unwrap_or(u64::MAX)
    }

    /// Where scratch is.
    pub(crate) fn scratch_range(&self) -> GpaRange {
        self.scratch_range
    }

    /// The offset of an address in scratch.
    pub(crate) fn scratch_offset_of(&self, gpa: Gpa) -> Result<u64, OutOfBounds> {
        let offset = self.scratch_range.offset_of(gpa);
        offset.ok_or_else(|| unbacked(gpa, 0))
    }

    /// Copies bytes into guest-physical memory.
    pub(crate) fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), OutOfBounds> {
        let (memory, offset) = self.locate(gpa).ok_or_else(|| unbacked(gpa, bytes.len()))?;
        memory.write(offset, bytes)
    }
}

/// Maps what an extent has in the guest-physical range of `memory`; it may reach across the border of two memories.
fn place_extent(
    memory: &mut HostMemory,
    range: GpaRange,
    layers: &Layers,
    extent: &Extent<Gpa>,
) -> io::Result<()> {
    let invalid = io::ErrorKind::InvalidInput;
    let first = extent.at.as_u64().max(range.start().as_u64());
    let end = (extent.at.as_u64() + extent.len_bytes()).min(range.end().as_u64());
    if first >= end {
        return Ok(());
    }
    let skipped = (first - extent.at.as_u64()) / PAGE_SIZE;
    let (layer, pages) = layers
        .find(extent.image_page + skipped, (end - first) / PAGE_SIZE)
        .ok_or(invalid)?;
    layer.map_into(memory, first - range.start().as_u64(), pages)
}

static EMPTY: std::sync::LazyLock<Layers> = std::sync::LazyLock::new(Layers::default);

fn unbacked(gpa: Gpa, len_bytes: usize) -> OutOfBounds {
    OutOfBounds {
        offset: gpa.as_u64(),
        len_bytes: len_bytes as u64,
        memory_len_bytes: 0,
    }
}

/// Page tables in guest memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TableAccess<'a> {
    memory: &'a GuestMemory,
    reach: TableReach,
}

/// Where tables may lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TableReach {
    Scratch,
    Anywhere,
}

impl<'a> TableAccess<'a> {
    /// Tables that the host makes: they lie in scratch.
    pub(crate) fn in_scratch(memory: &'a GuestMemory) -> Self {
        Self {
            memory,
            reach: TableReach::Scratch,
        }
    }

    /// Tables that a kernel makes, wherever it likes.
    pub(crate) fn anywhere(memory: &'a GuestMemory) -> Self {
        Self {
            memory,
            reach: TableReach::Anywhere,
        }
    }

    fn locate(&self, at: Gpa) -> Option<(&'a HostMemory, u64)> {
        match self.reach {
            TableReach::Scratch => Some((
                &self.memory.scratch,
                self.memory.scratch_range.offset_of(at)?,
            )),
            TableReach::Anywhere => self.memory.locate(at),
        }
    }
}

impl TableStore for TableAccess<'_> {
    fn read_entry(&self, at: Gpa, width: EntryWidth) -> Result<u64, StoreError> {
        let unbacked = StoreError::Unbacked { at };
        let (memory, offset) = self.locate(at).ok_or(unbacked)?;
        match width {
            EntryWidth::Bytes8 => memory.read_u64(offset),
            EntryWidth::Bytes4 => memory.read_u32(offset).map(u64::from),
        }
        .map_err(|_| unbacked)
    }

    fn write_entry(&mut self, at: Gpa, width: EntryWidth, raw: u64) -> Result<(), StoreError> {
        let (memory, offset) = self.locate(at).ok_or(StoreError::ReadOnly { at })?;
        match width {
            EntryWidth::Bytes8 => memory.write_u64(offset, raw),
            // An entry of this width has no upper half.
            EntryWidth::Bytes4 => memory.write_u32(offset, (raw & 0xFFFF_FFFF) as u32),
        }
        .map_err(|_| StoreError::Unbacked { at })
    }

    fn fill_entries(
        &mut self,
        at: Gpa,
        width: EntryWidth,
        run: EntryRun,
    ) -> Result<(), StoreError> {
        let unbacked = StoreError::Unbacked { at };
        let (memory, offset) = self.locate(at).ok_or(StoreError::ReadOnly { at })?;
        if width == EntryWidth::Bytes8 {
            return memory
                .fill_u64(offset, run.first_raw, run.stride, run.count)
                .map_err(|_| unbacked);
        }
        for (offset, raw) in (offset..).step_by(4).zip(run.values()) {
            let raw = (raw & 0xFFFF_FFFF) as u32;
            memory.write_u32(offset, raw).map_err(|_| unbacked)?;
        }
        Ok(())
    }
}

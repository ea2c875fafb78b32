//! Guest-physical access to the two memories of a sandbox.

use std::io;

use vellum_backend::HostMemory;
use vellum_backend::memory::OutOfBounds;
use vellum_layout::{Gpa, GpaRange, Gva, PAGE_SIZE};
use vellum_vmem::{
    EntryRun, EntryWidth, Format, Mapping, StoreError, TableStore, TranslateError, translate,
};

use super::{Extents, Geometry, Layers, identity};

/// The memories that a VM maps, and where they are.
#[derive(Debug)]
pub(crate) struct GuestMemory {
    pub(crate) image: HostMemory,
    pub(crate) scratch: HostMemory,
    image_range: GpaRange,
    scratch_range: GpaRange,
}

impl GuestMemory {
    /// Address space for an image and zeroed scratch.
    pub(crate) fn new(geometry: &Geometry) -> io::Result<Self> {
        let image_range = geometry.plan.image();
        let scratch_range = geometry.plan.scratch();
        Ok(Self {
            image: HostMemory::zeroed(image_range.len_bytes())?,
            scratch: HostMemory::zeroed(scratch_range.len_bytes())?,
            image_range,
            scratch_range,
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
                self.image.overlay(first_page * PAGE_SIZE, layer.sealed())?;
                // Layers behind a changed one lie elsewhere.
                old = EMPTY.iter();
            }
        }
        Ok(())
    }

    /// Maps the pages of a snapshot at the addresses that the guest knows them by, and zeroes elsewhere.
    pub(crate) fn place_layers(&mut self, layers: &Layers, space: &Extents) -> io::Result<()> {
        self.image.overlay_zeroed(0, self.image.len_bytes())?;
        for extent in space.extents() {
            let gpa = identity::physical_of(extent.gva).ok_or(io::ErrorKind::InvalidInput)?;
            let at = self
                .image_range
                .offset_of(gpa)
                .ok_or(io::ErrorKind::InvalidInput)?;
            let (sealed, part) = layers
                .sealed_part(extent.image_page, extent.pages)
                .ok_or(io::ErrorKind::InvalidInput)?;
            self.image.overlay_part(at, sealed, part)?;
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

    /// Copies bytes into guest-physical memory.
    pub(crate) fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), OutOfBounds> {
        let (memory, offset) = self.locate(gpa).ok_or_else(|| unbacked(gpa, bytes.len()))?;
        memory.write(offset, bytes)
    }

    /// Translates a guest-virtual address through the guest's own tables.
    pub(crate) fn translate(&self, root: Gpa, gva: Gva) -> Result<Mapping, TranslateError> {
        translate(&TableAccess::new(self), root, gva, Format::FOUR_LEVEL)
    }
}

static EMPTY: std::sync::LazyLock<Layers> = std::sync::LazyLock::new(Layers::default);

fn unbacked(gpa: Gpa, len_bytes: usize) -> OutOfBounds {
    OutOfBounds {
        offset: gpa.as_u64(),
        len_bytes: len_bytes as u64,
        memory_len_bytes: 0,
    }
}

/// Page tables in guest memory. They lie in scratch; an entry anywhere else is not written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TableAccess<'a> {
    memory: &'a GuestMemory,
}

impl<'a> TableAccess<'a> {
    pub(crate) fn new(memory: &'a GuestMemory) -> Self {
        Self { memory }
    }
}

impl TableStore for TableAccess<'_> {
    fn read_entry(&self, at: Gpa, _width: EntryWidth) -> Result<u64, StoreError> {
        let (memory, offset) = self.memory.locate(at).ok_or(StoreError::Unbacked { at })?;
        // An image has unmapped room behind its layers: tables never lie there.
        if !std::ptr::eq(memory, &raw const self.memory.scratch) {
            return Err(StoreError::Unbacked { at });
        }
        memory
            .read_u64(offset)
            .map_err(|_| StoreError::Unbacked { at })
    }

    fn write_entry(&mut self, at: Gpa, _width: EntryWidth, raw: u64) -> Result<(), StoreError> {
        let offset = self
            .memory
            .scratch_range
            .offset_of(at)
            .ok_or(StoreError::ReadOnly { at })?;
        self.memory
            .scratch
            .write_u64(offset, raw)
            .map_err(|_| StoreError::Unbacked { at })
    }

    fn fill_entries(
        &mut self,
        at: Gpa,
        _width: EntryWidth,
        run: EntryRun,
    ) -> Result<(), StoreError> {
        let offset = self
            .memory
            .scratch_range
            .offset_of(at)
            .ok_or(StoreError::ReadOnly { at })?;
        self.memory
            .scratch
            .fill_u64(offset, run.first_raw, run.stride, run.count)
            .map_err(|_| StoreError::Unbacked { at })
    }
}

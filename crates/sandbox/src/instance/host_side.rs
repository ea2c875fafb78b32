//! Host-side copy-on-write: the image is a private mapping, and the host kernel copies a page when it is first written.

use vellum_backend::Vm;
use vellum_layout::{Gva, PAGE_SIZE};

use super::ChangedPage;
use super::dirty::{DirtySet, MAX_REMEMBERED_PAGES};
use crate::error::Failure;
use crate::memory::{Contents, Geometry, GuestMemory};

/// What the host remembers.
#[derive(Debug)]
pub(super) struct HostSide {
    /// Pages of the image slot, by index.
    dirty: DirtySet,
}

impl HostSide {
    pub(super) fn new(geometry: &Geometry) -> Self {
        Self {
            dirty: DirtySet::new(geometry.plan.image().pages()),
        }
    }

    /// The host itself wrote to the page at an offset of the image.
    pub(super) fn mark(&mut self, offset: u64) {
        self.dirty.insert(offset / PAGE_SIZE);
    }

    fn collect(&mut self, vm: &mut dyn Vm, geometry: &Geometry) -> Result<(), Failure> {
        let image = geometry.plan.image();
        let dirty = &mut self.dirty;
        vm.take_dirty(&mut |page| {
            if let Some(offset) = image.offset_of(page) {
                dirty.insert(offset / PAGE_SIZE);
            }
        })?;
        Ok(())
    }

    /// Puts back every remembered page.
    pub(super) fn restore(
        &mut self,
        vm: &mut dyn Vm,
        memory: &GuestMemory,
        geometry: &Geometry,
        contents: &Contents<'_>,
    ) -> Result<(), Failure> {
        self.collect(vm, geometry)?;
        if self.dirty.len() > MAX_REMEMBERED_PAGES {
            return self.drop_copies(memory);
        }
        for page in self.dirty.iter() {
            contents
                .pristine(page)
                .put(&memory.image, page * PAGE_SIZE)?;
        }
        Ok(())
    }

    /// Drops every private copy, because other layers are about to be mapped.
    pub(super) fn forget(
        &mut self,
        vm: &mut dyn Vm,
        memory: &GuestMemory,
        geometry: &Geometry,
    ) -> Result<(), Failure> {
        self.collect(vm, geometry)?;
        self.drop_copies(memory)
    }

    /// Gives the private copies back to the kernel; the mappings show the layers and zeroes again.
    fn drop_copies(&mut self, memory: &GuestMemory) -> Result<(), Failure> {
        if self.dirty.len() > 0 {
            memory
                .image
                .discard(0..memory.image.len_bytes())
                .map_err(Failure::Memory)?;
        }
        self.dirty.clear();
        Ok(())
    }

    /// The remembered pages that really differ from the base.
    pub(super) fn changed(
        &mut self,
        vm: &mut dyn Vm,
        memory: &GuestMemory,
        geometry: &Geometry,
        contents: &Contents<'_>,
    ) -> Result<Vec<(Gva, ChangedPage)>, Failure> {
        self.collect(vm, geometry)?;
        let index = contents.address_index();
        let mut changed = Vec::new();
        for page in self.dirty.iter() {
            let offset = page * PAGE_SIZE;
            if let Some(gva) = contents.address(page, &index)
                && !contents.pristine(page).equals(&memory.image, offset)?
            {
                changed.push((gva, ChangedPage::Image(offset)));
            }
        }
        changed.sort_unstable_by_key(|(gva, _)| *gva);
        Ok(changed)
    }
}

//! Host-side copy-on-write: the image is a private mapping, and the host kernel copies a page when it is first written.

use std::sync::Arc;

use vellum_backend::Vm;
use vellum_layout::{Gva, PAGE_SIZE};

use super::ChangedPage;
use super::dirty::{DirtySet, MAX_REMEMBERED_PAGES};
use super::shown::Shown;
use crate::error::Failure;
use crate::memory::{Geometry, GuestMemory};
use crate::snapshot::SnapshotData;

/// What the host remembers.
#[derive(Debug)]
pub(super) struct HostSide {
    /// Pages of the image slot, by index.
    dirty: DirtySet,
    pub(super) shown: Shown,
}

impl HostSide {
    pub(super) fn new(geometry: &Geometry) -> Self {
        Self {
            dirty: DirtySet::new(geometry.plan.image().pages()),
            shown: Shown::default(),
        }
    }

    /// Goes on from `base` to a snapshot that was just taken: the pages that were written are its own content, and what is written
    /// from now on is reported anew. Nothing is mapped and no table changes.
    pub(super) fn adopt(
        &mut self,
        vm: &mut dyn Vm,
        base: &Arc<SnapshotData>,
    ) -> Result<(), Failure> {
        vm.rearm_dirty()?;
        self.dirty.clear();
        self.shown.go_on(base);
        Ok(())
    }

    /// The host itself wrote to the page at an offset of the image.
    pub(super) fn mark(&mut self, offset: u64) {
        self.dirty.insert(offset / PAGE_SIZE);
    }

    pub(super) fn collect(&mut self, vm: &mut dyn Vm, geometry: &Geometry) -> Result<(), Failure> {
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
        base: &SnapshotData,
        reload: Reload,
    ) -> Result<Restored, Failure> {
        self.collect(vm, geometry)?;
        // Pinned copies cannot be dropped, and are there to be written back.
        if self.dirty.len() > MAX_REMEMBERED_PAGES && vm.capabilities().host_discard {
            match (self.shown.is_older(), reload) {
                (false, _) => {
                    self.drop_copies(memory)?;
                    return Ok(Restored::Completely);
                }
                (true, Reload::Possible) => return Ok(Restored::NotYet),
                (true, Reload::NoRoom) => {}
            }
        }
        let contents = self.shown.contents(geometry, base)?;
        for page in self.dirty.iter() {
            contents
                .pristine(page)
                .put(&memory.image, page * PAGE_SIZE)?;
        }
        Ok(Restored::Completely)
    }

    /// Drops every private copy, because other layers are about to be mapped.
    pub(super) fn forget(
        &mut self,
        vm: &mut dyn Vm,
        memory: &GuestMemory,
        geometry: &Geometry,
    ) -> Result<(), Failure> {
        self.collect(vm, geometry)?;
        if self.shown.is_older() {
            // There are copies that the set does not know any more.
            self.dirty.insert(0);
        }
        self.shown.reset();
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
        base: &SnapshotData,
    ) -> Result<Vec<(Gva, ChangedPage)>, Failure> {
        self.collect(vm, geometry)?;
        let contents = self.shown.contents(geometry, base)?;
        let mut changed = Vec::new();
        for page in self.dirty.iter() {
            let offset = page * PAGE_SIZE;
            if let Some(gva) = contents.address(page)
                && !contents.pristine(page).equals(&memory.image, offset)?
            {
                changed.push((gva, ChangedPage::Image(offset)));
            }
        }
        changed.sort_unstable_by_key(|(gva, _)| *gva);
        Ok(changed)
    }
}

/// How far a restore has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Restored {
    /// The memory is that of the base.
    Completely,
    /// There are so many pages to put back that the base had better be loaded anew.
    NotYet,
}

/// Whether the image slot has room for the layers of the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reload {
    Possible,
    /// The base has grown past the slot in place; its pages can only be put back one by one.
    NoRoom,
}

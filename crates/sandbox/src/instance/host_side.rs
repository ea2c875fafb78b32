//! Host-side copy-on-write: the image is a private mapping, and the host kernel copies a page when it is first written.

use vellum_backend::Vm;
use vellum_layout::{Gva, PAGE_SIZE};

use super::ChangedPage;
use super::dirty::DirtySet;
use crate::error::Failure;
use crate::memory::{AddressIndex, Contents, Geometry, GuestMemory};
use crate::snapshot::SnapshotData;

/// Above this many remembered pages a restore drops the private copies instead of writing them back.
///
/// Writing back costs about 0.1 us a page whether it was dirtied this time or not; dropping costs a fault for each page that
/// is dirtied again. 16 MiB is where a set that is mostly clean begins to cost more than the fixed price of dropping it.
const MAX_REMEMBERED_PAGES: usize = 4096;

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
        self.dirty
            .iter()
            .try_for_each(|page| put_back(memory, contents, page))?;
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
        base: &SnapshotData,
    ) -> Result<Vec<(Gva, ChangedPage)>, Failure> {
        self.collect(vm, geometry)?;
        let contents = Contents::new(geometry, &base.layers, &base.space);
        let index = AddressIndex::new(&base.space);
        let mut changed = Vec::new();
        for page in self.dirty.iter() {
            if let Some(gva) = contents.address(page, &index)
                && !is_pristine(memory, &contents, page)?
            {
                changed.push((gva, ChangedPage::Image(page * PAGE_SIZE)));
            }
        }
        changed.sort_unstable_by_key(|(gva, _)| *gva);
        Ok(changed)
    }
}

fn put_back(
    memory: &GuestMemory,
    contents: &Contents<'_>,
    page: u64,
) -> Result<(), vellum_backend::memory::OutOfBounds> {
    let offset = page * PAGE_SIZE;
    match contents.pristine(page) {
        Some((pristine, at)) => memory.image.copy_from(offset, pristine, at, PAGE_SIZE),
        None => memory.image.zero(offset, PAGE_SIZE),
    }
}

fn is_pristine(memory: &GuestMemory, contents: &Contents<'_>, page: u64) -> Result<bool, Failure> {
    let offset = page * PAGE_SIZE;
    if let Some((pristine, at)) = contents.pristine(page) {
        return Ok(memory.image.equals(offset, pristine, at, PAGE_SIZE)?);
    }
    let mut bytes = [0; crate::memory::PAGE_LEN_BYTES];
    memory.image.read(offset, &mut bytes)?;
    Ok(bytes.iter().all(|&byte| byte == 0))
}

//! Kernel guests: both memories come back page by page, each page at its own guest-physical address.
//!
//! A kernel may keep anything anywhere: page tables in a heap, physical addresses in a list. So nothing is moved and nothing is
//! interpreted. Which pages a run has written is known from the hypervisor's log of first writes, and from the host itself.

use vellum_backend::Vm;
use vellum_layout::{Gpa, GpaRange, PAGE_SIZE};

use super::ChangedPage;
use super::dirty::{DirtySet, MAX_REMEMBERED_PAGES};
use crate::error::Failure;
use crate::memory::{Extents, Geometry, GuestMemory, Layers, PageSource};
use crate::snapshot::SnapshotData;

/// What the host remembers about a kernel's memories.
#[derive(Debug)]
pub(super) struct Physical {
    image: Tracked,
    scratch: Tracked,
    /// Whether the mappings below the private copies are those of the base snapshot.
    is_placed: bool,
}

#[derive(Debug)]
struct Tracked {
    range: GpaRange,
    /// Pages of the range, by index.
    dirty: DirtySet,
}

impl Tracked {
    fn new(range: GpaRange) -> Self {
        Self {
            range,
            dirty: DirtySet::new(range.pages()),
        }
    }
}

impl Physical {
    pub(super) fn new(geometry: &Geometry) -> Self {
        Self {
            image: Tracked::new(geometry.plan.image()),
            scratch: Tracked::new(geometry.plan.scratch()),
            is_placed: false,
        }
    }

    /// The host itself wrote to these bytes.
    pub(super) fn mark(&mut self, start: Gpa, len_bytes: u64) {
        for tracked in [&mut self.image, &mut self.scratch] {
            let Some(first) = tracked.range.offset_of(start) else {
                continue;
            };
            let end = first.saturating_add(len_bytes).div_ceil(PAGE_SIZE);
            for page in first / PAGE_SIZE..end {
                tracked.dirty.insert(page);
            }
        }
    }

    pub(super) fn collect(&mut self, vm: &mut dyn Vm) -> Result<(), Failure> {
        let Self { image, scratch, .. } = self;
        vm.take_dirty(&mut |page| {
            for tracked in [&mut *image, &mut *scratch] {
                if let Some(offset) = tracked.range.offset_of(page) {
                    tracked.dirty.insert(offset / PAGE_SIZE);
                }
            }
        })?;
        Ok(())
    }

    /// Brings both memories to the contents of a snapshot.
    pub(super) fn load(
        &mut self,
        vm: &mut dyn Vm,
        memory: &mut GuestMemory,
        contents: Contents<'_>,
    ) -> Result<(), Failure> {
        self.collect(vm)?;
        memory
            .place_layers(contents.layers, contents.extents)
            .map_err(Failure::Memory)?;
        self.is_placed = true;
        self.image.dirty.clear();
        self.scratch.dirty.clear();
        Ok(())
    }

    /// Goes on to a snapshot that was just taken: the memories hold its contents already, and what is written from now on is reported
    /// anew.
    pub(super) fn adopt(&mut self, vm: &mut dyn Vm) -> Result<(), Failure> {
        vm.rearm_dirty()?;
        self.is_placed = false;
        self.image.dirty.clear();
        self.scratch.dirty.clear();
        Ok(())
    }

    /// Puts back every remembered page.
    pub(super) fn restore(
        &mut self,
        vm: &mut dyn Vm,
        memory: &mut GuestMemory,
        contents: Contents<'_>,
    ) -> Result<(), Failure> {
        self.collect(vm)?;
        let remembered = self.image.dirty.len() + self.scratch.dirty.len();
        // Pinned copies cannot be dropped, and are there to be written back.
        if remembered > MAX_REMEMBERED_PAGES && vm.capabilities().host_discard {
            return self.drop_copies(vm, memory, contents);
        }
        for (tracked, memory) in [
            (&self.image, &memory.image),
            (&self.scratch, &memory.scratch),
        ] {
            for page in tracked.dirty.iter() {
                contents
                    .page(tracked.range, page)
                    .put(memory, page * PAGE_SIZE)?;
            }
        }
        Ok(())
    }

    /// Gives the private copies back to the kernel; the mappings show the snapshot again.
    fn drop_copies(
        &mut self,
        vm: &mut dyn Vm,
        memory: &mut GuestMemory,
        contents: Contents<'_>,
    ) -> Result<(), Failure> {
        if !self.is_placed {
            return self.load(vm, memory, contents);
        }
        for (tracked, memory) in [
            (&mut self.image, &memory.image),
            (&mut self.scratch, &memory.scratch),
        ] {
            memory
                .discard(0..memory.len_bytes())
                .map_err(Failure::Memory)?;
            tracked.dirty.clear();
        }
        Ok(())
    }

    /// The remembered pages that really differ from the snapshot, sorted by address.
    pub(super) fn changed(
        &mut self,
        vm: &mut dyn Vm,
        memory: &GuestMemory,
        contents: Contents<'_>,
    ) -> Result<Vec<(Gpa, ChangedPage)>, Failure> {
        self.collect(vm)?;
        let mut changed = Vec::new();
        for (tracked, memory, place) in [
            (
                &self.image,
                &memory.image,
                ChangedPage::Image as fn(u64) -> _,
            ),
            (&self.scratch, &memory.scratch, ChangedPage::Scratch),
        ] {
            for page in tracked.dirty.iter() {
                let offset = page * PAGE_SIZE;
                let (Some(gpa), false) = (
                    tracked.range.at(offset),
                    contents.page(tracked.range, page).equals(memory, offset)?,
                ) else {
                    continue;
                };
                changed.push((gpa, place(offset)));
            }
        }
        changed.sort_unstable_by_key(|(gpa, _)| *gpa);
        Ok(changed)
    }
}

/// The unmodified contents of both memories.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contents<'a> {
    layers: &'a Layers,
    extents: &'a Extents<Gpa>,
}

impl<'a> Contents<'a> {
    pub(super) fn of(snapshot: &'a SnapshotData) -> Result<Self, Failure> {
        Ok(Self {
            layers: &snapshot.layers,
            extents: snapshot.kernel_extents()?,
        })
    }

    fn page(self, range: GpaRange, page: u64) -> PageSource<'a> {
        range
            .at(page * PAGE_SIZE)
            .and_then(|gpa| self.extents.image_page_of(gpa))
            .map_or(PageSource::Zero, |image_page| self.layers.page(image_page))
    }
}

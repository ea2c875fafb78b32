//! Guest-side copy-on-write: the monitor copies pages into scratch frames and logs which page-table entry it changed.

use vellum_backend::Vm;
use vellum_layout::{
    Gpa, GpaRange, Gva, MONITOR_DATA_OFFSET, PAGE_SIZE, SCRATCH_TOP_ALLOCATOR_OFFSET,
};
use vellum_vmem::{Budget, Format, Walker};

use super::ChangedPage;
use super::dirty::DirtySet;
use crate::error::Failure;
use crate::machine::monitor::{DemandZero, MAX_AREAS, MonitorData};
use crate::memory::{
    Area, Backing, Contents, Geometry, GuestMemory, SpaceError, TableAccess, UserParts, UserSpace,
};

/// What the host keeps to undo the monitor's edits.
#[derive(Debug)]
pub(super) struct GuestSide {
    /// The tables as they were built.
    pristine: Vec<u64>,
    /// Pages of the image that the host itself wrote to, by index. The guest cannot write there.
    written: DirtySet,
}

impl GuestSide {
    pub(super) fn new(geometry: &Geometry) -> Self {
        Self {
            pristine: Vec::new(),
            written: DirtySet::new(geometry.plan.image().pages()),
        }
    }

    /// The host itself wrote to the page at an offset of the image.
    pub(super) fn mark(&mut self, offset: u64) {
        self.written.insert(offset / PAGE_SIZE);
    }

    /// Gives the monitor its data and remembers the tables.
    pub(super) fn start(
        &mut self,
        memory: &GuestMemory,
        user: &UserParts,
        space: &UserSpace,
        tables_used: u64,
    ) -> Result<(), Failure> {
        let areas = space
            .areas()
            .iter()
            .filter_map(demand_zero)
            .collect::<Vec<_>>();
        if areas.len() > MAX_AREAS {
            return Err(Failure::Space(SpaceError::Overflow));
        }
        let data = MonitorData {
            frames: user.free_frames()?,
            log: user.frame_log()?.start(),
            areas,
        };
        let top = memory.scratch.len_bytes();
        for (offset, word) in (top - MONITOR_DATA_OFFSET..).step_by(8).zip(data.words()) {
            memory.scratch.write_u64(offset, word)?;
        }
        self.remember_tables(memory, user, tables_used)?;
        set_allocator(memory, data.frames.start())
    }

    /// The host itself changed the entry at this offset from the start of the tables.
    pub(super) fn note_entry(&mut self, offset: u64, entry: u64) {
        let index = usize::try_from(offset / 8);
        if let Some(known) = index.ok().and_then(|index| self.pristine.get_mut(index)) {
            *known = entry;
        }
    }

    /// Drops what the host wrote, because other layers are about to be mapped.
    pub(super) fn forget(&mut self, memory: &GuestMemory) -> Result<(), Failure> {
        for page in self.written.iter() {
            let offset = page * PAGE_SIZE;
            memory
                .image
                .discard(offset..offset + PAGE_SIZE)
                .map_err(Failure::Memory)?;
        }
        self.written.clear();
        Ok(())
    }

    fn remember_tables(
        &mut self,
        memory: &GuestMemory,
        user: &UserParts,
        used: u64,
    ) -> Result<(), Failure> {
        let start = memory.scratch_offset(user.tables);
        self.pristine.clear();
        for offset in (start..start + used * PAGE_SIZE).step_by(8) {
            self.pristine.push(memory.scratch.read_u64(offset)?);
        }
        Ok(())
    }

    /// Undoes the monitor's edits, after a clean exit.
    ///
    /// The log lies in the guest, out of ring 3's reach. Each entry is read once, and names a place, never a value: what is
    /// written back comes from the host's own copy.
    pub(super) fn restore(
        &mut self,
        vm: &mut dyn Vm,
        memory: &GuestMemory,
        user: &UserParts,
        contents: &Contents<'_>,
    ) -> Result<(), Failure> {
        for page in self.written.iter() {
            contents
                .pristine(page)
                .put(&memory.image, page * PAGE_SIZE)?;
        }
        let frames = user.free_frames()?;
        let used = allocated_frames(memory, frames)?;
        let Some(used_frames) = frames.part(0, used * PAGE_SIZE) else {
            return Ok(());
        };
        let log = memory.scratch_offset(user.frame_log()?);
        for offset in (log..log + used * 8).step_by(8) {
            let entry = memory.scratch.read_u64(offset)?;
            // An entry of a table that was itself allocated since then vanishes with that table.
            let at = Gpa::new(entry)
                .ok()
                .and_then(|entry| user.tables.offset_of(entry));
            if let Some(at) = at {
                self.put_back(memory, user, at / 8)?;
            }
        }
        vm.publish_remap(used_frames)?;
        set_allocator(memory, frames.start())
    }

    /// Puts back the entry with this index, counted over all tables.
    fn put_back(&self, memory: &GuestMemory, user: &UserParts, index: u64) -> Result<(), Failure> {
        let known = usize::try_from(index)
            .ok()
            .and_then(|index| self.pristine.get(index));
        if let Some(&entry) = known {
            let start = memory.scratch_offset(user.tables);
            memory.scratch.write_u64(start + index * 8, entry)?;
        }
        Ok(())
    }
}

fn demand_zero(area: &Area) -> Option<DemandZero> {
    match area.backing {
        Backing::Image => None,
        Backing::Zero { .. } => Some(DemandZero {
            first: area.range.start(),
            last: area.range.last(),
            rights: area.rights,
        }),
    }
}

/// The offset in scratch of the word that says which frame is the next.
fn allocator_offset(memory: &GuestMemory) -> u64 {
    memory.scratch.len_bytes() - SCRATCH_TOP_ALLOCATOR_OFFSET
}

fn set_allocator(memory: &GuestMemory, next: Gpa) -> Result<(), Failure> {
    Ok(memory
        .scratch
        .write_u64(allocator_offset(memory), next.as_u64())?)
}

/// How many of `frames` the monitor has handed out; a nonsensical pointer counts as all of them.
fn allocated_frames(memory: &GuestMemory, frames: GpaRange) -> Result<u64, Failure> {
    let next = memory.scratch.read_u64(allocator_offset(memory))?;
    let used = Gpa::new(next)
        .ok()
        .and_then(|next| next.offset_from(frames.start()));
    Ok(used
        .map_or(frames.pages(), |bytes| bytes / PAGE_SIZE)
        .min(frames.pages()))
}

impl GuestSide {
    /// The pages that differ from the base snapshot: those that the monitor has copied or made, found by walking the lower half of
    /// the tables, and those that the host wrote to.
    pub(super) fn changed(
        &self,
        memory: &GuestMemory,
        geometry: &Geometry,
        space: &UserSpace,
        contents: &Contents<'_>,
    ) -> Result<Vec<(Gva, ChangedPage)>, Failure> {
        let mut changed = copied(memory, geometry, space)?;
        let index = contents.address_index();
        for page in self.written.iter() {
            // Where the monitor has copied the page since, the copy is what the guest sees.
            if let Some(gva) = contents.address(page, &index)
                && !changed.iter().any(|(copied, _)| *copied == gva)
            {
                changed.push((gva, ChangedPage::Image(page * PAGE_SIZE)));
            }
        }
        changed.sort_unstable_by_key(|(gva, _)| *gva);
        Ok(changed)
    }
}

/// The pages that the monitor has copied or made.
fn copied(
    memory: &GuestMemory,
    geometry: &Geometry,
    space: &UserSpace,
) -> Result<Vec<(Gva, ChangedPage)>, Failure> {
    let store = TableAccess::in_scratch(memory);
    let user = geometry.user()?;
    let frames = user.free_frames()?;
    let budget =
        Budget::for_memory(geometry.plan.image().len_bytes() + geometry.plan.scratch().len_bytes());
    let mut changed = Vec::new();
    for area in space.areas() {
        let walker = Walker::new(&store, user.tables.start(), Format::FOUR_LEVEL, budget)
            .map_err(Failure::Root)?
            .within(area.range);
        for step in walker.leaves() {
            let step = step.map_err(Failure::Walk)?;
            let frame = step.leaf.frame;
            if frames.contains(frame) && area.range.contains(step.gva) {
                changed.push((
                    step.gva,
                    ChangedPage::Scratch(
                        geometry
                            .plan
                            .scratch()
                            .offset_of(frame)
                            .ok_or(SpaceError::Overflow)?,
                    ),
                ));
            }
        }
    }
    Ok(changed)
}

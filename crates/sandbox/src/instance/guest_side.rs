//! Guest-side copy-on-write: the monitor copies pages into scratch frames and logs which page-table entry it changed.

use std::ops::Range;

use vellum_backend::Vm;
use vellum_layout::{Gpa, Gva, MONITOR_DATA_OFFSET, PAGE_SIZE, SCRATCH_TOP_ALLOCATOR_OFFSET};
use vellum_vmem::{Budget, Format, Walker};

use super::ChangedPage;
use crate::error::Failure;
use crate::machine::monitor::{DemandZero, MAX_AREAS, MonitorData};
use crate::memory::{Area, Backing, Geometry, GuestMemory, SpaceError, TableAccess};
use crate::snapshot::SnapshotData;

/// What the host keeps to undo the monitor's edits.
#[derive(Debug, Default)]
pub(super) struct GuestSide {
    /// The tables as they were built.
    pristine: Vec<u64>,
}

impl GuestSide {
    /// Gives the monitor its data and remembers the tables.
    pub(super) fn start(
        &mut self,
        memory: &GuestMemory,
        geometry: &Geometry,
        snapshot: &SnapshotData,
        tables_used: u64,
    ) -> Result<(), Failure> {
        let areas = snapshot
            .space
            .areas()
            .iter()
            .filter_map(demand_zero)
            .collect::<Vec<_>>();
        if areas.len() > MAX_AREAS {
            return Err(Failure::Space(SpaceError::Overflow));
        }
        let data = MonitorData {
            frames: geometry.free_frames()?,
            log: geometry.frame_log()?.start(),
            areas,
        };
        let top = memory.scratch.len_bytes();
        for (offset, word) in (top - MONITOR_DATA_OFFSET..).step_by(8).zip(data.words()) {
            memory.scratch.write_u64(offset, word)?;
        }
        self.remember_tables(memory, geometry, tables_used)?;
        set_allocator(memory, data.frames.start())
    }

    fn remember_tables(
        &mut self,
        memory: &GuestMemory,
        geometry: &Geometry,
        used: u64,
    ) -> Result<(), Failure> {
        let start = memory.scratch_offset(geometry.tables()?);
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
        geometry: &Geometry,
    ) -> Result<(), Failure> {
        let frames = geometry.free_frames()?;
        let tables = geometry.tables()?;
        let used = allocated_frames(memory, geometry)?;
        let Some(used_frames) = frames.part(0, used * PAGE_SIZE) else {
            return Ok(());
        };
        let log = memory.scratch_offset(geometry.frame_log()?);
        for offset in (log..log + used * 8).step_by(8) {
            let entry = memory.scratch.read_u64(offset)?;
            // An entry of a table that was itself allocated since then vanishes with that table.
            if let Some(at) = Gpa::new(entry)
                .ok()
                .and_then(|entry| tables.offset_of(entry))
            {
                self.put_back(memory, geometry, at..at + 8)?;
            }
        }
        vm.publish_remap(used_frames)?;
        set_allocator(memory, frames.start())
    }

    fn put_back(
        &self,
        memory: &GuestMemory,
        geometry: &Geometry,
        tables: Range<u64>,
    ) -> Result<(), Failure> {
        let start = memory.scratch_offset(geometry.tables()?);
        for offset in tables.step_by(8) {
            let index = usize::try_from(offset / 8).unwrap_or(usize::MAX);
            if let Some(&entry) = self.pristine.get(index) {
                memory.scratch.write_u64(start + offset / 8 * 8, entry)?;
            }
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

fn set_allocator(memory: &GuestMemory, next: Gpa) -> Result<(), Failure> {
    let offset = memory.scratch.len_bytes() - SCRATCH_TOP_ALLOCATOR_OFFSET;
    Ok(memory.scratch.write_u64(offset, next.as_u64())?)
}

/// How many frames the monitor has handed out; a nonsensical pointer counts as all of them.
fn allocated_frames(memory: &GuestMemory, geometry: &Geometry) -> Result<u64, Failure> {
    let frames = geometry.free_frames()?;
    let offset = memory.scratch.len_bytes() - SCRATCH_TOP_ALLOCATOR_OFFSET;
    let next = memory.scratch.read_u64(offset)?;
    let used = Gpa::new(next)
        .ok()
        .and_then(|next| next.offset_from(frames.start()));
    Ok(used
        .map_or(frames.pages(), |bytes| bytes / PAGE_SIZE)
        .min(frames.pages()))
}

/// The pages that the monitor has copied or made, found by walking the lower half of the tables.
pub(super) fn changed(
    memory: &GuestMemory,
    geometry: &Geometry,
    base: &SnapshotData,
) -> Result<Vec<(Gva, ChangedPage)>, Failure> {
    let store = TableAccess::new(memory);
    let frames = geometry.free_frames()?;
    let tables = geometry.tables()?;
    let budget =
        Budget::for_memory(geometry.plan.image().len_bytes() + geometry.plan.scratch().len_bytes());
    let mut changed = Vec::new();
    for area in base.space.areas() {
        let walker = Walker::new(&store, tables.start(), Format::FOUR_LEVEL, budget)
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
    changed.sort_unstable_by_key(|(gva, _)| *gva);
    Ok(changed)
}

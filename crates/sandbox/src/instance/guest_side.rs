//! Guest-side copy-on-write: the monitor copies pages into scratch frames and logs the address that each one was for.
//!
//! A frame stays with its page through restores: what the guest has written to it is written over with the content that it goes back
//! to, and the next run writes there without a fault. The processor's own dirty flags say which pages that takes. Only when there are
//! very many, or where scratch is too small to keep them, are the frames taken back.

mod frames;

use std::sync::Arc;

use vellum_backend::Vm;
use vellum_backend::memory::OutOfBounds;
use vellum_layout::{
    Gpa, GpaRange, Gva, MONITOR_DATA_OFFSET, PAGE_SIZE, SCRATCH_TOP_ALLOCATOR_OFFSET,
};

use super::ChangedPage;
use super::dirty::DirtySet;
use super::host_side::{Reload, Restored};
use super::shown::Shown;
use crate::error::Failure;
use crate::machine::monitor::{DemandZero, MAX_AREAS, MonitorData};
use crate::machine::pristine_entry;
use crate::memory::{
    Area, Backing, Contents, Geometry, GuestMemory, SpaceError, UserParts, UserSpace,
};
use crate::snapshot::SnapshotData;

use frames::{DIRTY, FixedLeaf, Frame, Page, USED, find, handed_out, leaves, logged};

/// Pages that are copied back without a look at whether this run wrote them, until their dirty flags are cleared the next time.
///
/// A cleared flag takes effect when the processor forgets its translations, which costs as much as copying about a dozen pages: little,
/// once in so many copies.
const COPIES_PER_SWEEP: usize = 64;

/// Frames above which a restore takes them back, with their memory. A restore looks at a flag for each frame.
const MAX_FRAMES: usize = 2048;
/// Frames above which a sandbox does not go on in place after a snapshot, but maps it: the snapshot has cost more already, or many before
/// it have.
const MAX_FRAMES_IN_PLACE: usize = 512;

/// What the host keeps to undo the guest's writes.
#[derive(Debug)]
pub(super) struct GuestSide {
    /// The frames that were handed out, in order.
    kept: Vec<Frame>,
    /// All frames that the monitor can hand out.
    frames: GpaRange,
    /// Pages of the image that the host itself wrote to, by index. The guest cannot write there.
    written: DirtySet,
    pub(super) shown: Shown,
    /// Counts the bases that the sandbox went on to in place.
    base_number: u64,
    /// The leaves of output buffer and outbox, once they were looked up.
    output: Vec<FixedLeaf>,
    copies_since_sweep: usize,
}

/// What the host knows when it undoes what a guest did.
#[derive(Clone, Copy)]
pub(super) struct Undo<'a> {
    pub(super) memory: &'a GuestMemory,
    pub(super) geometry: &'a Geometry,
    pub(super) base: &'a SnapshotData,
}

impl<'a> Undo<'a> {
    pub(super) fn new(
        memory: &'a GuestMemory,
        geometry: &'a Geometry,
        base: &'a SnapshotData,
    ) -> Self {
        Self {
            memory,
            geometry,
            base,
        }
    }
}

/// What the processor has to do before the guest runs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Translations {
    Valid,
    /// It must forget them: entries have changed.
    Stale,
}

impl GuestSide {
    pub(super) fn new(geometry: &Geometry) -> Result<Self, Failure> {
        Ok(Self {
            kept: Vec::new(),
            frames: geometry.user()?.free_frames()?,
            written: DirtySet::new(geometry.plan.image().pages()),
            shown: Shown::default(),
            base_number: 0,
            output: Vec::new(),
            copies_since_sweep: 0,
        })
    }

    /// The host itself wrote to the page at an offset of the image.
    pub(super) fn mark(&mut self, offset: u64) {
        self.written.insert(offset / PAGE_SIZE);
    }

    /// The host itself wrote to a frame that may be one of those.
    pub(super) fn mark_frame(&self, memory: &GuestMemory, gpa: Gpa) -> Result<(), Failure> {
        let number = self.frames.offset_of(gpa).map(|offset| offset / PAGE_SIZE);
        let number = number.and_then(|number| usize::try_from(number).ok());
        // One that was not looked up yet has its flag from the monitor.
        if let Some(Frame::Page(page)) = number.and_then(|number| self.kept.get(number)) {
            memory.scratch.write_u64(page.leaf_offset, page.leaf)?;
        }
        Ok(())
    }

    /// Gives the monitor its data, where the tables have just been made.
    pub(super) fn start(
        &mut self,
        memory: &GuestMemory,
        user: &UserParts,
        space: &UserSpace,
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
            frames: self.frames,
            log: user.frame_log()?.start(),
            areas,
        };
        let top = memory.scratch.len_bytes();
        for (offset, word) in (top - MONITOR_DATA_OFFSET..).step_by(8).zip(data.words()) {
            memory.scratch.write_u64(offset, word)?;
        }
        self.kept.clear();
        self.output.clear();
        self.copies_since_sweep = 0;
        self.set_allocator(memory)
    }

    /// Drops what the host wrote and the frames hold, because other layers and tables are about to be mapped.
    pub(super) fn forget(&mut self, memory: &GuestMemory) -> Result<(), Failure> {
        for page in self.written.iter() {
            let offset = page * PAGE_SIZE;
            memory
                .image
                .discard(offset..offset + PAGE_SIZE)
                .map_err(Failure::Memory)?;
        }
        self.written.clear();
        self.shown.reset();
        self.return_memory(memory)
    }

    /// Gives the memory of frames back to the system where there is much of it. The monitor fills a frame when it hands it out.
    fn return_memory(&self, memory: &GuestMemory) -> Result<(), Failure> {
        let used = self.handed_out(memory)?;
        if used <= MAX_FRAMES as u64 {
            return Ok(());
        }
        let start = memory.scratch_offset(self.frames);
        memory
            .scratch
            .discard(start..start + used * PAGE_SIZE)
            .map_err(Failure::Memory)
    }

    /// Puts back the content of every page that was written, after a clean exit.
    ///
    /// Log and tables lie in the guest, out of ring 3's reach. Each entry is read once, and what is written back comes from the
    /// host's own copy.
    pub(super) fn restore(
        &mut self,
        vm: &mut dyn Vm,
        undo: Undo<'_>,
        reload: Reload,
    ) -> Result<(Restored, Translations), Failure> {
        let found = self.find_new(undo)?;
        let (Some(()), Some(wiped)) = (found, self.wipe_output(undo)?) else {
            return Ok((Restored::NotYet, Translations::Stale));
        };
        let Undo {
            memory, geometry, ..
        } = undo;
        let contents = self.shown.contents(geometry, undo.base)?;
        for page in self.written.iter() {
            contents
                .pristine(page)
                .put(&memory.image, page * PAGE_SIZE)?;
        }
        let keeps = geometry.user()?.has_frames_for_all;
        let too_many = self.kept.len() > MAX_FRAMES;
        match (self.shown.is_older(), reload) {
            (false, _) if too_many || !keeps => {
                self.take_back(vm, undo)?;
                return Ok((Restored::Completely, Translations::Stale));
            }
            (true, Reload::Possible) if too_many => {
                return Ok((Restored::NotYet, Translations::Stale));
            }
            _ => {}
        }
        let copied = put_back_contents(memory, &contents, &mut self.kept, self.base_number)?;
        let Some(copied) = copied else {
            return Ok((Restored::NotYet, Translations::Stale));
        };
        self.copies_since_sweep += copied + wiped;
        if self.copies_since_sweep < COPIES_PER_SWEEP {
            return Ok((Restored::Completely, Translations::Valid));
        }
        self.sweep(vm, memory, geometry)?;
        Ok((Restored::Completely, Translations::Stale))
    }

    /// Whether going on in place would keep so many frames that looking at their flags would slow each restore down.
    pub(super) fn is_full(&self) -> bool {
        self.kept.len() > MAX_FRAMES_IN_PLACE
    }

    /// Goes on from `base` to a snapshot that was just taken: the pages that were written are its own content. Nothing is mapped and
    /// no table is built.
    pub(super) fn adopt(
        &mut self,
        vm: &mut dyn Vm,
        undo: Undo<'_>,
        base: &Arc<SnapshotData>,
    ) -> Result<(), Failure> {
        self.shown.go_on(base);
        self.base_number += 1;
        self.sweep(vm, undo.memory, undo.geometry)
    }

    /// Clears the dirty flags, so that they tell what is written from now on. The processor must forget its translations then.
    fn sweep(
        &mut self,
        vm: &mut dyn Vm,
        memory: &GuestMemory,
        geometry: &Geometry,
    ) -> Result<(), Failure> {
        self.copies_since_sweep = 0;
        for page in pages(&self.kept) {
            let clean = page.leaf & !DIRTY;
            memory.scratch.write_u64(page.leaf_offset, clean)?;
        }
        for fixed in &self.output {
            let clean = fixed.leaf & !DIRTY;
            memory.scratch.write_u64(fixed.leaf_offset, clean)?;
        }
        vm.publish_remap(geometry.plan.output())?;
        self.publish(vm)
    }

    /// Zeroes what may have been written of output buffer and outbox. Returns how many pages those were, or `None` when a leaf is not as the
    /// host made it.
    fn wipe_output(&mut self, undo: Undo<'_>) -> Result<Option<usize>, Failure> {
        let memory = undo.memory;
        if self.output.is_empty() {
            let (view, user) = (&undo.geometry.view, undo.geometry.user()?);
            for range in [view.output, view.outbox] {
                let Ok(leaves) = leaves(memory, user, range) else {
                    return Ok(None);
                };
                self.output.extend(leaves);
            }
        }
        let mut wiped = 0;
        for fixed in &self.output {
            let Some(flags) = used_flags(memory, fixed.leaf_offset, fixed.leaf)? else {
                return Ok(None);
            };
            if flags & DIRTY != 0 {
                wiped += 1;
                memory.scratch.zero(fixed.offset, fixed.len_bytes)?;
            }
        }
        Ok(Some(wiped))
    }

    fn publish(&self, vm: &mut dyn Vm) -> Result<(), Failure> {
        let len_bytes = self.kept.len() as u64 * PAGE_SIZE;
        match self.frames.part(0, len_bytes) {
            Some(used) => Ok(vm.publish_remap(used)?),
            None => Ok(()),
        }
    }

    /// Makes the tables those of the snapshot again that the slot shows, with no frame handed out.
    fn take_back(&mut self, vm: &mut dyn Vm, undo: Undo<'_>) -> Result<(), Failure> {
        let user = undo.geometry.user()?;
        let space = undo.base.user_space()?;
        let first = undo.memory.scratch_offset(user.tables);
        let tables = first..first + user.tables.len_bytes();
        for link in self.kept.iter().map(Frame::link) {
            // An entry of a table that was itself handed out vanishes with that table.
            if tables.contains(&link.offset) {
                let entry = pristine_entry(undo.geometry, space, link.gva, link.level)?;
                undo.memory.scratch.write_u64(link.offset, entry)?;
            }
        }
        self.publish(vm)?;
        // Pinned frames stay as they are: the monitor fills each that it hands out.
        if vm.capabilities().host_discard {
            self.return_memory(undo.memory)?;
        }
        self.kept.clear();
        self.copies_since_sweep = 0;
        self.set_allocator(undo.memory)
    }

    /// The pages that differ from the base snapshot: those of frames, and those that the host wrote to.
    pub(super) fn changed(&mut self, undo: Undo<'_>) -> Result<Vec<(Gva, ChangedPage)>, Failure> {
        let broken = Failure::Protocol("page tables that the monitor did not make");
        if self.find_new(undo)?.is_none() {
            return Err(broken);
        }
        let memory = undo.memory;
        let contents = self.shown.contents(undo.geometry, undo.base)?;
        let mut changed = Vec::new();
        for page in pages(&self.kept) {
            let Some(flags) = used_flags(memory, page.leaf_offset, page.leaf)? else {
                return Err(broken);
            };
            let offset = page.frame_offset;
            // The flag can be older than the last restore.
            if flags & DIRTY != 0 && !contents.at(page.gva).equals(&memory.scratch, offset)? {
                changed.push((page.gva, ChangedPage::Scratch(offset)));
            }
        }
        self.add_written(&contents, &mut changed);
        changed.sort_unstable_by_key(|(gva, _)| *gva);
        Ok(changed)
    }

    fn add_written(&self, contents: &Contents<'_>, changed: &mut Vec<(Gva, ChangedPage)>) {
        if self.written.len() == 0 {
            return;
        }
        let mut copied: Vec<Gva> = pages(&self.kept).map(|page| page.gva).collect();
        copied.sort_unstable();
        for page in self.written.iter() {
            // Where the monitor has copied the page since, the copy is what the guest sees.
            if let Some(gva) = contents.address(page)
                && copied.binary_search(&gva).is_err()
            {
                changed.push((gva, ChangedPage::Image(page * PAGE_SIZE)));
            }
        }
    }

    /// Looks up the frames that were handed out since the last time. `None` when one is not where the monitor would have put it.
    fn find_new(&mut self, undo: Undo<'_>) -> Result<Option<()>, Failure> {
        let user = undo.geometry.user()?;
        let space = undo.base.user_space()?;
        let used = self.handed_out(undo.memory)?;
        let known = self.kept.len() as u64;
        if used < known {
            return Ok(None);
        }
        for number in known..used {
            let address = logged(undo.memory, user, number)?;
            let frame = self.frames.at(number * PAGE_SIZE);
            let found = frame.and_then(|frame| find(undo.memory, user, space, frame, address));
            match found {
                Some(frame) => self.kept.push(frame),
                None => return Ok(None),
            }
        }
        Ok(Some(()))
    }

    fn handed_out(&self, memory: &GuestMemory) -> Result<u64, Failure> {
        let next = memory.scratch.read_u64(allocator_offset(memory))?;
        Ok(handed_out(next, self.frames))
    }

    fn set_allocator(&self, memory: &GuestMemory) -> Result<(), Failure> {
        let start = self.frames.start().as_u64();
        Ok(memory.scratch.write_u64(allocator_offset(memory), start)?)
    }
}

fn pages(frames: &[Frame]) -> impl Iterator<Item = &Page> {
    frames.iter().filter_map(|frame| match frame {
        Frame::Page(page) => Some(page),
        Frame::Table(_) => None,
    })
}

/// Writes the unmodified content over every page that may have been written. Returns how many those were, or `None` when a leaf is not
/// as the monitor made it.
fn put_back_contents(
    memory: &GuestMemory,
    contents: &Contents<'_>,
    kept: &mut [Frame],
    base_number: u64,
) -> Result<Option<usize>, Failure> {
    let layers = contents.layers();
    let mut copied = 0;
    for frame in kept {
        let Frame::Page(page) = frame else {
            continue;
        };
        let Some(flags) = used_flags(memory, page.leaf_offset, page.leaf)? else {
            return Ok(None);
        };
        if flags & DIRTY != 0 {
            copied += 1;
            if page.base_number != base_number {
                page.place = contents.place(page.gva);
                page.base_number = base_number;
            }
            let content = layers.at(page.place);
            content.put(&memory.scratch, page.frame_offset)?;
        }
    }
    Ok(Some(copied))
}

/// The accessed and dirty flags of the leaf at an offset of scratch; `None` when it is not `leaf` but for these.
fn used_flags(memory: &GuestMemory, offset: u64, leaf: u64) -> Result<Option<u64>, OutOfBounds> {
    let raw = memory.scratch.read_u64(offset)?;
    Ok((raw | USED == leaf).then_some(raw & USED))
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

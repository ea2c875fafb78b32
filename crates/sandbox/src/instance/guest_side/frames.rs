//! The frames that the monitor has handed out, as the host finds them in the guest's page tables.

use std::cell::Cell;

use vellum_backend::memory::OutOfBounds;
use vellum_layout::{Gpa, GpaRange, Gva, GvaRange, PAGE_SIZE, PageSize};
use vellum_vmem::{
    Attrs, EntryWidth, Format, Level, StoreError, TableIndex, TableStore, TranslateError, translate,
};

use crate::error::Failure;
use crate::memory::{GuestMemory, Place, TableAccess, UserParts, UserSpace};

/// What a frame became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A page of the guest's.
    Page(Page),
    /// A page table, made for a page that was logged behind it.
    Table(Link),
}

/// A page that the monitor copied or made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// Offset in scratch of the leaf.
    pub(super) leaf_offset: u64,
    /// The leaf as the monitor made it: accessed and dirty.
    pub(super) leaf: u64,
    /// Offset in scratch of the frame.
    pub(super) frame_offset: u64,
    pub(super) gva: Gva,
    /// Where the content lies that a restore puts back, in the layers of the base; and which base that was.
    pub(super) place: Option<Place>,
    pub(super) base_number: u64,
}

/// The number of no base.
const NO_BASE: u64 = u64::MAX;

/// An entry that points to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Offset in scratch.
    pub(super) offset: u64,
    /// An address that it translates.
    pub(super) gva: Gva,
    /// Level of the table that it lies in.
    pub(super) level: Level,
}

impl Frame {
    /// The entry that points to it.
    pub(super) fn link(&self) -> Link {
        match self {
            Self::Table(link) => *link,
            Self::Page(page) => Link {
                offset: page.leaf_offset,
                gva: page.gva,
                level: Level::L1,
            },
        }
    }
}

/// The accessed and dirty flags, which the processor sets in a leaf (Intel SDM volume 3, section 4.8).
pub(super) const USED: u64 = Attrs::ACCESSED.union(Attrs::DIRTY).bits();
pub(super) const DIRTY: u64 = Attrs::DIRTY.bits();
/// P: the entry is in use.
const PRESENT: u64 = 1;

/// Finds what the frame `frame` became, which was handed out when `gva` faulted. `None` when the tables do not lead there: then the
/// guest has broken its monitor.
pub(super) fn find(
    memory: &GuestMemory,
    user: &UserParts,
    space: &UserSpace,
    frame: Gpa,
    gva: u64,
) -> Option<Frame> {
    let gva = Gva::new(gva).ok()?.align_down(PageSize::Size4KiB);
    let area = space.area_of(gva).filter(|area| area.is_writable())?;
    let path = Path::new(TableAccess::in_scratch(memory));
    let mapping = translate(&path, user.tables.start(), gva, Format::FOUR_LEVEL).ok()?;
    let scratch = memory.scratch_range();
    if mapping.gpa != frame {
        let (at, level) = path.link_to(frame)?;
        let offset = scratch.offset_of(at)?;
        return Some(Frame::Table(Link { offset, gva, level }));
    }
    let leaf = frame.as_u64() | PRESENT | USED | (area.rights | Attrs::USER).bits();
    let page = Page {
        leaf_offset: scratch.offset_of(mapping.entry_gpa)?,
        leaf,
        frame_offset: scratch.offset_of(frame)?,
        gva,
        place: None,
        base_number: NO_BASE,
    };
    let as_made = mapping.size == PageSize::Size4KiB && path.last() | USED == leaf;
    as_made.then_some(Frame::Page(page))
}

/// That something is not where the host has put it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unknown;

impl From<TranslateError> for Unknown {
    fn from(_: TranslateError) -> Self {
        Self
    }
}

impl From<OutOfBounds> for Unknown {
    fn from(_: OutOfBounds) -> Self {
        Self
    }
}

/// The leaves of a range that ring 3 may write and that never moves.
pub(super) fn leaves(
    memory: &GuestMemory,
    user: &UserParts,
    range: GvaRange,
) -> Result<Vec<FixedLeaf>, Unknown> {
    let mut leaves = Vec::new();
    let (mut gva, end) = (range.start(), range.end());
    while gva < end {
        let tables = TableAccess::in_scratch(memory);
        let path = Path::new(tables);
        let mapping = translate(&path, user.tables.start(), gva, Format::FOUR_LEVEL)?;
        let in_page = gva.as_u64() % mapping.size.bytes();
        let len_bytes = (mapping.size.bytes() - in_page).min(end.as_u64() - gva.as_u64());
        leaves.push(FixedLeaf {
            leaf_offset: memory.scratch_offset_of(mapping.entry_gpa)?,
            leaf: path.last() | USED,
            offset: memory.scratch_offset_of(mapping.gpa)?,
            len_bytes,
        });
        let Some(next) = gva.checked_add(len_bytes) else {
            break;
        };
        gva = next;
    }
    Ok(leaves)
}

/// A leaf that the host made, and the part of its page that a range has.
#[derive(Clone, Copy, Debug)]
pub(super) struct FixedLeaf {
    /// Offset in scratch of the leaf.
    pub(super) leaf_offset: u64,
    /// The leaf, accessed and dirty.
    pub(super) leaf: u64,
    /// Offset in scratch of the part.
    pub(super) offset: u64,
    pub(super) len_bytes: u64,
}

/// Tables that remember what one look-up read of them: at most one entry of each level.
struct Path<'a> {
    tables: TableAccess<'a>,
    way: Cell<Way>,
    read: Cell<[(Gpa, u64); 4]>,
    count: Cell<usize>,
}

/// How a look-up goes from table to table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Following,
    /// The way to everything unusual. It begins at the root again.
    EntryByEntry,
}

/// Levels from the root down.
const LEVELS: [Level; 4] = [Level::L4, Level::L3, Level::L2, Level::L1];

impl<'a> Path<'a> {
    fn new(tables: TableAccess<'a>) -> Self {
        Self {
            tables,
            way: Cell::new(Way::Following),
            read: Cell::new([(Gpa::literal(0), 0); 4]),
            count: Cell::new(0),
        }
    }

    fn remember(&self, at: Gpa, raw: u64) {
        let (mut read, count) = (self.read.get(), self.count.get());
        if let Some(slot) = read.get_mut(count) {
            *slot = (at, raw);
            self.read.set(read);
            self.count.set(count + 1);
        }
    }

    /// The entry that was read last.
    fn last(&self) -> u64 {
        let read = self.read.get();
        let last = self.count.get().checked_sub(1);
        last.and_then(|index| read.get(index))
            .map_or(0, |(_, raw)| *raw)
    }

    /// The entry on the way that points to the table `frame`, and the level of the table that it lies in.
    fn link_to(&self, frame: Gpa) -> Option<(Gpa, Level)> {
        let read = self.read.get();
        let mut entries = read.iter().take(self.count.get()).zip(LEVELS);
        entries
            .find(|((_, raw), level)| {
                *level != Level::L1 && raw & FRAME_MASK == frame.as_u64() && raw & PRESENT != 0
            })
            .map(|((at, _), level)| (*at, level))
    }
}

/// Bits of an entry that hold a frame (bits 12 to 51; Intel SDM volume 3, table 4-20).
const FRAME_MASK: u64 = 0x000F_FFFF_FFFF_F000;

impl TableStore for Path<'_> {
    fn read_entry(&self, at: Gpa, width: EntryWidth) -> Result<u64, StoreError> {
        let raw = self.tables.read_entry(at, width)?;
        if self.way.replace(Way::EntryByEntry) == Way::Following {
            self.count.set(0);
        }
        self.remember(at, raw);
        Ok(raw)
    }

    fn follow(&self, above: u64, index: TableIndex) -> Option<(Gpa, u64)> {
        let (at, raw) = self.tables.follow(above, index)?;
        self.remember(at, raw);
        Some((at, raw))
    }

    fn write_entry(&mut self, at: Gpa, _: EntryWidth, _: u64) -> Result<(), StoreError> {
        Err(StoreError::ReadOnly { at })
    }
}

/// How many of `frames` the monitor has handed out, where `next` is the next one; a nonsensical pointer counts as all of them.
pub(super) fn handed_out(next: u64, frames: GpaRange) -> u64 {
    let used = Gpa::new(next)
        .ok()
        .and_then(|next| next.offset_from(frames.start()));
    used.map_or(frames.pages(), |bytes| bytes / PAGE_SIZE)
        .min(frames.pages())
}

/// Reads the address that was logged with the frame of this number.
pub(super) fn logged(memory: &GuestMemory, user: &UserParts, number: u64) -> Result<u64, Failure> {
    let log = memory.scratch_offset(user.frame_log()?);
    Ok(memory.scratch.read_u64(log + number * 8)?)
}

#[cfg(test)]
mod tests;

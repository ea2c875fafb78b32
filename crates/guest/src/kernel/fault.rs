//! What a page fault asks for, and doing it: copy on write, zeroes on demand, tables that roots share.
//!
//! The decision works on any [`TableStore`], so it is tested without a machine.

use core::fmt;

use vellum_layout::{Gpa, Gva, GvaRange, PAGE_SIZE, PageSize};
use vellum_vmem::{
    Attrs, Change, EntryWidth, Format, FrameSource, MapError, Mapper, Mapping, RemapError,
    RootError, SplitError, StoreError, TableError, TableStore, TlbFlush, translate,
};

/// Error-code bits of a page fault (Intel SDM volume 3A, section 4.7).
const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const RESERVED: u64 = 1 << 3;
const FETCH: u64 = 1 << 4;

/// Bit 0 of any entry: it is not absent (Intel SDM volume 3A, tables 4-4 and 4-14).
const ENTRY_PRESENT: u64 = 1 << 0;

/// Bits 5 and 6 of an entry, which the processor sets by itself (Intel SDM volume 3A, section 4.8).
const ACCESSED_AND_DIRTY: u64 = 1 << 5 | 1 << 6;

/// A page fault as the processor reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageFault {
    /// What CR2 holds.
    pub(crate) address: Gva,
    /// The error code.
    pub(crate) code: u64,
}

/// What was done about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// The page got a private copy.
    Copied,
    /// The page got a frame of zeroes.
    Zeroed,
    /// The root got a table that the home root has.
    Shared,
    /// The processor had remembered a translation that was no longer true.
    Stale,
}

/// Why nothing was done about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is no fault that this library serves.
    NotServed,
    /// It needs a frame and there is none left.
    OutOfFrames,
    /// The page tables cannot be read or changed.
    Tables,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotServed => "nothing is mapped there that allows it",
            Self::OutOfFrames => "out of frames: give the guest more scratch",
            Self::Tables => "its page tables cannot be read or changed",
        })
    }
}

/// What a kernel's memory is made of, as far as faults are concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Territory {
    /// The root that the host built.
    pub(crate) home: Gpa,
    /// First address and length of the heap, whose pages are zero at first touch.
    pub(crate) heap: (u64, u64),
    /// Rights of its pages.
    pub(crate) heap_attrs: Attrs,
    pub(crate) format: Format,
}

/// Pages as the faulting program sees them.
pub(crate) trait Pages {
    /// Copies the page at `from`, which can be read, to the frame `to`.
    fn copy(&mut self, from: Gva, to: Gpa);
    /// Makes the processor forget the translation of `page`.
    fn invalidate(&mut self, page: Gva);
}

/// Serves the faults of the program that runs on the tables at `root`.
pub(crate) struct Server<'a, S, F, P> {
    pub(crate) territory: &'a Territory,
    pub(crate) root: Gpa,
    pub(crate) tables: S,
    pub(crate) frames: F,
    pub(crate) pages: P,
}

impl PageFault {
    /// A write to a page that is present, by ring 0.
    const fn is_write_to_present(self) -> bool {
        self.code & (PRESENT | WRITE | USER | RESERVED | FETCH) == PRESENT | WRITE
    }

    /// A read or write of ring 0 where nothing is mapped.
    const fn is_touch_of_absent(self) -> bool {
        self.code & (PRESENT | USER | RESERVED | FETCH) == 0
    }

    /// The verb and what was in the way.
    pub(crate) const fn access(self) -> &'static str {
        match (
            self.code & RESERVED != 0,
            self.code & FETCH != 0,
            self.code & WRITE != 0,
            self.code & PRESENT != 0,
        ) {
            (true, ..) => "access through an entry with reserved bits",
            (_, true, _, true) => "execution of a page that is not executable",
            (_, true, _, false) => "execution of a page that is not mapped",
            (_, _, true, true) => "write to a page that is not writable",
            (_, _, true, false) => "write to a page that is not mapped",
            (_, _, false, true) => "read of a page that does not allow it",
            (_, _, false, false) => "read of a page that is not mapped",
        }
    }
}

impl<S: TableStore, F: FrameSource, P: Pages> Server<'_, S, F, P> {
    /// Removes the cause of the fault, so that the instruction can be tried again.
    ///
    /// # Errors
    /// Why not; no translation has changed then.
    pub(crate) fn serve(&mut self, fault: PageFault) -> Result<Served, Refusal> {
        let page = fault.address.align_down(PageSize::Size4KiB);
        if fault.is_write_to_present() {
            self.make_private(page)
        } else if fault.is_touch_of_absent() {
            self.make_present(page, fault.address)
        } else {
            Err(Refusal::NotServed)
        }
    }

    /// Gives a copy-on-write page a frame of its own.
    fn make_private(&mut self, page: Gva) -> Result<Served, Refusal> {
        let owner = self.owner_of(page)?;
        let mapping = self.translation(owner, page).ok_or(Refusal::NotServed)?;
        if mapping.effective.contains(Attrs::WRITE) {
            self.pages.invalidate(page);
            return Ok(Served::Stale);
        }
        if !mapping.attrs.contains(Attrs::COW) {
            return Err(Refusal::NotServed);
        }
        let split = self.mapper(owner)?.split_leaf(page, PageSize::Size4KiB)?;
        self.flush(split);
        let frame = self.frames.allocate_table().ok_or(Refusal::OutOfFrames)?;
        self.pages.copy(page, frame);
        let private = mapping.attrs.difference(Attrs::COW);
        let attrs = private | Attrs::WRITE | Attrs::ACCESSED | Attrs::DIRTY;
        let remapped = self.mapper(owner)?.remap_leaf(page, frame, attrs)?;
        self.flush(remapped);
        if owner != self.root {
            self.share_entry(page)?;
        }
        Ok(Served::Copied)
    }

    /// Gives an absent page what it should have: a frame of zeroes in the heap, or the tables of the home root.
    fn make_present(&mut self, page: Gva, address: Gva) -> Result<Served, Refusal> {
        let owner = self.owner_of(page)?;
        let is_mapped = self.translation(owner, page).is_some();
        let served = if is_mapped && owner == self.root {
            // Present in the tables that the processor used: it has remembered an older state.
            self.pages.invalidate(page);
            return Ok(Served::Stale);
        } else if is_mapped {
            Served::Shared
        } else if self.is_heap(address) {
            self.map_zeroes(owner, page)?;
            Served::Zeroed
        } else {
            return Err(Refusal::NotServed);
        };
        if owner != self.root {
            self.share_entry(page)?;
        }
        Ok(served)
    }

    fn map_zeroes(&mut self, owner: Gpa, page: Gva) -> Result<(), Refusal> {
        let frame = self.frames.allocate_table().ok_or(Refusal::OutOfFrames)?;
        let range = GvaRange::new(page, PAGE_SIZE).map_err(|_| Refusal::NotServed)?;
        let attrs = self.territory.heap_attrs | Attrs::WRITE | Attrs::ACCESSED | Attrs::DIRTY;
        let mapped = self.mapper(owner)?.map(range, frame, attrs)?;
        self.flush(mapped);
        Ok(())
    }

    /// The root whose tables map `page` for the current one: the home root if the two share it, or could.
    fn owner_of(&self, page: Gva) -> Result<Gpa, Refusal> {
        let home = self.territory.home;
        if self.root == home {
            return Ok(home);
        }
        let [ours, theirs] = [self.root, home].map(|root| self.top_entry(root, page));
        let (ours, theirs) = (ours?, theirs?);
        let is_shared = ours & ENTRY_PRESENT == 0 || (ours ^ theirs) & !ACCESSED_AND_DIRTY == 0;
        Ok(if is_shared { home } else { self.root })
    }

    /// Makes the current root's top-level entry for `page` that of the home root.
    fn share_entry(&mut self, page: Gva) -> Result<(), Refusal> {
        let [ours, theirs] =
            [self.root, self.territory.home].map(|root| self.top_entry(root, page));
        let (ours, theirs) = (ours?, theirs?);
        if ours != theirs {
            let at = self.top_entry_gpa(self.root, page)?;
            self.tables.write_entry(at, self.width(), theirs)?;
            self.pages.invalidate(page);
        }
        Ok(())
    }

    fn top_entry(&self, root: Gpa, page: Gva) -> Result<u64, Refusal> {
        let at = self.top_entry_gpa(root, page)?;
        Ok(self.tables.read_entry(at, self.width())?)
    }

    fn top_entry_gpa(&self, root: Gpa, page: Gva) -> Result<Gpa, Refusal> {
        let format = self.territory.format;
        let offset = format.index(format.root_level(), page) * self.width().bytes();
        root.checked_add(offset).ok_or(Refusal::Tables)
    }

    const fn width(&self) -> EntryWidth {
        self.territory.format.entry_width()
    }

    fn translation(&self, root: Gpa, page: Gva) -> Option<Mapping> {
        translate(&self.tables, root, page, self.territory.format).ok()
    }

    fn is_heap(&self, address: Gva) -> bool {
        let (start, len_bytes) = self.territory.heap;
        address
            .as_u64()
            .checked_sub(start)
            .is_some_and(|offset| offset < len_bytes)
    }

    fn mapper(&mut self, root: Gpa) -> Result<Mapper<&mut S, &mut F>, Refusal> {
        let mapper = Mapper::new(
            &mut self.tables,
            &mut self.frames,
            root,
            self.territory.format,
        )?;
        // Tables for the supervisor only: the pages that are mapped here belong to the kernel.
        let attrs = Attrs::WRITE | Attrs::ACCESSED;
        mapper
            .with_max_leaf(PageSize::Size4KiB)
            .with_table_attrs(attrs)
            .map_err(|_| Refusal::Tables)
    }

    fn flush(&mut self, flush: TlbFlush) {
        if flush.change() <= Change::Added {
            flush.ignore("a processor remembers no absent translation");
        } else {
            flush.flush_pages(|page| self.pages.invalidate(page));
        }
    }
}

impl From<RootError> for Refusal {
    fn from(_: RootError) -> Self {
        Self::Tables
    }
}

impl From<StoreError> for Refusal {
    fn from(_: StoreError) -> Self {
        Self::Tables
    }
}

impl From<TableError> for Refusal {
    fn from(error: TableError) -> Self {
        match error {
            TableError::OutOfFrames { .. } => Self::OutOfFrames,
            _ => Self::Tables,
        }
    }
}

impl From<MapError> for Refusal {
    fn from(error: MapError) -> Self {
        match error {
            MapError::Tables(error) => error.into(),
            _ => Self::Tables,
        }
    }
}

impl From<SplitError> for Refusal {
    fn from(error: SplitError) -> Self {
        match error {
            SplitError::Tables(error) => error.into(),
            _ => Self::Tables,
        }
    }
}

impl From<RemapError> for Refusal {
    fn from(error: RemapError) -> Self {
        match error {
            RemapError::Tables(error) => error.into(),
            _ => Self::Tables,
        }
    }
}

#[cfg(test)]
mod tests;

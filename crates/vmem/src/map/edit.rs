//! What the mapper writes, after everything was checked.

use vellum_layout::{Gpa, PAGE_SIZE, PageSize};

use super::check::CHUNK;
use super::{Mapper, Place, ShareError, TableError, Target, parent_of};
use crate::attrs::{AttrChange, Attrs};
use crate::entry::{Entry, Leaf};
use crate::format::{Level, gva_of};
use crate::store::{EntryRun, FrameSource, TableStore};

/// An entry that maps nothing and has no software bits.
const CLEAR: u64 = 0;

impl<S: TableStore, F: FrameSource> Mapper<S, F> {
    /// Makes the tables that `target` needs, still empty: translations stay as they are.
    pub(super) fn link_tables(&mut self, place: Place, target: Target) -> Result<(), TableError> {
        for span in self.divide(place, target)?.rest() {
            for slot in span.slots(self.format, place.level) {
                let (at, entry) = self.read_entry(place.table, place.level, slot.index)?;
                let table = match entry {
                    Entry::Absent { .. } if self.leaf_fits(place.level, slot.span, target) => {
                        continue;
                    }
                    Entry::Absent { .. } => self.link_table(at, place.level)?,
                    Entry::Table { table, .. } => table,
                    Entry::Leaf(_) => return Err(TableError::Changed { at }),
                };
                let below = place.below(table, slot.span);
                if below.level > Level::L1 {
                    self.link_tables(below, target)?;
                }
            }
        }
        Ok(())
    }

    /// Writes the leaves of `target`; all tables are there.
    pub(super) fn write_leaves(&mut self, place: Place, target: Target) -> Result<(), TableError> {
        if place.level == Level::L1 {
            let first_raw = self.encode_leaf(place.level, place.span.first, target)?;
            return self.fill(place, first_raw, PAGE_SIZE);
        }
        let divided = self.divide(place, target)?;
        if let Some(span) = divided.run {
            let first_raw = self.encode_leaf(place.level, span.first, target)?;
            let stride = self.format.span_bytes(place.level);
            self.fill(Place { span, ..place }, first_raw, stride)?;
        }
        for span in divided.rest() {
            for slot in span.slots(self.format, place.level) {
                let (at, entry) = self.read_entry(place.table, place.level, slot.index)?;
                match entry {
                    Entry::Absent { .. } if self.leaf_fits(place.level, slot.span, target) => {
                        let raw = self.encode_leaf(place.level, slot.span.first, target)?;
                        self.write_raw(at, raw)?;
                    }
                    Entry::Table { table, .. } => {
                        self.write_leaves(place.below(table, slot.span), target)?;
                    }
                    Entry::Absent { .. } | Entry::Leaf(_) => {
                        return Err(TableError::Changed { at });
                    }
                }
            }
        }
        Ok(())
    }

    /// Splits the leaves of which `place` covers only a part.
    pub(super) fn split_edges(&mut self, place: Place) -> Result<(), TableError> {
        if place.level == Level::L1 {
            return Ok(());
        }
        for slot in place.span.edge_slots(self.format, place.level) {
            let (at, entry) = self.read_entry(place.table, place.level, slot.index)?;
            let table = match entry {
                Entry::Leaf(leaf) => self.split_entry(at, place.level, leaf)?,
                Entry::Table { table, .. } => table,
                Entry::Absent { .. } => return Err(TableError::Changed { at }),
            };
            self.split_edges(place.below(table, slot.span))?;
        }
        Ok(())
    }

    /// Clears all leaves of `place`; none crosses its bounds.
    pub(super) fn clear_leaves(&mut self, place: Place) -> Result<(), TableError> {
        if place.level == Level::L1 {
            return self.fill(place, CLEAR, 0);
        }
        for slot in place.span.slots(self.format, place.level) {
            let (at, entry) = self.read_entry(place.table, place.level, slot.index)?;
            match entry {
                Entry::Leaf(_) if slot.span.fills(self.format, place.level) => {
                    self.write_raw(at, CLEAR)?;
                }
                Entry::Table { table, .. } => self.clear_leaves(place.below(table, slot.span))?,
                Entry::Leaf(_) | Entry::Absent { .. } => return Err(TableError::Changed { at }),
            }
        }
        Ok(())
    }

    /// Changes the attributes of all leaves of `place`; none crosses its bounds.
    pub(super) fn change_leaves(
        &mut self,
        place: Place,
        change: AttrChange,
    ) -> Result<(), TableError> {
        if place.level == Level::L1 {
            return self.change_pages(place, change);
        }
        for slot in place.span.slots(self.format, place.level) {
            let (at, entry) = self.read_entry(place.table, place.level, slot.index)?;
            match entry {
                Entry::Leaf(leaf) if slot.span.fills(self.format, place.level) => {
                    self.change_leaf(at, place.level, leaf, change)?;
                }
                Entry::Table { table, .. } => {
                    self.change_leaves(place.below(table, slot.span), change)?;
                }
                Entry::Leaf(_) | Entry::Absent { .. } => return Err(TableError::Changed { at }),
            }
        }
        Ok(())
    }

    fn change_pages(&mut self, place: Place, change: AttrChange) -> Result<(), TableError> {
        let mut buffer = [0; CHUNK];
        let (mut index, end) = place.entries(self.format);
        while index < end {
            let first = self.format.entry_at(place.table, index);
            let chunk = self.read_chunk(place.table, index, end, &mut buffer)?;
            for raw in &mut *chunk {
                let at = self.format.entry_at(place.table, index);
                let Ok(Entry::Leaf(leaf)) = self.format.decode(place.level, *raw) else {
                    return Err(TableError::Changed { at });
                };
                *raw = self.encode_changed(place.level, leaf, change)?;
                index += 1;
            }
            let width = self.format.entry_width();
            self.store.write_entries(first, width, chunk)?;
        }
        Ok(())
    }

    fn change_leaf(
        &mut self,
        at: Gpa,
        level: Level,
        leaf: Leaf,
        change: AttrChange,
    ) -> Result<(), TableError> {
        let raw = self.encode_changed(level, leaf, change)?;
        self.write_raw(at, raw)
    }

    fn encode_changed(
        &self,
        level: Level,
        leaf: Leaf,
        change: AttrChange,
    ) -> Result<u64, TableError> {
        let attrs = change.apply(leaf.attrs);
        self.encode(level, leaf.frame, &Entry::Leaf(Leaf { attrs, ..leaf }))
    }

    /// Replaces a large leaf by a table of smaller ones that map the same.
    pub(super) fn split_entry(
        &mut self,
        at: Gpa,
        level: Level,
        leaf: Leaf,
    ) -> Result<Gpa, TableError> {
        let below = level.below().ok_or(TableError::Changed { at })?;
        // Every level below a leaf has leaves: 4 KiB below 2 or 4 MiB, 2 MiB below 1 GiB.
        let size = self.format.leaf_size(below).unwrap_or(PageSize::Size4KiB);
        // The frame is aligned to the large size: when the first small one can be addressed, so can
        // the rest.
        let first = Entry::Leaf(Leaf { size, ..leaf });
        let first_raw = self.encode(below, leaf.frame, &first)?;
        let table = self.new_table(below)?;
        let span = crate::format::Span {
            first: 0,
            last: leaf.size.bytes() - 1,
        };
        let level_below = Place {
            table,
            level: below,
            span,
        };
        self.fill(level_below, first_raw, size.bytes())?;
        // The table must deny nothing that the leaf allowed.
        let rights = leaf.attrs.intersection(Attrs::WRITE.union(Attrs::USER));
        let attrs = self.table_attrs.union(rights).difference(Attrs::NO_EXECUTE);
        self.write_entry(at, level, &Entry::Table { table, attrs })?;
        Ok(table)
    }

    /// Hangs a ready table of `level` in at `linear`.
    pub(super) fn hang_table(
        &mut self,
        linear: u64,
        level: Level,
        entry: Entry,
    ) -> Result<(), ShareError> {
        let parent = parent_of(level);
        let raw = self.encode(parent, self.root, &entry)?;
        let (mut table, mut at_level) = (self.root, self.format.root_level());
        loop {
            let index = self.format.linear_index(at_level, linear);
            let (at, present) = self.read_entry(table, at_level, index)?;
            match present {
                Entry::Absent { .. } if at_level == parent => {
                    return Ok(self.write_raw(at, raw)?);
                }
                Entry::Absent { .. } => table = self.link_table(at, at_level)?,
                Entry::Table { table: below, .. } if at_level > parent => table = below,
                Entry::Table { .. } | Entry::Leaf(_) => {
                    let first = linear & !(self.format.span_bytes(at_level) - 1);
                    let gva = gva_of(first);
                    return Err(ShareError::Occupied { gva });
                }
            }
            // `at_level` is above `parent` here, so there is a level below.
            at_level = at_level.below().unwrap_or(parent);
        }
    }

    /// Makes an empty table for the absent entry at `at` of a table of `level`.
    fn link_table(&mut self, at: Gpa, level: Level) -> Result<Gpa, TableError> {
        let below = level.below().ok_or(TableError::Changed { at })?;
        let table = self.new_table(below)?;
        let attrs = self.table_attrs;
        self.write_entry(at, level, &Entry::Table { table, attrs })?;
        Ok(table)
    }

    fn new_table(&mut self, level: Level) -> Result<Gpa, TableError> {
        self.frames
            .allocate_table()
            .ok_or(TableError::OutOfFrames { level })
    }

    fn encode_leaf(&self, level: Level, linear: u64, target: Target) -> Result<u64, TableError> {
        let address = target.address(linear);
        // The whole target was validated; an address out of it shows that the tables changed.
        let frame = Gpa::new(address).map_err(|_| TableError::Changed { at: self.root })?;
        let size = self.format.leaf_size(level).unwrap_or(PageSize::Size4KiB);
        let attrs = target.attrs;
        self.encode(level, frame, &Entry::Leaf(Leaf { frame, attrs, size }))
    }

    fn encode(&self, level: Level, frame: Gpa, entry: &Entry) -> Result<u64, TableError> {
        self.format
            .encode(level, entry)
            .map_err(|source| TableError::Frame { frame, source })
    }

    /// Fills the entries of `place` with values that grow by `stride`.
    fn fill(&mut self, place: Place, first_raw: u64, stride: u64) -> Result<(), TableError> {
        let (first, end) = place.entries(self.format);
        let at = self.format.entry_at(place.table, first);
        let run = EntryRun {
            first_raw,
            stride,
            // At most one table's entries.
            count: usize::try_from(end - first).unwrap_or(0),
        };
        Ok(self
            .store
            .fill_entries(at, self.format.entry_width(), run)?)
    }

    fn write_entry(&mut self, at: Gpa, level: Level, entry: &Entry) -> Result<(), TableError> {
        let frame = match entry {
            Entry::Table { table, .. } => *table,
            Entry::Leaf(leaf) => leaf.frame,
            Entry::Absent { .. } => at,
        };
        let raw = self.encode(level, frame, entry)?;
        self.write_raw(at, raw)
    }

    pub(super) fn write_raw(&mut self, at: Gpa, raw: u64) -> Result<(), TableError> {
        let width = self.format.entry_width();
        Ok(self.store.write_entry(at, width, raw)?)
    }
}

//! What the mapper looks at before it writes anything. Nothing here needs `&mut`.

use vellum_layout::{Gpa, Gva, GvaRange, PAGE_SIZE, PageSize};

use super::{MapError, Mapper, Place, ProtectError, TableError, Target, UnmapError};
use crate::attrs::{AttrChange, Attrs};
use crate::entry::{EncodeError, Entry, Leaf};
use crate::format::{Level, Span, gva_of};
use crate::store::{FrameSource, TableStore};
use crate::tlb::Change;

/// Entries read at a time; a local buffer of this size is on the stack.
pub(super) const CHUNK: usize = 32;

impl<S: TableStore, F: FrameSource> Mapper<S, F> {
    /// Checks the arguments of a mapping on their own, without the tables.
    pub(super) fn validate_target(
        &self,
        range: GvaRange,
        frame: Gpa,
        attrs: Attrs,
    ) -> Result<(Place, Target), MapError> {
        let place = self.place_of(range).ok_or(MapError::OutOfReach { range })?;
        if !frame.is_aligned(PageSize::Size4KiB) {
            return Err(MapError::UnalignedFrame { frame });
        }
        let len_bytes = range.len_bytes();
        let last = frame
            .checked_add(len_bytes - PAGE_SIZE)
            .ok_or(MapError::FramePastEnd { frame, len_bytes })?;
        self.check_leaf(last, attrs)?;
        let delta = frame.as_u64().wrapping_sub(place.span.first);
        Ok((place, Target { delta, attrs }))
    }

    /// Checks that a leaf can have these attributes; all sizes of a format take the same ones.
    pub(super) fn check_attrs(&self, attrs: Attrs) -> Result<(), EncodeError> {
        self.check_leaf(self.root, attrs)
    }

    fn check_leaf(&self, frame: Gpa, attrs: Attrs) -> Result<(), EncodeError> {
        let size = PageSize::Size4KiB;
        let leaf = Entry::Leaf(Leaf { frame, attrs, size });
        self.format.encode(Level::L1, &leaf).map(|_| ())
    }

    /// Checks that nothing is mapped at `place`, and that no table there, present or to be made,
    /// denies what `target` asks for.
    pub(super) fn check_vacant(&self, place: Place, target: Target) -> Result<(), MapError> {
        if place.level == Level::L1 {
            return self.scan(place, |gva, entry| match entry {
                Entry::Absent { .. } => Ok(()),
                Entry::Leaf(_) | Entry::Table { .. } => Err(MapError::AlreadyMapped { gva }),
            });
        }
        for span in self.divide(place, target)?.rest() {
            for slot in span.slots(self.format, place.level) {
                let gva = gva_of(slot.span.first);
                let (_, entry) = self.read_entry(place.table, place.level, slot.index)?;
                match entry {
                    Entry::Absent { .. } if self.leaf_fits(place.level, slot.span, target) => {}
                    Entry::Absent { .. } => check_rights(gva, target.attrs, self.table_attrs)?,
                    Entry::Leaf(_) => return Err(MapError::AlreadyMapped { gva }),
                    Entry::Table { table, attrs } => {
                        check_rights(gva, target.attrs, attrs)?;
                        self.check_vacant(place.below(table, slot.span), target)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Checks that all of `place` is mapped, and says what forgetting it asks of the caller.
    pub(super) fn check_mapped(&self, place: Place) -> Result<Change, UnmapError> {
        self.check_leaves(place, |gva| UnmapError::NotMapped { gva }, &|_, _| Ok(()))
    }

    /// Checks that all of `place` is mapped and that no table denies what `change` grants.
    pub(super) fn check_change(
        &self,
        place: Place,
        change: AttrChange,
    ) -> Result<Change, ProtectError> {
        self.check_leaves(
            place,
            |gva| ProtectError::NotMapped { gva },
            &|gva, table_attrs| {
                let denied = change.denied_by(table_attrs);
                if denied.is_empty() {
                    Ok(())
                } else {
                    Err(ProtectError::Restricted { gva, denied })
                }
            },
        )
    }

    fn check_leaves<E: From<TableError>>(
        &self,
        place: Place,
        not_mapped: fn(Gva) -> E,
        on_table: &impl Fn(Gva, Attrs) -> Result<(), E>,
    ) -> Result<Change, E> {
        let mut change = Change::Changed;
        if place.level == Level::L1 {
            self.scan(place, |gva, entry| {
                let Entry::Leaf(leaf) = entry else {
                    return Err(not_mapped(gva));
                };
                change = change.max(change_of(leaf.attrs));
                Ok(())
            })?;
            return Ok(change);
        }
        for slot in place.span.slots(self.format, place.level) {
            let gva = gva_of(slot.span.first);
            let (_, entry) = self.read_entry(place.table, place.level, slot.index)?;
            change = change.max(match entry {
                Entry::Absent { .. } => return Err(not_mapped(gva)),
                Entry::Leaf(leaf) => change_of(leaf.attrs),
                Entry::Table { table, attrs } => {
                    on_table(gva, attrs)?;
                    self.check_leaves(place.below(table, slot.span), not_mapped, on_table)?
                }
            });
        }
        Ok(change)
    }

    /// Calls `visit` with the address and content of every entry of `place`, a level-1 table.
    fn scan<E: From<TableError>>(
        &self,
        place: Place,
        mut visit: impl FnMut(Gva, Entry) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut buffer = [0; CHUNK];
        let (mut index, end) = place.entries(self.format);
        let mut linear = place.span.first;
        while index < end {
            let chunk = self.read_chunk(place.table, index, end, &mut buffer)?;
            for &raw in &*chunk {
                let at = self.format.entry_at(place.table, index);
                let entry = self
                    .format
                    .decode(Level::L1, raw)
                    .map_err(|source| TableError::Malformed { at, source })?;
                visit(gva_of(linear), entry)?;
                index += 1;
                linear += PAGE_SIZE;
            }
        }
        Ok(())
    }

    /// Reads entries from `index` on into `buffer`, as many as fit and lie before `end`.
    pub(super) fn read_chunk<'b>(
        &self,
        table: Gpa,
        index: u64,
        end: u64,
        buffer: &'b mut [u64; CHUNK],
    ) -> Result<&'b mut [u64], TableError> {
        let count = usize::try_from(end - index).map_or(CHUNK, |left| left.min(CHUNK));
        let chunk = &mut buffer[..count];
        let at = self.format.entry_at(table, index);
        self.store
            .read_entries(at, self.format.entry_width(), chunk)?;
        Ok(chunk)
    }

    /// Reads and decodes one entry; gives its address too.
    pub(super) fn read_entry(
        &self,
        table: Gpa,
        level: Level,
        index: u64,
    ) -> Result<(Gpa, Entry), TableError> {
        let at = self.format.entry_at(table, index);
        let raw = self.store.read_entry(at, self.format.entry_width())?;
        let entry = self
            .format
            .decode(level, raw)
            .map_err(|source| TableError::Malformed { at, source })?;
        Ok((at, entry))
    }

    /// Divides a place above level 1 into entries that hold nothing and can become large leaves, one behind the other, and the others.
    pub(super) fn divide(&self, place: Place, target: Target) -> Result<Divided, TableError> {
        let whole = Divided {
            run: None,
            rest: [Some(place.span), None],
        };
        let Some(run) = self.large_span(place, target) else {
            return Ok(whole);
        };
        let mut buffer = [0; CHUNK];
        let (mut index, end) = Place { span: run, ..place }.entries(self.format);
        while index < end {
            let chunk = self.read_chunk(place.table, index, end, &mut buffer)?;
            if chunk.iter().any(|&raw| raw != 0) {
                return Ok(whole);
            }
            index += chunk.len() as u64;
        }
        let Span { first, last } = place.span;
        let before = (first < run.first).then(|| Span {
            first,
            last: run.first - 1,
        });
        let after = (run.last < last).then(|| Span {
            first: run.last + 1,
            last,
        });
        Ok(Divided {
            run: Some(run),
            rest: [before, after],
        })
    }

    /// The part of a place that leaves of its level can map; `None` unless those are several. Their entries grow evenly: what a target
    /// may reach was validated to be what small pages can, so PSE-36 never puts bits of the address elsewhere.
    fn large_span(&self, place: Place, target: Target) -> Option<Span> {
        let size = self.format.leaf_size(place.level)?.bytes();
        let first = place.span.first.checked_next_multiple_of(size)?;
        let end = place.span.last.checked_add(1)? & !(size - 1);
        let run = Span {
            first,
            last: end.checked_sub(1)?,
        };
        let is_long = end.checked_sub(first)? > size;
        let fits = size <= self.max_leaf.bytes() && target.address(first).is_multiple_of(size);
        (is_long && fits).then_some(run)
    }

    /// Whether one leaf of `level` can map all of `span`.
    pub(super) fn leaf_fits(&self, level: Level, span: Span, target: Target) -> bool {
        self.format.leaf_size(level).is_some_and(|size| {
            size <= self.max_leaf
                && span.fills(self.format, level)
                && target.address(span.first).is_multiple_of(size.bytes())
        })
    }
}

/// A place in parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Divided {
    /// Whose entries are written as one run of leaves.
    pub(super) run: Option<Span>,
    rest: [Option<Span>; 2],
}

impl Divided {
    /// What is done entry by entry.
    pub(super) fn rest(self) -> impl Iterator<Item = Span> {
        self.rest.into_iter().flatten()
    }
}

/// What replacing a leaf with these attributes asks of the caller.
pub(super) const fn change_of(attrs: Attrs) -> Change {
    if attrs.contains(Attrs::GLOBAL) {
        Change::ChangedGlobal
    } else {
        Change::Changed
    }
}

fn check_rights(gva: Gva, attrs: Attrs, table_attrs: Attrs) -> Result<(), MapError> {
    let denied = super::denied_rights(attrs, table_attrs);
    if denied.is_empty() {
        Ok(())
    } else {
        Err(MapError::Restricted { gva, denied })
    }
}

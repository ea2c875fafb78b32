//! A walk over everything that a set of tables maps, with a budget.

use vellum_layout::{Gpa, Gva, GvaRange, PAGE_SIZE};

use crate::attrs::Attrs;
use crate::entry::{DecodeError, Entry, Leaf};
use crate::format::{Format, Level, RootError, Span, gva_of};
use crate::lookup::OPEN_PATH;
use crate::store::{StoreError, TableStore};

/// A walk over page tables, as an iterator of [`Step`]s in ascending order of address.
///
/// The tables may be hostile. Whatever they hold, a walk
///
/// * visits at most [`Budget::tables`] tables (the root is the first) and reports at most
///   [`Budget::leaves`] leaves, and reads at most 1,024 entries for each table visited;
/// * uses a constant amount of memory, about 2.5 KiB, inside the walker itself;
/// * reads each entry of a visited table once and decides on that copy;
/// * takes a table without memory, and an entry that the processor would refuse, for absent, and
///   reports them as steps;
/// * notices a table that contains itself, directly or through others, and acts as
///   [`SelfReference`] says.
///
/// After [`Step::Table`], [`skip_table`](Self::skip_table) leaves that table out: a caller that
/// remembers tables ([`SeenTables`](crate::SeenTables), or a hash set on a host) visits shared ones
/// once.
///
/// ```
/// use vellum_layout::Gpa;
/// use vellum_vmem::{Budget, Format, SliceStore, Step, Walker};
///
/// // A root whose entry 0 points back at the root: no walk of it ever ends by itself.
/// let mut memory = [0u64; 512];
/// memory[0] = 0x1000 | 0b111;
/// let store = SliceStore::new(Gpa::literal(0x1000), &mut memory);
/// let budget = Budget { tables: 16, leaves: 1000 };
/// let mut walker = Walker::new(&store, Gpa::literal(0x1000), Format::FOUR_LEVEL, budget)?;
/// assert!(walker.next().unwrap().is_err());
/// assert!(walker.next().is_none());
/// # Ok::<(), vellum_vmem::RootError>(())
/// ```
#[derive(Debug)]
pub struct Walker<'s, S: ?Sized> {
    store: &'s S,
    format: Format,
    span: Span,
    self_reference: SelfReference,
    left: Budget,
    granted: Budget,
    /// Tables on the way to the current entry, root first; `depth` of them are in use.
    path: [Cursor; 4],
    depth: usize,
    /// A table that was reported and is entered by the next step.
    announced: Option<(Gpa, Level, u64, Attrs)>,
    finished: bool,
}

/// How much a walk may cost.
///
/// There is no default: the bound belongs to the caller, who knows how much memory the guest has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// Tables that may be visited, the root included. A table that is reached in several ways counts
    /// each time.
    pub tables: u64,
    /// Leaves that may be reported.
    pub leaves: u64,
}

impl Budget {
    /// A budget for an honest guest with `len_bytes` of memory: every table fills a frame of that
    /// memory, and each frame is mapped four times at most (its own address, a copy-on-write alias,
    /// a window over all memory, one to spare), with one more table as the root.
    pub const fn for_memory(len_bytes: u64) -> Self {
        let frames = len_bytes.div_ceil(PAGE_SIZE);
        Self {
            tables: frames.saturating_add(1),
            leaves: frames.saturating_mul(4),
        }
    }
}

/// What a walk does with a table that contains itself.
///
/// A kernel may do this on purpose (a "recursive mapping", through which it edits its tables); a
/// hostile guest does it to make the walk large.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum SelfReference {
    /// The walk ends with [`WalkError::SelfReference`].
    #[default]
    Refuse,
    /// The entry is reported as [`Step::SelfReference`] and not followed.
    Skip,
    /// The entry is followed as the processor does it; the budget bounds the walk.
    Follow,
}

/// Something that a walk came across.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// A mapped page.
    Leaf(LeafStep),
    /// A table below the root. The next step enters it, unless it is skipped.
    Table(TableStep),
    /// An entry that points at a table on the way to it; reported under [`SelfReference::Skip`].
    SelfReference(TableStep),
    /// A table, or the rest of it, that lies where there is no memory; nothing in it is mapped.
    Unbacked(TableStep, StoreError),
    /// A present entry that the processor refuses; nothing is mapped by it.
    Malformed {
        /// First address under the entry.
        gva: Gva,
        /// Where the entry lies.
        entry_gpa: Gpa,
        /// What is wrong with it.
        error: DecodeError,
    },
}

/// A mapped page, found by a walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeafStep {
    /// First address of the page. A large page that only overlaps the walked range is reported
    /// whole.
    pub gva: Gva,
    /// Where the leaf entry lies.
    pub entry_gpa: Gpa,
    /// The leaf as it stands in the entry.
    pub leaf: Leaf,
    /// Attributes as they take effect: without the rights that a table above the leaf denies.
    pub effective: Attrs,
}

/// A table, found by a walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableStep {
    /// First address under the table.
    pub gva: Gva,
    /// The frame of the table.
    pub table: Gpa,
    /// Level of the table.
    pub level: Level,
    /// Rights that the tables above and the entry of this one leave, as WRITE, USER and
    /// `NO_EXECUTE`.
    pub rights: Attrs,
}

/// Why a walk ended early. Nothing follows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WalkError {
    /// The root table lies where there is no memory: nothing is mapped.
    #[error("page-table walk cannot read the root table at {:#x}: no mappings", .root.as_u64())]
    RootUnbacked {
        /// Address of the root.
        root: Gpa,
        /// What the store said.
        source: StoreError,
    },
    /// More tables than allowed.
    #[error("page-table walk gave up at {:#x}: more than {limit} tables", .gva.as_u64())]
    TooManyTables {
        /// First address under the table that was one too many.
        gva: Gva,
        /// The limit.
        limit: u64,
    },
    /// More leaves than allowed.
    #[error("page-table walk gave up at {:#x}: more than {limit} leaves", .gva.as_u64())]
    TooManyLeaves {
        /// Address of the leaf that was one too many.
        gva: Gva,
        /// The limit.
        limit: u64,
    },
    /// A table contains itself.
    #[error("page table at {:#x} contains itself (seen at {:#x})", .table.as_u64(), .gva.as_u64())]
    SelfReference {
        /// First address under the entry that closes the circle.
        gva: Gva,
        /// The table it points to.
        table: Gpa,
    },
}

/// Entries read at a time. More would save little time, and every level has a buffer of this size.
const CHUNK: usize = 64;

/// A place in one table.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    table: Gpa,
    level: Level,
    /// Linear address under entry 0.
    base: u64,
    /// Rights left by the tables above and the entry that led here.
    rights: Attrs,
    /// Index of the entry to look at next.
    next: u64,
    /// First index not to look at.
    end: u64,
    /// Copies of the entries before `chunk_end`, the last of them at the end of the buffer.
    chunk: [u64; CHUNK],
    chunk_end: u64,
}

impl Cursor {
    const UNUSED: Self = Self {
        table: Gpa::literal(0),
        level: Level::L1,
        base: 0,
        rights: Attrs::empty(),
        next: 0,
        end: 0,
        chunk: [0; CHUNK],
        chunk_end: 0,
    };

    /// Reads the entries after `chunk_end` into the buffer.
    fn refill<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        format: Format,
    ) -> Result<(), StoreError> {
        let count = (self.end - self.next).min(CHUNK as u64);
        let at = format.entry_at(self.table, self.next);
        // `count` is at most CHUNK, which fits every integer type.
        let into = &mut self.chunk[CHUNK - usize::try_from(count).unwrap_or(CHUNK)..];
        store.read_entries(at, format.entry_width(), into)?;
        self.chunk_end = self.next + count;
        Ok(())
    }

    fn step(&self) -> TableStep {
        TableStep {
            gva: gva_of(self.base),
            table: self.table,
            level: self.level,
            rights: self.rights,
        }
    }
}

impl<'s, S: TableStore + ?Sized> Walker<'s, S> {
    /// A walk over everything that is mapped under `root`.
    ///
    /// # Errors
    /// [`RootError`] when `root` is no table address. See [`Format::root_from_cr3`] for CR3 values.
    pub fn new(store: &'s S, root: Gpa, format: Format, budget: Budget) -> Result<Self, RootError> {
        format.check_root(root)?;
        Ok(Self {
            store,
            format,
            span: Span::whole(format),
            self_reference: SelfReference::default(),
            left: budget,
            granted: budget,
            path: [Cursor::UNUSED; 4],
            depth: 0,
            announced: Some((root, format.root_level(), 0, OPEN_PATH)),
            finished: false,
        })
    }

    /// Restricts the walk to pages that overlap `range`. Addresses that the format cannot translate
    /// have no pages.
    #[must_use]
    pub fn within(mut self, range: GvaRange) -> Self {
        match self.format.linear(range.start()) {
            Some(first) => {
                let whole = Span::whole(self.format);
                let last = self.format.linear(range.last()).unwrap_or(whole.last);
                self.span = Span { first, last };
            }
            None => self.finished = true,
        }
        self
    }

    /// Says what happens to a table that contains itself.
    #[must_use]
    pub fn on_self_reference(mut self, action: SelfReference) -> Self {
        self.self_reference = action;
        self
    }

    /// Leaves out the table that the last step announced. Does nothing after any other step.
    pub fn skip_table(&mut self) {
        if self.depth > 0 {
            self.announced = None;
        }
    }

    /// What the walk has used of its budget so far.
    pub fn used(&self) -> Budget {
        Budget {
            tables: self.granted.tables - self.left.tables,
            leaves: self.granted.leaves - self.left.leaves,
        }
    }

    /// Only the leaves; everything else is passed over.
    pub fn leaves(self) -> impl Iterator<Item = Result<LeafStep, WalkError>> + use<'s, S> {
        self.filter_map(|step| match step {
            Ok(Step::Leaf(leaf)) => Some(Ok(leaf)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        })
    }

    /// Calls `visit` with every leaf that [`leaves`](Self::leaves) would report, in the same order: a fraction of its cost where tables are
    /// full, because a whole table is looked at in one loop.
    ///
    /// # Errors
    /// [`WalkError`] when the walk ends early; the leaves before were visited.
    #[inline]
    pub fn for_each_leaf(mut self, mut visit: impl FnMut(LeafStep)) -> Result<(), WalkError> {
        while !self.finished {
            if let Some((table, Level::L1, base, rights)) = self.announced {
                self.announced = None;
                self.enter(table, Level::L1, base, rights)?;
                self.lowest_table(&mut visit)?;
            }
            match self.advance() {
                Some(Ok(Step::Leaf(leaf))) => visit(leaf),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => self.finished = true,
            }
        }
        Ok(())
    }

    /// Visits the leaves of the table on top of the path, which is of level 1, and leaves it. A table that cannot be read is left early.
    #[inline]
    fn lowest_table(&mut self, visit: &mut impl FnMut(LeafStep)) -> Result<(), WalkError> {
        let format = self.format;
        let mut cursor = self.path[self.depth - 1];
        self.depth -= 1;
        while cursor.next < cursor.end {
            if cursor.refill(self.store, format).is_err() {
                return Ok(());
            }
            let (first, count) = (cursor.next, cursor.chunk_end - cursor.next);
            // From 1 to CHUNK, so the cast loses nothing.
            #[expect(clippy::cast_possible_truncation, reason = "at most CHUNK")]
            let entries = &cursor.chunk[CHUNK - count as usize..];
            let step = |index, leaf: Leaf| LeafStep {
                gva: gva_of(cursor.base + (index << format.shift(Level::L1))),
                entry_gpa: format.entry_at(cursor.table, index),
                leaf,
                effective: leaf.attrs.restricted_by(cursor.rights),
            };
            let (in_all, in_any) = entries
                .iter()
                .fold((u64::MAX, 0), |(all, any), raw| (all & raw, any | raw));
            if format.are_plain_leaves(in_all, in_any) && self.left.leaves >= count {
                // Nothing but leaves, as a rule: what is true of all need not be asked of each.
                self.left.leaves -= count;
                for (index, &raw) in (first..).zip(entries) {
                    visit(step(index, format.leaf_in(raw)));
                }
            } else {
                for (index, &raw) in (first..).zip(entries) {
                    // Whatever else an entry of this level is, no leaf is in it.
                    if let Some(leaf) = format.plain_leaf(raw) {
                        let step = step(index, leaf);
                        self.take_leaf(step.gva)?;
                        visit(step);
                    }
                }
            }
            cursor.next = cursor.chunk_end;
        }
        Ok(())
    }

    /// Pays for a leaf.
    fn take_leaf(&mut self, gva: Gva) -> Result<(), WalkError> {
        let left = self.left.leaves.checked_sub(1);
        self.left.leaves = left.ok_or(WalkError::TooManyLeaves {
            gva,
            limit: self.granted.leaves,
        })?;
        Ok(())
    }

    /// Puts a cursor for the table on the path, at the part of it that lies in the span.
    fn enter(
        &mut self,
        table: Gpa,
        level: Level,
        base: u64,
        rights: Attrs,
    ) -> Result<(), WalkError> {
        let Some(left) = self.left.tables.checked_sub(1) else {
            return Err(WalkError::TooManyTables {
                gva: gva_of(base),
                limit: self.granted.tables,
            });
        };
        self.left.tables = left;
        let shift = self.format.shift(level);
        let table_last = base + ((self.format.entries_per_table() << shift) - 1);
        let next = (self.span.first.max(base) - base) >> shift;
        let end = ((self.span.last.min(table_last) - base) >> shift) + 1;
        let cursor = &mut self.path[self.depth];
        (cursor.table, cursor.level, cursor.base) = (table, level, base);
        (cursor.rights, cursor.next, cursor.end) = (rights, next, end);
        cursor.chunk_end = next;
        self.depth += 1;
        Ok(())
    }

    /// The next thing worth reporting.
    #[inline]
    fn advance(&mut self) -> Option<Result<Step, WalkError>> {
        if let Some((table, level, base, rights)) = self.announced.take()
            && let Err(error) = self.enter(table, level, base, rights)
        {
            return Some(Err(error));
        }
        loop {
            let cursor = &mut self.path[self.depth.checked_sub(1)?];
            if cursor.next >= cursor.chunk_end {
                if cursor.next >= cursor.end {
                    self.depth -= 1;
                    continue;
                }
                if let Err(source) = cursor.refill(self.store, self.format) {
                    return Some(self.unbacked(source));
                }
            }
            let index = cursor.next;
            cursor.next += 1;
            // `index` lies in the buffer, whose last entry is the one before `chunk_end`; the
            // difference is from 1 to CHUNK, so the cast loses nothing.
            #[expect(clippy::cast_possible_truncation, reason = "at most CHUNK")]
            let raw = cursor.chunk[CHUNK - (cursor.chunk_end - index) as usize];
            if let Some(step) = self.examine(index, raw) {
                return Some(step);
            }
        }
    }

    /// Gives up the table on top of the path, which cannot be read.
    fn unbacked(&mut self, source: StoreError) -> Result<Step, WalkError> {
        self.depth -= 1;
        let cursor = &self.path[self.depth];
        if self.depth == 0 {
            let root = cursor.table;
            return Err(WalkError::RootUnbacked { root, source });
        }
        Ok(Step::Unbacked(cursor.step(), source))
    }

    /// Decides what entry `index` of the table on top of the path is; `None` when it is absent.
    #[inline]
    fn examine(&mut self, index: u64, raw: u64) -> Option<Result<Step, WalkError>> {
        let cursor = &self.path[self.depth - 1];
        let (format, level) = (self.format, cursor.level);
        let linear = cursor.base + (index << format.shift(level));
        let entry_gpa = format.entry_at(cursor.table, index);
        let step = match format.decode(level, raw) {
            Ok(Entry::Absent { .. }) => return None,
            Ok(Entry::Leaf(leaf)) => {
                let effective = leaf.attrs.restricted_by(cursor.rights);
                let gva = gva_of(linear);
                if let Err(error) = self.take_leaf(gva) {
                    return Some(Err(error));
                }
                Step::Leaf(LeafStep {
                    gva,
                    entry_gpa,
                    leaf,
                    effective,
                })
            }
            Ok(Entry::Table { table, attrs }) => {
                let rights = cursor.rights.restricted_by(attrs);
                return Some(self.descend(table, linear, rights));
            }
            Err(error) => Step::Malformed {
                gva: gva_of(linear),
                entry_gpa,
                error,
            },
        };
        Some(Ok(step))
    }

    /// Announces a table, unless it is on the path already.
    fn descend(&mut self, table: Gpa, linear: u64, rights: Attrs) -> Result<Step, WalkError> {
        let path = &self.path[..self.depth];
        let on_path = path.iter().any(|above| above.table == table);
        let parent = path.last().map_or(Level::L1, |above| above.level);
        // Entries of level 1 decode to leaves, never to tables.
        let level = parent.below().unwrap_or(Level::L1);
        let gva = gva_of(linear);
        let step = TableStep {
            gva,
            table,
            level,
            rights,
        };
        if on_path && self.self_reference == SelfReference::Refuse {
            return Err(WalkError::SelfReference { gva, table });
        }
        if on_path && self.self_reference == SelfReference::Skip {
            return Ok(Step::SelfReference(step));
        }
        self.announced = Some((table, level, linear, rights));
        Ok(Step::Table(step))
    }
}

impl<S: TableStore + ?Sized> Iterator for Walker<'_, S> {
    type Item = Result<Step, WalkError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let step = self.advance();
        if !matches!(step, Some(Ok(_))) {
            self.finished = true;
        }
        step
    }
}

impl<S: TableStore + ?Sized> core::iter::FusedIterator for Walker<'_, S> {}

//! The mapper: changes what a set of tables maps.

use vellum_layout::{Gpa, Gva, GvaRange, PAGE_SIZE, PageSize};

use crate::attrs::{AttrChange, Attrs};
use crate::entry::{EncodeError, Entry, Leaf};
use crate::format::{Format, Level, RootError, Span, gva_of};
use crate::lookup::{Found, find_leaf};
use crate::store::{FrameSource, TableStore};
use crate::tlb::{Change, TlbFlush};

mod check;
mod edit;
mod error;

use check::change_of;

pub use error::{
    MapError, ProtectError, RemapError, ShareError, SplitError, TableError, UnmapError,
};

/// Changes what the tables under one root map.
///
/// The promises:
///
/// * Each operation validates all of its input and all entries concerned before its first write.
///   When it fails, no translation has changed. (Two failures are exempt: [`TableError::Changed`],
///   and a [`TableError::Store`] from a write that the store refuses although it allowed the read.)
///   Tables made on the way stay linked, either empty or equal in effect to the leaf that they
///   replace, and serve the next attempt.
/// * Each success hands out a [`TlbFlush`], which the caller must use up.
/// * Time is bounded by the number of pages in the range asked for, whatever the tables hold, and
///   memory is constant. The caller chooses the range; where a guest chose it, bound its length
///   first.
/// * Only the store is written, and only at entries of tables that are reached from the root.
///
/// What it asks for in return:
///
/// * Nobody else changes the tables during a call. A running guest must not be able to: stop its
///   vCPU first.
/// * No table is reached in two ways within the range, and none contains itself. With such
///   tables, which a hostile guest can make, an operation still ends within its bounds and without a
///   panic, but what it does to one of the ways it does to the other too.
///
/// Tables are never given back: an emptied table stays in place for the next mapping. Tables that
/// several roots share stay shared; an edit below them shows in every root.
///
/// ```
/// use vellum_layout::{Gpa, GpaRange, Gva, GvaRange};
/// use vellum_vmem::{Attrs, Format, FrameRange, Mapper, SliceStore, translate};
///
/// // Four frames of table memory: the root at 0x10_0000, three more for lower tables.
/// let mut memory = vec![0u64; 4 * 512];
/// let root = Gpa::literal(0x10_0000);
/// let mut store = SliceStore::new(root, &mut memory);
/// let frames = FrameRange::new(GpaRange::new(Gpa::literal(0x10_1000), 0x3000)?);
///
/// let mut mapper = Mapper::new(&mut store, frames, root, Format::FOUR_LEVEL)?;
/// let code = GvaRange::new(Gva::literal(0x40_0000), 0x3000)?;
/// mapper
///     .map(code, Gpa::literal(0x1000), Attrs::USER)?
///     .ignore("no vCPU has run on these tables");
///
/// let found = translate(&store, root, Gva::literal(0x40_2abc), Format::FOUR_LEVEL)?;
/// assert_eq!(found.gpa, Gpa::literal(0x3abc));
/// # Ok::<(), Box<dyn core::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Mapper<S, F> {
    store: S,
    frames: F,
    root: Gpa,
    format: Format,
    max_leaf: PageSize,
    table_attrs: Attrs,
}

/// A part of the address space under one table.
#[derive(Clone, Copy, Debug)]
struct Place {
    table: Gpa,
    level: Level,
    span: Span,
}

impl Place {
    /// The place under the entry of this table that covers `span` and points to `table`.
    fn below(self, table: Gpa, span: Span) -> Self {
        // Entries of level 1 decode to leaves, never to tables.
        let level = self.level.below().unwrap_or(Level::L1);
        Self { table, level, span }
    }

    /// Index of the first entry, and of the first one after the last.
    #[inline]
    const fn entries(self, format: Format) -> (u64, u64) {
        let first = format.linear_index(self.level, self.span.first);
        let last = format.linear_index(self.level, self.span.last);
        (first, last + 1)
    }
}

/// What a range is to be mapped to.
#[derive(Clone, Copy, Debug)]
struct Target {
    /// Added (with wrap-around) to a linear address, this gives its frame.
    delta: u64,
    attrs: Attrs,
}

impl Target {
    const fn address(self, linear: u64) -> u64 {
        linear.wrapping_add(self.delta)
    }
}

impl<S: TableStore, F: FrameSource> Mapper<S, F> {
    /// A mapper for the tables under `root`, which must be a table already (a zeroed frame will do).
    ///
    /// It makes leaves of at most 2 MiB (4-level) or the format's largest (2-level), and gives new tables
    /// the attributes WRITE, USER and ACCESSED, so that rights are decided by leaves alone.
    ///
    /// # Errors
    /// [`RootError`] when `root` is no table address.
    pub fn new(store: S, frames: F, root: Gpa, format: Format) -> Result<Self, RootError> {
        format.check_root(root)?;
        Ok(Self {
            store,
            frames,
            root,
            format,
            // Every long-mode processor has 2 MiB pages; 1 GiB pages are optional.
            max_leaf: match format.leaf_size(Level::L2) {
                Some(size) => size,
                None => PageSize::Size4KiB,
            },
            table_attrs: Attrs::WRITE.union(Attrs::USER).union(Attrs::ACCESSED),
        })
    }

    /// This mapper, which makes leaves of at most `max_leaf`.
    #[must_use]
    pub fn with_max_leaf(mut self, max_leaf: PageSize) -> Self {
        self.max_leaf = max_leaf;
        self
    }

    /// This mapper, which gives these attributes to new tables: without USER, for example, for the
    /// supervisor's half.
    ///
    /// # Errors
    /// [`EncodeError`] when a table entry cannot have them.
    pub fn with_table_attrs(mut self, table_attrs: Attrs) -> Result<Self, EncodeError> {
        let table = self.root;
        let attrs = table_attrs;
        self.format
            .encode(self.format.root_level(), &Entry::Table { table, attrs })?;
        self.table_attrs = table_attrs;
        Ok(self)
    }

    /// Maps `range` to the frames from `frame` upward, with the largest leaves that alignment and
    /// the maximum allow. Nothing in the range may be mapped yet; absent entries lose their
    /// software bits.
    ///
    /// # Errors
    /// [`MapError`], before any translation has changed (see the type for the exceptions).
    pub fn map(&mut self, range: GvaRange, frame: Gpa, attrs: Attrs) -> Result<TlbFlush, MapError> {
        let (place, target) = self.validate_target(range, frame, attrs)?;
        self.check_vacant(place, target)?;
        self.link_tables(place, target)?;
        self.write_leaves(place, target)?;
        Ok(TlbFlush::new(range, Change::Added))
    }

    /// Unmaps `range`, all of which must be mapped. Large leaves that cross its bounds are split.
    ///
    /// # Errors
    /// [`UnmapError`], before any translation has changed (see the type for the exceptions).
    pub fn unmap(&mut self, range: GvaRange) -> Result<TlbFlush, UnmapError> {
        let place = self
            .place_of(range)
            .ok_or(UnmapError::OutOfReach { range })?;
        let change = self.check_mapped(place)?;
        self.split_edges(place)?;
        self.clear_leaves(place)?;
        Ok(TlbFlush::new(range, change))
    }

    /// Changes the attributes of every page in `range`, all of which must be mapped. Large leaves
    /// that cross its bounds are split.
    ///
    /// # Errors
    /// [`ProtectError`], before any translation has changed (see the type for the exceptions).
    pub fn protect(
        &mut self,
        range: GvaRange,
        change: AttrChange,
    ) -> Result<TlbFlush, ProtectError> {
        let place = self
            .place_of(range)
            .ok_or(ProtectError::OutOfReach { range })?;
        self.check_attrs(change.apply(Attrs::empty()))?;
        let duty = self.check_change(place, change)?;
        self.split_edges(place)?;
        self.change_leaves(place, change)?;
        Ok(TlbFlush::new(range, duty))
    }

    /// Lets the page that maps `gva` map `frame` with `attrs` instead; its size stays.
    ///
    /// This is the step of a copy-on-write monitor after it has copied the page. A large page
    /// is replaced as a whole; [`split_leaf`](Self::split_leaf) first where only a part was copied.
    ///
    /// # Errors
    /// [`RemapError`], before anything has changed.
    pub fn remap_leaf(
        &mut self,
        gva: Gva,
        frame: Gpa,
        attrs: Attrs,
    ) -> Result<TlbFlush, RemapError> {
        let found = self.find(gva)?;
        let size = found.leaf.size;
        let range = page_range(gva, size).ok_or(RemapError::OutOfReach { gva })?;
        let denied = denied_rights(attrs, found.path);
        if !denied.is_empty() {
            return Err(RemapError::Restricted { gva, denied });
        }
        let leaf = Entry::Leaf(Leaf { frame, attrs, size });
        let raw = self
            .format
            .encode(found.level, &leaf)
            .map_err(|source| RemapError::Unencodable { gva, size, source })?;
        self.write_raw(found.at, raw)?;
        Ok(TlbFlush::new(range, change_of(found.leaf.attrs)))
    }

    /// Splits the page that maps `gva` until it is no larger than `size`, without changing any translation.
    /// A page that is small enough is left alone ([`Change::Unchanged`]).
    ///
    /// A processor may hold the large and the small translation at the same time until it is
    /// flushed; both say the same (Intel SDM vol. 3A, section 5.10.2, asks for the flush before the
    /// small ones are changed).
    ///
    /// # Errors
    /// [`SplitError`]; translations are the same as before.
    pub fn split_leaf(&mut self, gva: Gva, size: PageSize) -> Result<TlbFlush, SplitError> {
        if self.format.level_of(size).is_none() {
            return Err(SplitError::NoSuchSize { size });
        }
        let found = self.find(gva)?;
        let range = page_range(gva, found.leaf.size).ok_or(SplitError::OutOfReach { gva })?;
        let mut change = Change::Unchanged;
        let mut current = found;
        while current.leaf.size > size {
            self.split_entry(current.at, current.level, current.leaf)?;
            change = change_of(current.leaf.attrs);
            current = self.find(gva)?;
        }
        Ok(TlbFlush::new(range, change))
    }

    /// Hangs `table`, a table of `level` that some root owns already, in at the entry that covers
    /// `gva`: a kernel's half that several address spaces have in common, for example. From then on
    /// the roots share everything below.
    ///
    /// # Errors
    /// [`ShareError`]; translations are the same as before.
    pub fn share_table(
        &mut self,
        gva: Gva,
        level: Level,
        table: Gpa,
    ) -> Result<TlbFlush, ShareError> {
        let linear = self
            .format
            .linear(gva)
            .ok_or(ShareError::OutOfReach { gva })?;
        if level >= self.format.root_level() {
            return Err(ShareError::NotBelowRoot { level });
        }
        let attrs = self.table_attrs;
        let entry = Entry::Table { table, attrs };
        let len_bytes = self.format.span_bytes(parent_of(level));
        let first = gva_of(linear & !(len_bytes - 1));
        // The last table of a half ends where no range can: its last page is left out.
        let range = GvaRange::new(first, len_bytes)
            .or_else(|_| GvaRange::new(first, len_bytes - PAGE_SIZE))
            .map_err(|_| ShareError::OutOfReach { gva })?;
        self.hang_table(linear, level, entry)?;
        Ok(TlbFlush::new(range, Change::Added))
    }

    /// The table of `level` on the way to `gva`, if there is one: what another root's
    /// [`share_table`](Self::share_table) takes.
    ///
    /// # Errors
    /// [`TableError`] when a table on the way cannot be read or is malformed.
    pub fn table_at(&self, gva: Gva, level: Level) -> Result<Option<Gpa>, TableError> {
        let Some(linear) = self.format.linear(gva) else {
            return Ok(None);
        };
        let (mut table, mut at_level) = (self.root, self.format.root_level());
        while at_level > level {
            let index = self.format.linear_index(at_level, linear);
            let (_, entry) = self.read_entry(table, at_level, index)?;
            let (Entry::Table { table: below, .. }, Some(lower)) = (entry, at_level.below()) else {
                return Ok(None);
            };
            (table, at_level) = (below, lower);
        }
        Ok((at_level == level).then_some(table))
    }

    /// The root table.
    pub const fn root(&self) -> Gpa {
        self.root
    }

    /// The format of the tables.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// The memory that holds the tables.
    pub const fn store(&self) -> &S {
        &self.store
    }

    /// The source of frames for new tables.
    pub const fn frames(&self) -> &F {
        &self.frames
    }

    /// Gives store and frame source back.
    pub fn into_parts(self) -> (S, F) {
        (self.store, self.frames)
    }

    fn place_of(&self, range: GvaRange) -> Option<Place> {
        Some(Place {
            table: self.root,
            level: self.format.root_level(),
            span: Span::of(self.format, range)?,
        })
    }

    fn find(&self, gva: Gva) -> Result<Found, crate::TranslateError> {
        let linear = self
            .format
            .linear(gva)
            .ok_or(crate::TranslateError::OutOfReach { gva })?;
        find_leaf(&self.store, self.root, self.format, linear)
    }
}

/// The level of the tables that point to tables of `level`, which is not the top.
const fn parent_of(level: Level) -> Level {
    match level {
        Level::L1 => Level::L2,
        Level::L2 => Level::L3,
        Level::L3 | Level::L4 => Level::L4,
    }
}

/// The rights in `attrs` that a path with `path` rights takes away.
fn denied_rights(attrs: Attrs, path: Attrs) -> Attrs {
    attrs.symmetric_difference(attrs.restricted_by(path))
}

/// The page of `size` around `gva`, as a range.
fn page_range(gva: Gva, size: PageSize) -> Option<GvaRange> {
    GvaRange::new(gva.align_down(size), size.bytes()).ok()
}

//! Where tables live and where new ones come from: the two traits that a host or a kernel implements.

use vellum_layout::{Gpa, GpaRange, PAGE_SIZE, PageSize};

use crate::format::{EntryWidth, Format};
use crate::index::{self, TableIndex};

/// Memory that holds page tables, addressed by guest-physical address.
///
/// A host implements it over memory lent to a guest, with volatile or atomic accesses; a guest
/// kernel implements it over live memory. The rules:
///
/// * An entry is read or written with one access of its width, at an address that is a multiple of
///   the width. Entries are in little-endian byte order.
/// * Memory is backed in whole 4 KiB frames: an entry in a frame of which only a part is backed is
///   refused with [`StoreError::Unbacked`].
/// * Every address is acceptable input. Tables made by a guest point anywhere.
pub trait TableStore {
    /// Reads the entry at `at`.
    ///
    /// # Errors
    /// [`StoreError`] when there is no readable memory.
    fn read_entry(&self, at: Gpa, width: EntryWidth) -> Result<u64, StoreError>;

    /// Writes the entry at `at`.
    ///
    /// # Errors
    /// [`StoreError`] when there is no writable memory; nothing is written then.
    fn write_entry(&mut self, at: Gpa, width: EntryWidth, raw: u64) -> Result<(), StoreError>;

    /// Follows `above`, which is the raw value of some 8-byte entry: reads the entry at `index` of the table that it points to, and gives that
    /// entry's address and value. It is one level of a usual look-up.
    ///
    /// Only an *open* entry is followed: bits 0 to 2 (P, R/W and U/S) are set, so that it is in use and takes no right away, and nothing is
    /// set above the address (bits 52 to 63). The other bits are for the caller to judge. `None` says only that another way must be taken:
    /// through [`read_entry`](Self::read_entry).
    ///
    /// A store over one piece of memory overrides this: it needs less than an address to find the entry.
    #[inline]
    fn follow(&self, above: u64, index: TableIndex) -> Option<(Gpa, u64)> {
        if !index::is_open(above) {
            return None;
        }
        let table = Format::FOUR_LEVEL.table_in(above);
        let at = Format::FOUR_LEVEL.entry_at(table, index.get());
        let raw = self.read_entry(at, EntryWidth::Bytes8).ok()?;
        Some((at, raw))
    }

    /// Reads `into.len()` consecutive entries of one table, the first at `at`.
    ///
    /// A store that can find the memory once for all of them overrides this: a walk then costs one
    /// look-up for each run of entries instead of one for each entry.
    ///
    /// # Errors
    /// [`StoreError`] as for [`read_entry`](Self::read_entry); the content of `into` is then
    /// unspecified.
    #[inline]
    fn read_entries(&self, at: Gpa, width: EntryWidth, into: &mut [u64]) -> Result<(), StoreError> {
        read_each(self, at, width, into)
    }

    /// Writes consecutive entries of one table, the first at `at`.
    ///
    /// A store that can find the memory once for all of them overrides this.
    ///
    /// # Errors
    /// [`StoreError`] as for [`write_entry`](Self::write_entry); entries before the refused one may
    /// have been written.
    #[inline]
    fn write_entries(
        &mut self,
        at: Gpa,
        width: EntryWidth,
        entries: &[u64],
    ) -> Result<(), StoreError> {
        write_each(self, at, width, entries.iter().copied())
    }

    /// Writes a run of entries of one table: `run.first_raw`, then `run.stride` more in each.
    ///
    /// A store over plain memory overrides this with a loop that the compiler can vectorise; see
    /// [`EntryRun::fill`].
    ///
    /// # Errors
    /// [`StoreError`] as for [`write_entry`](Self::write_entry); entries before the refused one may
    /// have been written.
    #[inline]
    fn fill_entries(
        &mut self,
        at: Gpa,
        width: EntryWidth,
        run: EntryRun,
    ) -> Result<(), StoreError> {
        write_each(self, at, width, run.values())
    }
}

/// Reads consecutive entries one by one.
#[inline]
fn read_each<S: TableStore + ?Sized>(
    store: &S,
    mut at: Gpa,
    width: EntryWidth,
    into: &mut [u64],
) -> Result<(), StoreError> {
    for entry in into {
        *entry = store.read_entry(at, width)?;
        at = next_entry(at, width)?;
    }
    Ok(())
}

/// Writes consecutive entries one by one.
#[inline]
fn write_each<S: TableStore + ?Sized>(
    store: &mut S,
    mut at: Gpa,
    width: EntryWidth,
    entries: impl Iterator<Item = u64>,
) -> Result<(), StoreError> {
    for raw in entries {
        store.write_entry(at, width, raw)?;
        at = next_entry(at, width)?;
    }
    Ok(())
}

#[inline]
fn next_entry(at: Gpa, width: EntryWidth) -> Result<Gpa, StoreError> {
    at.checked_add(width.bytes())
        .ok_or(StoreError::Unbacked { at })
}

/// Values of consecutive entries that grow by a constant: neighbouring pages, equal attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryRun {
    /// The first entry.
    pub first_raw: u64,
    /// Difference between an entry and the one before it.
    pub stride: u64,
    /// Number of entries; at most one table's.
    pub count: usize,
}

impl EntryRun {
    /// The entries in order.
    #[inline]
    pub fn values(self) -> impl Iterator<Item = u64> {
        let step = move |raw: &u64| Some(raw.wrapping_add(self.stride));
        core::iter::successors(Some(self.first_raw), step).take(self.count)
    }

    /// Writes the entries of an 8-byte format into `entries`; the shorter of the two decides.
    #[inline]
    pub fn fill(self, entries: &mut [u64]) {
        let mut raw = self.first_raw;
        for entry in entries.iter_mut().take(self.count) {
            *entry = raw;
            raw = raw.wrapping_add(self.stride);
        }
    }
}

/// Why a table store refused an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    /// No memory lies at the address, or only a part of its 4 KiB frame.
    #[error("no memory backs the page-table entry at {:#x}", .at.as_u64())]
    Unbacked {
        /// Address of the entry.
        at: Gpa,
    },
    /// The memory exists, but table edits do not belong there (a read-only image, for example).
    #[error("the page-table entry at {:#x} is in read-only memory", .at.as_u64())]
    ReadOnly {
        /// Address of the entry.
        at: Gpa,
    },
}

impl StoreError {
    /// Address of the refused entry.
    pub const fn at(self) -> Gpa {
        match self {
            Self::Unbacked { at } | Self::ReadOnly { at } => at,
        }
    }
}

impl<S: TableStore + ?Sized> TableStore for &mut S {
    #[inline]
    fn read_entry(&self, at: Gpa, width: EntryWidth) -> Result<u64, StoreError> {
        (**self).read_entry(at, width)
    }

    #[inline]
    fn follow(&self, above: u64, index: TableIndex) -> Option<(Gpa, u64)> {
        (**self).follow(above, index)
    }

    #[inline]
    fn write_entry(&mut self, at: Gpa, width: EntryWidth, raw: u64) -> Result<(), StoreError> {
        (**self).write_entry(at, width, raw)
    }

    #[inline]
    fn read_entries(&self, at: Gpa, width: EntryWidth, into: &mut [u64]) -> Result<(), StoreError> {
        (**self).read_entries(at, width, into)
    }

    #[inline]
    fn write_entries(
        &mut self,
        at: Gpa,
        width: EntryWidth,
        entries: &[u64],
    ) -> Result<(), StoreError> {
        (**self).write_entries(at, width, entries)
    }

    #[inline]
    fn fill_entries(
        &mut self,
        at: Gpa,
        width: EntryWidth,
        run: EntryRun,
    ) -> Result<(), StoreError> {
        (**self).fill_entries(at, width, run)
    }
}

/// A [`TableStore`] over borrowed memory that stands for guest-physical memory from `base` upward.
///
/// For tables that are prepared in ordinary memory and copied or mapped into a guest afterwards, for
/// a kernel whose tables lie in a static, and for tests. Memory that a running guest can write
/// is *not* ordinary memory: a host needs a store of its own for that.
#[derive(Debug)]
pub struct SliceStore<'a> {
    base: Gpa,
    /// What gives zero with an open entry that points to the base and has no other flag.
    minus_open_base: u64,
    words: &'a mut [u64],
}

/// Number of 8-byte words in a frame.
const FRAME_WORDS: usize = 512;

impl<'a> SliceStore<'a> {
    /// A store whose first word lies at `base`, rounded down to a frame boundary. Words past the
    /// last whole frame are not used, nor are those past the last guest-physical address.
    pub fn new(base: Gpa, words: &'a mut [u64]) -> Self {
        let base = base.align_down(PageSize::Size4KiB);
        let frames_above = (1 << (Gpa::BITS - 12)) - base.as_u64() / PAGE_SIZE;
        let frames = usize::try_from(frames_above)
            .unwrap_or(usize::MAX)
            .min(words.len() / FRAME_WORDS);
        Self {
            base,
            minus_open_base: 0_u64.wrapping_sub(base.as_u64() | index::OPEN),
            words: &mut words[..frames * FRAME_WORDS],
        }
    }

    /// Index of the word that holds the entry, and whether it is its high half.
    #[inline]
    fn locate(&self, at: Gpa, width: EntryWidth) -> Result<(usize, bool), StoreError> {
        let unbacked = StoreError::Unbacked { at };
        // Below the base it wraps around to an index that no slice has.
        let offset = at.as_u64().wrapping_sub(self.base.as_u64());
        let index = usize::try_from(offset / 8).map_err(|_| unbacked)?;
        // The base is aligned, so that the address says as much as the offset; where an entry's address was just computed, the compiler
        // knows that it is aligned, too.
        let address = at.as_u64();
        if index >= self.words.len() || !address.is_multiple_of(width.bytes()) {
            return Err(unbacked);
        }
        Ok((index, !address.is_multiple_of(8)))
    }

    /// Indices of `count` 8-byte entries from `at`.
    #[inline]
    fn locate_run(&self, at: Gpa, count: usize) -> Result<core::ops::Range<usize>, StoreError> {
        let (first, _) = self.locate(at, EntryWidth::Bytes8)?;
        let end = first.checked_add(count);
        match end {
            Some(end) if end <= self.words.len() => Ok(first..end),
            _ => Err(StoreError::Unbacked { at }),
        }
    }
}

impl TableStore for SliceStore<'_> {
    #[inline]
    fn read_entry(&self, at: Gpa, width: EntryWidth) -> Result<u64, StoreError> {
        let (index, high) = self.locate(at, width)?;
        let word = self.words[index];
        Ok(match (width, high) {
            (EntryWidth::Bytes8, _) => word,
            (EntryWidth::Bytes4, false) => word & u64::from(u32::MAX),
            (EntryWidth::Bytes4, true) => word >> 32,
        })
    }

    #[inline]
    fn follow(&self, above: u64, index: TableIndex) -> Option<(Gpa, u64)> {
        // The number of the table's frame, counted from the base, with the flags of `above` on top. Of those the shift by an index loses
        // all but the lowest three, which are clear now if they were set. Whatever else is wrong with `above`, a number is left that is
        // larger than any slice: a flag at the top, an address below the base, or bits above an address.
        let frame = above.wrapping_add(self.minus_open_base).rotate_right(12);
        let word = index.word_in(frame);
        let raw = *self.words.get(usize::try_from(word).ok()?)?;
        // Back to an address. The mask takes the open entry's flags away; beyond that it only tells the compiler what `new` has seen to: all
        // words have addresses.
        let at = (word * 8).wrapping_sub(self.minus_open_base) & ((1 << Gpa::BITS) - 8);
        Some((Gpa::literal(at), raw))
    }

    #[inline]
    fn write_entry(&mut self, at: Gpa, width: EntryWidth, raw: u64) -> Result<(), StoreError> {
        let (index, high) = self.locate(at, width)?;
        let word = &mut self.words[index];
        *word = match (width, high) {
            (EntryWidth::Bytes8, _) => raw,
            (EntryWidth::Bytes4, false) => *word >> 32 << 32 | raw & u64::from(u32::MAX),
            (EntryWidth::Bytes4, true) => *word & u64::from(u32::MAX) | raw << 32,
        };
        Ok(())
    }

    #[inline]
    fn read_entries(&self, at: Gpa, width: EntryWidth, into: &mut [u64]) -> Result<(), StoreError> {
        if width == EntryWidth::Bytes8 {
            let run = self.locate_run(at, into.len())?;
            into.copy_from_slice(&self.words[run]);
            return Ok(());
        }
        read_each(self, at, width, into)
    }

    #[inline]
    fn write_entries(
        &mut self,
        at: Gpa,
        width: EntryWidth,
        entries: &[u64],
    ) -> Result<(), StoreError> {
        if width == EntryWidth::Bytes8 {
            let run = self.locate_run(at, entries.len())?;
            self.words[run].copy_from_slice(entries);
            return Ok(());
        }
        write_each(self, at, width, entries.iter().copied())
    }

    #[inline]
    fn fill_entries(
        &mut self,
        at: Gpa,
        width: EntryWidth,
        run: EntryRun,
    ) -> Result<(), StoreError> {
        if width == EntryWidth::Bytes8 {
            let range = self.locate_run(at, run.count)?;
            run.fill(&mut self.words[range]);
            return Ok(());
        }
        write_each(self, at, width, run.values())
    }
}

/// Where the frames of new tables come from.
pub trait FrameSource {
    /// A frame that is filled with zeros and used for nothing else; `None` when there is no more.
    fn allocate_table(&mut self) -> Option<Gpa>;
}

impl<F: FrameSource + ?Sized> FrameSource for &mut F {
    fn allocate_table(&mut self) -> Option<Gpa> {
        (**self).allocate_table()
    }
}

/// A [`FrameSource`] that has none: for a mapper that only changes what is mapped.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFrames;

impl FrameSource for NoFrames {
    fn allocate_table(&mut self) -> Option<Gpa> {
        None
    }
}

/// A [`FrameSource`] that hands out the frames of a range in order. The caller sees to it that
/// the range holds zeros.
///
/// ```
/// use vellum_layout::{Gpa, GpaRange};
/// use vellum_vmem::{FrameRange, FrameSource};
/// let mut frames = FrameRange::new(GpaRange::new(Gpa::literal(0x1000), 0x2000)?);
/// assert_eq!(frames.allocate_table(), Some(Gpa::literal(0x1000)));
/// assert_eq!(frames.allocate_table(), Some(Gpa::literal(0x2000)));
/// assert_eq!(frames.allocate_table(), None);
/// # Ok::<(), vellum_layout::RangeError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct FrameRange {
    range: GpaRange,
    used_bytes: u64,
}

impl FrameRange {
    /// All frames of `range`, lowest first.
    pub const fn new(range: GpaRange) -> Self {
        Self {
            range,
            used_bytes: 0,
        }
    }

    /// Number of frames handed out.
    pub const fn used_frames(&self) -> u64 {
        self.used_bytes / PAGE_SIZE
    }
}

impl FrameSource for FrameRange {
    fn allocate_table(&mut self) -> Option<Gpa> {
        let frame = self.range.at(self.used_bytes)?;
        self.used_bytes += PAGE_SIZE;
        Some(frame)
    }
}

//! Translation of one address.

use vellum_layout::{Gpa, Gva, PageSize};

use crate::attrs::Attrs;
use crate::entry::{DecodeError, Entry, Leaf};
use crate::format::{Format, Level, Mode, RootError, gva_of};
use crate::index::{OPEN, TableIndex};
use crate::store::{StoreError, TableStore};

/// Translates `gva` through the tables at `root`, as the processor would.
///
/// Eight entries are read at most, and what is decided about an entry is decided on one copy of
/// it: neither the cost nor the answer's consistency depends on what the tables hold. The usual case costs least: 4-level tables that take
/// no right away, and a page of 4 KiB.
///
/// # Errors
/// [`TranslateError`] when the address has no translation; the error says where the walk ended.
#[expect(
    clippy::inline_always,
    reason = "the usual look-up takes 59 instructions in place, and 23 more in a function of its own, where the answer goes through memory"
)]
#[inline(always)]
pub fn translate<S: TableStore + ?Sized>(
    store: &S,
    root: Gpa,
    gva: Gva,
    format: Format,
) -> Result<Mapping, TranslateError> {
    format.check_root(root)?;
    let linear = format
        .linear(gva)
        .ok_or(TranslateError::OutOfReach { gva })?;
    // Apart, so that size and rights of the usual page are known where its mapping is put together.
    Ok(match find_plain_leaf(store, root, format, linear) {
        Some(found) => found.mapping(linear),
        None => find_any_leaf(store, root, format, linear)?.mapping(linear),
    })
}

/// The translation of one address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// The guest-physical address of the very byte that was asked for.
    pub gpa: Gpa,
    /// Attributes in the leaf itself.
    pub attrs: Attrs,
    /// Attributes as they take effect: without the rights that a table above the leaf denies.
    pub effective: Attrs,
    /// Size of the page.
    pub size: PageSize,
    /// Where the leaf entry lies.
    pub entry_gpa: Gpa,
}

/// Why an address has no translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TranslateError {
    /// The root is no table address.
    #[error("cannot translate through this root")]
    Root(#[from] RootError),
    /// The format translates only lower addresses.
    #[error("guest-virtual address {:#x} is beyond 32-bit paging", .gva.as_u64())]
    OutOfReach {
        /// The address asked for.
        gva: Gva,
    },
    /// The entry at `at` is absent.
    #[error("guest-virtual address {:#x} is not mapped: no level-{} entry at {:#x}", .gva.as_u64(), .level.number(), .at.as_u64())]
    NotMapped {
        /// The address asked for.
        gva: Gva,
        /// Level of the table that holds the absent entry.
        level: Level,
        /// Where that entry lies.
        at: Gpa,
    },
    /// The entry at `at` is refused by the processor.
    #[error("cannot translate {:#x}: the entry at {:#x} is malformed", .gva.as_u64(), .at.as_u64())]
    Malformed {
        /// The address asked for.
        gva: Gva,
        /// Where the entry lies.
        at: Gpa,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// A table lies where there is no memory.
    #[error("cannot translate {:#x}: a page table cannot be read", .gva.as_u64())]
    Store {
        /// The address asked for.
        gva: Gva,
        /// What the store said.
        source: StoreError,
    },
}

/// A leaf and the way to it.
pub(crate) struct Found {
    /// Where the leaf entry lies.
    pub(crate) at: Gpa,
    /// Level of the table that holds it.
    pub(crate) level: Level,
    pub(crate) leaf: Leaf,
    /// Rights that all tables on the way leave.
    pub(crate) path: Attrs,
}

impl Found {
    /// What the leaf says about an address under it.
    #[inline]
    fn mapping(self, linear: u64) -> Mapping {
        let offset = linear & (self.leaf.size.bytes() - 1);
        Mapping {
            // A frame is aligned to its size: nothing carries, and the fallback is not reached.
            gpa: Gpa::new(self.leaf.frame.as_u64() | offset).unwrap_or(self.leaf.frame),
            attrs: self.leaf.attrs,
            effective: self.leaf.attrs.restricted_by(self.path),
            size: self.leaf.size,
            entry_gpa: self.at,
        }
    }
}

/// Everything allowed: the rights of an empty path.
pub(crate) const OPEN_PATH: Attrs = Attrs::WRITE.union(Attrs::USER);

/// The leaf that maps `linear` under a checked root.
#[inline]
pub(crate) fn find_leaf<S: TableStore + ?Sized>(
    store: &S,
    root: Gpa,
    format: Format,
    linear: u64,
) -> Result<Found, TranslateError> {
    match find_plain_leaf(store, root, format, linear) {
        Some(found) => Ok(found),
        None => find_any_leaf(store, root, format, linear),
    }
}

/// The leaf, where the way to it is that of nearly all look-ups: through 4 levels of tables that take no right away, to a page of 4 KiB.
///
/// As a processor does, it goes on before it knows that an entry points to a table; whether all of them did is looked at in the end. `None`
/// says only that the way is another one.
#[inline]
fn find_plain_leaf<S: TableStore + ?Sized>(
    store: &S,
    root: Gpa,
    format: Format,
    linear: u64,
) -> Option<Found> {
    if format.mode != Mode::FourLevel {
        return None;
    }
    // Indices of the levels to come, the next one on top.
    let mut indices = linear << (u64::BITS - format.linear_bits());
    let mut follow = |above| {
        let entry = store.follow(above, TableIndex::from_highest_bits(indices));
        indices <<= format.shift(Level::L2) - format.shift(Level::L1);
        entry
    };
    let (_, fourth) = follow(root.as_u64() | OPEN)?;
    let (_, third) = follow(fourth)?;
    let (_, second) = follow(third)?;
    let (at, first) = follow(second)?;
    if !(format.are_plain_tables(fourth | third | second) && format.are_plain_leaves(first, first))
    {
        return None;
    }
    Some(Found {
        at,
        level: Level::L1,
        leaf: format.leaf_in(first),
        path: OPEN_PATH,
    })
}

/// [`find_leaf`] through tables of any format and entries of any kind.
#[cold]
#[inline(never)]
fn find_any_leaf<S: TableStore + ?Sized>(
    store: &S,
    root: Gpa,
    format: Format,
    linear: u64,
) -> Result<Found, TranslateError> {
    let gva = gva_of(linear);
    let mut descent = Descent {
        store,
        linear,
        path: OPEN_PATH,
    };
    let (Ok(End { level, at, raw }) | Err(End { level, at, raw })) = descent.end(root, format);
    let raw = raw.map_err(|source| TranslateError::Store { gva, source })?;
    let entry = format
        .decode(level, raw)
        .map_err(|source| TranslateError::Malformed { gva, at, source })?;
    match entry {
        Entry::Leaf(leaf) => Ok(Found {
            at,
            level,
            leaf,
            path: descent.path,
        }),
        Entry::Absent { .. } | Entry::Table { .. } => {
            Err(TranslateError::NotMapped { gva, level, at })
        }
    }
}

/// A translation on its way down.
struct Descent<'s, S: ?Sized> {
    store: &'s S,
    linear: u64,
    /// Rights that the tables passed leave.
    path: Attrs,
}

/// The first entry that leads to no table.
struct End {
    level: Level,
    at: Gpa,
    raw: Result<u64, StoreError>,
}

impl<S: TableStore + ?Sized> Descent<'_, S> {
    /// `Err` where the end is above the lowest level.
    #[inline]
    fn end(&mut self, root: Gpa, format: Format) -> Result<End, End> {
        // Written out for each mode, so that the compiler knows every shift and mask.
        match format.mode {
            Mode::FourLevel => {
                let format = format.in_mode(Mode::FourLevel);
                let third = self.step(root, Level::L4, format)?;
                let second = self.step(third, Level::L3, format)?;
                let first = self.step(second, Level::L2, format)?;
                Ok(self.read(first, Level::L1, format))
            }
            Mode::TwoLevel => {
                let format = format.in_mode(Mode::TwoLevel);
                let first = self.step(root, Level::L2, format)?;
                Ok(self.read(first, Level::L1, format))
            }
        }
    }

    /// The table that the entry of this table points to.
    #[inline]
    fn step(&mut self, table: Gpa, level: Level, format: Format) -> Result<Gpa, End> {
        let entry = self.read(table, level, format);
        match entry.raw {
            Ok(raw) if format.is_table(level, raw) => {
                self.path = self.path.restricted_by(Attrs::from_bits_truncate(raw));
                Ok(format.table_in(raw))
            }
            _ => Err(entry),
        }
    }

    #[inline]
    fn read(&self, table: Gpa, level: Level, format: Format) -> End {
        let at = format.entry_at(table, format.linear_index(level, self.linear));
        let raw = self.store.read_entry(at, format.entry_width());
        End { level, at, raw }
    }
}

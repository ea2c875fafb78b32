//! Translation of one address.

use vellum_layout::{Gpa, Gva, PageSize};

use crate::attrs::Attrs;
use crate::entry::{DecodeError, Entry, Leaf};
use crate::format::{EntryWidth, Format, Level, Mode, RootError, gva_of};
use crate::store::{StoreError, TableStore};

/// Translates `gva` through the tables at `root`, as the processor would.
///
/// Eight entries are read at most, and what is decided about an entry is decided on one copy of
/// it: neither the cost nor the answer's consistency depends on what the tables hold.
///
/// # Errors
/// [`TranslateError`] when the address has no translation; the error says where the walk ended.
#[inline]
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
    // Apart, so that the size of the usual page is known where its mapping is put together.
    if let Some(found) = find_plain_leaf(store, root, format, linear) {
        return Ok(found.mapping(linear));
    }
    Ok(find_any_leaf(store, root, format, linear)?.mapping(linear))
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

/// The leaf, where the way to it is that of nearly all look-ups: through plain tables of 4 levels, to a page of 4 KiB.
///
/// As a processor does, it goes on before it knows that an entry is one; what the two upper tables said is looked at with the third. `None`
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
    // Written out, so that the compiler knows every shift and mask.
    let read = |table, level| {
        let index = Format::FOUR_LEVEL.linear_index(level, linear);
        let at = Format::FOUR_LEVEL.entry_at(table, index);
        let raw = store.read_entry(at, EntryWidth::Bytes8).ok()?;
        Some((at, raw))
    };
    let (_, fourth) = read(root, Level::L4)?;
    let (_, third) = read(format.table_in(fourth), Level::L3)?;
    let (_, second) = read(format.table_in(third), Level::L2)?;
    let (in_all, in_any) = (fourth & third & second, fourth | third | second);
    if !format.are_plain_tables(in_all, in_any) {
        return None;
    }
    let (at, raw) = read(format.table_in(second), Level::L1)?;
    Some(Found {
        at,
        level: Level::L1,
        leaf: format.plain_leaf(raw)?,
        path: Attrs::path_of(in_all, in_any),
    })
}

/// [`find_leaf`] through tables of any format and entries of any kind.
fn find_any_leaf<S: TableStore + ?Sized>(
    store: &S,
    root: Gpa,
    format: Format,
    linear: u64,
) -> Result<Found, TranslateError> {
    let gva = gva_of(linear);
    let (mut table, mut level, mut path) = (root, format.root_level(), OPEN_PATH);
    loop {
        let at = format.entry_at(table, format.linear_index(level, linear));
        let raw = store
            .read_entry(at, format.entry_width())
            .map_err(|source| TranslateError::Store { gva, source })?;
        let entry = format
            .decode(level, raw)
            .map_err(|source| TranslateError::Malformed { gva, at, source })?;
        match (entry, level.below()) {
            (Entry::Table { table: next, attrs }, Some(below)) => {
                (table, level) = (next, below);
                path = path.restricted_by(attrs);
            }
            (Entry::Leaf(leaf), _) => {
                return Ok(Found {
                    at,
                    level,
                    leaf,
                    path,
                });
            }
            (Entry::Absent { .. } | Entry::Table { .. }, _) => {
                return Err(TranslateError::NotMapped { gva, level, at });
            }
        }
    }
}

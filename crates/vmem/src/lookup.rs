//! Translation of one address.

use vellum_layout::{Gpa, Gva, PageSize};

use crate::attrs::Attrs;
use crate::entry::{DecodeError, Entry, Leaf};
use crate::format::{Format, Level, RootError, gva_of};
use crate::store::{StoreError, TableStore};

/// Translates `gva` through the tables at `root`, as the processor would.
///
/// At most one entry of each level is read, each of them once, so that the cost does not
/// depend on what the tables hold.
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
    let found = find_leaf(store, root, format, linear)?;
    let offset = linear & (found.leaf.size.bytes() - 1);
    Ok(Mapping {
        // A frame is aligned to its size: the sum cannot overflow.
        gpa: found
            .leaf
            .frame
            .checked_add(offset)
            .unwrap_or(found.leaf.frame),
        attrs: found.leaf.attrs,
        effective: found.leaf.attrs.restricted_by(found.path),
        size: found.leaf.size,
        entry_gpa: found.at,
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
            (
                Entry::Table {
                    table: below,
                    attrs,
                },
                Some(lower),
            ) => {
                path = path.restricted_by(attrs);
                (table, level) = (below, lower);
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

//! Translation of one address.

use vellum_layout::{Gpa, Gva, PageSize};

use crate::attrs::Attrs;
use crate::entry::{DecodeError, Entry, Leaf};
use crate::format::{Format, Level, Mode, RootError, gva_of};
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
///
/// The way through plain tables of 4 levels is written out, for it is the way of nearly all look-ups: the compiler then knows every shift
/// and mask. The first entry that is not plain, or any entry of another format, goes the general way.
#[inline]
pub(crate) fn find_leaf<S: TableStore + ?Sized>(
    store: &S,
    root: Gpa,
    format: Format,
    linear: u64,
) -> Result<Found, TranslateError> {
    let mut place = Place {
        table: root,
        level: format.root_level(),
        path: OPEN_PATH,
    };
    if format.mode == Mode::FourLevel {
        for (level, below) in [
            (Level::L4, Level::L3),
            (Level::L3, Level::L2),
            (Level::L2, Level::L1),
        ] {
            place.level = level;
            let (at, raw) = place.read(store, Format::FOUR_LEVEL, linear)?;
            let Some(table) = format.plain_table(raw) else {
                return place.follow(store, format, linear, (at, raw));
            };
            let attrs = Attrs::from_bits_truncate(raw);
            place = Place {
                table,
                level: below,
                path: place.path.restricted_by(attrs),
            };
        }
        let (at, raw) = place.read(store, Format::FOUR_LEVEL, linear)?;
        if let Some(leaf) = format.plain_leaf(raw) {
            return Ok(Found {
                at,
                level: Level::L1,
                leaf,
                path: place.path,
            });
        }
        return place.follow(store, format, linear, (at, raw));
    }
    let entry = place.read(store, format, linear)?;
    place.follow(store, format, linear, entry)
}

/// How far a look-up has come.
#[derive(Clone, Copy)]
struct Place {
    table: Gpa,
    level: Level,
    /// Rights that all tables on the way leave.
    path: Attrs,
}

impl Place {
    /// Where the entry for `linear` lies in this table, and the entry.
    #[inline]
    fn read<S: TableStore + ?Sized>(
        self,
        store: &S,
        format: Format,
        linear: u64,
    ) -> Result<(Gpa, u64), TranslateError> {
        let at = format.entry_at(self.table, format.linear_index(self.level, linear));
        match store.read_entry(at, format.entry_width()) {
            Ok(raw) => Ok((at, raw)),
            Err(source) => Err(TranslateError::Store {
                gva: gva_of(linear),
                source,
            }),
        }
    }

    /// Goes on from an entry of this table that was read already.
    fn follow<S: TableStore + ?Sized>(
        self,
        store: &S,
        format: Format,
        linear: u64,
        entry: (Gpa, u64),
    ) -> Result<Found, TranslateError> {
        let gva = gva_of(linear);
        let (mut place, (mut at, mut raw)) = (self, entry);
        loop {
            let level = place.level;
            let entry = format
                .decode(level, raw)
                .map_err(|source| TranslateError::Malformed { gva, at, source })?;
            match (entry, level.below()) {
                (Entry::Table { table, attrs }, Some(below)) => {
                    place = Place {
                        table,
                        level: below,
                        path: place.path.restricted_by(attrs),
                    };
                    (at, raw) = place.read(store, format, linear)?;
                }
                (Entry::Leaf(leaf), _) => {
                    return Ok(Found {
                        at,
                        level,
                        leaf,
                        path: place.path,
                    });
                }
                (Entry::Absent { .. } | Entry::Table { .. }, _) => {
                    return Err(TranslateError::NotMapped { gva, level, at });
                }
            }
        }
    }
}

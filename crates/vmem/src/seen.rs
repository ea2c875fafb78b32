//! A set of tables in borrowed memory, for walks that visit shared tables once.

use vellum_layout::Gpa;

use crate::format::Level;

/// Tables that a walk has met, kept sorted in memory that the caller lends; nothing is allocated.
///
/// An insertion moves at most the whole slice once, whatever addresses a hostile guest chooses:
/// the cost of `n` insertions is bounded by `n * n / 2` words moved.
///
/// A table that serves two levels counts as two: its entries mean different things there.
///
/// ```
/// use vellum_layout::Gpa;
/// use vellum_vmem::{Level, SeenTables};
/// let mut memory = [0u64; 2];
/// let mut seen = SeenTables::new(&mut memory);
/// assert_eq!(seen.insert(Gpa::literal(0x5000), Level::L1), Ok(true));
/// assert_eq!(seen.insert(Gpa::literal(0x5000), Level::L1), Ok(false));
/// assert_eq!(seen.insert(Gpa::literal(0x5000), Level::L2), Ok(true));
/// assert!(seen.insert(Gpa::literal(0x6000), Level::L1).is_err());
/// ```
#[derive(Debug)]
pub struct SeenTables<'a> {
    slots: &'a mut [u64],
    len: usize,
}

/// The lent memory is used up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("page-table walk met more than {capacity} different tables")]
pub struct SeenFull {
    /// Number of tables that fit.
    pub capacity: usize,
}

impl<'a> SeenTables<'a> {
    /// An empty set with room for `slots.len()` tables.
    pub const fn new(slots: &'a mut [u64]) -> Self {
        Self { slots, len: 0 }
    }

    /// Adds a table; `false` when it was there already.
    ///
    /// # Errors
    /// [`SeenFull`] when a new table does not fit.
    pub fn insert(&mut self, table: Gpa, level: Level) -> Result<bool, SeenFull> {
        // The low 12 bits of a frame address are zero: the level fits there.
        let key = table.as_u64() | u64::from(level.number());
        let Err(place) = self.slots[..self.len].binary_search(&key) else {
            return Ok(false);
        };
        let capacity = self.slots.len();
        if self.len == capacity {
            return Err(SeenFull { capacity });
        }
        self.slots.copy_within(place..self.len, place + 1);
        self.slots[place] = key;
        self.len += 1;
        Ok(true)
    }

    /// Number of tables in the set.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether no table was added yet.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

//! Page-aligned, non-empty ranges of guest addresses.

use core::fmt;

use crate::address::{Gpa, Gva};
use crate::page::{PAGE_SIZE, PageSize};

/// A page-aligned, non-empty range of guest-physical addresses.
///
/// ```
/// use vellum_layout::{Gpa, GpaRange};
///
/// let range = GpaRange::new(Gpa::literal(0x1000), 0x3000)?;
/// assert_eq!(range.end(), Gpa::literal(0x4000));
/// assert_eq!(range.pages(), 3);
/// assert!(range.contains(Gpa::literal(0x3fff)));
/// # Ok::<(), vellum_layout::RangeError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GpaRange {
    start: Gpa,
    end: Gpa,
}

/// A page-aligned, non-empty range of guest-virtual addresses, within one half of the canonical
/// addresses.
///
/// Its exclusive end must be a canonical address too. So the last page below the canonical gap and
/// the last page of all belong to no range; Vellum maps nothing there ([`crate::amd64::MAX_GVA`]
/// stops one page short for this reason).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GvaRange {
    start: Gva,
    end: Gva,
}

/// Why two numbers do not make a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError {
    /// The range would hold no page.
    #[error("range at {start:#x} is empty; give at least one page (0x1000 bytes)")]
    Empty {
        /// First address of the refused range.
        start: u64,
    },
    /// The start is not a multiple of the page size.
    #[error("range start {start:#x} is not a multiple of 0x1000")]
    UnalignedStart {
        /// First address of the refused range.
        start: u64,
    },
    /// The length is not a multiple of the page size.
    #[error("range at {start:#x} has length {len_bytes:#x}, which is not a multiple of 0x1000")]
    UnalignedLength {
        /// First address of the refused range.
        start: u64,
        /// Its length.
        len_bytes: u64,
    },
    /// The end is no valid address, or addresses that do not exist lie in between.
    #[error("range at {start:#x} of {len_bytes:#x} bytes runs past the last valid address")]
    PastEnd {
        /// First address of the refused range.
        start: u64,
        /// Its length.
        len_bytes: u64,
    },
    /// The end lies below the start.
    #[error("range end {end:#x} is below its start {start:#x}")]
    Reversed {
        /// First address of the refused range.
        start: u64,
        /// Its exclusive end.
        end: u64,
    },
}

macro_rules! range_operations {
    ($range:ident, $address:ident) => {
        impl $range {
            /// The range of `len_bytes` bytes from `start`.
            ///
            /// # Errors
            ///
            /// [`RangeError`] when the length is zero, when start or length is not a multiple of
            /// [`PAGE_SIZE`], or when the range runs past the last valid address.
            #[inline]
            pub const fn new(start: $address, len_bytes: u64) -> Result<Self, RangeError> {
                let from = start.as_u64();
                if len_bytes == 0 {
                    return Err(RangeError::Empty { start: from });
                }
                if !start.is_aligned(PageSize::Size4KiB) {
                    return Err(RangeError::UnalignedStart { start: from });
                }
                if !len_bytes.is_multiple_of(PAGE_SIZE) {
                    return Err(RangeError::UnalignedLength {
                        start: from,
                        len_bytes,
                    });
                }
                match start.checked_add(len_bytes) {
                    Some(end) => Ok(Self { start, end }),
                    None => Err(RangeError::PastEnd {
                        start: from,
                        len_bytes,
                    }),
                }
            }

            /// The range from `start` up to, but without, `end`.
            ///
            /// # Errors
            ///
            /// [`RangeError`] as for `new`, and when `end` lies below `start`.
            #[inline]
            pub const fn from_bounds(start: $address, end: $address) -> Result<Self, RangeError> {
                match end.as_u64().checked_sub(start.as_u64()) {
                    Some(len_bytes) => Self::new(start, len_bytes),
                    None => Err(RangeError::Reversed {
                        start: start.as_u64(),
                        end: end.as_u64(),
                    }),
                }
            }

            /// A range known when the program is compiled.
            ///
            /// # Panics
            ///
            /// When `new` would refuse it; in a `const` that is a compile error. Meant for
            /// constants and tests.
            #[must_use]
            pub const fn literal(start: $address, len_bytes: u64) -> Self {
                match Self::new(start, len_bytes) {
                    Ok(range) => range,
                    Err(_) => panic!("not a valid range: empty, unaligned or too long"),
                }
            }

            /// First address of the range.
            #[must_use]
            #[inline]
            pub const fn start(&self) -> $address {
                self.start
            }

            /// First address after the range.
            #[must_use]
            #[inline]
            pub const fn end(&self) -> $address {
                self.end
            }

            /// Last address of the range.
            #[must_use]
            #[inline]
            pub const fn last(&self) -> $address {
                match self.end.checked_sub(1) {
                    Some(last) => last,
                    // Not reached: a range is not empty, so its end is above its start.
                    None => self.start,
                }
            }

            /// Length of the range; never zero.
            #[must_use]
            #[inline]
            pub const fn len_bytes(&self) -> u64 {
                self.end.as_u64() - self.start.as_u64()
            }

            /// Number of 4 KiB pages; never zero.
            #[must_use]
            #[inline]
            pub const fn pages(&self) -> u64 {
                self.len_bytes() / PAGE_SIZE
            }

            /// Whether `address` lies in the range.
            #[must_use]
            #[inline]
            pub const fn contains(&self, address: $address) -> bool {
                self.start.as_u64() <= address.as_u64() && address.as_u64() < self.end.as_u64()
            }

            /// Whether every address of `other` lies in this range.
            #[must_use]
            #[inline]
            pub const fn contains_range(&self, other: &Self) -> bool {
                self.start.as_u64() <= other.start.as_u64()
                    && other.end.as_u64() <= self.end.as_u64()
            }

            /// Whether the two ranges have an address in common.
            #[must_use]
            #[inline]
            pub const fn overlaps(&self, other: &Self) -> bool {
                self.start.as_u64() < other.end.as_u64() && other.start.as_u64() < self.end.as_u64()
            }

            /// How far `address` is into the range; `None` when it is outside.
            #[must_use]
            #[inline]
            pub const fn offset_of(&self, address: $address) -> Option<u64> {
                if self.contains(address) {
                    address.offset_from(self.start)
                } else {
                    None
                }
            }

            /// The address `offset_bytes` into the range; `None` when that is outside.
            #[must_use]
            #[inline]
            pub const fn at(&self, offset_bytes: u64) -> Option<$address> {
                if offset_bytes < self.len_bytes() {
                    self.start.checked_add(offset_bytes)
                } else {
                    None
                }
            }

            /// The part of `len_bytes` bytes that begins `offset_bytes` into the range; `None`
            /// when it is empty, unaligned or not wholly inside.
            #[must_use]
            #[inline]
            pub const fn part(&self, offset_bytes: u64, len_bytes: u64) -> Option<Self> {
                let Some(start) = self.at(offset_bytes) else {
                    return None;
                };
                match Self::new(start, len_bytes) {
                    Ok(part) if self.contains_range(&part) => Some(part),
                    _ => None,
                }
            }
        }

        impl fmt::Debug for $range {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($range), "{}"), self)
            }
        }

        impl fmt::Display for $range {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "[{:#x}, {:#x})", self.start, self.end)
            }
        }
    };
}

range_operations!(GpaRange, Gpa);
range_operations!(GvaRange, Gva);

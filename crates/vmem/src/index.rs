//! What one level of a usual look-up takes: an index, and an entry that takes no right away.

use crate::attrs::Attrs;

/// Bits of an index into a table of 512 entries.
const INDEX_BITS: u32 = 9;

/// An index into a table of 512 entries of 8 bytes.
///
/// It is kept in the highest bits of a number and lets the lower ones be whatever they are: a processor joins it to the number of a frame
/// in one instruction then.
#[derive(Clone, Copy, Debug)]
pub struct TableIndex(u64);

impl TableIndex {
    /// The index in the highest 9 bits.
    #[inline]
    pub const fn from_highest_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The index as a number, which is below 512.
    #[inline]
    pub const fn get(self) -> u64 {
        self.0 >> (u64::BITS - INDEX_BITS)
    }

    /// The number of the entry among all 8-byte words, where the table lies in frame `frame` and frame 0 begins with word 0. The highest 9
    /// bits of `frame` are lost.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "what is lost is documented"
    )]
    pub fn word_in(self, frame: u64) -> u64 {
        // The same as `frame << 9 | self.get()`, as one shift of both (SHLD).
        let joined = u128::from(frame) << u64::BITS | u128::from(self.0);
        (joined >> (u64::BITS - INDEX_BITS)) as u64
    }
}

/// P, R/W and U/S (bits 0 to 2; Intel SDM vol. 3A, table 5-15), which an open entry has.
pub(crate) const OPEN: u64 = 1 | Attrs::WRITE.union(Attrs::USER).bits();

/// Whether an 8-byte entry is in use and takes no right away, and has nothing above the address.
#[inline]
pub(crate) const fn is_open(raw: u64) -> bool {
    raw & OPEN == OPEN && raw >> 52 == 0
}

//! The codec: a raw page-table entry as an enum, and back.

use vellum_layout::{Gpa, PAGE_SIZE, PageSize};

use crate::attrs::Attrs;
use crate::format::{Format, Level, Mode};

/// A page-table entry.
///
/// [`Format::decode`] and [`Format::encode`] are exact inverses: whatever decodes, encodes to the
/// same raw value, and the other way round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Not present. The processor ignores every other bit (Intel SDM vol. 3A, section 5.5.4), so
    /// they are free for software.
    Absent {
        /// The raw value; bit 0 is clear.
        software: u64,
    },
    /// A pointer to a table of the next lower level.
    Table {
        /// The frame of that table.
        table: Gpa,
        /// Attributes: rights here restrict everything below.
        attrs: Attrs,
    },
    /// A mapped page.
    Leaf(Leaf),
}

/// A mapped page of any size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// First byte of the page in guest-physical memory; a multiple of `size`.
    pub frame: Gpa,
    /// The leaf's own attributes; tables above it can restrict them further.
    pub attrs: Attrs,
    /// Size of the page.
    pub size: PageSize,
}

/// Why a raw entry has no meaning: the processor would raise a page fault with the reserved-bit
/// flag on every use, or would read the entry in a way that depends on its vendor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// Reserved bits are set.
    #[error("level-{} page-table entry {raw:#x} has reserved bits {bits:#x} set", .level.number())]
    ReservedBits {
        /// Level of the table that holds the entry.
        level: Level,
        /// The entry.
        raw: u64,
        /// Its offending bits.
        bits: u64,
    },
    /// The format has no tables of this level.
    #[error("this page-table format has no level {}", .level.number())]
    NoSuchLevel {
        /// The level asked for.
        level: Level,
    },
}

/// Why an [`Entry`] cannot be written at a level of a format.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EncodeError {
    /// An absent entry with the present bit set, or wider than the format's entries.
    #[error("software bits {software:#x} do not fit an absent page-table entry")]
    Software {
        /// The refused bits.
        software: u64,
    },
    /// Attributes that the format does not have at this place.
    #[error("level-{} page-table entry cannot hold attribute bits {:#x}", .level.number(), .attrs.bits())]
    Attributes {
        /// Level of the table.
        level: Level,
        /// The attributes that have no place.
        attrs: Attrs,
    },
    /// A page of this size is not mapped at this level.
    #[error("level-{} page-table entry cannot map a page of {:#x} bytes", .level.number(), .size.bytes())]
    Size {
        /// Level of the table.
        level: Level,
        /// The refused size.
        size: PageSize,
    },
    /// The frame is not aligned to its size, or too high for the format.
    #[error("frame {:#x} is not one of {size_bytes:#x} bytes that this page-table format can address", .frame.as_u64())]
    Frame {
        /// The refused frame.
        frame: Gpa,
        /// Size of the page or table.
        size_bytes: u64,
    },
    /// The format has no tables of this level, or no tables below it.
    #[error("level {} of this page-table format cannot hold such an entry", .level.number())]
    NoSuchLevel {
        /// The level asked for.
        level: Level,
    },
}

/// P: the entry is in use (bit 0).
const PRESENT: u64 = 1 << 0;
/// PS: the entry of a level above 1 is a leaf (bit 7).
const PAGE_SIZE_BIT: u64 = 1 << 7;
/// Where a large leaf keeps PAT (bit 12); a 4 KiB leaf keeps it in bit 7.
const LARGE_PAT: u64 = 1 << 12;
/// How far PAT moves between the two.
const PAT_SHIFT: u32 = 5;

/// Attribute bits at the low end of an entry that have the same place in every present entry:
/// bits 1 to 6 and 8 to 11.
const LOW_ATTRS: Attrs = Attrs::from_bits_truncate(0xf7e);
/// Attribute bits above the address in a 4-level entry, NX apart.
const HIGH_ATTRS: Attrs = Attrs::AVAILABLE_HIGH.union(Attrs::PROTECTION_KEY);

/// PSE-36: bits 13 to 20 of a 4 MiB leaf are bits 32 to 39 of the frame address (Intel SDM
/// vol. 3A, table 5-4).
const PSE36_BITS: u64 = 0xff << 13;
/// Distance from the PSE-36 bits to the address bits they stand for.
const PSE36_SHIFT: u32 = 19;

/// What an entry of one kind at one level may hold.
struct Shape {
    /// Attributes with a place in the entry.
    attrs: Attrs,
    /// Raw bits that must be zero.
    reserved: u64,
}

impl Format {
    /// Reads a raw entry of a table of `level`.
    ///
    /// # Errors
    /// [`DecodeError`] when the processor would refuse the entry.
    #[inline]
    pub const fn decode(self, level: Level, raw: u64) -> Result<Entry, DecodeError> {
        // Nearly all entries of nearly all tables are decided here, where the caller's loop can absorb it: 4 KiB leaves, absent entries and
        // tables. The others cost a call.
        let lowest = matches!(level, Level::L1);
        if lowest && self.are_plain_leaves(raw, raw) {
            return Ok(Entry::Leaf(self.leaf_in(raw)));
        }
        if self.has_level(level) {
            if raw & PRESENT == 0 && raw & self.entry_bits() == raw {
                return Ok(Entry::Absent { software: raw });
            }
            if !lowest && self.is_table(level, raw) {
                return Ok(Entry::Table {
                    table: self.table_in(raw),
                    attrs: Attrs::from_bits_truncate(raw).intersection(self.table_attrs(level)),
                });
            }
        }
        self.decode_any(level, raw)
    }

    /// The frame that a raw entry points to, if it is one of a table.
    #[inline]
    pub(crate) const fn table_in(self, raw: u64) -> Gpa {
        Gpa::literal(raw & self.table_mask())
    }

    /// Whether nothing is reserved at any level above 1 in entries that are in use, to judge by the bits that any of them has: then all of
    /// them point to tables. `false` says only that [`decode`](Self::decode) must look at them.
    #[inline]
    pub(crate) const fn are_plain_tables(self, in_any: u64) -> bool {
        in_any & (self.reserved_in_table(Level::L4) | !self.entry_bits()) == 0
    }

    /// Whether a raw entry of a level above 1 points to a table.
    #[inline]
    pub(crate) const fn is_table(self, level: Level, raw: u64) -> bool {
        let odd = self.reserved_in_table(level) | !self.entry_bits();
        raw & PRESENT != 0 && raw & odd == 0
    }

    /// The leaf in a raw entry of level 1, where it is present and valid. `None` says only that [`decode`](Self::decode) must look at it.
    #[inline]
    pub(crate) const fn plain_leaf(self, raw: u64) -> Option<Leaf> {
        if self.are_plain_leaves(raw, raw) {
            Some(self.leaf_in(raw))
        } else {
            None
        }
    }

    /// Whether entries of level 1 all are present and valid, to judge by the bits that all of them have and those that any of them has.
    #[inline]
    pub(crate) const fn are_plain_leaves(self, in_all: u64, in_any: u64) -> bool {
        let odd = self.reserved_everywhere() | !self.entry_bits();
        in_all & PRESENT != 0 && in_any & odd == 0
    }

    /// The leaf in a raw entry of level 1, if it is one.
    #[inline]
    pub(crate) const fn leaf_in(self, raw: u64) -> Leaf {
        Leaf {
            frame: self.table_in(raw),
            attrs: Attrs::from_bits_truncate(raw).intersection(self.leaf_attrs()),
            size: PageSize::Size4KiB,
        }
    }

    /// [`decode`](Self::decode) without short cuts.
    const fn decode_any(self, level: Level, raw: u64) -> Result<Entry, DecodeError> {
        if !self.has_level(level) {
            return Err(DecodeError::NoSuchLevel { level });
        }
        let wide = raw & !self.entry_bits();
        if wide != 0 {
            let bits = wide;
            return Err(DecodeError::ReservedBits { level, raw, bits });
        }
        if raw & PRESENT == 0 {
            return Ok(Entry::Absent { software: raw });
        }
        let large = raw & PAGE_SIZE_BIT != 0 && !matches!(level, Level::L1);
        let size = if large || matches!(level, Level::L1) {
            self.leaf_size(level)
        } else {
            None
        };
        let shape = self.shape(level, size);
        let bits = raw & shape.reserved;
        if bits != 0 {
            return Err(DecodeError::ReservedBits { level, raw, bits });
        }
        let mut attrs = Attrs::from_bits_truncate(raw).intersection(shape.attrs);
        Ok(match size {
            None => Entry::Table {
                table: Gpa::literal(raw & self.table_mask()),
                attrs,
            },
            Some(size) => {
                if large {
                    let pat = Attrs::from_bits_truncate((raw & LARGE_PAT) >> PAT_SHIFT);
                    attrs = attrs.difference(Attrs::PAT).union(pat);
                }
                let frame = Gpa::literal(self.frame_of(raw, size));
                Entry::Leaf(Leaf { frame, attrs, size })
            }
        })
    }

    /// Makes the raw value of `entry` for a table of `level`.
    ///
    /// # Errors
    /// [`EncodeError`] when the format cannot hold the entry there.
    #[inline]
    pub const fn encode(self, level: Level, entry: &Entry) -> Result<u64, EncodeError> {
        if !self.has_level(level) {
            return Err(EncodeError::NoSuchLevel { level });
        }
        match entry {
            Entry::Absent { software } => {
                if *software & (PRESENT | !self.entry_bits()) != 0 {
                    return Err(EncodeError::Software {
                        software: *software,
                    });
                }
                Ok(*software)
            }
            Entry::Table { table, attrs } => self.encode_table(level, *table, *attrs),
            Entry::Leaf(leaf) => self.encode_leaf(level, leaf),
        }
    }

    #[inline]
    const fn encode_table(
        self,
        level: Level,
        table: Gpa,
        attrs: Attrs,
    ) -> Result<u64, EncodeError> {
        if matches!(level, Level::L1) {
            return Err(EncodeError::NoSuchLevel { level });
        }
        let unfit = attrs.difference(self.table_attrs(level));
        if !unfit.is_empty() {
            return Err(EncodeError::Attributes {
                level,
                attrs: unfit,
            });
        }
        let address = table.as_u64();
        if address & !(self.table_mask() & self.physical_mask()) != 0 {
            return Err(EncodeError::Frame {
                frame: table,
                size_bytes: PAGE_SIZE,
            });
        }
        Ok(address | attrs.bits() | PRESENT)
    }

    #[inline]
    const fn encode_leaf(self, level: Level, leaf: &Leaf) -> Result<u64, EncodeError> {
        let Leaf { frame, attrs, size } = *leaf;
        match self.leaf_size(level) {
            Some(at_level) if at_level.bytes() == size.bytes() => {}
            _ => return Err(EncodeError::Size { level, size }),
        }
        let unfit = attrs.difference(self.leaf_attrs());
        if !unfit.is_empty() {
            return Err(EncodeError::Attributes {
                level,
                attrs: unfit,
            });
        }
        let address = frame.as_u64();
        if address & !self.physical_mask() != 0
            || !address.is_multiple_of(size.bytes())
            || (matches!(size, PageSize::Size4KiB) && address & !self.table_mask() != 0)
        {
            return Err(EncodeError::Frame {
                frame,
                size_bytes: size.bytes(),
            });
        }
        if matches!(level, Level::L1) {
            return Ok(address | attrs.bits() | PRESENT);
        }
        let pat = attrs.intersection(Attrs::PAT).bits() << PAT_SHIFT;
        let low = attrs.difference(Attrs::PAT).bits();
        Ok(self.large_address_bits(address) | low | pat | PAGE_SIZE_BIT | PRESENT)
    }

    /// Whether this format has tables of `level`.
    pub(crate) const fn has_level(self, level: Level) -> bool {
        level.number() <= self.root_level().number()
    }

    /// Every bit of an entry. A store that hands over more bits has not read an entry.
    #[inline]
    const fn entry_bits(self) -> u64 {
        match self.mode {
            Mode::FourLevel => u64::MAX,
            Mode::TwoLevel => u32::MAX as u64,
        }
    }

    /// The rules for an entry of `level` that is a leaf of `size`, or a table without one.
    #[inline]
    const fn shape(self, level: Level, size: Option<PageSize>) -> Shape {
        match self.mode {
            Mode::FourLevel => self.four_level_shape(level, size),
            Mode::TwoLevel => self.two_level_shape(size),
        }
    }

    /// Attributes with a place in a leaf; every size of a format has the same.
    #[inline]
    const fn leaf_attrs(self) -> Attrs {
        let low = LOW_ATTRS.union(Attrs::PAT);
        match self.mode {
            Mode::FourLevel => low.union(HIGH_ATTRS).union(self.no_execute()),
            Mode::TwoLevel => low,
        }
    }

    /// Attributes with a place in an entry of a level above 1 that points to a table: those that are not reserved there.
    #[inline]
    const fn table_attrs(self, level: Level) -> Attrs {
        let reserved = Attrs::from_bits_truncate(self.reserved_in_table(level));
        self.leaf_attrs().difference(reserved)
    }

    /// Raw bits that must be zero in every present entry: the physical address ends below them,
    /// or EFER.NXE is clear.
    #[inline]
    const fn reserved_everywhere(self) -> u64 {
        match self.mode {
            Mode::FourLevel => {
                let nx = Attrs::NO_EXECUTE.difference(self.no_execute()).bits();
                self.table_mask() & !self.physical_mask() | nx
            }
            Mode::TwoLevel => 0,
        }
    }

    /// Raw bits that must be zero in a present entry of a level above 1 that points to a table.
    #[inline]
    const fn reserved_in_table(self, level: Level) -> u64 {
        let always = self.reserved_everywhere() | PAGE_SIZE_BIT;
        match (self.mode, level) {
            // Bit 8 of an entry that points to a directory or a directory-pointer table is
            // ignored by Intel's and reserved by AMD's processors; refusing it agrees with both.
            (Mode::FourLevel, Level::L4 | Level::L3) => always | Attrs::GLOBAL.bits(),
            _ => always,
        }
    }

    /// Intel SDM vol. 3A, tables 5-15 to 5-20; AMD APM vol. 2, section 5.3.
    #[inline]
    const fn four_level_shape(self, level: Level, size: Option<PageSize>) -> Shape {
        let always = self.reserved_everywhere();
        match (size, level) {
            (Some(PageSize::Size4KiB), _) => Shape {
                attrs: self.leaf_attrs(),
                reserved: always,
            },
            (Some(size), _) => Shape {
                attrs: self.leaf_attrs(),
                // Between PAT and the frame.
                reserved: always | ((size.bytes() - 1) & !(LARGE_PAT | (PAGE_SIZE - 1))),
            },
            (None, _) => Shape {
                attrs: self.table_attrs(level),
                reserved: self.reserved_in_table(level),
            },
        }
    }

    /// Intel SDM vol. 3A, tables 5-4 to 5-6.
    #[inline]
    const fn two_level_shape(self, size: Option<PageSize>) -> Shape {
        match size {
            Some(PageSize::Size4KiB) => Shape {
                attrs: self.leaf_attrs(),
                reserved: 0,
            },
            Some(_) => {
                let usable = (self.physical_mask() >> PSE36_SHIFT) & PSE36_BITS;
                Shape {
                    attrs: self.leaf_attrs(),
                    // Bit 21 is reserved on every processor.
                    reserved: (PSE36_BITS & !usable) | 1 << 21,
                }
            }
            None => Shape {
                attrs: self.table_attrs(Level::L2),
                reserved: self.reserved_in_table(Level::L2),
            },
        }
    }

    /// The frame address in a raw leaf of `size`.
    const fn frame_of(self, raw: u64, size: PageSize) -> u64 {
        let direct = raw & self.table_mask() & !(size.bytes() - 1);
        match size {
            PageSize::Size4MiB => direct | (raw & PSE36_BITS) << PSE36_SHIFT,
            _ => direct,
        }
    }

    /// The address bits of a raw large leaf whose frame is at `address`.
    const fn large_address_bits(self, address: u64) -> u64 {
        match self.mode {
            Mode::FourLevel => address,
            Mode::TwoLevel => (address & u32::MAX as u64) | (address >> PSE36_SHIFT) & PSE36_BITS,
        }
    }
}

#[cfg(test)]
mod tests;

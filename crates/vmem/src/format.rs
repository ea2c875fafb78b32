//! Page-table formats: how many levels, how wide an entry, which bits are reserved.

use vellum_layout::{Gpa, Gva, GvaRange, PAGE_SIZE, PageSize};

use crate::attrs::Attrs;

/// Level of a page table. Tables of level 1 hold only 4 KiB leaves; CR3 points to a table of the
/// format's [`root_level`](Format::root_level).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Level {
    /// Page table.
    L1 = 1,
    /// Page directory.
    L2 = 2,
    /// Page-directory-pointer table (4-level paging only).
    L3 = 3,
    /// PML4 table (4-level paging only).
    L4 = 4,
}

impl Level {
    /// Every level, lowest first.
    pub const ALL: [Self; 4] = [Self::L1, Self::L2, Self::L3, Self::L4];

    /// The level of the tables that entries of this level point to; `None` for level 1.
    pub const fn below(self) -> Option<Self> {
        match self {
            Self::L1 => None,
            Self::L2 => Some(Self::L1),
            Self::L3 => Some(Self::L2),
            Self::L4 => Some(Self::L3),
        }
    }

    /// The level as a number from 1 to 4.
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// Width of a page-table entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EntryWidth {
    /// 32 bits: 2-level paging.
    Bytes4,
    /// 64 bits: 4-level paging.
    Bytes8,
}

impl EntryWidth {
    /// Length of one entry.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Bytes4 => 4,
            Self::Bytes8 => 8,
        }
    }
}

/// A page-table format as the vCPU interprets it: the paging mode and the processor features that
/// decide which bits are reserved.
///
/// A `Format` is a small value chosen at run time; code for every format is always compiled.
///
/// ```
/// use vellum_vmem::{Format, Level};
/// let format = Format::FOUR_LEVEL.with_physical_bits(40)?;
/// assert_eq!(format.root_level(), Level::L4);
/// assert_eq!(format.leaf_size(Level::L4), None);
/// # Ok::<(), vellum_vmem::FormatError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Format {
    // Few bytes, so that a format goes from function to function in a register.
    pub(crate) mode: Mode,
    /// Width of a physical address on the processor.
    physical_bits: u8,
    /// Largest leaf that the processor understands; a larger one is a reserved-bit fault.
    largest_leaf: PageSize,
    bit_63: HighestBit,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Mode {
    TwoLevel,
    FourLevel,
}

/// What bit 63 of an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum HighestBit {
    /// EFER.NXE is clear, or an entry has no such bit.
    Reserved,
    /// EFER.NXE is set.
    NoExecute,
}

/// Why a combination of registers or widths is no [`Format`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// CR0.PG is clear: the guest runs without translation, so there are no tables.
    #[error("paging is off (cr0.pg is clear): a guest-virtual address is the guest-physical one")]
    PagingOff,
    /// CR4.PAE without long mode: 3-level paging, which Vellum does not read.
    #[error("3-level (pae) page tables are not supported: use 2-level or 4-level paging")]
    ThreeLevel,
    /// CR4.LA57 in long mode: 5-level paging, which Vellum does not read.
    #[error("5-level page tables are not supported: clear cr4.la57")]
    FiveLevel,
    /// Long mode without CR4.PAE: no processor reaches this state.
    #[error("long mode (efer.lma) without cr4.pae is not a processor state")]
    LongModeWithoutPae,
    /// The physical-address width is out of range for the mode.
    #[error("physical addresses of {bits} bits are out of range: give {min} to {max}")]
    PhysicalBits {
        /// The refused width.
        bits: u32,
        /// Least width of this mode.
        min: u32,
        /// Greatest width of this mode.
        max: u32,
    },
}

/// Why a CR3 value or an address cannot be the root of a translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RootError {
    /// The address is not that of a 4 KiB frame.
    #[error("page-table root {root:#x} is not a multiple of 0x1000")]
    Unaligned {
        /// The refused address.
        root: u64,
    },
    /// The address is wider than the processor's physical addresses, or the CR3 value has bits
    /// set that are neither address, PWT nor PCD (a PCID or bit 63, for example).
    #[error("page-table root {root:#x} has reserved bits {bits:#x} set")]
    ReservedBits {
        /// The refused value.
        root: u64,
        /// Its offending bits.
        bits: u64,
    },
}

// Control-register bits, Intel SDM vol. 3A, section 2.5 (CR0, CR4) and 2.2.1 (EFER).
const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;

/// CR3 bits beside the address that do not make a root invalid: PWT (3) and PCD (4), Intel SDM
/// vol. 3A, section 2.5.
const CR3_CACHE_BITS: u64 = 1 << 3 | 1 << 4;

const fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

impl Format {
    /// amd64 4-level paging with EFER.NXE set, 1 GiB pages and 52-bit physical addresses
    /// (Intel SDM vol. 3A, section 5.5).
    pub const FOUR_LEVEL: Self = Self {
        mode: Mode::FourLevel,
        physical_bits: 52,
        largest_leaf: PageSize::Size1GiB,
        bit_63: HighestBit::NoExecute,
    };

    /// i686 2-level paging with CR4.PSE clear, as paged guests boot: 4 KiB pages only
    /// (Intel SDM vol. 3A, section 5.3). The processor ignores bit 7 of a page-directory entry
    /// in this mode; the codec refuses such an entry, so that no large page is ever read as a table.
    pub const TWO_LEVEL: Self = Self {
        mode: Mode::TwoLevel,
        physical_bits: 32,
        largest_leaf: PageSize::Size4KiB,
        bit_63: HighestBit::Reserved,
    };

    /// i686 2-level paging with CR4.PSE set: 4 MiB pages too.
    pub const TWO_LEVEL_PSE: Self = Self {
        largest_leaf: PageSize::Size4MiB,
        ..Self::TWO_LEVEL
    };

    /// The format that a vCPU with these control registers uses.
    ///
    /// # Errors
    /// [`FormatError`] when paging is off or of a kind that Vellum does not read.
    pub const fn from_registers(cr0: u64, cr4: u64, efer: u64) -> Result<Self, FormatError> {
        if cr0 & CR0_PG == 0 {
            return Err(FormatError::PagingOff);
        }
        match (efer & EFER_LMA != 0, cr4 & CR4_PAE != 0) {
            (true, false) => Err(FormatError::LongModeWithoutPae),
            (false, true) => Err(FormatError::ThreeLevel),
            (true, true) if cr4 & CR4_LA57 != 0 => Err(FormatError::FiveLevel),
            (true, true) if efer & EFER_NXE == 0 => Ok(Self::FOUR_LEVEL.without_no_execute()),
            (true, true) => Ok(Self::FOUR_LEVEL),
            (false, false) if cr4 & CR4_PSE != 0 => Ok(Self::TWO_LEVEL_PSE),
            (false, false) => Ok(Self::TWO_LEVEL),
        }
    }

    /// This format on a processor with `bits` bits of physical address (`MAXPHYADDR`, CPUID
    /// leaf `0x8000_0008`): higher address bits are reserved. For 2-level paging more than 32 bits
    /// matter to 4 MiB leaves only (PSE-36).
    ///
    /// # Errors
    /// [`FormatError::PhysicalBits`] outside 32 to 52 (4-level) or 32 to 40 (2-level).
    pub const fn with_physical_bits(self, bits: u32) -> Result<Self, FormatError> {
        let (min, max) = match self.mode {
            Mode::FourLevel => (32, 52),
            Mode::TwoLevel => (32, 40),
        };
        if bits < min || bits > max {
            return Err(FormatError::PhysicalBits { bits, min, max });
        }
        #[expect(clippy::cast_possible_truncation, reason = "from 32 to 52")]
        let physical_bits = bits as u8;
        Ok(Self {
            physical_bits,
            ..self
        })
    }

    /// This format with EFER.NXE clear: bit 63 is reserved.
    #[must_use]
    pub const fn without_no_execute(self) -> Self {
        Self {
            bit_63: HighestBit::Reserved,
            ..self
        }
    }

    /// This format on a processor without 1 GiB pages (CPUID `0x8000_0001`, EDX bit 26 clear).
    #[must_use]
    pub const fn without_1_gib_pages(self) -> Self {
        match self.mode {
            Mode::FourLevel => Self {
                largest_leaf: PageSize::Size2MiB,
                ..self
            },
            Mode::TwoLevel => self,
        }
    }

    /// The root-table address in a CR3 value.
    ///
    /// # Errors
    /// [`RootError::ReservedBits`] when a bit other than address, PWT and PCD is set. A host that
    /// allows CR4.PCIDE removes the PCID (bits 0 to 11) first.
    #[inline]
    pub const fn root_from_cr3(self, cr3: u64) -> Result<Gpa, RootError> {
        let address = cr3 & !CR3_CACHE_BITS;
        let bits = address & !(self.table_mask() & self.physical_mask());
        if bits != 0 {
            return Err(RootError::ReservedBits { root: cr3, bits });
        }
        Ok(Gpa::literal(address))
    }

    /// Checks that `root` is the address of a frame that CR3 can hold.
    ///
    /// # Errors
    /// [`RootError`] when it is unaligned or too wide.
    #[inline]
    pub const fn check_root(self, root: Gpa) -> Result<(), RootError> {
        let address = root.as_u64();
        if !address.is_multiple_of(PAGE_SIZE) {
            return Err(RootError::Unaligned { root: address });
        }
        match self.root_from_cr3(address) {
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Level of the table that CR3 points to.
    #[inline]
    pub const fn root_level(self) -> Level {
        match self.mode {
            Mode::FourLevel => Level::L4,
            Mode::TwoLevel => Level::L2,
        }
    }

    /// Width of an entry.
    #[inline]
    pub const fn entry_width(self) -> EntryWidth {
        match self.mode {
            Mode::FourLevel => EntryWidth::Bytes8,
            Mode::TwoLevel => EntryWidth::Bytes4,
        }
    }

    /// Number of entries in a table; each table fills one 4 KiB frame.
    pub const fn entries_per_table(self) -> u64 {
        PAGE_SIZE / self.entry_width().bytes()
    }

    /// Size of the page that a leaf of `level` maps; `None` where this format has no leaf.
    pub const fn leaf_size(self, level: Level) -> Option<PageSize> {
        match (self.mode, level) {
            (_, Level::L1) => Some(PageSize::Size4KiB),
            (Mode::FourLevel, Level::L2) => Some(PageSize::Size2MiB),
            (Mode::FourLevel, Level::L3) if matches!(self.largest_leaf, PageSize::Size1GiB) => {
                Some(PageSize::Size1GiB)
            }
            (Mode::TwoLevel, Level::L2) if matches!(self.largest_leaf, PageSize::Size4MiB) => {
                Some(PageSize::Size4MiB)
            }
            _ => None,
        }
    }

    /// The level whose leaves map pages of `size`; `None` when this format has none.
    pub const fn level_of(self, size: PageSize) -> Option<Level> {
        match (self.mode, size) {
            (_, PageSize::Size4KiB) => Some(Level::L1),
            (Mode::FourLevel, PageSize::Size2MiB) => Some(Level::L2),
            (Mode::FourLevel, PageSize::Size1GiB) => match self.largest_leaf {
                PageSize::Size1GiB => Some(Level::L3),
                _ => None,
            },
            (Mode::TwoLevel, PageSize::Size4MiB) => match self.largest_leaf {
                PageSize::Size4MiB => Some(Level::L2),
                _ => None,
            },
            _ => None,
        }
    }

    /// Bytes of address space under one entry of `level`.
    pub const fn span_bytes(self, level: Level) -> u64 {
        1 << self.shift(level)
    }

    /// Index into a table of `level` for the address; bits above the address width are ignored.
    pub const fn index(self, level: Level, gva: Gva) -> u64 {
        self.linear_index(level, gva.as_u64())
    }

    /// Address of entry `index` of the table at `table`, which is a frame address.
    #[inline]
    pub(crate) fn entry_at(self, table: Gpa, index: u64) -> Gpa {
        debug_assert!(index < self.entries_per_table());
        let offset = index * self.entry_width().bytes();
        // A table frame is aligned and an index is below the number of entries: no carry, no
        // overflow. The fallback is not reached.
        table.checked_add(offset).unwrap_or(table)
    }

    #[inline]
    pub(crate) const fn linear_index(self, level: Level, linear: u64) -> u64 {
        (linear >> self.shift(level)) & (self.entries_per_table() - 1)
    }

    /// Number of address bits below the index of `level`: 12, then 9 (or 10) more per level.
    #[inline]
    pub(crate) const fn shift(self, level: Level) -> u32 {
        let index_bits = match self.mode {
            Mode::FourLevel => 9,
            Mode::TwoLevel => 10,
        };
        12 + index_bits * (level.number() as u32 - 1)
    }

    /// Address bits of an entry that points to a frame, before the physical width is applied.
    #[inline]
    pub(crate) const fn table_mask(self) -> u64 {
        match self.mode {
            Mode::FourLevel => mask(52) & !(PAGE_SIZE - 1),
            Mode::TwoLevel => mask(32) & !(PAGE_SIZE - 1),
        }
    }

    /// This format, where its mode is known: a constant makes the compiler fold what depends on it.
    #[inline]
    pub(crate) const fn in_mode(self, mode: Mode) -> Self {
        Self { mode, ..self }
    }

    /// Bits of a physical address that the processor has, as a mask.
    #[inline]
    pub(crate) const fn physical_mask(self) -> u64 {
        mask(self.physical_bits as u32)
    }

    /// `NO_EXECUTE` where entries have it.
    #[inline]
    pub(crate) const fn no_execute(self) -> Attrs {
        match self.bit_63 {
            HighestBit::NoExecute => Attrs::NO_EXECUTE,
            HighestBit::Reserved => Attrs::empty(),
        }
    }

    /// Number of significant bits in a linear address.
    #[inline]
    pub(crate) const fn linear_bits(self) -> u32 {
        match self.mode {
            Mode::FourLevel => 48,
            Mode::TwoLevel => 32,
        }
    }

    /// Whether the format can translate `gva` at all.
    #[inline]
    pub const fn reaches(self, gva: Gva) -> bool {
        match self.mode {
            Mode::FourLevel => true,
            Mode::TwoLevel => gva.as_u64() <= u32::MAX as u64,
        }
    }

    /// The address without its sign extension; `None` when the format cannot translate it.
    #[inline]
    pub(crate) const fn linear(self, gva: Gva) -> Option<u64> {
        if self.reaches(gva) {
            Some(gva.as_u64() & mask(self.linear_bits()))
        } else {
            None
        }
    }
}

/// The canonical address of a linear one. A 32-bit address has bit 47 clear, so that sign
/// extension leaves it alone.
#[inline]
pub(crate) const fn gva_of(linear: u64) -> Gva {
    Gva::sign_extend(linear)
}

/// A range of linear addresses with inclusive bounds, so that it can hold the whole address space.
/// `first` is page-aligned and `last` is the last byte of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

impl Span {
    pub(crate) const fn whole(format: Format) -> Self {
        Self {
            first: 0,
            last: mask(format.linear_bits()),
        }
    }

    /// The span of `range`; `None` when the format cannot translate all of it.
    pub(crate) fn of(format: Format, range: GvaRange) -> Option<Self> {
        Some(Self {
            first: format.linear(range.start())?,
            last: format.linear(range.last())?,
        })
    }

    /// The parts of this span under each entry of a table of `level`; the span lies under one
    /// table of that level.
    pub(crate) fn slots(self, format: Format, level: Level) -> impl Iterator<Item = Slot> {
        let span_mask = format.span_bytes(level) - 1;
        let first_index = format.linear_index(level, self.first);
        let last_index = format.linear_index(level, self.last);
        let base = (self.first & !span_mask).wrapping_sub(first_index << format.shift(level));
        (first_index..=last_index).map(move |index| {
            let start = base + (index << format.shift(level));
            Slot {
                index,
                span: Self {
                    first: self.first.max(start),
                    last: self.last.min(start | span_mask),
                },
            }
        })
    }

    /// Those of [`slots`](Self::slots) that the span covers only in part: at most its first and last.
    pub(crate) fn edge_slots(self, format: Format, level: Level) -> impl Iterator<Item = Slot> {
        let slot_of = move |linear: u64| {
            let start = linear & !(format.span_bytes(level) - 1);
            let end = start | (format.span_bytes(level) - 1);
            Slot {
                index: format.linear_index(level, linear),
                span: Self {
                    first: self.first.max(start),
                    last: self.last.min(end),
                },
            }
        };
        let (first, last) = (slot_of(self.first), slot_of(self.last));
        let second = (last.index != first.index).then_some(last);
        core::iter::once(first)
            .chain(second)
            .filter(move |slot| !slot.span.fills(format, level))
    }

    /// Whether the span is everything under one entry of `level`.
    pub(crate) const fn fills(self, format: Format, level: Level) -> bool {
        let span_mask = format.span_bytes(level) - 1;
        self.first & span_mask == 0 && self.last & span_mask == span_mask
    }
}

/// One entry's part of a [`Span`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slot {
    pub(crate) index: u64,
    pub(crate) span: Span,
}

#[cfg(test)]
mod tests;

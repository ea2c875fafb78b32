//! Attributes of a page-table entry, independent of its level and format.

bitflags::bitflags! {
    /// What a page-table entry says besides its address.
    ///
    /// Each flag sits at the bit it has in a 4-level entry that maps a 4 KiB page (Intel SDM vol. 3A,
    /// table 5-20; AMD APM vol. 2, section 5.4), so that the codec moves as few bits as possible.
    /// The one bit whose place depends on the page size, [`PAT`](Self::PAT), is moved by the codec;
    /// callers never see the difference.
    ///
    /// The empty set is a supervisor page that can be read and executed but not written.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Attrs: u64 {
        /// Writes are allowed (R/W, bit 1).
        const WRITE = 1 << 1;
        /// Accesses from ring 3 are allowed (U/S, bit 2).
        const USER = 1 << 2;
        /// Write-through caching (PWT, bit 3).
        const WRITE_THROUGH = 1 << 3;
        /// Caching is disabled (PCD, bit 4).
        const CACHE_DISABLE = 1 << 4;
        /// The processor has used this entry (A, bit 5).
        const ACCESSED = 1 << 5;
        /// The processor has written through this leaf (D, bit 6); ignored in a table entry.
        const DIRTY = 1 << 6;
        /// High bit of the index into `IA32_PAT` (bit 7 of a 4 KiB leaf, bit 12 of a larger one).
        const PAT = 1 << 7;
        /// The translation survives a reload of CR3 when CR4.PGE is set (G, bit 8).
        const GLOBAL = 1 << 8;
        /// Vellum's mark for copy on write (software bit 9): the leaf is read-only for now, and a
        /// write gets a private copy. The processor ignores it.
        const COW = 1 << 9;
        /// Software bit 10, ignored by the processor and unused by Vellum.
        const AVAILABLE_10 = 1 << 10;
        /// Software bit 11, ignored by the processor and unused by Vellum.
        const AVAILABLE_11 = 1 << 11;
        /// Software bits 10 and 11.
        const AVAILABLE = Self::AVAILABLE_10.bits() | Self::AVAILABLE_11.bits();
        /// Software bits 52 to 58; only 4-level entries have them.
        const AVAILABLE_HIGH = 0x7f << 52;
        /// Protection key, bits 59 to 62 of a 4-level leaf; software bits while CR4.PKE is clear.
        const PROTECTION_KEY = 0xf << 59;
        /// Instruction fetches are refused (NX or XD, bit 63); needs EFER.NXE.
        const NO_EXECUTE = 1 << 63;
    }
}

impl Attrs {
    /// The rights that a table entry can take away from everything below it
    /// (Intel SDM vol. 3A, section 5.6.1).
    pub const RIGHTS: Self = Self::WRITE.union(Self::USER).union(Self::NO_EXECUTE);

    /// These attributes as they take effect below a table entry with `table` attributes: writing and
    /// user access need the permission of every level, and one `NO_EXECUTE` suffices.
    #[must_use]
    #[inline]
    pub const fn restricted_by(self, table: Self) -> Self {
        let lost = Self::WRITE.union(Self::USER).difference(table);
        self.difference(lost)
            .union(table.intersection(Self::NO_EXECUTE))
    }
}

/// A change of attributes: what [`Mapper::protect`](crate::Mapper::protect) does to each leaf.
///
/// ```
/// use vellum_vmem::{AttrChange, Attrs};
/// // What a snapshot does to a writable page: the next write gets a private copy.
/// let freeze = AttrChange::clear(Attrs::WRITE | Attrs::DIRTY).and_set(Attrs::COW);
/// let page = Attrs::WRITE | Attrs::USER | Attrs::NO_EXECUTE;
/// assert_eq!(freeze.apply(page), Attrs::COW | Attrs::USER | Attrs::NO_EXECUTE);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttrChange {
    set: Attrs,
    clear: Attrs,
}

impl AttrChange {
    /// Replaces all attributes, ACCESSED and DIRTY included, with exactly `attrs`.
    #[must_use]
    pub const fn exactly(attrs: Attrs) -> Self {
        Self {
            set: attrs,
            clear: Attrs::all().difference(attrs),
        }
    }

    /// Sets `attrs` and leaves the others as they are.
    #[must_use]
    pub const fn set(attrs: Attrs) -> Self {
        Self {
            set: attrs,
            clear: Attrs::empty(),
        }
    }

    /// Clears `attrs` and leaves the others as they are.
    #[must_use]
    pub const fn clear(attrs: Attrs) -> Self {
        Self {
            set: Attrs::empty(),
            clear: attrs,
        }
    }

    /// This change, which also sets `attrs`; the later step wins.
    #[must_use]
    pub const fn and_set(self, attrs: Attrs) -> Self {
        Self {
            set: self.set.union(attrs),
            clear: self.clear.difference(attrs),
        }
    }

    /// This change, which also clears `attrs`; the later step wins.
    #[must_use]
    pub const fn and_clear(self, attrs: Attrs) -> Self {
        Self {
            set: self.set.difference(attrs),
            clear: self.clear.union(attrs),
        }
    }

    /// The attributes after the change.
    #[must_use]
    pub const fn apply(self, attrs: Attrs) -> Attrs {
        attrs.difference(self.clear).union(self.set)
    }

    /// The rights that the change grants and a table with `table` attributes takes away again.
    pub(crate) const fn denied_by(self, table: Attrs) -> Attrs {
        let granted = Attrs::WRITE.union(Attrs::USER).intersection(self.set);
        let executable = Attrs::NO_EXECUTE.intersection(self.clear);
        granted
            .difference(table)
            .union(executable.intersection(table))
    }
}

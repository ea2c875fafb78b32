//! The duty that a change of tables leaves behind: making processors forget the old translations.

use vellum_layout::{Gva, GvaRange, PAGE_SIZE};

/// Proof that tables were changed and that translations of [`range`](Self::range) may still be
/// cached by a processor.
///
/// It comes out of every operation of a [`Mapper`](crate::Mapper) and must be used up: by
/// [`flush_pages`](Self::flush_pages) with what `invlpg` does on the spot, by
/// [`flush_all`](Self::flush_all) with a reload of CR3 (or the host's way of publishing table edits), or
/// by [`ignore`](Self::ignore) with the reason why nothing is cached. Dropping it is a compiler
/// warning, and an error in this workspace:
///
/// ```compile_fail
/// #![deny(unused_must_use)]
/// use vellum_layout::GvaRange;
/// use vellum_vmem::{FrameSource, Mapper, TableStore, UnmapError};
///
/// fn forgetful<S: TableStore, F: FrameSource>(
///     mapper: &mut Mapper<S, F>,
///     range: GvaRange,
/// ) -> Result<(), UnmapError> {
///     mapper.unmap(range)?; // the duty is dropped here
///     Ok(())
/// }
/// ```
#[must_use = "the old translation may still be cached: flush it, or say why that is not needed"]
#[derive(Debug, PartialEq, Eq)]
pub struct TlbFlush {
    range: GvaRange,
    change: Change,
}

/// What a [`TlbFlush`] is about, from the least demanding to the most demanding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Change {
    /// Every translation is what it was, and no entry was touched.
    Unchanged,
    /// Only absent entries were filled. A processor caches no absent translation (Intel SDM
    /// vol. 3A, section 5.10.2), so with hardware paging nothing is stale; a hypervisor with shadow
    /// page tables may still need to be told.
    Added,
    /// Present entries were changed; none of them was global.
    Changed,
    /// Present entries were changed, global ones among them: a reload of CR3 does not remove these
    /// (Intel SDM vol. 3A, section 5.10.4.1), `invlpg` does.
    ChangedGlobal,
}

impl TlbFlush {
    pub(crate) const fn new(range: GvaRange, change: Change) -> Self {
        Self { range, change }
    }

    /// The addresses whose translation changed.
    pub const fn range(&self) -> GvaRange {
        self.range
    }

    /// What kind of change it was.
    pub const fn change(&self) -> Change {
        self.change
    }

    /// The 4 KiB pages of the range, for a caller that wants to decide how to flush.
    pub fn pages(&self) -> impl Iterator<Item = Gva> + use<> {
        let range = self.range;
        (0..range.pages()).filter_map(move |page| range.at(page * PAGE_SIZE))
    }

    /// Uses the duty up by invalidating page by page, as `invlpg` does.
    pub fn flush_pages(self, mut invalidate: impl FnMut(Gva)) {
        self.pages().for_each(&mut invalidate);
    }

    /// Uses the duty up by invalidating everything, as a reload of CR3 does. `invalidate` gets
    /// the kind of change, because global translations survive a mere reload.
    pub fn flush_all(self, invalidate: impl FnOnce(Change)) {
        invalidate(self.change);
    }

    /// Uses the duty up without a flush. `reason` says why nothing stale can be cached; it is there
    /// for the reader of the call.
    pub const fn ignore(self, reason: &'static str) {
        let _ = reason;
    }

    /// One duty for both changes: the range that covers the two, and the more demanding kind.
    ///
    /// # Errors
    /// Both duties unchanged when they lie in different halves of the address space, where no
    /// range covers them.
    pub fn merge(self, other: Self) -> Result<Self, (Self, Self)> {
        let start = self.range.start().min(other.range.start());
        let end = self.range.end().max(other.range.end());
        match GvaRange::from_bounds(start, end) {
            Ok(range) => Ok(Self::new(range, self.change.max(other.change))),
            Err(_) => Err((self, other)),
        }
    }
}

#[cfg(test)]
mod tests;

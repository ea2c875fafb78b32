//! Written pages on their way from the hypervisor to whoever asks for them.

use vellum_layout::{Gpa, GpaRange, PAGE_SIZE};

/// Pages that were collected and not yet taken. A page may be there twice, but a guest that writes the same pages again and
/// again does not make it grow: it holds at most twice as many entries as pages, or [`Collected::MIN_LIMIT`].
#[derive(Debug)]
pub(crate) struct Collected {
    pages: Vec<Gpa>,
    /// At this length the double entries are dropped.
    limit: usize,
}

impl Collected {
    const MIN_LIMIT: usize = 2 * 4096;

    pub(crate) fn new() -> Self {
        Self {
            pages: Vec::new(),
            limit: Self::MIN_LIMIT,
        }
    }

    pub(crate) fn push(&mut self, page: Gpa) {
        if self.pages.len() >= self.limit {
            self.pages.sort_unstable();
            self.pages.dedup();
            self.limit = (2 * self.pages.len()).max(Self::MIN_LIMIT);
        }
        self.pages.push(page);
    }

    /// Adds the pages of `range` whose bits are set in a bitmap, the lowest first.
    pub(crate) fn push_bits(&mut self, range: GpaRange, words: Vec<u64>) {
        for (first, mut word) in (0_u64..).step_by(64).zip(words) {
            while word != 0 {
                let page = first + u64::from(word.trailing_zeros());
                word &= word - 1;
                if let Some(page) = range.at(page * PAGE_SIZE) {
                    self.push(page);
                }
            }
        }
    }

    /// Drops what lies in `range`.
    pub(crate) fn forget(&mut self, range: GpaRange) {
        self.pages.retain(|page| !range.contains(*page));
    }

    pub(crate) fn take(&mut self) -> impl Iterator<Item = Gpa> {
        self.limit = Self::MIN_LIMIT;
        self.pages.drain(..)
    }
}

#[cfg(test)]
mod tests;

//! Which pages of the image hold what: a short list of runs, by address.

use vellum_layout::{Gpa, Gva, PAGE_SIZE};

/// An address that names a page: guest-virtual where the host makes the page tables, guest-physical where the guest does.
pub(crate) trait PageAddress: Copy + Ord {
    /// The address as a number.
    fn number(self) -> u64;
    /// The address `bytes` further on.
    fn forward(self, bytes: u64) -> Option<Self>;
}

impl PageAddress for Gva {
    fn number(self) -> u64 {
        self.as_u64()
    }

    fn forward(self, bytes: u64) -> Option<Self> {
        self.checked_add(bytes)
    }
}

impl PageAddress for Gpa {
    fn number(self) -> u64 {
        self.as_u64()
    }

    fn forward(self, bytes: u64) -> Option<Self> {
        self.checked_add(bytes)
    }
}

/// A run of pages whose content lies in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent<A> {
    /// Address of the first page.
    pub(crate) at: A,
    /// First page of the image, counted over all layers.
    pub(crate) image_page: u64,
    /// Length.
    pub(crate) pages: u64,
}

impl<A: PageAddress> Extent<A> {
    /// Length in bytes.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.pages * PAGE_SIZE
    }

    fn end(&self) -> u64 {
        self.at.number() + self.len_bytes()
    }
}

/// The extents of a snapshot, sorted by address, without overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extents<A> {
    extents: Vec<Extent<A>>,
}

impl<A: PageAddress> Extents<A> {
    /// From extents in any order; the caller has checked that they do not overlap.
    pub(crate) fn new(mut extents: Vec<Extent<A>>) -> Self {
        extents.sort_unstable_by_key(|extent| extent.at);
        Self { extents }
    }

    pub(crate) fn as_slice(&self) -> &[Extent<A>] {
        &self.extents
    }

    /// The page of the image that holds `at`, if any does.
    pub(crate) fn image_page_of(&self, at: A) -> Option<u64> {
        self.page_of_run(at, PAGE_SIZE)
    }

    /// The first of the image pages that hold the `len_bytes` from `at` on, if they are one behind the other in one extent.
    pub(crate) fn page_of_run(&self, at: A, len_bytes: u64) -> Option<u64> {
        let after = self.extents.partition_point(|extent| extent.at <= at);
        let extent = self.extents[..after].last()?;
        (at.number() + len_bytes <= extent.end())
            .then(|| extent.image_page + (at.number() - extent.at.number()) / PAGE_SIZE)
    }

    /// The same extents after the pages `dirty` (sorted) moved to the image pages `first_image_page` and following.
    pub(crate) fn with_overlay(&self, dirty: &[A], first_image_page: u64) -> Self {
        let mut extents = Vec::with_capacity(self.extents.len() + dirty.len());
        let mut moved = dirty.iter().copied().peekable();
        for extent in &self.extents {
            let mut rest = *extent;
            while let Some(&at) = moved.peek() {
                if at.number() >= rest.end() {
                    break;
                }
                moved.next();
                if at >= rest.at {
                    rest = split_around(rest, at, &mut extents);
                }
            }
            if rest.pages > 0 {
                extents.push(rest);
            }
        }
        extents.extend(runs(dirty, first_image_page));
        Self::new(extents)
    }
}

/// Pushes the part of `extent` before the page `at` and returns the part behind it.
fn split_around<A: PageAddress>(extent: Extent<A>, at: A, into: &mut Vec<Extent<A>>) -> Extent<A> {
    let before = (at.number() - extent.at.number()) / PAGE_SIZE;
    if before > 0 {
        into.push(Extent {
            pages: before,
            ..extent
        });
    }
    let skipped = before + 1;
    Extent {
        // The end of an extent is an address, or the extent is empty and the address unused.
        at: (extent.at)
            .forward(skipped * PAGE_SIZE)
            .unwrap_or(extent.at),
        image_page: extent.image_page + skipped,
        pages: extent.pages - skipped,
    }
}

/// Groups sorted pages, stored one after another in the image, into extents.
fn runs<A: PageAddress>(pages: &[A], first_image_page: u64) -> Vec<Extent<A>> {
    let mut runs: Vec<Extent<A>> = Vec::new();
    for (&at, image_page) in pages.iter().zip(first_image_page..) {
        match runs.last_mut() {
            Some(run) if run.end() == at.number() => run.pages += 1,
            _ => runs.push(Extent {
                at,
                image_page,
                pages: 1,
            }),
        }
    }
    runs
}

#[cfg(test)]
mod tests;

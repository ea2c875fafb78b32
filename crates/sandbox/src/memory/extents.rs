//! Which pages of the image hold what: a short list of runs, by address.

use vellum_layout::{Gpa, Gva, PAGE_SIZE, PageSize};

/// An address that names a page: guest-virtual where the host makes the page tables, guest-physical where the guest does.
pub(crate) trait PageAddress: Copy + Ord {
    /// The address as a number.
    fn number(self) -> u64;
    /// The address `bytes` further on.
    fn forward(self, bytes: u64) -> Option<Self>;
    /// The image page that may hold it, modulo [`LARGE`], if a large leaf is to map both; `None` where image pages have no guest-physical
    /// address of their own.
    fn phase(self) -> Option<u64>;
}

/// Pages of 4 KiB in a large leaf.
const LARGE: u64 = PageSize::Size2MiB.bytes() / PAGE_SIZE;

impl PageAddress for Gva {
    fn number(self) -> u64 {
        self.as_u64()
    }

    fn forward(self, bytes: u64) -> Option<Self> {
        self.checked_add(bytes)
    }

    /// The image of a user guest begins at this address, or a multiple of a large page above.
    fn phase(self) -> Option<u64> {
        let base = vellum_layout::amd64::BASE_ADDRESS.as_u64() / PAGE_SIZE;
        Some((self.as_u64() / PAGE_SIZE + LARGE - base) % LARGE)
    }
}

impl PageAddress for Gpa {
    fn number(self) -> u64 {
        self.as_u64()
    }

    fn forward(self, bytes: u64) -> Option<Self> {
        self.checked_add(bytes)
    }

    /// A kernel's pages are mapped one by one, wherever they come from.
    fn phase(self) -> Option<u64> {
        None
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

    /// The image page behind the last one.
    pub(crate) fn end_page(&self) -> u64 {
        self.image_page + self.pages
    }

    /// The first `pages` of it.
    fn first(self, pages: u64) -> Self {
        Self { pages, ..self }
    }

    /// All but the first `pages` of it, which it has.
    fn behind(self, pages: u64) -> Self {
        Self {
            // The end of an extent is an address, or the extent is empty and the address unused.
            at: (self.at).forward(pages * PAGE_SIZE).unwrap_or(self.at),
            image_page: self.image_page + pages,
            pages: self.pages - pages,
        }
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

    /// The same extents below others, which are sorted and do not overlap each other.
    pub(crate) fn below(&self, above: &[Extent<A>]) -> Self {
        let mut extents = Vec::with_capacity(self.extents.len() + 2 * above.len());
        let mut next = 0;
        for extent in &self.extents {
            while above
                .get(next)
                .is_some_and(|it| it.end() <= extent.at.number())
            {
                next += 1;
            }
            push_uncovered(*extent, &above[next..], &mut extents);
        }
        extents.extend(above);
        Self::new(extents)
    }
}

/// Pushes what of `extent` is not covered by `above`.
fn push_uncovered<A: PageAddress>(
    extent: Extent<A>,
    above: &[Extent<A>],
    into: &mut Vec<Extent<A>>,
) {
    let mut rest = extent;
    for cover in above {
        if cover.at.number() >= rest.end() {
            break;
        }
        if cover.at > rest.at {
            into.push(rest.first((cover.at.number() - rest.at.number()) / PAGE_SIZE));
        }
        if cover.end() >= rest.end() {
            return;
        }
        rest = rest.behind((cover.end() - rest.at.number()) / PAGE_SIZE);
    }
    into.push(rest);
}

/// Places sorted pages in the image, from `first_image_page` on: one behind the other, but runs that hold a whole large page so that a
/// large leaf can map it.
pub(crate) fn placed<A: PageAddress>(pages: &[A], first_image_page: u64) -> Vec<Extent<A>> {
    let mut placed: Vec<Extent<A>> = Vec::new();
    for &at in pages {
        match placed.last_mut() {
            Some(run) if run.end() == at.number() => run.pages += 1,
            _ => placed.push(Extent {
                at,
                image_page: 0,
                pages: 1,
            }),
        }
    }
    let mut next = first_image_page;
    for run in &mut placed {
        next += padding(run, next);
        run.image_page = next;
        next = run.end_page();
    }
    placed
}

/// Image pages to leave out before `run`, where `next` is free.
pub(crate) fn padding<A: PageAddress>(run: &Extent<A>, next: u64) -> u64 {
    let large = PageSize::Size2MiB.bytes();
    let holds_a_large_page = run.at.number().next_multiple_of(large) + large <= run.end();
    match run.at.phase() {
        Some(phase) if holds_a_large_page => (phase + LARGE - next % LARGE) % LARGE,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;

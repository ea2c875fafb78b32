//! Joining extents that lie close to each other, so that there are few.

use vellum_layout::PAGE_SIZE;

use crate::memory::{Extent, Extents, PageAddress};

/// A range that becomes one extent: those that lie in it, and the gaps between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span<A> {
    pub(super) at: A,
    pub(super) pages: u64,
    extents: Vec<Extent<A>>,
}

impl<A: PageAddress> Span<A> {
    fn of(extent: Extent<A>) -> Self {
        Self {
            at: extent.at,
            pages: extent.pages,
            extents: vec![extent],
        }
    }

    fn join(&mut self, extent: Extent<A>) {
        self.pages = pages_between(self.at, extent.at) + extent.pages;
        self.extents.push(extent);
    }

    fn end(&self) -> u64 {
        self.at.number() + self.pages * PAGE_SIZE
    }

    /// The pages that some extent has: their number in the span, and in the image.
    pub(super) fn present(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.extents.iter().flat_map(|extent| {
            let first = pages_between(self.at, extent.at);
            (0..extent.pages).map(move |page| (first + page, extent.image_page + page))
        })
    }
}

/// Groups extents into at most `limit` spans: the widest gaps remain, and the others are closed.
pub(super) fn spans<A: PageAddress>(extents: &Extents<A>, limit: usize) -> Vec<Span<A>> {
    let extents = extents.as_slice();
    if extents.len() <= limit {
        // Not even those that touch are joined: they may belong to different areas.
        return extents.iter().copied().map(Span::of).collect();
    }
    let widest = widest_closed_gap(extents, limit);
    let mut spans: Vec<Span<A>> = Vec::new();
    for extent in extents {
        match spans.last_mut() {
            Some(span) if extent.at.number() - span.end() <= widest => span.join(*extent),
            _ => spans.push(Span::of(*extent)),
        }
    }
    spans
}

/// Bytes of the widest gap that must be closed for at most `count` groups to remain.
fn widest_closed_gap<A: PageAddress>(extents: &[Extent<A>], count: usize) -> u64 {
    let gap = |pair: &[Extent<A>]| {
        let end = pair[0].at.number() + pair[0].len_bytes();
        pair[1].at.number() - end
    };
    let mut gaps: Vec<u64> = extents.windows(2).map(gap).collect();
    gaps.sort_unstable_by(|left, right| right.cmp(left));
    // `count` groups have one gap less between them.
    gaps.get(count.saturating_sub(1)).copied().unwrap_or(0)
}

fn pages_between<A: PageAddress>(first: A, last: A) -> u64 {
    (last.number() - first.number()) / PAGE_SIZE
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_set;
    use proptest::prelude::*;
    use vellum_layout::Gpa;

    use crate::memory::placed;

    use super::*;

    fn gpa(page: u64) -> Gpa {
        Gpa::new(page * PAGE_SIZE).expect("an address")
    }

    /// Runs of single pages, stored one behind the other.
    fn extents(pages: impl IntoIterator<Item = u64>) -> Extents<Gpa> {
        let addresses: Vec<Gpa> = pages.into_iter().map(gpa).collect();
        Extents::new(placed(&addresses, 0))
    }

    fn shape(spans: &[Span<Gpa>]) -> Vec<(u64, u64)> {
        let page = |span: &Span<Gpa>| (span.at.as_u64() / PAGE_SIZE, span.pages);
        spans.iter().map(page).collect()
    }

    #[test]
    fn few_extents_stay_as_they_are() {
        let touching = extents([1, 2, 9, 20]).below(&placed(&[gpa(3)], 7));
        let spans = spans(&touching, 4);
        assert_eq!(shape(&spans), [(1, 2), (3, 1), (9, 1), (20, 1)]);
    }

    #[test]
    fn the_narrowest_gaps_are_closed_first() {
        let spans = spans(&extents([1, 3, 10, 12, 14, 50, 53]), 2);
        assert_eq!(shape(&spans), [(1, 14), (50, 4)]);
        let present: Vec<_> = spans[0].present().collect();
        assert_eq!(present, [(0, 0), (2, 1), (9, 2), (11, 3), (13, 4)]);
    }

    proptest! {
        /// Every page keeps its place and its content, in at most as many spans as are allowed.
        #[test]
        fn spans_hold_the_same_pages(
            pages in btree_set(0..400_u64, 1..200),
            allowed in 1..40_usize,
        ) {
            let extents = extents(pages.iter().copied());
            let spans = spans(&extents, allowed);
            prop_assert!(spans.len() <= allowed);
            let found: Vec<(u64, u64)> = spans
                .iter()
                .flat_map(|span| {
                    let first = span.at.as_u64() / PAGE_SIZE;
                    span.present().map(move |(page, image_page)| (first + page, image_page))
                })
                .collect();
            let expected: Vec<(u64, u64)> = pages.iter().copied().zip(0..).collect();
            prop_assert_eq!(found, expected);
        }
    }
}

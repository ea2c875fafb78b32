//! What lies where in the image slot of a user guest: from its pages to the layers below them and to the addresses that the guest
//! knows them by.

use vellum_layout::{GpaRange, Gva, PAGE_SIZE};

use super::{
    Backing, Extents, Geometry, Layers, PageSource, Place, SpaceError, UserParts, UserSpace,
};

/// The unmodified contents of an image slot: those of a snapshot.
///
/// As a rule the slot shows this very snapshot. Where it shows an older one, because the sandbox has gone on from there in place,
/// the address of a page leads from one to the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Contents<'a> {
    image: GpaRange,
    parts: &'a UserParts,
    layers: &'a Layers,
    space: &'a UserSpace,
    /// From pages of the slot to addresses.
    index: &'a AddressIndex,
    pages: Pages,
}

/// How the pages of the slot are numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pages {
    /// As those of the snapshot.
    OfSnapshot,
    /// As those of an older one.
    Moved,
}

/// From image pages back to addresses: (first image page, length, address), sorted.
#[derive(Debug)]
pub(crate) struct AddressIndex {
    extents: Vec<(u64, u64, Gva)>,
}

impl AddressIndex {
    pub(crate) fn new(extents: &Extents<Gva>) -> Self {
        let runs = extents.as_slice().iter();
        let mut extents: Vec<_> = runs
            .map(|run| (run.image_page, run.pages, run.at))
            .collect();
        extents.sort_unstable();
        Self { extents }
    }

    fn address(&self, page: u64) -> Option<Gva> {
        let after = self.extents.partition_point(|(first, ..)| *first <= page);
        let (first, pages, gva) = *self.extents[..after].last()?;
        (page < first + pages)
            .then(|| gva.checked_add((page - first) * PAGE_SIZE))
            .flatten()
    }
}

impl<'a> Contents<'a> {
    /// The contents of a snapshot's own slot; `index` is made of what the slot shows.
    pub(crate) fn new(
        geometry: &'a Geometry,
        layers: &'a Layers,
        space: &'a UserSpace,
        index: &'a AddressIndex,
    ) -> Result<Self, SpaceError> {
        Ok(Self {
            image: geometry.plan.image(),
            parts: geometry.user()?,
            layers,
            space,
            index,
            pages: Pages::OfSnapshot,
        })
    }

    /// The same contents in a slot that shows an older snapshot.
    pub(crate) const fn with_moved_pages(mut self) -> Self {
        self.pages = Pages::Moved;
        self
    }

    /// The unmodified content of a page of the slot.
    pub(crate) fn pristine(&self, page: u64) -> PageSource<'a> {
        match self.pages {
            Pages::OfSnapshot => self.layers.page(page),
            Pages::Moved => self
                .address(page)
                .map_or(PageSource::Zero, |gva| self.at(gva)),
        }
    }

    /// The unmodified content of the page at an address.
    pub(crate) fn at(&self, gva: Gva) -> PageSource<'a> {
        self.layers.at(self.place(gva))
    }

    /// Where that lies in the layers of the snapshot.
    pub(crate) fn place(&self, gva: Gva) -> Option<Place> {
        let page = self.space.extents().image_page_of(gva)?;
        self.layers.place(page)
    }

    /// The layers of the snapshot.
    pub(crate) fn layers(&self) -> &'a Layers {
        self.layers
    }

    /// The address that the guest knows a page of the slot by. `None` for a page that no address maps: one of an older layer that
    /// a newer one hides.
    pub(crate) fn address(&self, page: u64) -> Option<Gva> {
        // Without a zero region this is the end of the image.
        let zero_first = self.parts.zero_base.offset_from(self.image.start())? / PAGE_SIZE;
        match page.checked_sub(zero_first) {
            Some(zero_page) => self.zero_page(zero_page),
            None => self.index.address(page),
        }
    }

    fn zero_page(&self, zero_page: u64) -> Option<Gva> {
        // Areas never change.
        self.space.areas().iter().find_map(|area| {
            let Backing::Zero { first_page } = area.backing else {
                return None;
            };
            area.range
                .at(zero_page.checked_sub(first_page)? * PAGE_SIZE)
        })
    }
}

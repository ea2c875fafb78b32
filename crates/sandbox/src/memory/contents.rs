//! What lies where in the image slot of a user guest: from its pages to the layers below them and to the addresses that the guest
//! knows them by.

use vellum_layout::{GpaRange, Gva, PAGE_SIZE};

use super::{Backing, Extents, Layers, PageSource, UserParts, UserSpace};

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
    shown: Option<(&'a UserSpace, &'a AddressIndex)>,
}

/// From image pages back to addresses: (first image page, length, address), sorted.
#[derive(Debug)]
pub(crate) struct AddressIndex {
    extents: Vec<(u64, u64, Gva)>,
}

/// An index that is not used.
static NOTHING: AddressIndex = AddressIndex {
    extents: Vec::new(),
};

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
    pub(crate) fn new(
        image: GpaRange,
        parts: &'a UserParts,
        layers: &'a Layers,
        space: &'a UserSpace,
    ) -> Self {
        Self {
            image,
            parts,
            layers,
            space,
            shown: None,
        }
    }

    /// The same contents in a slot that shows an older snapshot.
    pub(crate) fn shown_as(mut self, shown: Option<(&'a UserSpace, &'a AddressIndex)>) -> Self {
        self.shown = shown;
        self
    }

    /// What [`address`](Self::address) needs, made once for many pages.
    pub(crate) fn address_index(&self) -> AddressIndex {
        let (space, _) = self.shown.unwrap_or((self.space, &NOTHING));
        AddressIndex::new(space.extents())
    }

    /// The unmodified content of a page of the slot.
    pub(crate) fn pristine(&self, page: u64) -> PageSource<'a> {
        let Some((_, index)) = self.shown else {
            return self.layers.page(page);
        };
        self.address(page, index)
            .and_then(|gva| self.space.extents().image_page_of(gva))
            .map_or(PageSource::Zero, |image_page| self.layers.page(image_page))
    }

    /// The address that the guest knows a page of the slot by. `None` for a page that no address maps: one of an older layer that
    /// a newer one hides.
    pub(crate) fn address(&self, page: u64, index: &AddressIndex) -> Option<Gva> {
        // Without a zero region this is the end of the image.
        let zero_first = self.parts.zero_base.offset_from(self.image.start())? / PAGE_SIZE;
        match page.checked_sub(zero_first) {
            Some(zero_page) => self.zero_page(zero_page),
            None => index.address(page),
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

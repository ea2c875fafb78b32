//! What lies where in the image slot: from its pages to the layers below them and to the addresses that the guest knows them by.

use vellum_backend::HostMemory;
use vellum_layout::{Gva, PAGE_SIZE};

use super::{Backing, Extents, Geometry, Layers, Placement};

/// The unmodified contents of an image slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Contents<'a> {
    geometry: &'a Geometry,
    layers: &'a Layers,
    space: &'a Extents,
}

/// From image pages back to addresses: (first image page, length, address), sorted.
#[derive(Debug)]
pub(crate) struct AddressIndex {
    extents: Vec<(u64, u64, Gva)>,
}

impl AddressIndex {
    pub(crate) fn new(space: &Extents) -> Self {
        let runs = space.extents().iter();
        let mut extents: Vec<_> = runs
            .map(|run| (run.image_page, run.pages, run.gva))
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
    pub(crate) fn new(geometry: &'a Geometry, layers: &'a Layers, space: &'a Extents) -> Self {
        Self {
            geometry,
            layers,
            space,
        }
    }

    /// The unmodified content of a page of the slot: a memory and the offset in it, or nothing for zeroes.
    pub(crate) fn pristine(&self, page: u64) -> Option<(&'a HostMemory, u64)> {
        match self.geometry.placement {
            Placement::Stacked { .. } => self.layers.pristine(page),
            Placement::InPlace => self
                .layers
                .pristine(self.space.image_page_of(self.in_place(page)?)?),
        }
    }

    /// The address that the guest knows a page of the slot by. `None` for a page that no address maps: one of an older layer that
    /// a newer one hides.
    pub(crate) fn address(&self, page: u64, index: &AddressIndex) -> Option<Gva> {
        match self.geometry.placement {
            Placement::Stacked { zero_base, .. } => {
                let zero_first = self.geometry.plan.image().offset_of(zero_base)? / PAGE_SIZE;
                match page.checked_sub(zero_first) {
                    Some(zero_page) => self.zero_page(zero_page),
                    None => index.address(page),
                }
            }
            Placement::InPlace => self.in_place(page),
        }
    }

    fn in_place(&self, page: u64) -> Option<Gva> {
        let gpa = self.geometry.plan.image().at(page * PAGE_SIZE)?;
        Gva::new(gpa.as_u64()).ok()
    }

    fn zero_page(&self, zero_page: u64) -> Option<Gva> {
        self.space.areas().iter().find_map(|area| {
            let Backing::Zero { first_page } = area.backing else {
                return None;
            };
            area.range
                .at(zero_page.checked_sub(first_page)? * PAGE_SIZE)
        })
    }
}

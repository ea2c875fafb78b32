//! What is mapped where: the guest's address space as a short list, from which page tables are generated.
//!
//! An [`Area`] is a range that the guest may use (a segment of the ELF file, the heap, the stack). Where an area holds
//! anything but zeroes, an [`Extent`] says which pages of the image hold it. Page tables are derived from both and can be
//! rebuilt at any time.

use vellum_layout::{Gva, GvaRange, PAGE_SIZE, RangeError};
use vellum_vmem::Attrs;

/// A range of guest-virtual addresses with one set of permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    /// Where.
    pub(crate) range: GvaRange,
    /// What ring 3 may do there: WRITE, NO_EXECUTE.
    pub(crate) rights: Attrs,
    /// Where pages that no extent covers come from.
    pub(crate) backing: Backing,
}

impl Area {
    /// Whether the guest may write.
    pub(crate) fn is_writable(&self) -> bool {
        self.rights.contains(Attrs::WRITE)
    }
}

/// Where the untouched pages of an area come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Extents cover the whole area.
    Image,
    /// Zeroes, on demand. The number is the area's first page in the zero region of a sandbox with host-side copy-on-write.
    Zero {
        /// Index of the first page.
        first_page: u64,
    },
}

/// A run of pages whose content lies in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// First guest-virtual page.
    pub(crate) gva: Gva,
    /// First page of the image, counted over all layers.
    pub(crate) image_page: u64,
    /// Length.
    pub(crate) pages: u64,
}

impl Extent {
    /// The guest-virtual range.
    pub(crate) fn range(&self) -> Result<GvaRange, RangeError> {
        GvaRange::new(self.gva, self.pages * PAGE_SIZE)
    }

    fn end(&self) -> u64 {
        self.gva.as_u64() + self.pages * PAGE_SIZE
    }
}

/// Areas and extents of a snapshot, each sorted by address, without overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extents {
    areas: Vec<Area>,
    extents: Vec<Extent>,
}

impl Extents {
    /// From areas and extents in any order; the caller has checked that they do not overlap.
    pub(crate) fn new(mut areas: Vec<Area>, mut extents: Vec<Extent>) -> Self {
        areas.sort_unstable_by_key(|area| area.range.start());
        extents.sort_unstable_by_key(|extent| extent.gva);
        Self { areas, extents }
    }

    pub(crate) fn areas(&self) -> &[Area] {
        &self.areas
    }

    pub(crate) fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// The area that holds `gva`.
    pub(crate) fn area_of(&self, gva: Gva) -> Option<&Area> {
        let after = self.areas.partition_point(|area| area.range.start() <= gva);
        self.areas[..after]
            .last()
            .filter(|area| area.range.contains(gva))
    }

    /// The page of the image that holds `gva`, if any does.
    pub(crate) fn image_page_of(&self, gva: Gva) -> Option<u64> {
        let after = self.extents.partition_point(|extent| extent.gva <= gva);
        let extent = self.extents[..after].last()?;
        (gva.as_u64() < extent.end())
            .then(|| extent.image_page + (gva.as_u64() - extent.gva.as_u64()) / PAGE_SIZE)
    }

    /// The same space after the pages `dirty` (sorted) moved to the image pages `first_image_page` and following.
    pub(crate) fn with_overlay(&self, dirty: &[Gva], first_image_page: u64) -> Self {
        let mut extents = Vec::with_capacity(self.extents.len() + dirty.len());
        let mut moved = dirty.iter().copied().peekable();
        for extent in &self.extents {
            let mut rest = *extent;
            while let Some(&gva) = moved.peek() {
                if gva.as_u64() >= rest.end() {
                    break;
                }
                moved.next();
                if gva >= rest.gva {
                    rest = split_around(rest, gva, &mut extents);
                }
            }
            if rest.pages > 0 {
                extents.push(rest);
            }
        }
        extents.extend(runs(dirty, first_image_page));
        Self::new(self.areas.clone(), extents)
    }
}

/// Pushes the part of `extent` before the page `gva` and returns the part behind it.
fn split_around(extent: Extent, gva: Gva, into: &mut Vec<Extent>) -> Extent {
    let before = (gva.as_u64() - extent.gva.as_u64()) / PAGE_SIZE;
    if before > 0 {
        into.push(Extent {
            pages: before,
            ..extent
        });
    }
    let skipped = before + 1;
    Extent {
        // The end of an extent is a canonical address, or the extent is empty and the address unused.
        gva: extent
            .gva
            .checked_add(skipped * PAGE_SIZE)
            .unwrap_or(extent.gva),
        image_page: extent.image_page + skipped,
        pages: extent.pages - skipped,
    }
}

/// Groups sorted pages, stored one after another in the image, into extents.
fn runs(pages: &[Gva], first_image_page: u64) -> Vec<Extent> {
    let mut runs: Vec<Extent> = Vec::new();
    for (&gva, image_page) in pages.iter().zip(first_image_page..) {
        match runs.last_mut() {
            Some(run) if run.end() == gva.as_u64() => run.pages += 1,
            _ => runs.push(Extent {
                gva,
                image_page,
                pages: 1,
            }),
        }
    }
    runs
}

#[cfg(test)]
mod tests;

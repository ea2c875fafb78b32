//! Taking a snapshot: what changed since the last one becomes a layer.

mod spans;

use std::io;
use std::sync::{Arc, OnceLock};

use vellum_backend::hyperv::validate_for_hyperv;
use vellum_backend::memory::OutOfBounds;
use vellum_backend::{Irqchip, SealedWriter, VmError};
use vellum_layout::PAGE_SIZE;

use crate::error::Failure;
use crate::instance::{ChangedPage, Instance};
use crate::memory::{Extent, Extents, Layer, Layers, PAGE_LEN_BYTES, PageAddress, padding, placed};
use crate::snapshot::{SnapshotData, Space, Suspended};

use spans::{Span, spans};

/// Layers beyond which those on top are copied into one. Each is an open file of the process and a mapping in every sandbox.
pub(crate) const MAX_LAYERS: usize = 128;
/// Extents of a kernel guest beyond which a snapshot is copied into one layer: each is a mapping of its own in every sandbox, and a
/// process has 65,530 of them by default (Linux `Documentation/admin-guide/sysctl/vm.rst`, `max_map_count`).
pub(crate) const MAX_MAPPINGS: usize = 512;

/// Takes the state of an instance whose guest waits: the pages that changed since its base become a new layer.
pub(crate) fn capture(
    instance: &mut Instance,
    suspended: Option<Suspended>,
) -> Result<SnapshotData, Failure> {
    if instance.base().config.irqchip == Irqchip::InKernel {
        return Err(Failure::InterruptControllers);
    }
    let state = instance.save_state()?;
    // A kernel can be in a state that no restore would be given: better to refuse it now than when it is too late.
    validate_for_hyperv(&state.special).map_err(VmError::InvalidState)?;
    let base = instance.base().clone();
    let (layers, space) = match &base.space {
        Space::User(space) => {
            let changed = instance.changed_user_pages()?;
            let (layers, extents) = Pages {
                instance,
                layers: &base.layers,
                changed: &changed,
            }
            .on(space.extents(), usize::MAX)?;
            (layers, Space::User(space.with_extents(extents)))
        }
        Space::Kernel { geometry, extents } => {
            let changed = instance.changed_kernel_pages()?;
            let (layers, extents) = Pages {
                instance,
                layers: &base.layers,
                changed: &changed,
            }
            .on(extents, MAX_MAPPINGS)?;
            let geometry = geometry.clone();
            (layers, Space::Kernel { geometry, extents })
        }
    };
    Ok(SnapshotData {
        image: base.image.clone(),
        config: base.config.clone(),
        profile: base.profile,
        layers,
        space,
        state,
        generation: base.generation + 1,
        suspended,
        template: OnceLock::new(),
    })
}

/// The layers of a snapshot, and the pages that changed since, sorted by address.
struct Pages<'a, A> {
    instance: &'a Instance,
    layers: &'a Layers,
    changed: &'a [(A, ChangedPage)],
}

impl<A: PageAddress> Pages<'_, A> {
    /// The layers of the new snapshot and its extents, at most `limit`, where those of the old one are `extents`.
    fn on(&self, extents: &Extents<A>, limit: usize) -> Result<(Layers, Extents<A>), Failure> {
        if self.changed.is_empty() {
            return Ok((self.layers.clone(), extents.clone()));
        }
        let addresses: Vec<A> = self.changed.iter().map(|(address, _)| *address).collect();
        let own = placed(&addresses, self.layers.pages());
        let all = extents.below(&own);
        let stored = Stored {
            pages: self,
            own: &own,
        };
        if all.as_slice().len() > limit {
            // With room for further pages, so that the next snapshot is not flattened again.
            stored.flatten(&spans(&all, limit / 2))
        } else if self.layers.len() < MAX_LAYERS {
            Ok((
                self.layers.with(stored.layer(&own, self.layers.pages())?),
                all,
            ))
        } else {
            let sizes: Vec<u64> = self.layers.iter().map(|(_, layer)| layer.pages()).collect();
            stored.merge(&all, layers_below(&sizes, self.changed.len() as u64))
        }
    }
}

/// How many of the lowest layers a merge leaves alone: it takes the layers on top, and goes on downwards as long as the next one is not
/// larger than twice what it has. So a page is copied a number of times that is logarithmic in the size of the snapshot, and many small
/// layers above a large one do not copy the large one.
fn layers_below(sizes: &[u64], changed: u64) -> usize {
    let (mut keep, mut taken) = (sizes.len(), changed);
    for &size in sizes.iter().rev() {
        if size > 2 * taken {
            break;
        }
        taken += size;
        keep -= 1;
    }
    // Layers that grow by more than twice each are few, so this takes one at least.
    keep.min(sizes.len().saturating_sub(1))
}

/// Layers and changed pages, numbered one after the other.
struct Stored<'a, A> {
    pages: &'a Pages<'a, A>,
    /// Where the changed pages are among the image pages.
    own: &'a [Extent<A>],
}

impl<A: PageAddress> Stored<'_, A> {
    /// A layer of what `extents` say, which begins at the image page `first`.
    fn layer(&self, extents: &[Extent<A>], first: u64) -> Result<Arc<Layer>, Failure> {
        let end = extents.iter().map(Extent::end_page).max().unwrap_or(first);
        Layer::with_gaps(end - first, self.pages.changed.len() as u64, |memory| {
            let changed = self.pages.changed.iter();
            let numbers = extents
                .iter()
                .flat_map(|extent| extent.image_page..extent.end_page());
            for (number, (_, source)) in numbers.zip(changed) {
                self.pages
                    .instance
                    .copy_changed(*source, memory, (number - first) * PAGE_SIZE)?;
            }
            Ok(())
        })
        .map_err(Failure::Memory)
    }

    /// The lowest `keep` layers as they are, and one with everything above them that can still be seen.
    fn merge(&self, all: &Extents<A>, keep: usize) -> Result<(Layers, Extents<A>), Failure> {
        let below = self.pages.layers.lowest(keep);
        let first = below.pages();
        let (mut extents, mut moved, mut next) = (Vec::new(), Vec::new(), first);
        for extent in all.as_slice() {
            if extent.image_page < first {
                extents.push(*extent);
                continue;
            }
            next += padding(extent, next);
            let to = Extent {
                image_page: next,
                ..*extent
            };
            next = to.end_page();
            extents.push(to);
            moved.push((extent.image_page, to));
        }
        let held_pages = moved.iter().map(|(_, to)| to.pages).sum();
        let layer = Layer::with_gaps(next - first, held_pages, |memory| {
            for (from, to) in &moved {
                self.copy_run(*from, to.pages, memory, to.image_page - first)?;
            }
            Ok(())
        })
        .map_err(Failure::Memory)?;
        Ok((below.with(layer), Extents::new(extents)))
    }

    /// Everything in one layer. Pages of a span that no extent has stay holes in it, which take no memory.
    fn flatten(&self, spans: &[Span<A>]) -> Result<(Layers, Extents<A>), Failure> {
        let mut extents = Vec::with_capacity(spans.len());
        let layer = Layer::create(spans.iter().map(|span| span.pages).sum(), |memory| {
            let mut first = 0;
            for span in spans {
                for (offset, image_page) in span.present() {
                    self.copy_run(image_page, 1, memory, first + offset)?;
                }
                extents.push(Extent {
                    at: span.at,
                    image_page: first,
                    pages: span.pages,
                });
                first += span.pages;
            }
            Ok(())
        })
        .map_err(Failure::Memory)?;
        Ok((Layers::new(Some(layer)), Extents::new(extents)))
    }

    /// Copies pages, from the image page `from` on, to the page `to` of `memory` and those behind it.
    fn copy_run(
        &self,
        from: u64,
        pages: u64,
        memory: &mut SealedWriter<'_>,
        to: u64,
    ) -> io::Result<()> {
        let mut bytes = [0; PAGE_LEN_BYTES];
        for page in 0..pages {
            self.read(from + page, &mut bytes)?;
            // What a gap was filled with, when it was closed, stays a hole.
            if bytes.iter().any(|&byte| byte != 0) {
                memory.write((to + page) * PAGE_SIZE, &bytes)?;
            }
        }
        Ok(())
    }

    /// Reads one page.
    fn read(&self, image_page: u64, into: &mut [u8; PAGE_LEN_BYTES]) -> Result<(), OutOfBounds> {
        if image_page < self.pages.layers.pages() {
            return self.pages.layers.page(image_page).read(into);
        }
        if let Some(source) = self.changed_at(image_page) {
            return self.pages.instance.read_changed(source, into);
        }
        into.fill(0);
        Ok(())
    }

    fn changed_at(&self, image_page: u64) -> Option<ChangedPage> {
        let mut before = 0;
        for run in self.own {
            if (run.image_page..run.end_page()).contains(&image_page) {
                let index = before + (image_page - run.image_page);
                let index = usize::try_from(index).ok()?;
                return self.pages.changed.get(index).map(|(_, source)| *source);
            }
            before += run.pages;
        }
        None
    }
}

#[cfg(test)]
mod tests;

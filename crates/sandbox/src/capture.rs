//! Taking a snapshot: what changed since the last one becomes a layer.

mod spans;

use std::sync::{Arc, OnceLock};

use vellum_backend::Irqchip;
use vellum_backend::VmError;
use vellum_backend::hyperv::validate_for_hyperv;
use vellum_backend::memory::OutOfBounds;
use vellum_layout::PAGE_SIZE;

use crate::error::Failure;
use crate::instance::{ChangedPage, Instance};
use crate::memory::{Extent, Extents, Layer, Layers, PAGE_LEN_BYTES, PageAddress};
use crate::snapshot::{SnapshotData, Space, Suspended};

use spans::{Span, spans};

/// Layers beyond which a snapshot is copied into one.
pub(crate) const MAX_LAYERS: usize = 16;
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
        tables: OnceLock::new(),
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
        let merged = extents.with_overlay(&addresses, self.layers.pages());
        if self.layers.len() < MAX_LAYERS && merged.as_slice().len() <= limit {
            Ok((self.layers.with(self.layer()?), merged))
        } else {
            // With room for further pages, so that the next snapshot is not flattened again.
            self.flatten(&spans(&merged, limit / 2))
        }
    }

    /// A layer of the changed pages.
    fn layer(&self) -> Result<Arc<Layer>, Failure> {
        Layer::create(self.changed.len() as u64, |memory| {
            let mut page = [0; PAGE_LEN_BYTES];
            for (offset, (_, source)) in (0..).step_by(PAGE_LEN_BYTES).zip(self.changed) {
                self.instance.read_changed(*source, &mut page)?;
                memory.write(offset, &page)?;
            }
            Ok(())
        })
        .map_err(Failure::Memory)
    }

    /// Everything in one layer. Pages of a span that no extent has stay holes in it, which take no memory.
    fn flatten(&self, spans: &[Span<A>]) -> Result<(Layers, Extents<A>), Failure> {
        let mut extents = Vec::with_capacity(spans.len());
        let layer = Layer::create(spans.iter().map(|span| span.pages).sum(), |memory| {
            let mut first = 0;
            let mut bytes = [0; PAGE_LEN_BYTES];
            for span in spans {
                for (offset, image_page) in span.present() {
                    self.read(image_page, &mut bytes)?;
                    // What a gap was filled with, when it was closed, stays a hole.
                    if bytes.iter().any(|&byte| byte != 0) {
                        memory.write((first + offset) * PAGE_SIZE, &bytes)?;
                    }
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

    /// Reads one page of layers and changed pages, numbered one after the other.
    fn read(&self, image_page: u64, into: &mut [u8; PAGE_LEN_BYTES]) -> Result<(), OutOfBounds> {
        let changed = image_page
            .checked_sub(self.layers.pages())
            .and_then(|index| self.changed.get(usize::try_from(index).ok()?));
        match changed {
            Some((_, source)) => self.instance.read_changed(*source, into),
            None => self.layers.page(image_page).read(into),
        }
    }
}

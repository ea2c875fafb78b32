//! Layers: the sealed memories that a snapshot is made of, each holding only what its parent did not.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use vellum_backend::memory::OutOfBounds;
use vellum_backend::{HostMemory, SealedMemory};
use vellum_layout::PAGE_SIZE;

use super::PAGE_LEN_BYTES;

/// One sealed memory, and a mapping of it from which dirtied pages are put back.
#[derive(Debug)]
pub(crate) struct Layer {
    sealed: SealedMemory,
    pristine: HostMemory,
}

impl Layer {
    /// A layer of `pages`, filled by `fill`.
    pub(crate) fn create(
        pages: u64,
        fill: impl FnOnce(&HostMemory) -> Result<(), OutOfBounds>,
    ) -> io::Result<Arc<Self>> {
        let sealed = SealedMemory::create("vellum-layer", pages * PAGE_SIZE, fill)?;
        let pristine = sealed.map()?;
        Ok(Arc::new(Self { sealed, pristine }))
    }

    pub(crate) fn sealed(&self) -> &SealedMemory {
        &self.sealed
    }

    pub(crate) fn pages(&self) -> u64 {
        self.sealed.len_bytes() / PAGE_SIZE
    }
}

/// The layers of a snapshot, oldest first. Image pages are counted over all of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layers {
    layers: Vec<Arc<Layer>>,
}

impl Layers {
    pub(crate) fn new(base: Option<Arc<Layer>>) -> Self {
        Self {
            layers: base.into_iter().collect(),
        }
    }

    /// The same layers with one more on top.
    pub(crate) fn with(&self, layer: Arc<Layer>) -> Self {
        let mut layers = self.layers.clone();
        layers.push(layer);
        Self { layers }
    }

    pub(crate) fn pages(&self) -> u64 {
        self.layers.iter().map(|layer| layer.pages()).sum()
    }

    pub(crate) fn len(&self) -> usize {
        self.layers.len()
    }

    /// Each layer with its first image page.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Arc<Layer>)> {
        self.layers.iter().scan(0, |first, layer| {
            let this = *first;
            *first += layer.pages();
            Some((this, layer))
        })
    }

    /// The sealed memory that holds a run of image pages, and the bytes in it. A run never crosses two layers.
    pub(crate) fn sealed_part(
        &self,
        image_page: u64,
        pages: u64,
    ) -> Option<(&SealedMemory, Range<u64>)> {
        let (first, layer) = self
            .iter()
            .find(|(first, layer)| (*first..*first + layer.pages()).contains(&image_page))?;
        let start = (image_page - first) * PAGE_SIZE;
        Some((&layer.sealed, start..start + pages * PAGE_SIZE))
    }

    /// The unmodified content of an image page; zeroes behind the last one.
    pub(crate) fn page(&self, image_page: u64) -> PageSource<'_> {
        self.iter()
            .find(|(first, layer)| (*first..*first + layer.pages()).contains(&image_page))
            .map_or(PageSource::Zero, |(first, layer)| PageSource::Layer {
                memory: &layer.pristine,
                offset: (image_page - first) * PAGE_SIZE,
            })
    }
}

/// The unmodified content of a page.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PageSource<'a> {
    /// It lies at this offset of a layer.
    Layer { memory: &'a HostMemory, offset: u64 },
    /// It is all zeroes.
    Zero,
}

impl PageSource<'_> {
    /// Writes the content over the page at `offset` of `memory`.
    pub(crate) fn put(self, memory: &HostMemory, offset: u64) -> Result<(), OutOfBounds> {
        match self {
            Self::Layer {
                memory: layer,
                offset: at,
            } => memory.copy_from(offset, layer, at, PAGE_SIZE),
            Self::Zero => memory.zero(offset, PAGE_SIZE),
        }
    }

    /// Whether the page at `offset` of `memory` has this content.
    pub(crate) fn equals(self, memory: &HostMemory, offset: u64) -> Result<bool, OutOfBounds> {
        match self {
            Self::Layer {
                memory: layer,
                offset: at,
            } => memory.equals(offset, layer, at, PAGE_SIZE),
            Self::Zero => {
                let mut bytes = [0; PAGE_LEN_BYTES];
                memory.read(offset, &mut bytes)?;
                Ok(bytes.iter().all(|&byte| byte == 0))
            }
        }
    }

    /// Copies the content.
    pub(crate) fn read(self, into: &mut [u8; PAGE_LEN_BYTES]) -> Result<(), OutOfBounds> {
        match self {
            Self::Layer { memory, offset } => memory.read(offset, into),
            Self::Zero => {
                into.fill(0);
                Ok(())
            }
        }
    }
}

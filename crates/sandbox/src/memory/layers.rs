//! Layers: the sealed memories that a snapshot is made of, each holding only what its parent did not.

use std::io;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use vellum_backend::memory::OutOfBounds;
use vellum_backend::{HostMemory, Piece, SealedMemory, SealedWriter};
use vellum_layout::PAGE_SIZE;

use super::PAGE_LEN_BYTES;
use crate::store::BlobId;

/// One sealed memory, and a mapping of it from which dirtied pages are put back.
#[derive(Debug)]
pub(crate) struct Layer {
    sealed: SealedMemory,
    /// Its pages in the memory, sorted and disjoint. What lies between them is zeroes.
    runs: Vec<Run>,
    pages: u64,
    /// How many of them hold anything; the others are gaps.
    held_pages: u64,
    pristine: HostMemory,
    /// The blob that holds it on disk, once that is known.
    pub(crate) blob: OnceLock<BlobId>,
}

/// Pages of a layer that lie one behind the other in its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// First page, counted in the layer.
    pub(crate) first_page: u64,
    pub(crate) pages: u64,
    /// Where it begins in the memory.
    pub(crate) offset: u64,
}

impl Run {
    fn end_page(&self) -> u64 {
        self.first_page + self.pages
    }
}

impl Layer {
    /// A layer of `pages`, filled by `fill`.
    pub(crate) fn create<'s>(
        pages: u64,
        fill: impl FnOnce(&mut SealedWriter<'s>) -> io::Result<()>,
    ) -> io::Result<Arc<Self>> {
        Self::with_gaps(pages, pages, fill)
    }

    /// A layer of `pages`, of which `fill` writes `held_pages`.
    pub(crate) fn with_gaps<'s>(
        pages: u64,
        held_pages: u64,
        fill: impl FnOnce(&mut SealedWriter<'s>) -> io::Result<()>,
    ) -> io::Result<Arc<Self>> {
        let sealed = SealedMemory::create("vellum-layer", pages * PAGE_SIZE, fill)?;
        let whole = Run {
            first_page: 0,
            pages,
            offset: 0,
        };
        Self::build(sealed, vec![whole], pages, held_pages)
    }

    /// A layer of `pages` whose content lies in the given runs of a memory: sorted, disjoint, and inside of both.
    pub(crate) fn of_memory(
        sealed: SealedMemory,
        pages: u64,
        runs: Vec<Run>,
    ) -> io::Result<Arc<Self>> {
        let held_pages = runs.iter().map(|run| run.pages).sum();
        Self::build(sealed, runs, pages, held_pages)
    }

    fn build(
        sealed: SealedMemory,
        runs: Vec<Run>,
        pages: u64,
        held_pages: u64,
    ) -> io::Result<Arc<Self>> {
        let pristine = match runs[..] {
            [run] if run.pages == pages && run.offset == 0 => sealed.map()?,
            _ => {
                let mut pieces = Vec::new();
                add_pieces(&sealed, &runs, 0..pages, &mut pieces);
                HostMemory::of_pieces(&pieces)?
            }
        };
        Ok(Arc::new(Self {
            sealed,
            runs,
            pages,
            held_pages,
            pristine,
            blob: OnceLock::new(),
        }))
    }

    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// Maps some of its pages over those at `offset` of `memory`, each shared until it is written.
    pub(crate) fn map_into(
        &self,
        memory: &mut HostMemory,
        offset: u64,
        pages: Range<u64>,
    ) -> io::Result<()> {
        let mut pieces = Vec::new();
        self.add_pieces(pages, &mut pieces);
        memory.overlay_pieces(offset, &pieces)
    }

    /// What some of its pages are.
    pub(crate) fn add_pieces<'s>(&'s self, pages: Range<u64>, into: &mut Vec<Piece<'s>>) {
        add_pieces(&self.sealed, &self.runs, pages, into);
    }

    /// Copies a page by a system call: a page that was never written does not come into being by it.
    pub(crate) fn read_page(&self, page: u64, into: &mut [u8; PAGE_LEN_BYTES]) -> io::Result<()> {
        let after = self.runs.partition_point(|run| run.first_page <= page);
        match self.runs[..after].last() {
            Some(run) if page < run.end_page() => {
                let offset = run.offset + (page - run.first_page) * PAGE_SIZE;
                self.sealed.read_at(offset, into)
            }
            _ => {
                into.fill(0);
                Ok(())
            }
        }
    }
}

/// What `pages` of a layer are: runs of the layer's memory, and zeroes between them.
fn add_pieces<'s>(
    sealed: &'s SealedMemory,
    runs: &[Run],
    pages: Range<u64>,
    into: &mut Vec<Piece<'s>>,
) {
    let zeroes = |pages: u64, into: &mut Vec<Piece<'s>>| {
        if pages > 0 {
            into.push(Piece::Zeroes(pages * PAGE_SIZE));
        }
    };
    let mut next = pages.start;
    let first = runs.partition_point(|run| run.end_page() <= pages.start);
    for run in &runs[first..] {
        let (start, end) = (
            run.first_page.max(pages.start),
            run.end_page().min(pages.end),
        );
        if start >= end {
            break;
        }
        zeroes(start - next, into);
        let from = run.offset + (start - run.first_page) * PAGE_SIZE;
        into.push(Piece::Sealed(
            sealed,
            from..from + (end - start) * PAGE_SIZE,
        ));
        next = end;
    }
    zeroes(pages.end.saturating_sub(next), into);
}

/// The layers of a snapshot, oldest first. Image pages are counted over all of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layers {
    layers: Vec<Placed>,
}

/// A layer, and where it begins among the image pages.
#[derive(Clone, Debug)]
struct Placed {
    first: u64,
    layer: Arc<Layer>,
}

impl Placed {
    fn end(&self) -> u64 {
        self.first + self.layer.pages()
    }
}

impl Layers {
    pub(crate) fn new(base: Option<Arc<Layer>>) -> Self {
        Self::of(base)
    }

    /// From layers, oldest first.
    pub(crate) fn of(layers: impl IntoIterator<Item = Arc<Layer>>) -> Self {
        let mut all = Self::default();
        layers.into_iter().for_each(|layer| all.push(layer));
        all
    }

    /// The same layers with one more on top.
    pub(crate) fn with(&self, layer: Arc<Layer>) -> Self {
        let mut all = self.clone();
        all.push(layer);
        all
    }

    fn push(&mut self, layer: Arc<Layer>) {
        let first = self.pages();
        self.layers.push(Placed { first, layer });
    }

    /// The lowest `count` layers.
    pub(crate) fn lowest(&self, count: usize) -> Self {
        Self {
            layers: self.layers.iter().take(count).cloned().collect(),
        }
    }

    pub(crate) fn pages(&self) -> u64 {
        self.layers.last().map_or(0, Placed::end)
    }

    /// How many of the pages hold anything.
    pub(crate) fn held_pages(&self) -> u64 {
        self.iter().map(|(_, layer)| layer.held_pages).sum()
    }

    pub(crate) fn len(&self) -> usize {
        self.layers.len()
    }

    /// Each layer with its first image page.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, &Arc<Layer>)> {
        self.layers
            .iter()
            .map(|placed| (placed.first, &placed.layer))
    }

    /// The layer that holds a run of image pages, and their numbers in it. A run never crosses two layers.
    pub(crate) fn find(&self, image_page: u64, pages: u64) -> Option<(&Layer, Range<u64>)> {
        let place = self.place(image_page)?;
        let layer = &self.layers.get(place.layer)?.layer;
        let start = place.offset / PAGE_SIZE;
        let end = start.checked_add(pages)?;
        (end <= layer.pages()).then_some((&**layer, start..end))
    }

    /// Where the content of an image page lies; `None` behind the last one, where all is zero.
    pub(crate) fn place(&self, image_page: u64) -> Option<Place> {
        let after = (self.layers).partition_point(|placed| placed.first <= image_page);
        let index = after.checked_sub(1)?;
        let placed = self.layers.get(index)?;
        (image_page < placed.end()).then(|| Place {
            layer: index,
            offset: (image_page - placed.first) * PAGE_SIZE,
        })
    }

    /// The content that lies at a place of these very layers.
    pub(crate) fn at(&self, place: Option<Place>) -> PageSource<'_> {
        place
            .and_then(|place| Some((self.layers.get(place.layer)?, place.offset)))
            .map_or(PageSource::Zero, |(placed, offset)| PageSource::Layer {
                memory: &placed.layer.pristine,
                offset,
            })
    }

    /// The unmodified content of an image page; zeroes behind the last one.
    pub(crate) fn page(&self, image_page: u64) -> PageSource<'_> {
        self.at(self.place(image_page))
    }
}

/// Where the content of a page lies in some layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    layer: usize,
    offset: u64,
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

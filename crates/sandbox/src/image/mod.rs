//! Guest images: a validated ELF file.

mod elf;
mod functions;
mod loaded;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use vellum_abi::function::Signature;
use vellum_layout::{GuestKind, Gva};

use crate::error::{Error, Failure};
use crate::memory::{Layer, Layers};
use crate::store::{self, Digest};

pub(crate) use elf::{ImageError, Segment};
pub(crate) use loaded::LoadedImage;

/// The largest ELF file that is read.
pub const MAX_FILE_LEN_BYTES: u64 = 256 << 20;

/// A guest program, checked once and shared by every sandbox that runs it. Cheap to clone.
#[derive(Clone)]
pub struct GuestImage {
    inner: Arc<Inner>,
}

struct Inner {
    kind: GuestKind,
    entry: Gva,
    segments: Vec<Segment>,
    exports: Vec<Function>,
    imports: Vec<Function>,
    layers: Layers,
    /// What it is by its content, once somebody asked.
    identity: OnceLock<Digest>,
}

/// A function that a guest exports or imports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    name: String,
    signature: Signature,
}

impl Function {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its parameter and return types.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }
}

impl GuestImage {
    /// Checks an ELF file. Takes time in proportion to its size and memory in proportion to its segments.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidImage`](crate::ErrorKind::InvalidImage) names what is wrong with it.
    pub fn from_bytes(elf: &[u8]) -> Result<Self, Error> {
        let parsed = elf::parse(elf).map_err(Failure::Image)?;
        let layer = fill_layer(elf, &parsed.segments).map_err(Failure::Memory)?;
        Ok(Self {
            inner: Arc::new(Inner {
                kind: parsed.kind,
                entry: parsed.entry,
                segments: parsed.segments,
                exports: parsed.exports,
                imports: parsed.imports,
                layers: Layers::new(Some(layer)),
                identity: OnceLock::new(),
            }),
        })
    }

    /// Reads and checks an ELF file. Only a regular file of at most [`MAX_FILE_LEN_BYTES`] is read.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) when it cannot be read; else as [`from_bytes`](Self::from_bytes).
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, Error> {
        let bytes = elf::read_file(path.as_ref()).map_err(|source| Failure::ReadImage {
            path: path.as_ref().to_owned(),
            source,
        })?;
        Self::from_bytes(&bytes)
    }

    /// The functions that a host may call.
    pub fn exports(&self) -> &[Function] {
        &self.inner.exports
    }

    /// The host functions that the guest needs.
    pub fn imports(&self) -> &[Function] {
        &self.inner.imports
    }

    /// What kind of guest it is.
    pub fn kind(&self) -> GuestKind {
        self.inner.kind
    }

    pub(crate) fn entry(&self) -> Gva {
        self.inner.entry
    }

    pub(crate) fn segments(&self) -> &[Segment] {
        &self.inner.segments
    }

    pub(crate) fn layers(&self) -> &Layers {
        &self.inner.layers
    }

    /// The index of an exported function.
    pub(crate) fn find_export(&self, name: &str) -> Option<(u32, &Function)> {
        (0..)
            .zip(&self.inner.exports)
            .find(|(_, function)| function.name == name)
    }

    /// Whether both are the same guest: the same functions, segments and bytes, wherever they came from.
    #[inline]
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner) || self.is_equal(other)
    }

    #[cold]
    fn is_equal(&self, other: &Self) -> bool {
        // Hashed once for each image. One whose memory cannot be read equals only itself.
        match (self.identity(), other.identity()) {
            (Ok(left), Ok(right)) => left == right,
            _ => false,
        }
    }

    fn identity(&self) -> std::io::Result<Digest> {
        if let Some(known) = self.inner.identity.get() {
            return Ok(*known);
        }
        let identity = store::image_identity(self)?;
        Ok(*self.inner.identity.get_or_init(|| identity))
    }
}

impl fmt::Debug for GuestImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestImage")
            .field("entry", &self.inner.entry)
            .field("exports", &self.inner.exports.len())
            .field("imports", &self.inner.imports.len())
            .finish_non_exhaustive()
    }
}

/// Copies the segments into a sealed memory, one behind the other, each padded with zeroes to whole pages.
fn fill_layer(elf: &[u8], segments: &[Segment]) -> std::io::Result<Arc<Layer>> {
    let pages = segments.iter().map(Segment::pages).sum();
    Layer::create(pages, |memory| {
        segments.iter().try_for_each(|segment| {
            // The file range was checked by the parser.
            let bytes = elf.get(segment.file.clone()).unwrap_or_default();
            memory.write(
                segment.first_page * vellum_layout::PAGE_SIZE + segment.lead_len_bytes,
                bytes,
            )
        })
    })
}

//! Guest images that come back from a store, without their ELF file.

use std::sync::{Arc, OnceLock};

use vellum_abi::function::{EXPORTS_SECTION, IMPORTS_SECTION, Signature};
use vellum_layout::{GuestKind, GvaRange};
use vellum_vmem::Attrs;

use super::elf::{self, ImageError, Segment};
use super::{GuestImage, Inner, functions};
use crate::memory::{Layer, Layers};

/// What is known of an image, not checked yet.
#[derive(Debug)]
pub(crate) struct LoadedImage {
    pub(crate) kind: GuestKind,
    pub(crate) entry: u64,
    /// Where segments lie and what the guest may do there, in the order of their pages in the layer.
    pub(crate) segments: Vec<(GvaRange, Attrs)>,
    pub(crate) exports: Vec<(String, Signature)>,
    pub(crate) imports: Vec<(String, Signature)>,
}

impl GuestImage {
    /// Checks everything that an ELF file is checked for. The layer has a page for each of the segments'; the caller has made sure.
    pub(crate) fn from_loaded(loaded: LoadedImage, layer: Arc<Layer>) -> Result<Self, ImageError> {
        let mut first_page = 0_u64;
        let segments = loaded.segments.into_iter().map(|(range, rights)| {
            let segment = Segment::loaded(range, rights, first_page);
            first_page = first_page.saturating_add(range.pages());
            segment
        });
        let segments: Vec<Segment> = segments.collect();
        let entry = elf::check_loaded(loaded.kind, loaded.entry, &segments)?;
        Ok(Self {
            inner: Arc::new(Inner {
                kind: loaded.kind,
                entry,
                segments,
                exports: functions::check_loaded(loaded.exports, EXPORTS_SECTION)?,
                imports: functions::check_loaded(loaded.imports, IMPORTS_SECTION)?,
                layers: Layers::new(Some(layer)),
                identity: OnceLock::new(),
            }),
        })
    }
}

//! What is in a store, and in which pages two snapshots differ.

use std::collections::BTreeSet;
use std::fmt;

use vellum_layout::PAGE_SIZE;

use super::digest::BlobId;
use super::directory::blob_name;
use super::error::{Invalid, StoreError};
use super::record::{SnapshotRecord, SpaceRecord};
use super::tag::Tag;
use super::{LoadOptions, SnapshotStore, decode, layout};
use crate::error::{Error, Failure};
use crate::memory::{Extents, PAGE_LEN_BYTES, PageAddress};
use crate::snapshot::{Snapshot, SnapshotData, Space};

/// A snapshot of a store, by what the index says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredSnapshot {
    /// Its tag.
    pub tag: String,
    /// The digest of its manifest: equal snapshots have equal ones.
    pub digest: String,
}

/// What a stored snapshot says about itself. It was not checked further than for looking at.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// Its tag.
    pub tag: String,
    /// The digest of its manifest.
    pub digest: String,
    /// The kind of its guest.
    pub guest_kind: String,
    /// The CPU profile that its guest has seen.
    pub cpu_profile: String,
    /// How many snapshots lie between it and the guest's image.
    pub generation: u64,
    /// Bytes of the guest's heap.
    pub heap_len_bytes: u64,
    /// Names of the functions that the guest exports.
    pub exports: Vec<String>,
    /// Names of the host functions that the guest needs.
    pub imports: Vec<String>,
    /// Pages that the guest sees.
    pub mapped_pages: u64,
    /// Whether the guest is in the middle of a call or of its initialisation.
    pub is_suspended: bool,
    /// The layers, oldest first.
    pub layers: Vec<LayerInfo>,
}

/// A layer of a stored snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerInfo {
    /// The digest of its blob.
    pub digest: String,
    /// Pages, those of zeroes included.
    pub pages: u64,
    /// Bytes of its blob.
    pub stored_bytes: u64,
}

/// The pages in which two snapshots of the same kind of guest differ: runs of addresses, guest-virtual for user guests, guest-physical
/// for kernels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    runs: Vec<(u64, u64)>,
}

impl Difference {
    /// First address and number of pages of each run, in ascending order.
    pub fn runs(&self) -> &[(u64, u64)] {
        &self.runs
    }

    /// Pages in all.
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|(_, pages)| pages).sum()
    }

    /// Whether the memories are equal.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    fn push(&mut self, address: u64) {
        match self.runs.last_mut() {
            Some((start, pages)) if *start + *pages * PAGE_SIZE == address => *pages += 1,
            _ => self.runs.push((address, 1)),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (start, pages) in &self.runs {
            writeln!(f, "{start:#018x} {pages:>8} pages")?;
        }
        Ok(())
    }
}

impl Snapshot {
    /// The pages in which this snapshot and another one differ. Takes time in proportion to the pages of both.
    ///
    /// # Errors
    /// [`ErrorKind::Incompatible`](crate::ErrorKind::Incompatible) for guests of different kinds.
    pub fn difference(&self, other: &Self) -> Result<Difference, Error> {
        Ok(difference(&self.data, &other.data)?)
    }
}

impl SnapshotStore {
    /// The snapshots of the store, in the order of the index.
    ///
    /// # Errors
    /// As [`load`](Self::load) for the index.
    pub fn list(&self) -> Result<Vec<StoredSnapshot>, Error> {
        let entries = layout::entries(&self.directory)?.into_iter();
        let snapshots = entries.map(|entry| StoredSnapshot {
            tag: entry.tag,
            digest: entry.manifest.digest.to_string(),
        });
        Ok(snapshots.collect())
    }

    /// What a snapshot says about itself, without its layers being read.
    ///
    /// # Errors
    /// As [`load`](Self::load), as far as manifest and configuration go.
    pub fn inspect(&self, tag: &str) -> Result<SnapshotInfo, Error> {
        let entry = layout::find(&self.directory, &Tag::new(tag)?)?;
        let manifest =
            layout::read_manifest(&self.directory, &entry.manifest, decode::MAX_STORED_LAYERS)?;
        let record = self.read_record(&manifest)?;
        let file = blob_name(&manifest.config.digest);
        let layers = layer_infos(&record, &manifest.layers).map_err(|it| it.in_file(&file))?;
        let names = |functions: &[super::record::FunctionRecord]| {
            functions.iter().map(|it| it.name.clone()).collect()
        };
        let (SpaceRecord::User { extents } | SpaceRecord::Kernel { extents, .. }) = &record.space;
        let pages = extents.iter().map(|(_, _, pages)| *pages);
        Ok(SnapshotInfo {
            tag: entry.tag,
            digest: entry.manifest.digest.to_string(),
            exports: names(&record.image.exports),
            imports: names(&record.image.imports),
            guest_kind: record.image.kind,
            cpu_profile: record.cpu_profile,
            generation: record.generation,
            heap_len_bytes: record.sizes.heap_len_bytes,
            mapped_pages: pages.fold(0, u64::saturating_add),
            is_suspended: record.suspended.is_some(),
            layers,
        })
    }

    /// The pages in which two snapshots of the store differ.
    ///
    /// # Errors
    /// As [`load`](Self::load) and [`Snapshot::difference`].
    pub fn diff(&self, one: &str, other: &str, options: &LoadOptions) -> Result<Difference, Error> {
        self.load(one, options)?
            .difference(&self.load(other, options)?)
    }
}

fn layer_infos(record: &SnapshotRecord, stored: &[BlobId]) -> Result<Vec<LayerInfo>, Invalid> {
    let ids = decode::LayerIds::of(record)?.snapshot.into_iter();
    let infos = ids.map(|(digest, pages)| {
        let stored = stored.iter().find(|id| id.digest == digest);
        let stored =
            stored.ok_or_else(|| Invalid::field("layers", "have one that the manifest has not"))?;
        Ok(LayerInfo {
            digest: digest.to_string(),
            pages,
            stored_bytes: stored.len_bytes,
        })
    });
    infos.collect()
}

fn difference(one: &SnapshotData, other: &SnapshotData) -> Result<Difference, Failure> {
    match (&one.space, &other.space) {
        (Space::User(left), Space::User(right)) => {
            compare((one, left.extents()), (other, right.extents()))
        }
        (Space::Kernel { extents: left, .. }, Space::Kernel { extents: right, .. }) => {
            compare((one, left), (other, right))
        }
        _ => Err(StoreError::DifferentKinds.into()),
    }
}

/// Compares every page that one of two snapshots has; one that the other does not have is zeroes there.
fn compare<A: PageAddress>(
    (one, left): (&SnapshotData, &Extents<A>),
    (other, right): (&SnapshotData, &Extents<A>),
) -> Result<Difference, Failure> {
    let extents = left.as_slice().iter().chain(right.as_slice());
    let pages: BTreeSet<A> = extents
        .flat_map(|extent| (0..extent.pages).filter_map(|page| extent.at.forward(page * PAGE_SIZE)))
        .collect();
    let mut difference = Difference::default();
    let (mut here, mut there) = ([0; PAGE_LEN_BYTES], [0; PAGE_LEN_BYTES]);
    for at in pages {
        read(one, left, at, &mut here)?;
        read(other, right, at, &mut there)?;
        if here != there {
            difference.push(at.number());
        }
    }
    Ok(difference)
}

fn read<A: PageAddress>(
    snapshot: &SnapshotData,
    extents: &Extents<A>,
    at: A,
    into: &mut [u8; PAGE_LEN_BYTES],
) -> Result<(), Failure> {
    let found = extents
        .image_page_of(at)
        .and_then(|page| snapshot.layers.find(page, 1));
    if let Some((layer, pages)) = found {
        return layer.read_page(pages.start, into).map_err(Failure::Memory);
    }
    into.fill(0);
    Ok(())
}

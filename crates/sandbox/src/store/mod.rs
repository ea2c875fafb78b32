//! Snapshots on disk: an OCI image layout, in which each layer is a blob of its own and stored once.
//!
//! | module | what it knows |
//! |---|---|
//! | `directory` | files that may be anything, and writing that survives a crash |
//! | `layout` | index and manifest |
//! | `record`, `registers` | the configuration blob: everything but the pages |
//! | `encode`, `decode` | from a snapshot to its record; and back, believing nothing |
//! | `layer_blob` | layers as blobs whose pages can be mapped |
//! | `listing` | what is in a store, and what differs |

mod decode;
mod digest;
mod directory;
mod encode;
mod error;
mod hex;
mod layer_blob;
mod layout;
mod listing;
mod record;
mod registers;
mod tag;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use vellum_backend::cpuid::CpuProfile;

use crate::error::Error;
use crate::memory::Layer;
use crate::snapshot::{Snapshot, SnapshotData};

use directory::{Directory, blob_name, check_digest, check_len, io_error};
use error::Invalid;
use layer_blob::{LayerFile, ReadError};
use record::{SnapshotRecord, VersionRecord};
use tag::Tag;

pub(crate) use digest::{BlobId, Digest};
pub(crate) use encode::image_identity;
pub(crate) use error::StoreError;
pub use listing::{Difference, LayerInfo, SnapshotInfo, StoredSnapshot};

/// Bytes of the largest configuration: extents are its bulk.
const CONFIG_LIMIT: u64 = 64 << 20;

/// A directory that holds snapshots, as an OCI image layout.
///
/// ```no_run
/// use vellum_sandbox::{Engine, GuestImage, HostFunctions, LoadOptions, Sandbox, SnapshotStore};
///
/// let engine = Engine::new()?;
/// let image = GuestImage::from_file("guest.elf")?;
/// let mut sandbox = Sandbox::builder(&image).build(&engine)?;
/// let store = SnapshotStore::create("snapshots")?;
/// store.save(&sandbox.snapshot()?, "warm")?;
///
/// // In another process, without the ELF file, and without running the guest's initialisation:
/// let store = SnapshotStore::open("snapshots")?;
/// let warm = store.load("warm", &LoadOptions::new())?;
/// let sandbox = Sandbox::from_snapshot(&engine, &warm, &HostFunctions::new())?;
/// # Ok::<(), vellum_sandbox::Error>(())
/// ```
///
/// Layers that several snapshots share are stored once, and loaded once while any of those snapshots lives. Several processes may use a
/// store at the same time: readers see whole snapshots, writers wait for each other.
///
/// Files hold all memory of the guest, secrets included; they are created for their owner alone.
pub struct SnapshotStore {
    directory: Directory,
    loaded: Mutex<HashMap<(Digest, Access), Weak<Layer>>>,
}

/// How the pages of a layer are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Access {
    /// They were verified and copied.
    Copied,
    /// They are a mapping of the file.
    Mapped,
}

/// How a snapshot is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    access: Access,
    max_len_bytes: u64,
}

impl LoadOptions {
    /// Everything is verified, in snapshots of at most 16 GiB.
    pub const fn new() -> Self {
        Self {
            access: Access::Copied,
            max_len_bytes: 16 << 30,
        }
    }

    /// Does not verify the digests of layers, and maps their files instead of copying them: loading takes no time, and pages come from
    /// the disk when they are first touched. Index, manifest and configuration are checked as ever.
    ///
    /// For a directory that nobody else writes to. What is changed in a file while it is mapped changes the memory of guests, and a file
    /// that is truncated ends the *host* process (`SIGBUS`).
    #[must_use]
    pub const fn trust_directory(mut self) -> Self {
        self.access = Access::Mapped;
        self
    }

    /// Refuses snapshots whose layers have more bytes than this on disk.
    #[must_use]
    pub const fn max_len_bytes(mut self, len_bytes: u64) -> Self {
        self.max_len_bytes = len_bytes;
        self
    }
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// How far saving has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreProgress {
    /// Layers that are stored.
    pub layers: usize,
    /// Layers in all.
    pub all_layers: usize,
    /// Bytes that were written for them; layers that were there already need none.
    pub written_bytes: u64,
}

impl Snapshot {
    /// Saves the snapshot in a directory, which is made if it is missing; see [`SnapshotStore::save`].
    ///
    /// # Errors
    /// As [`SnapshotStore::create`] and [`SnapshotStore::save`].
    pub fn save(&self, directory: impl AsRef<Path>, tag: &str) -> Result<(), Error> {
        SnapshotStore::create(directory)?.save(self, tag)
    }

    /// Loads a snapshot from a directory; see [`SnapshotStore::load`].
    ///
    /// # Errors
    /// As [`SnapshotStore::open`] and [`SnapshotStore::load`].
    pub fn load(
        directory: impl AsRef<Path>,
        tag: &str,
        options: &LoadOptions,
    ) -> Result<Self, Error> {
        SnapshotStore::open(directory)?.load(tag, options)
    }
}

impl SnapshotStore {
    /// Opens a directory that is, or will be, a store of snapshots, and makes it if it is missing.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) when it cannot be made;
    /// [`ErrorKind::InvalidSnapshot`](crate::ErrorKind::InvalidSnapshot) when it is an image layout of another version.
    pub fn create(directory: impl AsRef<Path>) -> Result<Self, Error> {
        let directory = Directory::create(directory.as_ref())?;
        layout::mark(&directory)?;
        Ok(Self::new(directory))
    }

    /// Opens a directory that is a store of snapshots.
    ///
    /// # Errors
    /// As [`create`](Self::create); [`ErrorKind::Io`](crate::ErrorKind::Io) also when it is missing or holds no image layout.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self, Error> {
        let directory = Directory::open(directory.as_ref())?;
        layout::check_marker(&directory)?;
        Ok(Self::new(directory))
    }

    fn new(directory: Directory) -> Self {
        Self {
            directory,
            loaded: Mutex::default(),
        }
    }

    /// Saves a snapshot under a tag, in place of what had the tag before. Layers that are in the store are not written again.
    ///
    /// After a crash at any point the tag names the old snapshot or the new one, and both are whole.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) for a tag that OCI does not allow, or a snapshot for the CPU
    /// profile `host`; [`ErrorKind::Io`](crate::ErrorKind::Io) when the directory cannot be written.
    pub fn save(&self, snapshot: &Snapshot, tag: &str) -> Result<(), Error> {
        self.save_with(snapshot, tag, |_| {})
    }

    /// [`save`](Self::save), and `progress` hears of each layer that is stored.
    ///
    /// # Errors
    /// As [`save`](Self::save).
    pub fn save_with(
        &self,
        snapshot: &Snapshot,
        tag: &str,
        progress: impl FnMut(StoreProgress),
    ) -> Result<(), Error> {
        Ok(self.write(&snapshot.data, &Tag::new(tag)?, progress)?)
    }

    /// Loads a snapshot, without running guest code. Sandboxes can be made from it, and sandboxes whose image came from an equal ELF file
    /// can be restored to it.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownSnapshot`](crate::ErrorKind::UnknownSnapshot) when nothing has that tag;
    /// [`ErrorKind::InvalidSnapshot`](crate::ErrorKind::InvalidSnapshot) names the file, and the field or both versions, when something
    /// is damaged, forged or unknown; [`ErrorKind::Io`](crate::ErrorKind::Io) when a file is missing or no regular file.
    pub fn load(&self, tag: &str, options: &LoadOptions) -> Result<Snapshot, Error> {
        let entry = layout::find(&self.directory, &Tag::new(tag)?)?;
        let data = Arc::new(self.read(&entry.manifest, options)?);
        Ok(Snapshot { data })
    }

    /// Removes a tag. Its blobs stay, because others may use them.
    ///
    /// # Errors
    /// As [`load`](Self::load) for the index.
    pub fn remove(&self, tag: &str) -> Result<(), Error> {
        let tag = Tag::new(tag)?;
        let _lock = self.directory.lock()?;
        layout::find(&self.directory, &tag)?;
        layout::set_tag(&self.directory, &tag, None)?;
        Ok(self.directory.sync()?)
    }

    fn write(
        &self,
        snapshot: &SnapshotData,
        tag: &Tag,
        mut progress: impl FnMut(StoreProgress),
    ) -> Result<(), StoreError> {
        if snapshot.profile == CpuProfile::Host {
            return Err(StoreError::HostProfile);
        }
        let reading = io_error("read the pages of", Path::new("snapshot"));
        let own = snapshot.image.layers().iter();
        let all: Vec<_> = own.chain(snapshot.layers.iter()).collect();
        let mut stored: Vec<BlobId> = Vec::new();
        let mut written_bytes = 0;
        for (index, (_, layer)) in all.iter().enumerate() {
            let id = layer_blob::id(layer).map_err(&reading)?;
            if !stored.contains(&id) {
                if !self.directory.has_blob(&id) {
                    let name = blob_name(&id.digest);
                    self.directory
                        .replace(&name, |sink| layer_blob::write(layer, sink))?;
                    written_bytes += id.len_bytes;
                }
                stored.push(id);
            }
            progress(StoreProgress {
                layers: index + 1,
                all_layers: all.len(),
                written_bytes,
            });
        }
        let record = encode::record(snapshot).map_err(&reading)?;
        let bytes = layout::to_json("config", &record)?;
        if bytes.len() as u64 > CONFIG_LIMIT {
            return Err(StoreError::TooLong {
                file: "config".to_owned(),
                len_bytes: bytes.len() as u64,
                limit: CONFIG_LIMIT,
            });
        }
        let manifest = layout::Manifest {
            config: self.directory.put_blob(&bytes)?,
            layers: stored,
        };
        let manifest = layout::write_manifest(&self.directory, &manifest)?;
        // What the index names is on the disk before the index is.
        self.directory.sync_blobs()?;
        let _lock = self.directory.lock()?;
        layout::set_tag(&self.directory, tag, Some(&manifest))?;
        self.directory.sync()
    }

    fn read(&self, manifest: &BlobId, options: &LoadOptions) -> Result<SnapshotData, StoreError> {
        let manifest = layout::read_manifest(&self.directory, manifest, decode::MAX_STORED_LAYERS)?;
        let file = blob_name(&manifest.config.digest);
        let in_config = |invalid: Invalid| invalid.in_file(&file);
        let record = self.read_record(&manifest)?;
        let ids = decode::LayerIds::of(&record).map_err(in_config)?;
        let mut budget = options.max_len_bytes;
        let mut layer = |(digest, pages)| {
            let stored = manifest.layers.iter().find(|id| id.digest == digest);
            let stored = stored.ok_or_else(|| {
                in_config(Invalid::field(
                    "layers",
                    "have one that the manifest has not",
                ))
            })?;
            self.read_layer(stored, pages, options.access, &mut budget)
        };
        let image_layer = layer(ids.image)?;
        let layers = ids.snapshot.into_iter().map(layer);
        let layers = layers.collect::<Result<Vec<_>, StoreError>>()?;
        decode::snapshot(record, image_layer, layers).map_err(in_config)
    }

    /// The configuration of a snapshot, of a version that this one knows.
    fn read_record(&self, manifest: &layout::Manifest) -> Result<SnapshotRecord, StoreError> {
        let file = blob_name(&manifest.config.digest);
        let bytes = self.directory.read_blob(&manifest.config, CONFIG_LIMIT)?;
        let found: VersionRecord = layout::from_json(&file, &bytes)?;
        if found.version != record::VERSION {
            return Err(StoreError::Version {
                file,
                field: "version",
                found: found.version.to_string(),
                known: record::VERSION.to_string(),
            });
        }
        layout::from_json(&file, &bytes)
    }

    /// A layer of `pages`, which takes its bytes from the budget unless it is in memory already.
    fn read_layer(
        &self,
        id: &BlobId,
        pages: u64,
        access: Access,
        budget: &mut u64,
    ) -> Result<Arc<Layer>, StoreError> {
        let name = blob_name(&id.digest);
        let key = (id.digest, access);
        let known = self.loaded().get(&key).and_then(Weak::upgrade);
        let layer = if let Some(layer) = known {
            layer
        } else {
            *budget = budget
                .checked_sub(id.len_bytes)
                .ok_or_else(|| StoreError::TooLong {
                    file: name.clone(),
                    len_bytes: id.len_bytes,
                    limit: *budget,
                })?;
            self.open_layer(id, pages, access)?
        };
        check_pages(&name, pages, layer.pages())?;
        self.loaded().insert(key, Arc::downgrade(&layer));
        Ok(layer)
    }

    fn open_layer(
        &self,
        id: &BlobId,
        pages: u64,
        access: Access,
    ) -> Result<Arc<Layer>, StoreError> {
        let name = blob_name(&id.digest);
        let reading = io_error("read", &self.directory.path().join(&name));
        let (file, len_bytes) = self.directory.open_file(&name)?;
        check_len(&name, id.len_bytes, len_bytes)?;
        let file = LayerFile::open(file, len_bytes).map_err(|error| match error {
            ReadError::Io(error) => reading(error),
            ReadError::Invalid(invalid) => invalid.in_file(&name),
        })?;
        // Before anything is made of that size.
        check_pages(&name, pages, file.pages())?;
        let layer = if access == Access::Mapped && file.has_few_runs() {
            file.map().map_err(&reading)?
        } else {
            let (layer, digest) = file.copy().map_err(&reading)?;
            check_digest(&name, &id.digest, digest)?;
            layer
        };
        // The layer is new, and its blob is the one that it was read from.
        let _ = layer.blob.set(*id);
        Ok(layer)
    }

    fn loaded(&self) -> std::sync::MutexGuard<'_, HashMap<(Digest, Access), Weak<Layer>>> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.retain(|_, layer| layer.strong_count() > 0);
        loaded
    }
}

fn check_pages(file: &str, expected: u64, actual: u64) -> Result<(), StoreError> {
    if expected == actual {
        return Ok(());
    }
    let problem = format!("is {actual}, the configuration says {expected}");
    Err(Invalid::field("pages", problem).in_file(file))
}

impl fmt::Debug for SnapshotStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotStore")
            .field("directory", &self.directory.path())
            .finish_non_exhaustive()
    }
}

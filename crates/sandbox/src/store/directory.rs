//! The directory of a store: reading files that may be anything, and writing files so that a crash leaves the old or the new one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::digest::{BlobId, Digest};
use super::error::StoreError;

/// Where blobs lie (OCI image layout specification, "Blobs").
const BLOBS: &str = "blobs/sha256";
/// What is written holds guest memory: it is the owner's alone.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;
/// Bytes that are collected before they are written.
const BUFFER_LEN_BYTES: usize = 256 << 10;

/// A directory that holds, or will hold, an OCI image layout.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    path: PathBuf,
}

/// Keeps other writers of the same store out.
#[derive(Debug)]
pub(super) struct Lock {
    _directory: File,
}

impl Directory {
    /// Makes the directory and those below it, as far as they are missing.
    pub(super) fn create(path: &Path) -> Result<Self, StoreError> {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(path.join(BLOBS));
        made.map_err(io_error("create", &path.join(BLOBS)))?;
        Self::open(path)
    }

    /// A directory that exists.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let metadata = fs::metadata(path).map_err(io_error("open", path))?;
        if metadata.is_dir() {
            Ok(Self {
                path: path.to_owned(),
            })
        } else {
            Err(io_error("open", path)(io::ErrorKind::NotADirectory.into()))
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until nobody else writes.
    pub(super) fn lock(&self) -> Result<Lock, StoreError> {
        let directory = File::open(&self.path).map_err(io_error("open", &self.path))?;
        directory.lock().map_err(io_error("lock", &self.path))?;
        Ok(Lock {
            _directory: directory,
        })
    }

    /// Opens a regular file, and nothing else: no link is followed, and no FIFO or device waited for.
    pub(super) fn open_file(&self, name: &str) -> Result<(File, u64), StoreError> {
        let path = self.path.join(name);
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
            .and_then(|file| {
                let metadata = file.metadata()?;
                if metadata.is_file() {
                    Ok((file, metadata.len()))
                } else {
                    Err(not_regular())
                }
            });
        opened.map_err(io_error("read", &path))
    }

    /// Whether there is a file of that name, of whatever kind.
    pub(super) fn has(&self, name: &str) -> bool {
        fs::symlink_metadata(self.path.join(name)).is_ok()
    }

    /// Reads a whole file of at most `limit` bytes.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, StoreError> {
        let (file, len_bytes) = self.open_file(name)?;
        let too_long = |len_bytes| StoreError::TooLong {
            file: name.to_owned(),
            len_bytes,
            limit,
        };
        if len_bytes > limit {
            return Err(too_long(len_bytes));
        }
        let mut bytes = Vec::new();
        // It may be growing.
        let read = file.take(limit + 1).read_to_end(&mut bytes);
        read.map_err(io_error("read", &self.path.join(name)))?;
        if bytes.len() as u64 > limit {
            return Err(too_long(bytes.len() as u64));
        }
        Ok(bytes)
    }

    /// Reads a small blob, whose digest is always verified.
    pub(super) fn read_blob(&self, id: &BlobId, limit: u64) -> Result<Vec<u8>, StoreError> {
        let name = blob_name(&id.digest);
        let bytes = self.read(&name, limit.min(id.len_bytes))?;
        check_len(&name, id.len_bytes, bytes.len() as u64)?;
        check_digest(&name, &id.digest, Digest::of(&bytes))?;
        Ok(bytes)
    }

    /// Whether a blob is there already, as far as can be told without reading it.
    pub(super) fn has_blob(&self, id: &BlobId) -> bool {
        self.open_file(&blob_name(&id.digest))
            .is_ok_and(|(_, len_bytes)| len_bytes == id.len_bytes)
    }

    /// Writes a small blob, unless it is there.
    pub(super) fn put_blob(&self, bytes: &[u8]) -> Result<BlobId, StoreError> {
        let id = BlobId::of(bytes);
        let is_there = self
            .read_blob(&id, id.len_bytes)
            .is_ok_and(|there| there == bytes);
        if !is_there {
            self.replace(&blob_name(&id.digest), |sink| sink.write_all(bytes))?;
        }
        Ok(id)
    }

    /// Makes what was renamed in the directory of blobs outlast a crash.
    pub(super) fn sync_blobs(&self) -> Result<(), StoreError> {
        sync_directory(&self.path.join(BLOBS))?;
        sync_directory(&self.path.join("blobs"))
    }

    /// Makes what was renamed in the directory itself outlast a crash.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        sync_directory(&self.path)
    }

    /// Writes a file under a name of its own, brings it to the disk, and gives it its name. Whoever looks sees the old file or the new
    /// one. A temporary file that a crash leaves behind is never looked at again.
    pub(super) fn replace(
        &self,
        name: &str,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), StoreError> {
        let path = self.path.join(name);
        let (file, temporary) = create_temporary(&path)?;
        let written = write_and_sync(file, fill).and_then(|()| fs::rename(&temporary, &path));
        if written.is_err() {
            // What remains is a file that nobody looks at.
            let _ = fs::remove_file(&temporary);
        }
        written.map_err(io_error("write", &path))
    }
}

/// The name of a blob's file in the directory.
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("{BLOBS}/{}", digest.hex())
}

pub(super) fn check_len(file: &str, expected: u64, actual: u64) -> Result<(), StoreError> {
    if expected == actual {
        return Ok(());
    }
    Err(StoreError::Length {
        file: file.to_owned(),
        expected,
        actual,
    })
}

pub(super) fn check_digest(
    file: &str,
    expected: &Digest,
    actual: Digest,
) -> Result<(), StoreError> {
    if *expected == actual {
        return Ok(());
    }
    Err(StoreError::Digest {
        file: file.to_owned(),
        actual,
    })
}

/// Names the file and what was done with it.
pub(super) fn io_error(
    action: &'static str,
    path: &Path,
) -> impl Fn(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError::Io {
        action,
        path: path.clone(),
        source,
    }
}

fn not_regular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")
}

/// A new file beside `path`, which nobody else writes.
fn create_temporary(path: &Path) -> Result<(File, PathBuf), StoreError> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let process = std::process::id();
    loop {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_file_name(format!(".{name}.{process}.{number}.tmp"));
        let created = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(&temporary);
        match created {
            Ok(file) => return Ok((file, temporary)),
            // Left behind by a process that had this number before.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io_error("create", &temporary)(error)),
        }
    }
}

fn write_and_sync(
    file: File,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut sink = BufWriter::with_capacity(BUFFER_LEN_BYTES, file);
    fill(&mut sink)?;
    sink.into_inner()?.sync_all()
}

fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(io_error("sync", path))
}

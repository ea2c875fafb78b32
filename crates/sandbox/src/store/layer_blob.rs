//! Layers as blobs.
//!
//! A blob is an index and, behind it, the pages that are not all zeroes, each at a multiple of 4096 bytes, so that they can be mapped:
//!
//! | bytes | content |
//! |---|---|
//! | 0 to 7 | `VELLAYER` |
//! | 8 to 11 | version, 1 |
//! | 12 to 15 | zero |
//! | 16 to 23 | pages of the layer |
//! | 24 to 31 | pages in the blob |
//! | 32 to 39 | number of runs |
//! | 40 to 63 | zero |
//! | from 64 on | for each run its first page and its length in pages, 8 bytes each |
//! | | zeroes up to a multiple of 4096 |
//! | | the pages of the runs, in order |
//!
//! Numbers are little-endian. Runs are sorted and do not touch. Equal layers give equal blobs.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vellum_backend::{SealedMemory, SealedWriter};
use vellum_layout::PAGE_SIZE;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::digest::{BlobId, Digest, Hasher};
use super::error::Invalid;
use crate::memory::{Layer, PAGE_LEN_BYTES, Run};

/// Pages of the largest layer: 64 GiB, as much as a guest can have.
pub(super) const MAX_PAGES: u64 = 1 << 24;
/// Runs of a blob: 16 MiB of index. Where there would be more, the shortest gaps are stored as zeroes.
const MAX_RUNS: u64 = 1 << 20;
/// Runs up to which a blob is mapped: each is a mapping of its own in every sandbox. A layer with more is copied when it is loaded.
const MAX_MAPPED_RUNS: usize = 64;
/// Bytes that are read from a file at once.
const CHUNK_LEN_BYTES: usize = 256 << 10;

const MAGIC: [u8; 8] = *b"VELLAYER";
const VERSION: u32 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    zero: U32,
    pages: U64,
    data_pages: U64,
    runs: U64,
    zeroes: [u8; 24],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RunEntry {
    first_page: U64,
    pages: U64,
}

const HEADER_LEN_BYTES: usize = size_of::<Header>();
const ENTRY_LEN_BYTES: usize = size_of::<RunEntry>();
const _: () = assert!(HEADER_LEN_BYTES == 64 && ENTRY_LEN_BYTES == 16);

/// Which pages of a layer a blob holds, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Index {
    pages: u64,
    runs: Vec<Run>,
}

impl Index {
    /// Of the pages of a layer that are not all zeroes.
    fn of(layer: &Layer) -> io::Result<Self> {
        let mut present = Vec::new();
        let mut bytes = [0; PAGE_LEN_BYTES];
        for page in 0..layer.pages() {
            layer.read_page(page, &mut bytes)?;
            if !is_zero(&bytes) {
                extend(&mut present, page);
            }
        }
        let mut closed_gap = 0;
        while present.len() as u64 > MAX_RUNS {
            closed_gap = closed_gap * 2 + 1;
            close_gaps(&mut present, closed_gap);
        }
        Ok(Self::new(layer.pages(), &present))
    }

    /// From sorted runs of pages that do not touch.
    fn new(pages: u64, present: &[Range<u64>]) -> Self {
        let mut offset = index_len_bytes(present.len() as u64);
        let runs = present.iter().map(|range| {
            let run = Run {
                first_page: range.start,
                pages: range.end - range.start,
                offset,
            };
            offset += run.pages * PAGE_SIZE;
            run
        });
        let runs = runs.collect();
        Self { pages, runs }
    }

    fn data_pages(&self) -> u64 {
        self.runs.iter().map(|run| run.pages).sum()
    }

    fn data_len_bytes(&self) -> u64 {
        self.data_pages() * PAGE_SIZE
    }

    fn to_bytes(&self) -> Vec<u8> {
        let header = Header {
            magic: MAGIC,
            version: VERSION.into(),
            zero: 0.into(),
            pages: self.pages.into(),
            data_pages: self.data_pages().into(),
            runs: (self.runs.len() as u64).into(),
            zeroes: [0; 24],
        };
        let mut bytes = header.as_bytes().to_vec();
        for run in &self.runs {
            let entry = RunEntry {
                first_page: run.first_page.into(),
                pages: run.pages.into(),
            };
            bytes.extend_from_slice(entry.as_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(PAGE_LEN_BYTES), 0);
        bytes
    }

    /// Checks the index of a blob that has `len_bytes` in all. `bytes` is as much as its header asks for.
    fn from_bytes(bytes: &[u8], len_bytes: u64) -> Result<Self, Invalid> {
        let (header, rest) =
            Header::read_from_prefix(bytes).map_err(|_| Invalid::field("header", "is cut off"))?;
        let count = check_header(&header)?;
        let table = rest
            .get(..count * ENTRY_LEN_BYTES)
            .ok_or_else(|| Invalid::field("runs", "are cut off"))?;
        if !is_zero(&rest[table.len()..]) {
            return Err(Invalid::field("padding", "is not zero"));
        }
        let pages = header.pages.get();
        let mut present: Vec<Range<u64>> = Vec::with_capacity(count);
        for entry in table.chunks_exact(ENTRY_LEN_BYTES) {
            let entry = RunEntry::read_from_bytes(entry)
                .map_err(|_| Invalid::field("runs", "are cut off"))?;
            present.push(check_run(&entry, present.last(), pages)?);
        }
        let index = Self::new(pages, &present);
        if index.data_pages() != header.data_pages.get() {
            return Err(Invalid::field(
                "pages in the blob",
                format!(
                    "is {}, its runs have {}",
                    header.data_pages,
                    index.data_pages()
                ),
            ));
        }
        let expected = index_len_bytes(count as u64) + index.data_len_bytes();
        if expected != len_bytes {
            return Err(Invalid::field(
                "length",
                format!("is {len_bytes:#x}, its runs need {expected:#x}"),
            ));
        }
        Ok(index)
    }
}

/// Checks everything but the runs; returns how many of them there are.
fn check_header(header: &Header) -> Result<usize, Invalid> {
    if header.magic != MAGIC {
        return Err(Invalid::field("magic", "is not that of a layer"));
    }
    if header.version.get() != VERSION {
        return Err(Invalid::Version {
            field: "layer version",
            found: header.version.to_string(),
            known: VERSION.to_string(),
        });
    }
    if header.zero.get() != 0 || header.zeroes != [0; 24] {
        return Err(Invalid::field("reserved bytes", "are not zero"));
    }
    let (pages, runs) = (header.pages.get(), header.runs.get());
    if pages == 0 || pages > MAX_PAGES {
        return Err(Invalid::field(
            "pages",
            format!("is {pages}, not 1 to {MAX_PAGES}"),
        ));
    }
    usize::try_from(runs)
        .ok()
        .filter(|_| runs <= MAX_RUNS)
        .ok_or_else(|| Invalid::field("runs", format!("is {runs}, more than {MAX_RUNS}")))
}

/// That a run has pages, lies in the layer, and does not touch the one before it.
fn check_run(
    entry: &RunEntry,
    before: Option<&Range<u64>>,
    pages: u64,
) -> Result<Range<u64>, Invalid> {
    let start = entry.first_page.get();
    let end = start.checked_add(entry.pages.get());
    let is_behind = before.is_none_or(|before| start > before.end);
    match end {
        Some(end) if start < end && end <= pages && is_behind => Ok(start..end),
        _ => Err(Invalid::field(
            "runs",
            format!(
                "have one of {} pages at page {start} of {pages}, or out of order",
                entry.pages
            ),
        )),
    }
}

fn index_len_bytes(runs: u64) -> u64 {
    (HEADER_LEN_BYTES as u64 + runs * ENTRY_LEN_BYTES as u64).next_multiple_of(PAGE_SIZE)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

/// Adds a page behind all others.
fn extend(present: &mut Vec<Range<u64>>, page: u64) {
    match present.last_mut() {
        Some(last) if last.end == page => last.end = page + 1,
        _ => present.push(page..page + 1),
    }
}

/// Joins runs with at most `gap` pages between them.
fn close_gaps(present: &mut Vec<Range<u64>>, gap: u64) {
    present.dedup_by(|next, before| {
        let joins = next.start - before.end <= gap;
        if joins {
            before.end = next.end;
        }
        joins
    });
}

/// The blob of a layer. It is computed once for each layer.
pub(crate) fn id(layer: &Layer) -> io::Result<BlobId> {
    if let Some(known) = layer.blob.get() {
        return Ok(*known);
    }
    let mut hasher = Hasher::default();
    write(layer, &mut hasher)?;
    let len_bytes = hasher.len_bytes();
    let id = BlobId {
        digest: hasher.finish(),
        len_bytes,
    };
    Ok(*layer.blob.get_or_init(|| id))
}

/// Writes the blob of a layer.
pub(super) fn write(layer: &Layer, sink: &mut dyn Write) -> io::Result<()> {
    let index = Index::of(layer)?;
    sink.write_all(&index.to_bytes())?;
    let mut bytes = [0; PAGE_LEN_BYTES];
    for run in &index.runs {
        for page in run.first_page..run.first_page + run.pages {
            layer.read_page(page, &mut bytes)?;
            sink.write_all(&bytes)?;
        }
    }
    Ok(())
}

/// A blob that was opened, and whose index was checked.
#[derive(Debug)]
pub(super) struct LayerFile {
    file: File,
    index: Index,
    index_bytes: Vec<u8>,
}

/// Why a blob cannot be opened or copied.
#[derive(Debug)]
pub(super) enum ReadError {
    Io(io::Error),
    Invalid(Invalid),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Invalid> for ReadError {
    fn from(error: Invalid) -> Self {
        Self::Invalid(error)
    }
}

impl LayerFile {
    /// Reads the index of a blob of `len_bytes`. Takes memory in proportion to the index, which is limited.
    pub(super) fn open(file: File, len_bytes: u64) -> Result<Self, ReadError> {
        let mut header = Header::new_zeroed();
        if len_bytes < HEADER_LEN_BYTES as u64 {
            return Err(Invalid::field("header", "is cut off").into());
        }
        file.read_exact_at(header.as_mut_bytes(), 0)?;
        let index_len_bytes = index_len_bytes(check_header(&header)? as u64);
        if index_len_bytes > len_bytes {
            return Err(Invalid::field("runs", "are cut off").into());
        }
        let len = usize::try_from(index_len_bytes).map_err(io::Error::other)?;
        let mut index_bytes = vec![0; len];
        file.read_exact_at(&mut index_bytes, 0)?;
        let index = Index::from_bytes(&index_bytes, len_bytes)?;
        Ok(Self {
            file,
            index,
            index_bytes,
        })
    }

    /// Pages of the layer.
    pub(super) fn pages(&self) -> u64 {
        self.index.pages
    }

    /// Bytes of its pages that are not zeroes.
    pub(super) fn data_len_bytes(&self) -> u64 {
        self.index.data_len_bytes()
    }

    /// Whether it is worth mapping.
    pub(super) fn has_few_runs(&self) -> bool {
        self.index.runs.len() <= MAX_MAPPED_RUNS
    }

    /// The layer as a mapping of the file, which nobody may change from now on.
    pub(super) fn map(self) -> io::Result<Arc<Layer>> {
        let len_bytes = self.index_bytes.len() as u64 + self.data_len_bytes();
        let sealed = SealedMemory::of_unchanging_file(self.file, len_bytes)?;
        Layer::of_memory(sealed, self.index.pages, self.index.runs)
    }

    /// The layer in memory of its own, and the digest of the bytes that it was copied from.
    pub(super) fn copy(self) -> io::Result<(Arc<Layer>, Digest)> {
        let mut hasher = Hasher::default();
        hasher.update(&self.index_bytes);
        let layer = Layer::create(self.index.pages, |memory| {
            copy_runs(&self.file, &self.index, &mut hasher, memory)
        })?;
        Ok((layer, hasher.finish()))
    }
}

/// Reads every byte once: what is hashed is what is kept. Zeroes take no memory, however many the file claims to have.
fn copy_runs(
    file: &File,
    index: &Index,
    hasher: &mut Hasher,
    memory: &mut SealedWriter<'_>,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_LEN_BYTES];
    for run in &index.runs {
        let mut done = 0;
        while done < run.pages * PAGE_SIZE {
            let rest = run.pages * PAGE_SIZE - done;
            let len = usize::try_from(rest).map_or(chunk.len(), |rest| rest.min(chunk.len()));
            let bytes = &mut chunk[..len];
            file.read_exact_at(bytes, run.offset + done)?;
            hasher.update(bytes);
            let at = run.first_page * PAGE_SIZE + done;
            for (offset, page) in (at..)
                .step_by(PAGE_LEN_BYTES)
                .zip(bytes.chunks(PAGE_LEN_BYTES))
            {
                if !is_zero(page) {
                    memory.write(offset, page)?;
                }
            }
            done += len as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;

//! Files and memories of the host that an embedder maps into a guest, and where they may lie.
//!
//! What is here knows no VM: [`Mapping`] is what is to be mapped, and [`Places`] decides whether it may lie where the embedder wants it.
//! `instance/mappings.rs` lends it to a guest.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use vellum_abi::mapping::{LabelError, MAX_MAPPINGS, encode_label};
use vellum_backend::memory::{self, OutOfBounds};
use vellum_layout::{
    Gpa, GpaRange, GuestArch, Hole, LOCAL_APIC_PAGE, Obstacle, PAGE_SIZE, RangeError, RegionName,
    amd64, i686,
};

use crate::error::{Error, ErrorKind, Failure};
use crate::memory::{Config, Geometry};

/// A host file or a host memory that a guest can see: [mapped](crate::SandboxBuilder::map) into one that is about to be made, or
/// [into one that runs](crate::Sandbox::map). One value can be mapped into any number of sandboxes.
///
/// The guest finds it by its label, in a table that its PEB leads to. It lies at a guest-physical address of the embedder's choice. The
/// last page is filled up with zeroes.
///
/// # How long it lasts
///
/// Mappings belong to a sandbox, not to its snapshots. They stay until they are [unmapped](crate::Sandbox::unmap), across every restore,
/// and a sandbox that is made from a snapshot has none until it is given some. A restore drops what the guest wrote to its private copy
/// of a file; taking a snapshot does not. A shared memory is never put back.
///
/// ```no_run
/// use vellum_sandbox::{Engine, Gpa, GuestImage, Mapping, Sandbox, SharedMemory};
///
/// let engine = Engine::new()?;
/// let image = GuestImage::from_file("guest.elf")?;
/// let frames = SharedMemory::new(1 << 20)?;
/// let mut sandbox = Sandbox::builder(&image)
///     .map(Gpa::literal(0x1_0000_0000), &Mapping::file("model", "weights.bin")?)
///     .build(&engine)?;
/// sandbox.map(
///     Gpa::literal(0x2_0000_0000),
///     &Mapping::region("frames", &frames)?.writable(),
/// )?;
/// sandbox.call::<_, ()>("render", (3_u32,))?;
/// let mut pixels = vec![0; 4096];
/// frames.read(0, &mut pixels)?;
/// sandbox.unmap("frames")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Mapping {
    label: Arc<str>,
    source: Source,
    access: GuestAccess,
}

/// What is mapped.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    File(Arc<MappedFile>),
    Region(SharedMemory),
}

/// What the guest may do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GuestAccess {
    Read,
    ReadWrite,
}

/// A regular file, and how long it was when it was chosen.
#[derive(Debug)]
pub(crate) struct MappedFile {
    file: File,
    len_bytes: u64,
}

/// Memory that the host shares with guests, and guests with each other, when it is [mapped](Mapping::region) into several. Cheap to
/// clone: clones are the same memory, which lives as long as anybody has it.
///
/// The host copies in and out; there is no reference into it, because a guest may write at any time. Any thread may do so while guests
/// run. Copies are not atomic as a whole: [`load`](Self::load) and [`store`](Self::store) are, and order what is copied around them.
#[derive(Clone, Debug)]
pub struct SharedMemory {
    inner: Arc<memory::SharedMemory>,
}

impl SharedMemory {
    /// Zeroed memory of any length; the system allocates a page when it is first touched.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) for a length of 0;
    /// [`ErrorKind::Hypervisor`](crate::ErrorKind::Hypervisor) when the system refuses.
    pub fn new(len_bytes: u64) -> Result<Self, Error> {
        if len_bytes == 0 {
            return Err(Failure::from(MappingError::EmptyMemory).into());
        }
        let inner = memory::SharedMemory::zeroed(len_bytes).map_err(Failure::Memory)?;
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.inner.len_bytes()
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// [`OutOfBounds`].
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), OutOfBounds> {
        self.inner.read(offset, into)
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing was written.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), OutOfBounds> {
        self.inner.write(offset, from)
    }

    /// Reads a little-endian number in one access. What was written before it was stored is seen by reads that follow.
    ///
    /// # Errors
    /// [`OutOfBounds`], also when `offset` is not a multiple of 8.
    pub fn load(&self, offset: u64) -> Result<u64, OutOfBounds> {
        self.inner.load(offset)
    }

    /// Writes a little-endian number in one access, behind everything that was written before.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn store(&self, offset: u64, value: u64) -> Result<(), OutOfBounds> {
        self.inner.store(offset, value)
    }

    pub(crate) fn inner(&self) -> &Arc<memory::SharedMemory> {
        &self.inner
    }
}

impl Mapping {
    /// A host file, whole, which the guest may read. Make it [`writable`](Self::writable) to give the guest private copies of the pages
    /// that it writes; the file never changes.
    ///
    /// The file must be a regular one that is not empty. It should not change while it is mapped: the guest may see the old or the new
    /// bytes. Should it be truncated, a call in which the guest uses what is gone fails with
    /// [`ErrorKind::Io`](crate::ErrorKind::Io), and the sandbox must be restored.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) when the file cannot be opened, is no regular file, or is empty;
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) for a label that does not have 1 to 32 bytes.
    pub fn file(label: &str, path: impl AsRef<Path>) -> Result<Self, Error> {
        let file = MappedFile::open(path.as_ref()).map_err(Failure::from)?;
        let source = Source::File(Arc::new(file));
        Ok(Self::new(label, source).map_err(Failure::from)?)
    }

    /// [`file`](Self::file) for a file that is open for reading already.
    ///
    /// # Errors
    /// As [`file`](Self::file).
    pub fn open_file(label: &str, file: File) -> Result<Self, Error> {
        let file = MappedFile::new(file, "the open file").map_err(Failure::from)?;
        let source = Source::File(Arc::new(file));
        Ok(Self::new(label, source).map_err(Failure::from)?)
    }

    /// Memory that host and guest share. The guest may read it; make it [`writable`](Self::writable) so that both can write.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) for a label that does not have 1 to 32 bytes.
    pub fn region(label: &str, memory: &SharedMemory) -> Result<Self, Error> {
        let source = Source::Region(memory.clone());
        Ok(Self::new(label, source).map_err(Failure::from)?)
    }

    fn new(label: &str, source: Source) -> Result<Self, MappingError> {
        encode_label(label).map_err(MappingError::from)?;
        Ok(Self {
            label: label.into(),
            source,
            access: GuestAccess::Read,
        })
    }

    /// The same, but the guest may write: to copies of its own if it is a file, to the memory itself if it is one.
    #[must_use]
    pub fn writable(mut self) -> Self {
        self.access = GuestAccess::ReadWrite;
        self
    }

    /// The name by which the guest finds it.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Length in bytes, without what fills up the last page.
    pub fn len_bytes(&self) -> u64 {
        match &self.source {
            Source::File(file) => file.len_bytes,
            Source::Region(memory) => memory.len_bytes(),
        }
    }

    /// Whether the guest may write.
    pub fn is_writable(&self) -> bool {
        self.access == GuestAccess::ReadWrite
    }

    pub(crate) fn shared_label(&self) -> &Arc<str> {
        &self.label
    }

    pub(crate) fn access(&self) -> GuestAccess {
        self.access
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// The pages that it takes when it is mapped at `gpa`.
    pub(crate) fn range_at(&self, gpa: Gpa) -> Result<GpaRange, MappingError> {
        let refused = |source| MappingError::Range {
            label: self.label.clone(),
            source,
        };
        let start = gpa.as_u64();
        let len_bytes = self.len_bytes();
        let pages = len_bytes.checked_next_multiple_of(PAGE_SIZE);
        let pages = pages.ok_or_else(|| refused(RangeError::PastEnd { start, len_bytes }))?;
        GpaRange::new(gpa, pages).map_err(refused)
    }
}

impl MappedFile {
    /// Opens a regular file without ever waiting for, or waking, what a path may lead to instead.
    fn open(path: &Path) -> Result<Self, MappingError> {
        let name = path.display().to_string();
        let refused = |source| MappingError::Open {
            file: path.display().to_string(),
            source,
        };
        // Opening a device can have effects, and a socket cannot be opened at all, so the path is looked at first. What it leads to
        // can change before it is opened: then the open file is refused below.
        let found = path.metadata().map_err(refused)?;
        check_regular(&found, &name)?;
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(refused)?;
        Self::new(file, &name)
    }

    fn new(file: File, name: &str) -> Result<Self, MappingError> {
        let refused = |source| MappingError::Open {
            file: name.to_owned(),
            source,
        };
        let found = file.metadata().map_err(refused)?;
        check_regular(&found, name)?;
        if found.len() == 0 {
            let file = name.to_owned();
            return Err(MappingError::EmptyFile { file });
        }
        Ok(Self {
            len_bytes: found.len(),
            file,
        })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Whether the page at this offset lies behind the end that the file has by now.
    pub(crate) fn has_lost(&self, offset: u64) -> bool {
        self.file
            .metadata()
            .is_ok_and(|now| offset - offset % PAGE_SIZE >= now.len())
    }
}

fn check_regular(found: &std::fs::Metadata, name: &str) -> Result<(), MappingError> {
    let kind = found.file_type();
    let what = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a fifo",
        () if kind.is_socket() => "a socket",
        () if kind.is_block_device() || kind.is_char_device() => "a device",
        () => "something else",
    };
    Err(MappingError::NoRegularFile {
        file: name.to_owned(),
        what,
    })
}

/// Why something is not mapped, or not unmapped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MappingError {
    #[error("mapping label refused")]
    Label(#[from] LabelError),
    #[error("cannot open {file} to map it")]
    Open {
        file: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot map {file}: it is {what}, not a regular file")]
    NoRegularFile { file: String, what: &'static str },
    #[error("the system does not map the file {label:?}")]
    Unmappable {
        label: Arc<str>,
        #[source]
        source: io::Error,
    },
    #[error("cannot map {file}: it is empty")]
    EmptyFile { file: String },
    #[error("shared memory of 0 bytes; give it at least one")]
    EmptyMemory,
    #[error("mapping {label:?} refused")]
    Range {
        label: Arc<str>,
        #[source]
        source: RangeError,
    },
    #[error(
        "mapping {label:?} {range} reaches above the guest's highest guest-physical address, {max_gpa}"
    )]
    AboveMaxGpa {
        label: Arc<str>,
        range: GpaRange,
        max_gpa: Gpa,
    },
    #[error("mapping {label:?} {range} overlaps the {other}")]
    Overlap {
        label: Arc<str>,
        range: GpaRange,
        other: Party,
    },
    #[error("label {label:?} is taken by the mapping {range}; unmap that first")]
    DuplicateLabel { label: Arc<str>, range: GpaRange },
    #[error("mapping {label:?} is one too many; a guest has at most {MAX_MAPPINGS}")]
    TooMany { label: Arc<str> },
    #[error("nothing is mapped with the label {label:?}")]
    Unknown { label: String },
    #[error(
        "guest used a page at {offset:#x} of the file that is mapped as {label:?}, which no longer has it: it was truncated"
    )]
    Truncated { label: Arc<str>, offset: u64 },
}

impl MappingError {
    /// What a program can react to.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Open { .. }
            | Self::NoRegularFile { .. }
            | Self::EmptyFile { .. }
            | Self::Unmappable { .. }
            | Self::Truncated { .. } => ErrorKind::Io,
            Self::Label(_)
            | Self::EmptyMemory
            | Self::Range { .. }
            | Self::AboveMaxGpa { .. }
            | Self::Overlap { .. }
            | Self::DuplicateLabel { .. }
            | Self::TooMany { .. }
            | Self::Unknown { .. } => ErrorKind::InvalidConfig,
        }
    }
}

/// What a mapping would overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Party {
    Place(Obstacle),
    Mapping { label: Arc<str>, range: GpaRange },
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place(obstacle) => obstacle.fmt(f),
            Self::Mapping { label, range } => write!(f, "mapping {label:?} {range}"),
        }
    }
}

/// Where mappings may lie in a guest: everywhere but where its plan, its machine and other mappings are. What the embedder
/// [reserved](crate::SandboxBuilder::reserve) may be covered; that is what it is reserved for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places<'a> {
    geometry: &'a Geometry,
    holes: &'static [Hole],
}

impl<'a> Places<'a> {
    pub(crate) fn new(geometry: &'a Geometry, config: &Config) -> Self {
        Self {
            geometry,
            holes: config.holes(),
        }
    }

    /// Whether a mapping may lie at `range` in a guest that has `others` already.
    pub(crate) fn check<'m>(
        &self,
        label: &Arc<str>,
        range: GpaRange,
        others: impl Iterator<Item = (&'m Arc<str>, GpaRange)>,
    ) -> Result<(), MappingError> {
        let overlaps = |other| MappingError::Overlap {
            label: label.clone(),
            range,
            other,
        };
        let mut count = 0;
        for (other, taken) in others {
            count += 1;
            if other == label {
                return Err(MappingError::DuplicateLabel {
                    label: label.clone(),
                    range: taken,
                });
            }
            if taken.overlaps(&range) {
                return Err(overlaps(Party::Mapping {
                    label: other.clone(),
                    range: taken,
                }));
            }
        }
        if count >= MAX_MAPPINGS {
            return Err(MappingError::TooMany {
                label: label.clone(),
            });
        }
        self.check_plan(label, range)
    }

    /// Whether a mapping may lie at `range` in a guest without any other.
    pub(crate) fn check_plan(&self, label: &Arc<str>, range: GpaRange) -> Result<(), MappingError> {
        let plan = &self.geometry.plan;
        let (lowest, max_gpa) = match plan.kind().arch() {
            GuestArch::Amd64 => (amd64::BASE_ADDRESS, amd64::MAX_GPA),
            GuestArch::I686 => (i686::BASE_ADDRESS, i686::MAX_GPA),
        };
        let holes = [LOCAL_APIC_PAGE]
            .into_iter()
            .chain(self.holes.iter().copied());
        let holes = holes.map(|hole| (hole.range, Obstacle::Hole(hole)));
        let memories = [
            (RegionName::Image, plan.image()),
            (RegionName::Scratch, plan.scratch()),
        ];
        let memories = memories.map(|(name, range)| (range, Obstacle::Region(name, range)));
        let mut in_the_way = memories.into_iter().chain(holes);
        let place = if range.start() < lowest {
            Some(Obstacle::LowestAddress(lowest))
        } else {
            in_the_way
                .find(|(taken, _)| taken.overlaps(&range))
                .map(|(_, obstacle)| obstacle)
        };
        if let Some(place) = place {
            return Err(MappingError::Overlap {
                label: label.clone(),
                range,
                other: Party::Place(place),
            });
        }
        if range.last() > max_gpa {
            return Err(MappingError::AboveMaxGpa {
                label: label.clone(),
                range,
                max_gpa,
            });
        }
        Ok(())
    }
}

/// Where something is mapped in a sandbox.
#[derive(Clone, Copy, Debug)]
pub struct MappingInfo<'a> {
    pub(crate) mapping: &'a Mapping,
    pub(crate) range: GpaRange,
    pub(crate) address: Option<u64>,
}

impl<'a> MappingInfo<'a> {
    /// What is mapped.
    pub const fn mapping(&self) -> &'a Mapping {
        self.mapping
    }

    /// The guest-physical pages that it takes.
    pub const fn range(&self) -> GpaRange {
        self.range
    }

    /// Where the guest finds it under the translation that the host set up for it. `None` in kernels with paging, which map the
    /// guest-physical pages themselves.
    pub const fn address(&self) -> Option<u64> {
        self.address
    }
}

#[cfg(test)]
mod tests;

//! Memory planning: from sizes, holes and a guest kind to placed regions.

mod error;
mod place;

use core::fmt;

pub use error::{Obstacle, PlanError};

use crate::address::{Gpa, Gva};
use crate::amd64::user;
use crate::bookkeeping::{
    BOOKKEEPING_LEN_BYTES, EXCEPTION_STACK_LEN_BYTES, GUARD_LEN_BYTES, SCRATCH_TOP_LEN_BYTES,
};
use crate::hole::{Hole, Reserved};
use crate::kind::{GuestKind, Translation};
use crate::page::PAGE_SIZE;
use crate::range::GpaRange;
use crate::scratch::{GuestPtr, LayoutError, scratch_base_for_guest};

/// Most ranges that a guest may declare as reserved. They come from the guest's file, so the work
/// of checking them must not be for the guest to choose.
pub const MAX_RESERVED: usize = 64;

/// Fewest bytes of free frames in a scratch: one page, so that a guest can take at least one
/// fault that needs a frame, and every plan has all its regions.
pub const MIN_FRAMES_LEN_BYTES: u64 = PAGE_SIZE;

/// What a [`MemoryPlan`] is made of. All lengths are multiples of [`PAGE_SIZE`].
#[derive(Clone, Copy, Debug)]
pub struct PlanRequest<'a> {
    /// The guest kind, which decides addresses and translation.
    pub kind: GuestKind,
    /// Length of the image.
    pub image_len_bytes: u64,
    /// Lengths of scratch and of what lies in it.
    pub scratch: ScratchRequest,
    /// Where the machine or the hypervisor allows no memory. The local APIC page need not be
    /// named: every plan keeps clear of it. Holes may overlap each other.
    pub holes: &'a [Hole],
    /// Ranges that the guest keeps for itself; at most [`MAX_RESERVED`].
    pub reserved: &'a [Reserved],
}

/// Lengths of scratch and of the parts whose length is the caller's choice. The free frames get
/// what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ScratchRequest {
    /// Length of all of scratch; at least [`minimum_scratch_len`].
    pub len_bytes: u64,
    /// Length of the input buffer.
    pub input_len_bytes: u64,
    /// Length of the output buffer.
    pub output_len_bytes: u64,
    /// Length of the room for page tables; zero exactly for guests entered without paging.
    pub tables_len_bytes: u64,
}

/// Where everything in a guest's physical memory lies.
///
/// A pure function of the request: the same request gives the same plan on every machine. The
/// image begins at `BASE_ADDRESS` and scratch ends at `MAX_GPA`; where holes are in the way,
/// scratch lies below them, and the image of a guest with paging above them. No two regions
/// overlap and none overlaps a hole or a reserved range.
///
/// ```
/// use vellum_layout::{GuestKind, MemoryPlan, PlanRequest, RegionName, ScratchRequest};
///
/// let plan = MemoryPlan::new(&PlanRequest {
///     kind: GuestKind::Amd64User,
///     image_len_bytes: 0x20_0000,
///     scratch: ScratchRequest {
///         len_bytes: 0x100_0000,
///         input_len_bytes: 0x4000,
///         output_len_bytes: 0x4000,
///         tables_len_bytes: 0x4_0000,
///     },
///     holes: &[],
///     reserved: &[],
/// })?;
/// assert_eq!(plan.scratch().last(), vellum_layout::amd64::MAX_GPA);
/// let input = plan.guest_ptr(RegionName::Input)?;
/// assert_eq!(input.as_u64(), 0x70_0000_4000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemoryPlan {
    kind: GuestKind,
    image: GpaRange,
    scratch: GpaRange,
    input: GpaRange,
    output: GpaRange,
    tables: Option<GpaRange>,
    frames: GpaRange,
    guard: GpaRange,
    exception_stack: GpaRange,
    bookkeeping: GpaRange,
}

/// A region that a plan places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RegionName {
    /// Snapshot layers: read only, or privately copied.
    Image,
    /// Everything the guest writes. The regions that follow are its parts.
    Scratch,
    /// Input buffer (host to guest).
    Input,
    /// Output buffer (guest to host).
    Output,
    /// Page tables that the host builds.
    Tables,
    /// Free frames for copy on write and demand-zero memory.
    Frames,
    /// Guard page below the exception stack.
    Guard,
    /// Stack for exceptions.
    ExceptionStack,
    /// Bookkeeping words, fault record and monitor data.
    Bookkeeping,
}

/// The shortest scratch that has room for the given buffers and tables, one free frame, and the
/// bookkeeping at the top. `scratch.len_bytes` is not looked at.
///
/// # Errors
///
/// [`PlanError`] when one of the lengths is refused for itself (zero, not a multiple of
/// [`PAGE_SIZE`], larger than the guest's address space).
pub fn minimum_scratch_len(kind: GuestKind, scratch: &ScratchRequest) -> Result<u64, PlanError> {
    place::check_scratch_parts(kind, scratch)?;
    // Each part is at most 64 GiB, so the sum does not overflow.
    Ok(scratch.input_len_bytes
        + scratch.output_len_bytes
        + scratch.tables_len_bytes
        + MIN_FRAMES_LEN_BYTES
        + SCRATCH_TOP_LEN_BYTES)
}

impl MemoryPlan {
    /// Places everything.
    ///
    /// # Errors
    ///
    /// [`PlanError`] when a length is refused for itself, when scratch is too small for its
    /// parts, when reserved ranges overlap holes or each other, or when the image or
    /// scratch finds no room. The error names both parties of a conflict.
    pub fn new(request: &PlanRequest<'_>) -> Result<Self, PlanError> {
        let kind = request.kind;
        place::check_len(kind, RegionName::Image, request.image_len_bytes)?;
        place::check_len(kind, RegionName::Scratch, request.scratch.len_bytes)?;
        let minimum_len_bytes = minimum_scratch_len(kind, &request.scratch)?;
        if request.scratch.len_bytes < minimum_len_bytes {
            return Err(PlanError::ScratchTooSmall {
                len_bytes: request.scratch.len_bytes,
                minimum_len_bytes,
            });
        }
        place::check_reserved(request)?;
        let scratch = place::scratch(request)?;
        let image = place::image(request, scratch)?;
        Self::divide(kind, image, scratch, &request.scratch).ok_or(PlanError::ScratchTooSmall {
            len_bytes: request.scratch.len_bytes,
            minimum_len_bytes,
        })
    }

    /// Divides scratch into its parts; `None` when they do not fit.
    fn divide(
        kind: GuestKind,
        image: GpaRange,
        scratch: GpaRange,
        lengths: &ScratchRequest,
    ) -> Option<Self> {
        let output_at = lengths.input_len_bytes;
        let tables_at = output_at.checked_add(lengths.output_len_bytes)?;
        let frames_at = tables_at.checked_add(lengths.tables_len_bytes)?;
        let guard_at = scratch.len_bytes().checked_sub(SCRATCH_TOP_LEN_BYTES)?;
        let stack_at = guard_at + GUARD_LEN_BYTES;
        let bookkeeping_at = stack_at + EXCEPTION_STACK_LEN_BYTES;
        let tables = if lengths.tables_len_bytes == 0 {
            None
        } else {
            Some(scratch.part(tables_at, lengths.tables_len_bytes)?)
        };
        Some(Self {
            kind,
            image,
            scratch,
            input: scratch.part(0, lengths.input_len_bytes)?,
            output: scratch.part(output_at, lengths.output_len_bytes)?,
            tables,
            frames: scratch.part(frames_at, guard_at.checked_sub(frames_at)?)?,
            guard: scratch.part(guard_at, GUARD_LEN_BYTES)?,
            exception_stack: scratch.part(stack_at, EXCEPTION_STACK_LEN_BYTES)?,
            bookkeeping: scratch.part(bookkeeping_at, BOOKKEEPING_LEN_BYTES)?,
        })
    }

    /// The guest kind that the plan is for.
    #[must_use]
    pub const fn kind(&self) -> GuestKind {
        self.kind
    }

    /// The image: one memory slot.
    ///
    /// It begins at `BASE_ADDRESS` unless that would make it meet a hole or a reserved range. Then the image
    /// of a guest with paging begins a whole number of large pages further up (2 MiB on amd64,
    /// 4 MiB on i686); so take its start from here and not from the constant. An amd64 image that
    /// reaches the local APIC page, just below 4 GiB, is such a case.
    #[must_use]
    pub const fn image(&self) -> GpaRange {
        self.image
    }

    /// All of scratch: the other memory slot.
    #[must_use]
    pub const fn scratch(&self) -> GpaRange {
        self.scratch
    }

    /// The input buffer (host to guest), at the bottom of scratch.
    #[must_use]
    pub const fn input(&self) -> GpaRange {
        self.input
    }

    /// The output buffer (guest to host).
    #[must_use]
    pub const fn output(&self) -> GpaRange {
        self.output
    }

    /// Room for the page tables that the host builds; `None` for guests entered without paging.
    #[must_use]
    pub const fn tables(&self) -> Option<GpaRange> {
        self.tables
    }

    /// Free frames.
    #[must_use]
    pub const fn frames(&self) -> GpaRange {
        self.frames
    }

    /// The guard page below the exception stack.
    #[must_use]
    pub const fn guard(&self) -> GpaRange {
        self.guard
    }

    /// The exception stack; its exclusive end is the initial stack pointer.
    #[must_use]
    pub const fn exception_stack(&self) -> GpaRange {
        self.exception_stack
    }

    /// The bookkeeping page, the last one of scratch.
    #[must_use]
    pub const fn bookkeeping(&self) -> GpaRange {
        self.bookkeeping
    }

    /// The range of a region by name; `None` only for the page tables of a guest that has none.
    #[must_use]
    pub const fn region(&self, name: RegionName) -> Option<GpaRange> {
        match name {
            RegionName::Image => Some(self.image),
            RegionName::Scratch => Some(self.scratch),
            RegionName::Input => Some(self.input),
            RegionName::Output => Some(self.output),
            RegionName::Tables => self.tables,
            RegionName::Frames => Some(self.frames),
            RegionName::Guard => Some(self.guard),
            RegionName::ExceptionStack => Some(self.exception_stack),
            RegionName::Bookkeeping => Some(self.bookkeeping),
        }
    }

    /// Every region of the plan in ascending order of address, without overlap: the image, then
    /// the parts of scratch (not scratch itself).
    pub fn regions(&self) -> impl Iterator<Item = (RegionName, GpaRange)> + use<> {
        let plan = *self;
        RegionName::PLACED
            .into_iter()
            .filter_map(move |name| plan.region(name).map(|range| (name, range)))
    }

    /// The guest-physical address of the bookkeeping word at `offset` below the top of scratch
    /// (one of the `SCRATCH_TOP_…_OFFSET` constants); `None` when that is not in the bookkeeping
    /// page.
    #[must_use]
    pub fn bookkeeping_at(&self, offset: u64) -> Option<Gpa> {
        let address = self.scratch.end().checked_sub(offset)?;
        self.bookkeeping.contains(address).then_some(address)
    }

    /// The start of a region as the guest sees it, under the translation it is entered with.
    ///
    /// * Without paging: the physical address, for every region.
    /// * Kernel guests with paging: scratch is mapped as a whole so that it ends at the highest
    ///   guest-virtual address; the image lies where its segments say.
    /// * amd64 user guests: the buffers lie in the I/O area, and for the monitor the exception
    ///   stack and the bookkeeping page lie at the top of the address space.
    ///
    /// # Errors
    ///
    /// [`LayoutError`] when the layout gives the region no address in guests of this kind.
    pub fn guest_ptr(&self, region: RegionName) -> Result<GuestPtr, LayoutError> {
        let missing = LayoutError::NoGuestAddress {
            region,
            kind: self.kind,
        };
        let range = self.region(region).ok_or(missing)?;
        match (self.kind.translation(), region) {
            (Translation::Identity, _) => Ok(GuestPtr::identity(range.start())?),
            (_, RegionName::Image | RegionName::Guard) => Err(missing),
            _ if self.kind == GuestKind::Amd64User => self.user_ptr(region).ok_or(missing)?,
            (translation, _) => {
                let scratch = scratch_base_for_guest(translation, self.scratch.len_bytes())?;
                let offset = self.scratch.offset_of(range.start()).ok_or(missing)?;
                scratch.checked_add(offset).ok_or(missing)
            }
        }
    }

    /// Where a region of an amd64 user guest lies; `None` when only the window shows it.
    fn user_ptr(&self, region: RegionName) -> Option<Result<GuestPtr, LayoutError>> {
        let buffers = || user::io_area(self.input.len_bytes(), self.output.len_bytes());
        let start: Result<Gva, LayoutError> = match region {
            RegionName::Input => buffers().map(|area| area.input.start()),
            RegionName::Output => buffers().map(|area| area.output.start()),
            RegionName::ExceptionStack => Ok(user::EXCEPTION_STACK.start()),
            RegionName::Bookkeeping => Ok(user::BOOKKEEPING.start()),
            _ => return None,
        };
        Some(start.map(GuestPtr::four_level))
    }
}

impl RegionName {
    /// The regions that a plan places, in ascending order of address.
    pub const PLACED: [Self; 8] = [
        Self::Image,
        Self::Input,
        Self::Output,
        Self::Tables,
        Self::Frames,
        Self::Guard,
        Self::ExceptionStack,
        Self::Bookkeeping,
    ];

    /// The name as it appears in errors and in the memory map.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Scratch => "scratch",
            Self::Input => "input buffer",
            Self::Output => "output buffer",
            Self::Tables => "page tables",
            Self::Frames => "free frames",
            Self::Guard => "exception stack guard",
            Self::ExceptionStack => "exception stack",
            Self::Bookkeeping => "bookkeeping page",
        }
    }
}

impl fmt::Display for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One line per region, in ascending order of address.
impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, range) in self.regions() {
            writeln!(
                f,
                "{:#013x} - {:#013x}  {:>12} KiB  {name}",
                range.start(),
                range.last(),
                range.len_bytes() / 1024,
            )?;
        }
        Ok(())
    }
}

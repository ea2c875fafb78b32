//! The geometry of an amd64 user guest: how large its memories are and what lies where in them.

use vellum_layout::amd64::user;
use vellum_layout::{
    Gpa, GpaRange, GuestKind, GvaRange, LayoutError, MemoryPlan, PAGE_SIZE, PageSize, PlanError,
    PlanRequest, RangeError, ScratchRequest, minimum_scratch_len,
};

use super::Area;
use crate::engine::CowMode;

/// Sizes that an embedder may choose.
#[expect(clippy::struct_field_names, reason = "each name ends with its unit")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Sizes {
    pub(crate) heap_len_bytes: u64,
    pub(crate) stack_len_bytes: u64,
    pub(crate) input_len_bytes: u64,
    pub(crate) output_len_bytes: u64,
    /// `None`: as much as the guest can dirty.
    pub(crate) scratch_len_bytes: Option<u64>,
}

/// Why sizes make no guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpaceError {
    #[error("memory plan refused")]
    Plan(#[from] PlanError),
    #[error("memory layout refused")]
    Layout(#[from] LayoutError),
    #[error("range refused")]
    Range(#[from] RangeError),
    #[error("{what} of {len_bytes:#x} bytes is not a positive multiple of 4096")]
    Unaligned { what: &'static str, len_bytes: u64 },
    #[error("memories of these sizes exceed the address space")]
    Overflow,
    #[error("guests of kind {0} are not supported yet")]
    Kind(GuestKind),
    #[error("a guest without paging has no page tables")]
    NoTables,
}

/// Pages at the bottom of the free frames that the host fills: PEB, machine page, monitor code, resume page.
pub(super) const FIXED_FRAMES: u64 = 4;
/// Room for the layers of snapshots that do not exist yet, so that restoring to one does not resize a memory slot.
const LAYER_HEADROOM_PAGES: u64 = 2048;
/// Frames that a guest-side sandbox has beyond what its areas can dirty: page tables made on demand.
const SPARE_FRAMES: u64 = 64;
/// Bytes of the frame log for each free frame (see [`crate::machine::monitor`]).
const LOG_ENTRY_LEN_BYTES: u64 = 8;

/// Everything about a sandbox's memories that never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) sizes: Sizes,
    pub(crate) cow: CowMode,
    pub(crate) plan: MemoryPlan,
    pub(crate) view: GuestView,
    pub(crate) placement: Placement,
    /// What only a user guest has.
    pub(crate) user: Option<UserParts>,
}

/// Where the guest finds its PEB, buffers, heap and stack: addresses of its own translation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GuestView {
    pub(crate) peb: GvaRange,
    pub(crate) input: GvaRange,
    pub(crate) output: GvaRange,
    pub(crate) heap: GvaRange,
    pub(crate) stack: GvaRange,
}

/// How the pages of layers lie in the image slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// One layer behind the other, and a zero region behind them; page tables put the pages where the guest wants them.
    Stacked {
        /// Pages that layers may occupy.
        layer_pages: u64,
        /// First address of the zero region.
        zero_base: Gpa,
        /// Its length; 0 where the monitor makes zero pages.
        zero_pages: u64,
    },
    /// Each page at its own guest-physical address, which is its guest-virtual one.
    InPlace,
}

/// The parts that the host builds around a user guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UserParts {
    /// Page tables; the first is the root.
    pub(crate) tables: GpaRange,
    /// Where the resume page is mapped for ring 3.
    pub(crate) resume: GvaRange,
    /// The page below the stack.
    pub(crate) stack_guard: GvaRange,
}

impl Geometry {
    /// Plans a sandbox for a guest of this kind, whose snapshot has `layer_pages` pages in all.
    pub(crate) fn for_guest(
        kind: GuestKind,
        sizes: Sizes,
        cow: CowMode,
        areas: &[Area],
        layer_pages: u64,
    ) -> Result<Self, SpaceError> {
        match kind {
            GuestKind::Amd64User => Self::new(sizes, cow, areas, layer_pages),
            GuestKind::I686Identity => super::identity::geometry(sizes, areas),
            other => Err(SpaceError::Kind(other)),
        }
    }

    /// Plans a user guest with the given areas, heap and stack among them.
    pub(crate) fn new(
        sizes: Sizes,
        cow: CowMode,
        areas: &[Area],
        layer_pages: u64,
    ) -> Result<Self, SpaceError> {
        check_sizes(&sizes)?;
        let io = user::io_area(sizes.input_len_bytes, sizes.output_len_bytes)?;
        let layer_pages = layer_pages
            .checked_add(LAYER_HEADROOM_PAGES)
            .ok_or(SpaceError::Overflow)?;
        let zero_pages = match cow {
            CowMode::HostSide => zero_pages(areas),
            CowMode::GuestSide => 0,
        };
        let zero_offset = zero_offset(layer_pages)?;
        let image_len_bytes = zero_pages
            .checked_mul(PAGE_SIZE)
            .and_then(|len_bytes| len_bytes.checked_add(zero_offset))
            .ok_or(SpaceError::Overflow)?;
        let tables_len_bytes = PAGE_SIZE * max_tables(areas, image_len_bytes, cow);
        let plan = MemoryPlan::new(&PlanRequest {
            kind: GuestKind::Amd64User,
            image_len_bytes,
            scratch: scratch_request(&sizes, cow, areas, tables_len_bytes)?,
            holes: &[],
            reserved: &[],
        })?;
        let zero_base = plan
            .image()
            .start()
            .checked_add(zero_offset)
            .ok_or(SpaceError::Overflow)?;
        Ok(Self {
            sizes,
            cow,
            plan,
            view: GuestView {
                peb: io.peb,
                input: io.input,
                output: io.output,
                heap: user::heap(sizes.heap_len_bytes)?,
                stack: user::stack(sizes.stack_len_bytes)?,
            },
            placement: Placement::Stacked {
                layer_pages,
                zero_base,
                zero_pages,
            },
            user: Some(UserParts {
                tables: plan.tables().ok_or(SpaceError::Overflow)?,
                resume: io.resume,
                stack_guard: user::stack_guard(sizes.stack_len_bytes)?,
            }),
        })
    }

    /// Whether the layers of a snapshot fit the image slot.
    pub(crate) fn holds_layers_of(&self, pages: u64) -> bool {
        match self.placement {
            Placement::Stacked { layer_pages, .. } => pages <= layer_pages,
            Placement::InPlace => true,
        }
    }

    /// The page tables of a user guest.
    pub(crate) fn tables(&self) -> Result<GpaRange, SpaceError> {
        self.user
            .as_ref()
            .map(|user| user.tables)
            .ok_or(SpaceError::NoTables)
    }

    /// The guest-physical address of an image page.
    pub(crate) fn image_gpa(&self, image_page: u64) -> Option<Gpa> {
        let Placement::Stacked { layer_pages, .. } = self.placement else {
            return None;
        };
        (image_page < layer_pages)
            .then(|| self.plan.image().at(image_page * PAGE_SIZE))
            .flatten()
    }

    /// The fixed frames: PEB, machine page, monitor code, resume page.
    pub(crate) fn fixed_frame(&self, which: FixedFrame) -> Result<GpaRange, SpaceError> {
        self.plan
            .frames()
            .part(which as u64 * PAGE_SIZE, PAGE_SIZE)
            .ok_or(SpaceError::Overflow)
    }

    /// The frame log: one entry for each free frame.
    pub(crate) fn frame_log(&self) -> Result<GpaRange, SpaceError> {
        let (log_len_bytes, _) = self.log_and_frames();
        self.plan
            .frames()
            .part(FIXED_FRAMES * PAGE_SIZE, log_len_bytes)
            .ok_or(SpaceError::Overflow)
    }

    /// The frames that the monitor allocates from.
    pub(crate) fn free_frames(&self) -> Result<GpaRange, SpaceError> {
        let (log_len_bytes, frames_len_bytes) = self.log_and_frames();
        self.plan
            .frames()
            .part(FIXED_FRAMES * PAGE_SIZE + log_len_bytes, frames_len_bytes)
            .ok_or(SpaceError::Overflow)
    }

    /// Splits the frames behind the fixed ones into log and frames to allocate.
    fn log_and_frames(&self) -> (u64, u64) {
        let pages = (self.plan.frames().pages()).saturating_sub(FIXED_FRAMES);
        let entries_per_page = PAGE_SIZE / LOG_ENTRY_LEN_BYTES;
        let log_pages = pages.div_ceil(entries_per_page + 1);
        (log_pages * PAGE_SIZE, (pages - log_pages) * PAGE_SIZE)
    }
}

/// A frame that the host fills when a sandbox is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FixedFrame {
    Peb = 0,
    Machine = 1,
    Monitor = 2,
    Resume = 3,
}

pub(super) fn check_sizes(sizes: &Sizes) -> Result<(), SpaceError> {
    let all = [
        ("heap", Some(sizes.heap_len_bytes)),
        ("stack", Some(sizes.stack_len_bytes)),
        ("input buffer", Some(sizes.input_len_bytes)),
        ("output buffer", Some(sizes.output_len_bytes)),
        ("scratch", sizes.scratch_len_bytes),
    ];
    for (what, len_bytes) in all {
        if let Some(len_bytes) = len_bytes
            && (len_bytes == 0 || !len_bytes.is_multiple_of(PAGE_SIZE))
        {
            return Err(SpaceError::Unaligned { what, len_bytes });
        }
    }
    Ok(())
}

/// Offset of the zero region in the image: behind the layers, at a guest-physical multiple of 2 MiB, so that large leaves can
/// map it. (An image that must be moved out of the way of a hole is moved by whole large pages.)
fn zero_offset(layer_pages: u64) -> Result<u64, SpaceError> {
    let base = vellum_layout::amd64::BASE_ADDRESS;
    layer_pages
        .checked_mul(PAGE_SIZE)
        .and_then(|len_bytes| base.checked_add(len_bytes))
        .and_then(|end| end.checked_align_up(PageSize::Size2MiB))
        .and_then(|start| start.offset_from(base))
        .ok_or(SpaceError::Overflow)
}

fn zero_pages(areas: &[Area]) -> u64 {
    areas
        .iter()
        .filter_map(|area| match area.backing {
            super::Backing::Zero { first_page } => Some(first_page + area.range.pages()),
            super::Backing::Image => None,
        })
        .max()
        .unwrap_or(0)
}

/// The most tables that these areas can need, were every page mapped by itself.
fn max_tables(areas: &[Area], image_len_bytes: u64, cow: CowMode) -> u64 {
    let spanned = |len_bytes: u64, size: PageSize| len_bytes / size.bytes() + 2;
    let tables_for =
        |len_bytes| spanned(len_bytes, PageSize::Size2MiB) + spanned(len_bytes, PageSize::Size1GiB);
    // The root, three tables for the supervisor area, one table of level 3 for the lower half, and two for the I/O area.
    let fixed = 16;
    let own: u64 = areas
        .iter()
        .map(|area| tables_for(area.range.len_bytes()))
        .sum();
    let window = match cow {
        CowMode::HostSide => 0,
        // 2 MiB leaves over the image and the scratch; scratch is sized later, but at most 64 GiB.
        CowMode::GuestSide => spanned(image_len_bytes, PageSize::Size1GiB) + 64 + 2,
    };
    fixed + own + window
}

fn scratch_request(
    sizes: &Sizes,
    cow: CowMode,
    areas: &[Area],
    tables_len_bytes: u64,
) -> Result<ScratchRequest, SpaceError> {
    let parts = ScratchRequest {
        len_bytes: 0,
        input_len_bytes: sizes.input_len_bytes,
        output_len_bytes: sizes.output_len_bytes,
        tables_len_bytes,
    };
    let minimum = minimum_scratch_len(GuestKind::Amd64User, &parts)?;
    let least = minimum + (FIXED_FRAMES + 2) * PAGE_SIZE;
    let len_bytes = match (sizes.scratch_len_bytes, cow) {
        (Some(len_bytes), _) if len_bytes < least => {
            return Err(PlanError::ScratchTooSmall {
                len_bytes,
                minimum_len_bytes: least,
            }
            .into());
        }
        (Some(len_bytes), _) => len_bytes,
        (None, CowMode::HostSide) => least,
        (None, CowMode::GuestSide) => least
            .checked_add(dirty_room(areas, tables_len_bytes))
            .ok_or(SpaceError::Overflow)?,
    };
    Ok(ScratchRequest { len_bytes, ..parts })
}

/// Frames for every page that the guest may write, for the tables above them, and their log entries.
fn dirty_room(areas: &[Area], tables_len_bytes: u64) -> u64 {
    let writable: u64 = areas
        .iter()
        .filter(|area| area.is_writable())
        .map(|area| area.range.pages())
        .sum();
    let frames = writable + tables_len_bytes / PAGE_SIZE + SPARE_FRAMES;
    let log_pages = (frames * LOG_ENTRY_LEN_BYTES).div_ceil(PAGE_SIZE) + 1;
    (frames + log_pages) * PAGE_SIZE
}

#[cfg(test)]
mod tests;

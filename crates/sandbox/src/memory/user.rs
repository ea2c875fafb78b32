//! The geometry of an amd64 user guest: layers and zeroes in the image, and in scratch what the host builds around the guest.

use vellum_abi::mapping::MAX_MAPPINGS;
use vellum_layout::amd64::user::{self, MAPPINGS_WINDOW};
use vellum_layout::{
    Gpa, GpaRange, GuestKind, GvaRange, MemoryPlan, PAGE_SIZE, PageSize, PlanError, PlanRequest,
    ScratchRequest, minimum_scratch_len,
};

use super::{Area, Backing, Config, Geometry, GuestView, Parts, Sizes, SpaceError};
use crate::engine::CowMode;

/// Pages at the bottom of the free frames that the host fills: PEB, machine page, monitor code, resume page.
const FIXED_FRAMES: u64 = 4;
/// Room for the layers of snapshots that do not exist yet, so that restoring to one does not resize a memory slot.
const LAYER_HEADROOM_PAGES: u64 = 2048;
/// Frames that a guest-side sandbox has beyond what its areas can dirty: page tables made on demand.
const SPARE_FRAMES: u64 = 64;
/// Page tables for what the embedder maps: one of level 3, one of level 2 for each GiB of guest-physical addresses, and tables of level 1
/// for what each mapping has before its first and behind its last whole large page.
const MAPPING_TABLES_LEN_BYTES: u64 = PAGE_SIZE
    * (1 + MAPPINGS_WINDOW.len_bytes() / PageSize::Size1GiB.bytes() + 2 * MAX_MAPPINGS as u64);
/// Bytes of the frame log for each free frame (see [`crate::machine::monitor`]).
const LOG_ENTRY_LEN_BYTES: u64 = 8;

/// The parts that the host builds around a user guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UserParts {
    /// Pages of the image that layers may occupy, one layer behind the other.
    pub(crate) layer_pages: u64,
    /// First address of the zero region, which lies in the image behind the layers.
    pub(crate) zero_base: Gpa,
    /// Its length; 0 where the monitor makes zero pages.
    pub(crate) zero_pages: u64,
    /// Whether there are frames for every page that the guest may write and for all tables above them, so that none must ever be taken
    /// back.
    pub(crate) has_frames_for_all: bool,
    /// Page tables; the first is the root.
    pub(crate) tables: GpaRange,
    /// Page tables of what the embedder maps, linked into the root while there is anything.
    pub(crate) mapping_tables: GpaRange,
    /// Where the resume page is mapped for ring 3.
    pub(crate) resume: GvaRange,
    /// The page below the stack.
    pub(crate) stack_guard: GvaRange,
    image: GpaRange,
    frames: GpaRange,
}

/// A frame that the host fills when a sandbox is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FixedFrame {
    Peb = 0,
    Machine = 1,
    Monitor = 2,
    Resume = 3,
}

/// Plans a user guest with the given areas, heap and stack among them, whose snapshot has `layer_pages` pages in all.
pub(super) fn geometry(
    config: &Config,
    cow: CowMode,
    areas: &[Area],
    layer_pages: u64,
) -> Result<Geometry, SpaceError> {
    let sizes = &config.sizes;
    sizes.check()?;
    let io = user::io_area(sizes.input_len_bytes, sizes.outgoing_len_bytes())?;
    let [output, outbox] = GuestView::split_outgoing(io.output, sizes)?;
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
    let scratch = scratch_request(sizes, cow, areas, tables_len_bytes)?;
    let ample_len_bytes = least_scratch(&scratch)?
        .checked_add(dirty_room(areas, tables_len_bytes))
        .ok_or(SpaceError::Overflow)?;
    let plan = MemoryPlan::new(&PlanRequest {
        kind: GuestKind::Amd64User,
        image_len_bytes,
        scratch,
        holes: config.holes(),
        reserved: &config.reserved,
    })?;
    let zero_base = plan.image().start().checked_add(zero_offset);
    let tables = |offset, len_bytes| {
        let tables = plan.tables()?;
        tables.part(offset, len_bytes)
    };
    Ok(Geometry {
        cow,
        plan,
        view: GuestView {
            peb: io.peb,
            input: io.input,
            output,
            outbox,
            heap: user::heap(sizes.heap_len_bytes)?,
            stack: user::stack(sizes.stack_len_bytes)?,
            scratch: None,
        },
        parts: Parts::User(UserParts {
            layer_pages,
            zero_base: zero_base.ok_or(SpaceError::Overflow)?,
            zero_pages,
            has_frames_for_all: plan.scratch().len_bytes() >= ample_len_bytes,
            tables: tables(0, tables_len_bytes).ok_or(SpaceError::Overflow)?,
            mapping_tables: tables(tables_len_bytes, MAPPING_TABLES_LEN_BYTES)
                .ok_or(SpaceError::Overflow)?,
            resume: io.resume,
            stack_guard: user::stack_guard(sizes.stack_len_bytes)?,
            image: plan.image(),
            frames: plan.frames(),
        }),
    })
}

impl UserParts {
    /// The guest-physical address of an image page.
    pub(crate) fn image_gpa(&self, image_page: u64) -> Option<Gpa> {
        (image_page < self.layer_pages)
            .then(|| self.image.at(image_page * PAGE_SIZE))
            .flatten()
    }

    /// The fixed frames: PEB, machine page, monitor code, resume page.
    pub(crate) fn fixed_frame(&self, which: FixedFrame) -> Result<GpaRange, SpaceError> {
        self.frames
            .part(which as u64 * PAGE_SIZE, PAGE_SIZE)
            .ok_or(SpaceError::Overflow)
    }

    /// All fixed frames.
    pub(crate) fn fixed_frames(&self) -> Result<GpaRange, SpaceError> {
        self.frames
            .part(0, FIXED_FRAMES * PAGE_SIZE)
            .ok_or(SpaceError::Overflow)
    }

    /// What sandboxes of a snapshot have in common in their scratch: from the page tables to the last fixed frame.
    pub(crate) fn template(&self) -> Result<GpaRange, SpaceError> {
        let (start, end) = (self.tables.start(), self.fixed_frames()?.end());
        let len_bytes = end.offset_from(start).ok_or(SpaceError::Overflow)?;
        Ok(GpaRange::new(start, len_bytes)?)
    }

    /// The frame log: one entry for each free frame.
    pub(crate) fn frame_log(&self) -> Result<GpaRange, SpaceError> {
        let (log_len_bytes, _) = self.log_and_frames();
        self.frames
            .part(FIXED_FRAMES * PAGE_SIZE, log_len_bytes)
            .ok_or(SpaceError::Overflow)
    }

    /// The frames that the monitor allocates from.
    pub(crate) fn free_frames(&self) -> Result<GpaRange, SpaceError> {
        let (log_len_bytes, frames_len_bytes) = self.log_and_frames();
        self.frames
            .part(FIXED_FRAMES * PAGE_SIZE + log_len_bytes, frames_len_bytes)
            .ok_or(SpaceError::Overflow)
    }

    /// Splits the frames behind the fixed ones into log and frames to allocate.
    fn log_and_frames(&self) -> (u64, u64) {
        let pages = self.frames.pages().saturating_sub(FIXED_FRAMES);
        let entries_per_page = PAGE_SIZE / LOG_ENTRY_LEN_BYTES;
        let log_pages = pages.div_ceil(entries_per_page + 1);
        (log_pages * PAGE_SIZE, (pages - log_pages) * PAGE_SIZE)
    }
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
            Backing::Zero { first_page } => Some(first_page + area.range.pages()),
            Backing::Image => None,
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
        output_len_bytes: sizes.outgoing_len_bytes(),
        tables_len_bytes: tables_len_bytes + MAPPING_TABLES_LEN_BYTES,
    };
    let least = least_scratch(&parts)?;
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

/// The least scratch in which a guest can run.
fn least_scratch(parts: &ScratchRequest) -> Result<u64, SpaceError> {
    let minimum = minimum_scratch_len(GuestKind::Amd64User, parts)?;
    Ok(minimum + (FIXED_FRAMES + 2) * PAGE_SIZE)
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

//! The geometry of guests that bring their own kernel.
//!
//! *Without paging* everything that the guest is told is a guest-physical address: the image slot holds its memory at its own
//! addresses, the segments of its ELF file, then its heap, then its stack.
//!
//! *With paging* the host builds the tables that the kernel is entered on, and the kernel owns them from then on. The image slot
//! holds the segments, one behind the other, and behind them the heap where the host copies pages. The stack lies in scratch: an
//! exception in ring 0 is delivered on it, so it must be there and writable before the kernel can handle any fault.

use vellum_layout::{
    Gpa, GpaRange, GuestArch, GuestKind, Gva, GvaRange, MemoryPlan, PAGE_SIZE, PageSize, PlanError,
    PlanRequest, RegionName, ScratchRequest, amd64, i686, minimum_scratch_len,
};
use vellum_vmem::{Attrs, Format};

use super::{Config, Extent, Extents, Geometry, GuestView, Parts, Sizes, SpaceError};
use crate::engine::CowMode;
use crate::image::Segment;

/// Pages around the stack: unmapped where there is paging. Without, they keep a small overflow from meeting data.
const GAP_LEN_BYTES: u64 = PAGE_SIZE;
/// Frames at the bottom that are the host's: the PEB.
const PEB_LEN_BYTES: u64 = PAGE_SIZE;
/// Frames that a kernel with paging has for tables and roots of its own, beyond those that copy pages.
const SPARE_FRAMES: u64 = 256;
/// Accessed and dirty are set from the start, so that neither processor nor hypervisor ever writes the tables to set them.
const DATA: Attrs = Attrs::ACCESSED
    .union(Attrs::DIRTY)
    .union(Attrs::WRITE)
    .union(Attrs::NO_EXECUTE);

/// What only kernel guests have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelParts {
    /// Frames that the kernel may take.
    pub(crate) free_frames: GpaRange,
    /// The page tables that the kernel is entered on.
    pub(crate) paging: Option<Paging>,
}

/// The page tables that a kernel is entered on, and what they map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Paging {
    pub(crate) format: Format,
    /// Room for the tables; the first is the root.
    pub(crate) tables: GpaRange,
    /// In no particular order, without overlap.
    pub(crate) mapped: Vec<Mapped>,
}

/// A range of a kernel's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapped {
    /// What it is, for error messages.
    pub(crate) what: &'static str,
    pub(crate) range: GvaRange,
    pub(crate) frame: Gpa,
    pub(crate) attrs: Attrs,
}

/// Plans a guest without paging.
pub(super) fn identity(config: &Config, segments: &[Segment]) -> Result<Geometry, SpaceError> {
    let sizes = &config.sizes;
    sizes.check()?;
    let heap = GvaRange::new(image_end(segments)?, sizes.heap_len_bytes)?;
    let stack = GvaRange::new(after_gap(heap.end())?, sizes.stack_len_bytes)?;
    let image_len_bytes = stack.end().as_u64() - i686::BASE_ADDRESS.as_u64();
    let parts = scratch_parts(sizes, 0);
    let least = minimum_scratch_len(GuestKind::I686Identity, &parts)? + PEB_LEN_BYTES;
    let plan = MemoryPlan::new(&PlanRequest {
        kind: GuestKind::I686Identity,
        image_len_bytes,
        scratch: with_len(parts, sizes.scratch_len_bytes.unwrap_or(least), least)?,
        holes: config.holes(),
        reserved: &config.reserved,
    })?;
    let frames = plan.frames();
    Ok(Geometry {
        cow: CowMode::HostSide,
        plan,
        view: view(&plan, sizes, heap, stack)?,
        parts: Parts::Kernel(KernelParts {
            free_frames: part_from(frames, PEB_LEN_BYTES)?,
            paging: None,
        }),
    })
}

/// Plans a guest that is entered with paging.
pub(super) fn paged(
    kind: GuestKind,
    config: &Config,
    cow: CowMode,
    segments: &[Segment],
) -> Result<Geometry, SpaceError> {
    let sizes = &config.sizes;
    sizes.check()?;
    let (format, large) = format_of(kind);
    let heap_start = image_end(segments)?
        .checked_align_up(large)
        .ok_or(SpaceError::Overflow)?;
    let heap = GvaRange::new(heap_start, sizes.heap_len_bytes)?;
    let stack = GvaRange::new(after_gap(heap.end())?, sizes.stack_len_bytes)?;
    let heap_offset = heap_offset(kind, segments, large)?;
    let image_len_bytes = match cow {
        CowMode::HostSide => heap_offset.checked_add(sizes.heap_len_bytes),
        CowMode::GuestSide => Some(segment_pages(segments) * PAGE_SIZE),
    };
    let plan = MemoryPlan::new(&PlanRequest {
        kind,
        image_len_bytes: image_len_bytes.ok_or(SpaceError::Overflow)?,
        scratch: paged_scratch(kind, sizes, cow, segments)?,
        holes: config.holes(),
        reserved: &config.reserved,
    })?;
    let view = view(&plan, sizes, heap, stack)?;
    let stack_frames = plan
        .frames()
        .part(PEB_LEN_BYTES, sizes.stack_len_bytes)
        .ok_or(SpaceError::Overflow)?;
    let mut mapped = map_segments(&plan, cow, segments)?;
    if cow == CowMode::HostSide {
        let frame = plan.image().at(heap_offset).ok_or(SpaceError::Overflow)?;
        mapped.push(data("heap", heap, frame));
    }
    mapped.push(data("stack", stack, stack_frames.start()));
    mapped.extend(map_scratch(
        &plan,
        view.scratch.ok_or(SpaceError::Overflow)?,
    )?);
    if kind.arch() == GuestArch::I686 {
        // 2-level tables have no such bit.
        for range in &mut mapped {
            range.attrs -= Attrs::NO_EXECUTE;
        }
    }
    check_disjoint(&mapped, heap)?;
    check_reach(kind, &[("heap", heap), ("stack", stack)])?;
    Ok(Geometry {
        cow,
        plan,
        view,
        parts: Parts::Kernel(KernelParts {
            free_frames: part_from(plan.frames(), PEB_LEN_BYTES + sizes.stack_len_bytes)?,
            paging: Some(Paging {
                format,
                tables: plan.tables().ok_or(SpaceError::Overflow)?,
                mapped,
            }),
        }),
    })
}

impl Geometry {
    /// Where the segments of a kernel lie in guest-physical memory before it boots.
    pub(crate) fn boot_extents(&self, segments: &[Segment]) -> Result<Extents<Gpa>, SpaceError> {
        let image = self.plan.image();
        let place = |segment: &Segment| match self.kernel()?.paging {
            Some(_) => image
                .at(segment.first_page * PAGE_SIZE)
                .ok_or(SpaceError::Overflow),
            None => Gpa::new(segment.range.start().as_u64()).map_err(|_| SpaceError::Overflow),
        };
        let extents = segments.iter().map(|segment| {
            Ok(Extent {
                at: place(segment)?,
                image_page: segment.first_page,
                pages: segment.pages(),
            })
        });
        Ok(Extents::new(extents.collect::<Result<_, SpaceError>>()?))
    }
}

/// The format of a kind's tables and the size of the large pages that they are built with.
fn format_of(kind: GuestKind) -> (Format, PageSize) {
    match kind.arch() {
        GuestArch::Amd64 => (Format::FOUR_LEVEL, PageSize::Size2MiB),
        GuestArch::I686 => (Format::TWO_LEVEL_PSE, PageSize::Size4MiB),
    }
}

fn image_end(segments: &[Segment]) -> Result<Gva, SpaceError> {
    let ends = segments.iter().map(|segment| segment.range.end());
    ends.max().ok_or(SpaceError::Overflow)
}

fn segment_pages(segments: &[Segment]) -> u64 {
    segments.iter().map(Segment::pages).sum()
}

fn after_gap(end: Gva) -> Result<Gva, SpaceError> {
    end.checked_add(GAP_LEN_BYTES).ok_or(SpaceError::Overflow)
}

fn part_from(range: GpaRange, offset: u64) -> Result<GpaRange, SpaceError> {
    (range.len_bytes().checked_sub(offset))
        .and_then(|len_bytes| range.part(offset, len_bytes))
        .ok_or(SpaceError::Overflow)
}

/// Offset of the heap in the image: behind the segments, where large pages can map it. (An image that must be moved out of the way
/// of a hole is moved by whole large pages.)
fn heap_offset(kind: GuestKind, segments: &[Segment], large: PageSize) -> Result<u64, SpaceError> {
    let base = match kind.arch() {
        GuestArch::Amd64 => amd64::BASE_ADDRESS,
        GuestArch::I686 => i686::BASE_ADDRESS,
    };
    base.checked_add(segment_pages(segments) * PAGE_SIZE)
        .and_then(|end| end.checked_align_up(large))
        .and_then(|start| start.offset_from(base))
        .ok_or(SpaceError::Overflow)
}

fn scratch_parts(sizes: &Sizes, tables_len_bytes: u64) -> ScratchRequest {
    ScratchRequest {
        len_bytes: 0,
        input_len_bytes: sizes.input_len_bytes,
        output_len_bytes: sizes.outgoing_len_bytes(),
        tables_len_bytes,
    }
}

fn with_len(
    parts: ScratchRequest,
    len_bytes: u64,
    minimum_len_bytes: u64,
) -> Result<ScratchRequest, SpaceError> {
    if len_bytes < minimum_len_bytes {
        return Err(PlanError::ScratchTooSmall {
            len_bytes,
            minimum_len_bytes,
        }
        .into());
    }
    Ok(ScratchRequest { len_bytes, ..parts })
}

/// Room for buffers, tables, PEB and stack, and for frames: without a choice of the embedder as many as the kernel can need to copy
/// every page.
fn paged_scratch(
    kind: GuestKind,
    sizes: &Sizes,
    cow: CowMode,
    segments: &[Segment],
) -> Result<ScratchRequest, SpaceError> {
    let (_, large) = format_of(kind);
    let lower = [sizes.heap_len_bytes, sizes.stack_len_bytes];
    let ranges = segments.iter().map(|segment| segment.range.len_bytes());
    let own_tables: u64 = 1 + ranges
        .chain(lower)
        .map(|it| tables_over(it, large))
        .sum::<u64>();
    let copied = match cow {
        CowMode::HostSide => 0,
        CowMode::GuestSide => {
            let writable = segments
                .iter()
                .filter(|it| it.rights.contains(Attrs::WRITE));
            let pages: u64 = writable.map(Segment::pages).sum();
            pages + sizes.heap_len_bytes / PAGE_SIZE + own_tables
        }
    };
    let fixed = PEB_LEN_BYTES
        .checked_add(sizes.stack_len_bytes)
        .ok_or(SpaceError::Overflow)?;
    let mut tables = own_tables;
    loop {
        let parts = scratch_parts(sizes, tables * PAGE_SIZE);
        let least = minimum_scratch_len(kind, &parts)?
            .checked_add(fixed)
            .ok_or(SpaceError::Overflow)?;
        let wanted = (copied + SPARE_FRAMES)
            .checked_mul(PAGE_SIZE)
            .and_then(|frames| frames.checked_add(least))
            .ok_or(SpaceError::Overflow)?;
        let request = with_len(parts, sizes.scratch_len_bytes.unwrap_or(wanted), least)?;
        // The tables lie in scratch and map it: more of them may need one more. A table maps at least 512 pages, so this ends.
        let needed = own_tables + tables_over(request.len_bytes, large);
        if needed <= tables {
            return Ok(request);
        }
        tables = needed;
    }
}

/// The most tables that a range of this length can need, were every page mapped by itself.
fn tables_over(len_bytes: u64, large: PageSize) -> u64 {
    /// Reach of a table of level 3.
    const LEVEL_3_LEN_BYTES: u64 = 512 << 30;
    let spanned = |size: u64| len_bytes / size + 2;
    match large {
        PageSize::Size4MiB => spanned(large.bytes()),
        _ => {
            spanned(large.bytes())
                + spanned(PageSize::Size1GiB.bytes())
                + spanned(LEVEL_3_LEN_BYTES)
        }
    }
}

/// What the guest is told: pointers of its own translation, by way of the plan.
fn view(
    plan: &MemoryPlan,
    sizes: &Sizes,
    heap: GvaRange,
    stack: GvaRange,
) -> Result<GuestView, SpaceError> {
    let place = |region: RegionName, range: GpaRange| {
        let start = plan.guest_ptr(region)?.gva();
        Ok::<_, SpaceError>(GvaRange::new(start, range.len_bytes())?)
    };
    let frames = place(RegionName::Frames, plan.frames())?;
    let outgoing = place(RegionName::Output, plan.output())?;
    let [output, outbox] = GuestView::split_outgoing(outgoing, sizes)?;
    Ok(GuestView {
        // The PEB is the first frame.
        peb: GvaRange::new(frames.start(), PEB_LEN_BYTES)?,
        input: place(RegionName::Input, plan.input())?,
        output,
        outbox,
        heap,
        stack,
        scratch: Some(place(RegionName::Scratch, plan.scratch())?),
    })
}

fn data(what: &'static str, range: GvaRange, frame: Gpa) -> Mapped {
    Mapped {
        what,
        range,
        frame,
        attrs: DATA,
    }
}

fn map_segments(
    plan: &MemoryPlan,
    cow: CowMode,
    segments: &[Segment],
) -> Result<Vec<Mapped>, SpaceError> {
    let mapped = segments.iter().map(|segment| {
        let used = segment.rights | Attrs::ACCESSED;
        let attrs = match (cow, segment.rights.contains(Attrs::WRITE)) {
            (CowMode::GuestSide, true) => (used - Attrs::WRITE) | Attrs::COW,
            (CowMode::HostSide, true) => used | Attrs::DIRTY,
            (_, false) => used,
        };
        let frame = plan.image().at(segment.first_page * PAGE_SIZE);
        Ok(Mapped {
            what: "image segment",
            range: segment.range,
            frame: frame.ok_or(SpaceError::Overflow)?,
            attrs,
        })
    });
    mapped.collect()
}

/// Scratch as a whole, but for the guard page below the exception stack.
fn map_scratch(plan: &MemoryPlan, window: GvaRange) -> Result<[Mapped; 2], SpaceError> {
    let scratch = plan.scratch();
    let part = |from: Gpa, to: Gpa| {
        let (Some(first), Some(end)) = (scratch.offset_of(from), to.offset_from(scratch.start()))
        else {
            return Err(SpaceError::Overflow);
        };
        let start = window.at(first).ok_or(SpaceError::Overflow)?;
        Ok(data("scratch", GvaRange::new(start, end - first)?, from))
    };
    Ok([
        part(scratch.start(), plan.guard().start())?,
        part(plan.guard().end(), scratch.end())?,
    ])
}

/// Checks that nothing lies over anything else; the heap counts also where it is not mapped yet.
fn check_disjoint(mapped: &[Mapped], heap: GvaRange) -> Result<(), SpaceError> {
    let named = |it: &Mapped| (it.what, it.range);
    let mut all: Vec<_> = mapped.iter().map(named).collect();
    if !mapped.iter().any(|it| it.range == heap) {
        all.push(("heap", heap));
    }
    all.sort_unstable_by_key(|(_, range)| range.start());
    let overlap = all.windows(2).find(|pair| pair[0].1.overlaps(&pair[1].1));
    match overlap {
        None => Ok(()),
        Some(pair) => Err(SpaceError::Overlap {
            what: pair[0].0,
            range: pair[0].1,
            other: pair[1].0,
            other_range: pair[1].1,
        }),
    }
}

/// Checks that 32 bits hold the addresses of a 32-bit guest. Those of its segments and of scratch were checked before.
fn check_reach(kind: GuestKind, ranges: &[(&'static str, GvaRange)]) -> Result<(), SpaceError> {
    let beyond = |range: &GvaRange| {
        kind.arch() == GuestArch::I686 && range.last().as_u64() > i686::MAX_GVA_PAGED.as_u64()
    };
    match ranges.iter().find(|(_, range)| beyond(range)) {
        None => Ok(()),
        Some(&(what, range)) => Err(SpaceError::BeyondReach { what, range }),
    }
}

#[cfg(test)]
mod tests;

//! The geometry of an i686 identity guest: no translation, so everything that it is told is a guest-physical address.
//!
//! The image slot holds the guest's memory at its own addresses: the segments of its ELF file, then its heap, then its stack. The
//! guest runs in ring 0 and may write to all of it, so all of it is one area.

use vellum_layout::{
    Gpa, GpaRange, GuestKind, Gva, GvaRange, MemoryPlan, PAGE_SIZE, PageSize, PlanError,
    PlanRequest, ScratchRequest, i686, minimum_scratch_len,
};

use vellum_vmem::{Attrs, Mapping, TranslateError};

use super::space::{FIXED_FRAMES, GuestView, Placement, check_sizes};
use super::{Area, FixedFrame, Geometry, Sizes, SpaceError};
use crate::engine::CowMode;

/// An unmapped-looking page between heap and stack. Without paging nothing enforces it; it keeps a small overflow from meeting data.
const GAP_LEN_BYTES: u64 = PAGE_SIZE;

/// Where the heap and the stack of a guest lie whose segments end at `image_end`.
pub(crate) fn heap_and_stack(
    image_end: Gva,
    sizes: &Sizes,
) -> Result<(GvaRange, GvaRange), SpaceError> {
    check_sizes(sizes)?;
    let heap = GvaRange::new(image_end, sizes.heap_len_bytes)?;
    let stack_start = heap
        .end()
        .checked_add(GAP_LEN_BYTES)
        .ok_or(SpaceError::Overflow)?;
    Ok((heap, GvaRange::new(stack_start, sizes.stack_len_bytes)?))
}

/// Plans an identity guest. Its only area reaches from the lowest address to the end of its stack.
pub(super) fn geometry(sizes: Sizes, areas: &[Area]) -> Result<Geometry, SpaceError> {
    check_sizes(&sizes)?;
    let [area] = areas else {
        return Err(SpaceError::Overflow);
    };
    let parts = ScratchRequest {
        len_bytes: 0,
        input_len_bytes: sizes.input_len_bytes,
        output_len_bytes: sizes.output_len_bytes,
        tables_len_bytes: 0,
    };
    let minimum = minimum_scratch_len(GuestKind::I686Identity, &parts)? + FIXED_FRAMES * PAGE_SIZE;
    let len_bytes = sizes.scratch_len_bytes.unwrap_or(minimum);
    if len_bytes < minimum {
        return Err(PlanError::ScratchTooSmall {
            len_bytes,
            minimum_len_bytes: minimum,
        }
        .into());
    }
    let plan = MemoryPlan::new(&PlanRequest {
        kind: GuestKind::I686Identity,
        image_len_bytes: area.range.len_bytes(),
        scratch: ScratchRequest { len_bytes, ..parts },
        holes: &[],
        reserved: &[],
    })?;
    let stack_start = area.range.end().as_u64() - sizes.stack_len_bytes;
    let heap_start = stack_start - GAP_LEN_BYTES - sizes.heap_len_bytes;
    let mut geometry = Geometry {
        sizes,
        cow: CowMode::HostSide,
        plan,
        view: GuestView {
            peb: same(plan.frames())?,
            input: same(plan.input())?,
            output: same(plan.output())?,
            heap: GvaRange::new(address(heap_start)?, sizes.heap_len_bytes)?,
            stack: GvaRange::new(address(stack_start)?, sizes.stack_len_bytes)?,
        },
        placement: Placement::InPlace,
        user: None,
    };
    geometry.view.peb = same(geometry.fixed_frame(FixedFrame::Peb)?)?;
    Ok(geometry)
}

/// The area of a guest whose stack ends at `end`.
pub(crate) fn whole_range(end: Gva) -> Result<GvaRange, SpaceError> {
    Ok(GvaRange::from_bounds(virtual_of(i686::BASE_ADDRESS)?, end)?)
}

/// Without translation an address is its own translation: the one place where a guest-physical becomes a guest-virtual address.
fn virtual_of(gpa: Gpa) -> Result<Gva, SpaceError> {
    address(gpa.as_u64())
}

/// And back.
pub(crate) fn physical_of(gva: Gva) -> Option<Gpa> {
    Gpa::new(gva.as_u64()).ok()
}

/// The translation of an address that needs none.
pub(crate) fn mapping(gva: Gva) -> Result<Mapping, TranslateError> {
    let gpa = physical_of(gva).ok_or(TranslateError::OutOfReach { gva })?;
    let attrs = Attrs::WRITE | Attrs::USER;
    Ok(Mapping {
        gpa,
        attrs,
        effective: attrs,
        size: PageSize::Size4KiB,
        entry_gpa: gpa,
    })
}

fn same(range: GpaRange) -> Result<GvaRange, SpaceError> {
    Ok(GvaRange::new(
        virtual_of(range.start())?,
        range.len_bytes(),
    )?)
}

fn address(raw: u64) -> Result<Gva, SpaceError> {
    Gva::new(raw).map_err(|_| SpaceError::Overflow)
}

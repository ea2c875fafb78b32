//! The arithmetic of placing: image upwards, scratch downwards, obstacles avoided.

use super::error::{Obstacle, PlanError};
use super::{MAX_RESERVED, PlanRequest, RegionName, ScratchRequest};
use crate::address::Gpa;
use crate::hole::{LOCAL_APIC_PAGE, Reserved};
use crate::kind::{GuestArch, GuestKind, Translation};
use crate::page::{PAGE_SIZE, PageSize};
use crate::range::GpaRange;
use crate::{amd64, i686};

/// Checks that a length is not zero, a whole number of pages, and not larger than all memory.
pub(super) fn check_len(
    kind: GuestKind,
    region: RegionName,
    len_bytes: u64,
) -> Result<(), PlanError> {
    let max_len_bytes = match kind.arch() {
        GuestArch::Amd64 => amd64::MAX_SCRATCH_LEN_BYTES,
        GuestArch::I686 => i686::MAX_SCRATCH_LEN_BYTES,
    };
    if len_bytes == 0 {
        return Err(PlanError::Empty { region });
    }
    if !len_bytes.is_multiple_of(PAGE_SIZE) {
        return Err(PlanError::Unaligned { region, len_bytes });
    }
    if len_bytes > max_len_bytes {
        return Err(PlanError::TooLarge {
            region,
            len_bytes,
            max_len_bytes,
        });
    }
    Ok(())
}

/// Checks the lengths of the parts of scratch, each for itself.
pub(super) fn check_scratch_parts(
    kind: GuestKind,
    scratch: &ScratchRequest,
) -> Result<(), PlanError> {
    check_len(kind, RegionName::Input, scratch.input_len_bytes)?;
    check_len(kind, RegionName::Output, scratch.output_len_bytes)?;
    match (kind.translation(), scratch.tables_len_bytes) {
        (Translation::Identity, 0) => Ok(()),
        (Translation::Identity, len_bytes) => Err(PlanError::TablesWithoutPaging { len_bytes }),
        (_, len_bytes) => check_len(kind, RegionName::Tables, len_bytes),
    }
}

/// Checks that reserved ranges are few, and overlap neither holes nor each other.
pub(super) fn check_reserved(request: &PlanRequest<'_>) -> Result<(), PlanError> {
    let count = request.reserved.len();
    if count > MAX_RESERVED {
        return Err(PlanError::TooManyReserved {
            count,
            max: MAX_RESERVED,
        });
    }
    for (index, &reserved) in request.reserved.iter().enumerate() {
        let earlier = request.reserved.iter().take(index).copied();
        let other = obstacles(request, &[])
            .filter(|obstacle| matches!(obstacle, Obstacle::Hole(_)))
            .chain(earlier.map(Obstacle::Reserved))
            .find(|obstacle| obstacle.overlaps(&reserved.range));
        if let Some(other) = other {
            return Err(PlanError::ReservedOverlap { reserved, other });
        }
    }
    Ok(())
}

/// Places scratch as high as obstacles allow.
///
/// The highest place is also the one that leaves the image the most room, because the image goes
/// below scratch.
pub(super) fn scratch(request: &PlanRequest<'_>) -> Result<GpaRange, PlanError> {
    let (lowest, highest_end) = bounds(request.kind);
    let len_bytes = request.scratch.len_bytes;
    let no_room = |obstacle| PlanError::NoRoom {
        region: RegionName::Scratch,
        len_bytes,
        obstacle,
    };
    let mut end = highest_end;
    let mut blocker = Obstacle::LowestAddress(lowest);
    // Each turn moves the end below an obstacle that is then never met again, so there are at
    // most as many turns as obstacles, and one more.
    loop {
        let Some(candidate) = range_below(end, len_bytes).filter(|range| range.start() >= lowest)
        else {
            return Err(no_room(blocker));
        };
        match obstacles(request, &[]).find(|obstacle| obstacle.overlaps(&candidate)) {
            None => return Ok(candidate),
            Some(obstacle) => {
                end = obstacle.start();
                blocker = obstacle;
            }
        }
    }
}

/// Places the image below scratch, as low as obstacles allow. A guest without paging is linked to
/// its physical addresses, so its image begins at the lowest address or nowhere. Any other image
/// moves up by whole large pages, so that what is aligned in it for a large leaf stays so.
pub(super) fn image(request: &PlanRequest<'_>, scratch: GpaRange) -> Result<GpaRange, PlanError> {
    let (lowest, _) = bounds(request.kind);
    let len_bytes = request.image_len_bytes;
    let above = [Obstacle::Region(RegionName::Scratch, scratch)];
    let no_room = |obstacle| PlanError::NoRoom {
        region: RegionName::Image,
        len_bytes,
        obstacle,
    };
    let mut start = lowest;
    // Each turn moves the start above an obstacle that is then never met again.
    loop {
        let Ok(candidate) = GpaRange::new(start, len_bytes) else {
            return Err(no_room(above[0]));
        };
        // Scratch last: an obstacle below it is the better explanation, and can be avoided.
        match obstacles(request, &above).find(|obstacle| obstacle.overlaps(&candidate)) {
            None if candidate.start() < scratch.start() => return Ok(candidate),
            None => return Err(no_room(above[0])),
            Some(obstacle @ Obstacle::Region(..)) => return Err(no_room(obstacle)),
            Some(obstacle) if request.kind.translation() == Translation::Identity => {
                return Err(no_room(obstacle));
            }
            Some(obstacle) => {
                start = moved_above(&obstacle, request.kind).ok_or(no_room(above[0]))?;
            }
        }
    }
}

/// Lowest address of memory, and exclusive end of memory.
fn bounds(kind: GuestKind) -> (Gpa, Gpa) {
    const AMD64_END: Gpa = Gpa::literal(amd64::MAX_GPA.as_u64() + 1);
    const I686_END: Gpa = Gpa::literal(i686::MAX_GPA.as_u64() + 1);
    match kind.arch() {
        GuestArch::Amd64 => (amd64::BASE_ADDRESS, AMD64_END),
        GuestArch::I686 => (i686::BASE_ADDRESS, I686_END),
    }
}

/// The first address at or above the end of an obstacle that is a number of large pages above the
/// lowest address.
fn moved_above(obstacle: &Obstacle, kind: GuestKind) -> Option<Gpa> {
    let (lowest, _) = bounds(kind);
    let large_page = match kind.arch() {
        GuestArch::Amd64 => PageSize::Size2MiB,
        GuestArch::I686 => PageSize::Size4MiB,
    };
    let distance = obstacle.end().offset_from(lowest)?;
    lowest.checked_add(distance.checked_next_multiple_of(large_page.bytes())?)
}

fn range_below(end: Gpa, len_bytes: u64) -> Option<GpaRange> {
    GpaRange::new(end.checked_sub(len_bytes)?, len_bytes).ok()
}

/// Everything that memory must keep clear of; the local APIC page is always among it.
fn obstacles<'a>(
    request: &PlanRequest<'a>,
    more: &'a [Obstacle],
) -> impl Iterator<Item = Obstacle> + use<'a> {
    let holes = request.holes.iter().copied();
    let reserved = request.reserved.iter().copied();
    core::iter::once(LOCAL_APIC_PAGE)
        .chain(holes)
        .map(Obstacle::Hole)
        .chain(reserved.map(Obstacle::Reserved))
        .chain(more.iter().copied())
}

impl Obstacle {
    fn overlaps(&self, range: &GpaRange) -> bool {
        match self {
            Self::Hole(hole) => hole.range.overlaps(range),
            Self::Reserved(Reserved { range: own, .. }) | Self::Region(_, own) => {
                own.overlaps(range)
            }
            Self::LowestAddress(_) => false,
        }
    }

    fn start(&self) -> Gpa {
        match self {
            Self::Hole(hole) => hole.range.start(),
            Self::Reserved(Reserved { range, .. }) | Self::Region(_, range) => range.start(),
            Self::LowestAddress(gpa) => *gpa,
        }
    }

    fn end(&self) -> Gpa {
        match self {
            Self::Hole(hole) => hole.range.end(),
            Self::Reserved(Reserved { range, .. }) | Self::Region(_, range) => range.end(),
            Self::LowestAddress(gpa) => *gpa,
        }
    }
}

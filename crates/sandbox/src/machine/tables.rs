//! Page tables, generated from areas and extents.

use vellum_layout::amd64::user::{
    BOOKKEEPING, EXCEPTION_STACK, MACHINE_AREA, MONITOR_CODE_AREA, PHYSICAL_WINDOW,
};
use vellum_layout::{Gpa, Gva, GvaRange, PAGE_SIZE, PageSize, RangeError};
use vellum_vmem::{
    Attrs, EncodeError, Entry, Format, FrameRange, FrameSource, Leaf, Level, MapError, Mapper,
    RootError,
};

use crate::engine::CowMode;
use crate::memory::{
    Area, Backing, FixedFrame, Geometry, GuestMemory, SpaceError, TableAccess, UserParts, UserSpace,
};

/// Accessed and dirty are set from the start, so that neither processor nor hypervisor ever writes the tables to set them.
const USED: Attrs = Attrs::ACCESSED.union(Attrs::DIRTY);
const READ_ONLY_DATA: Attrs = USED.union(Attrs::NO_EXECUTE);
const DATA: Attrs = READ_ONLY_DATA.union(Attrs::WRITE);

/// Why tables cannot be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    #[error("page tables refused")]
    Map(#[from] MapError),
    #[error("page-table entry refused")]
    Encode(#[from] EncodeError),
    #[error("page-table root refused")]
    Root(#[from] RootError),
    #[error("memory layout refused")]
    Space(#[from] SpaceError),
    #[error("range refused")]
    Range(#[from] RangeError),
    #[error("image page {0} lies outside of the image")]
    ImagePage(u64),
    #[error("page tables need more than the {0} frames planned for them")]
    NoFrames(u64),
}

/// Builds the tables of a guest in the table region of its scratch, which must be zero. Returns the number of frames used;
/// the first is the root.
pub(crate) fn build(
    memory: &GuestMemory,
    geometry: &Geometry,
    space: &UserSpace,
) -> Result<u64, BuildError> {
    let mut builder = Builder::new(memory, geometry)?;
    builder.map_user_areas(space)?;
    builder.map_io()?;
    builder.map_supervisor()?;
    if geometry.cow == CowMode::GuestSide {
        builder.map_window()?;
    }
    let (_, frames) = builder.mapper.into_parts();
    Ok(frames.used_frames())
}

/// The entry that [`build`] leaves, in a table of this level, on the way to an address that only the guest-side monitor makes writable:
/// 0 where the monitor makes the page.
pub(crate) fn pristine_entry(
    geometry: &Geometry,
    space: &UserSpace,
    gva: Gva,
    level: Level,
) -> Result<u64, BuildError> {
    let size = match level {
        Level::L1 => PageSize::Size4KiB,
        Level::L2 => PageSize::Size2MiB,
        Level::L3 | Level::L4 => return Ok(0),
    };
    let start = gva.align_down(size);
    let area = space.area_of(gva);
    let (Some(area), Some(page)) = (area, space.extents().page_of_run(start, size.bytes())) else {
        return Ok(0);
    };
    let frame = geometry
        .user()?
        .image_gpa(page)
        .ok_or(BuildError::ImagePage(page))?;
    if !frame.is_aligned(size) {
        return Ok(0);
    }
    let attrs = leaf_attrs(geometry, area);
    let leaf = Leaf { frame, attrs, size };
    Ok(Format::FOUR_LEVEL.encode(level, &Entry::Leaf(leaf))?)
}

fn leaf_attrs(geometry: &Geometry, area: &Area) -> Attrs {
    let attrs = area.rights | Attrs::USER | USED;
    match geometry.cow {
        CowMode::GuestSide if area.is_writable() => {
            (attrs - Attrs::WRITE - Attrs::DIRTY) | Attrs::COW
        }
        _ => attrs,
    }
}

struct Builder<'a> {
    mapper: Mapper<TableAccess<'a>, FrameRange>,
    geometry: &'a Geometry,
    user: &'a UserParts,
}

impl<'a> Builder<'a> {
    fn new(memory: &'a GuestMemory, geometry: &'a Geometry) -> Result<Self, BuildError> {
        let user = geometry.user()?;
        let mut frames = FrameRange::new(user.tables);
        let root = frames.allocate_table().ok_or(BuildError::NoFrames(0))?;
        let store = TableAccess::in_scratch(memory);
        // The monitor splits a large leaf when the guest first writes there.
        let mapper =
            Mapper::new(store, frames, root, Format::FOUR_LEVEL)?.with_max_leaf(PageSize::Size2MiB);
        Ok(Self {
            mapper,
            geometry,
            user,
        })
    }

    fn map(&mut self, range: GvaRange, frame: Gpa, attrs: Attrs) -> Result<(), BuildError> {
        self.mapper
            .map(range, frame, attrs)?
            .ignore("the guest is not running, and its tables are loaded anew");
        Ok(())
    }

    /// Extents, and the gaps between them that a zero region fills.
    fn map_user_areas(&mut self, space: &UserSpace) -> Result<(), BuildError> {
        let mut extents = space.extents().as_slice().iter().peekable();
        for area in space.areas() {
            let mut at = area.range.start();
            while let Some(extent) = extents.next_if(|extent| extent.at < area.range.end()) {
                self.map_zero_run(area, at, extent.at)?;
                let frame = self
                    .user
                    .image_gpa(extent.image_page)
                    .ok_or(BuildError::ImagePage(extent.image_page))?;
                let range = GvaRange::new(extent.at, extent.len_bytes())?;
                self.map(range, frame, leaf_attrs(self.geometry, area))?;
                at = range.end();
            }
            self.map_zero_run(area, at, area.range.end())?;
        }
        Ok(())
    }

    /// Host-side: zero pages are memory like any other. Guest-side: absent until the monitor maps them.
    fn map_zero_run(&mut self, area: &Area, from: Gva, to: Gva) -> Result<(), BuildError> {
        let (Backing::Zero { first_page }, CowMode::HostSide) = (area.backing, self.geometry.cow)
        else {
            return Ok(());
        };
        if from >= to {
            return Ok(());
        }
        let range = GvaRange::from_bounds(from, to)?;
        let into_area = from.as_u64() - area.range.start().as_u64();
        let frame = (self.user.zero_base)
            .checked_add(first_page * PAGE_SIZE + into_area)
            .ok_or(SpaceError::Overflow)?;
        self.map(range, frame, leaf_attrs(self.geometry, area))
    }

    /// PEB and input buffer for reading, output buffer and outbox for writing, resume page for executing.
    fn map_io(&mut self) -> Result<(), BuildError> {
        let geometry = self.geometry;
        let peb = self.user.fixed_frame(FixedFrame::Peb)?.start();
        let resume = self.user.fixed_frame(FixedFrame::Resume)?.start();
        self.map(geometry.view.peb, peb, READ_ONLY_DATA | Attrs::USER)?;
        self.map(
            geometry.view.input,
            geometry.plan.input().start(),
            READ_ONLY_DATA | Attrs::USER,
        )?;
        self.map(
            geometry.view.output,
            geometry.plan.output().start(),
            DATA | Attrs::USER,
        )?;
        self.map(
            geometry.view.outbox,
            geometry.outbox()?.start(),
            DATA | Attrs::USER,
        )?;
        self.map(self.user.resume, resume, USED | Attrs::USER)
    }

    /// Monitor code, machine page, exception stack, bookkeeping.
    fn map_supervisor(&mut self) -> Result<(), BuildError> {
        let geometry = self.geometry;
        let one_page = |area: GvaRange| GvaRange::new(area.start(), PAGE_SIZE);
        let monitor = self.user.fixed_frame(FixedFrame::Monitor)?.start();
        let machine = self.user.fixed_frame(FixedFrame::Machine)?.start();
        self.map(one_page(MONITOR_CODE_AREA)?, monitor, USED)?;
        self.map(one_page(MACHINE_AREA)?, machine, READ_ONLY_DATA)?;
        self.map(
            EXCEPTION_STACK,
            geometry.plan.exception_stack().start(),
            DATA,
        )?;
        self.map(BOOKKEEPING, geometry.plan.bookkeeping().start(), DATA)
    }

    /// The monitor's view of guest-physical memory: the image to copy from, the scratch to copy to.
    fn map_window(&mut self) -> Result<(), BuildError> {
        let image = self.geometry.plan.image();
        let scratch = self.geometry.plan.scratch();
        let large = PageSize::Size2MiB;
        let image_end = image
            .end()
            .checked_align_up(large)
            .ok_or(SpaceError::Overflow)?;
        let scratch_start = scratch.start().align_down(large);
        if image_end > scratch_start {
            return Err(SpaceError::Overflow.into());
        }
        let zero = image.start().align_down(large);
        self.map_window_run(zero, image_end.as_u64() - zero.as_u64(), READ_ONLY_DATA)?;
        self.map_window_run(
            scratch_start,
            scratch.end().as_u64() - scratch_start.as_u64(),
            DATA,
        )
    }

    fn map_window_run(&mut self, gpa: Gpa, len_bytes: u64, attrs: Attrs) -> Result<(), BuildError> {
        let start = PHYSICAL_WINDOW
            .at(gpa.as_u64())
            .ok_or(SpaceError::Overflow)?;
        self.map(GvaRange::new(start, len_bytes)?, gpa, attrs)
    }
}

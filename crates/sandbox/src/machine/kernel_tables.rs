//! The page tables that a kernel is entered on.

use vellum_layout::PAGE_SIZE;
use vellum_vmem::{FrameRange, FrameSource, Mapper};

use super::BuildError;
use crate::memory::{GuestMemory, Paging, TableAccess};

/// Builds the tables in their room in scratch, which must be zero. Returns the number of frames used; the first is the root.
pub(crate) fn build_kernel(memory: &GuestMemory, paging: &Paging) -> Result<u64, BuildError> {
    let mut frames = FrameRange::new(paging.tables);
    let no_frames = BuildError::NoFrames(paging.tables.len_bytes() / PAGE_SIZE);
    let root = frames.allocate_table().ok_or(no_frames)?;
    let mut mapper = Mapper::new(TableAccess::in_scratch(memory), frames, root, paging.format)?;
    for it in &paging.mapped {
        mapper
            .map(it.range, it.frame, it.attrs)?
            .ignore("the guest has not run yet");
    }
    let (_, frames) = mapper.into_parts();
    Ok(frames.used_frames())
}

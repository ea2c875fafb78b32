//! The page tables through which a user guest sees what the embedder maps.
//!
//! They have the root's entry for [`MAPPINGS_WINDOW`] for themselves, so the tables that the snapshot decides know nothing of them.

use vellum_layout::amd64::user::{MAPPINGS_WINDOW, mapping_gva};
use vellum_layout::{Gpa, GpaRange, PageSize};
use vellum_vmem::{Attrs, Format, FrameRange, Mapper};

use super::BuildError;
use crate::mapping::GuestAccess;
use crate::memory::{GuestMemory, SpaceError, TableAccess, UserParts};

/// Length of an entry of the root, and the addresses that it translates (Intel SDM volume 3, section 4.5).
const ENTRY_LEN_BYTES: u64 = 8;
const ROOT_ENTRY_SPAN: u64 = 1 << 39;

/// Bytes from the start of the root to its entry for the window.
pub(crate) const ROOT_ENTRY_OFFSET: u64 =
    MAPPINGS_WINDOW.start().as_u64() / ROOT_ENTRY_SPAN * ENTRY_LEN_BYTES;

/// Accessed and dirty are set from the start, so that neither processor nor hypervisor ever writes the tables to set them.
const READ_ONLY: Attrs = Attrs::USER
    .union(Attrs::NO_EXECUTE)
    .union(Attrs::ACCESSED)
    .union(Attrs::DIRTY);

/// Builds the tables of what is mapped and links them into the root, whose entry for the window must be absent. Their room must be zero.
pub(crate) fn build_mappings(
    memory: &GuestMemory,
    user: &UserParts,
    mapped: impl Iterator<Item = (GpaRange, GuestAccess)>,
) -> Result<(), BuildError> {
    let frames = FrameRange::new(user.mapping_tables);
    let store = TableAccess::in_scratch(memory);
    let root: Gpa = user.tables.start();
    let mut mapper =
        Mapper::new(store, frames, root, Format::FOUR_LEVEL)?.with_max_leaf(PageSize::Size2MiB);
    for (range, access) in mapped {
        let attrs = match access {
            GuestAccess::Read => READ_ONLY,
            GuestAccess::ReadWrite => READ_ONLY | Attrs::WRITE,
        };
        let window = mapping_gva(range).map_err(SpaceError::from)?;
        mapper
            .map(window, range.start(), attrs)?
            .ignore("the vcpu loads its root anew before the guest runs");
    }
    Ok(())
}

#[cfg(test)]
mod tests;

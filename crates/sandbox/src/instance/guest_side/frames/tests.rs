use super::*;
use crate::engine::CowMode;
use crate::machine::build;
use crate::memory::{Config, Extents, Geometry};

const LARGE_BYTES: u64 = PageSize::Size2MiB.bytes();

/// An output buffer of several large pages, in scratch of this length.
fn with_large_output(scratch_len_bytes: Option<u64>) -> Geometry {
    let mut config = Config::new();
    config.sizes.output_len_bytes = 3 * LARGE_BYTES;
    config.sizes.scratch_len_bytes = scratch_len_bytes;
    Geometry::for_user(&config, CowMode::GuestSide, &[], 0).expect("a geometry")
}

#[test]
fn leaves_of_large_pages_are_as_the_host_made_them() {
    // Scratch ends at a fixed address: so much more puts the buffer where large pages can map it.
    let geometry = with_large_output(None);
    let (gva, gpa) = (geometry.view.output.start(), geometry.plan.output().start());
    let more_bytes = gpa.as_u64().wrapping_sub(gva.as_u64()) % LARGE_BYTES;
    let geometry = with_large_output(Some(geometry.plan.scratch().len_bytes() + more_bytes));

    let memory = GuestMemory::zeroed(&geometry).expect("address space");
    let space = UserSpace::new(Vec::new(), Extents::new(Vec::new()));
    build(&memory, &geometry, &space).expect("built");
    let user = geometry.user().expect("a user guest");
    let leaves = leaves(&memory, user, geometry.view.output).expect("mapped");

    assert!(leaves.iter().any(|leaf| leaf.len_bytes == LARGE_BYTES));
    for leaf in leaves {
        let raw = memory.scratch.read_u64(leaf.leaf_offset).expect("scratch");
        assert_eq!(leaf.leaf, raw | USED);
    }
}

//! What each figure is to be, from the figures of the same run: the floor differs by a factor of thirty between machines.

use crate::figures::{Figures, Target};
use crate::sandboxes::FLOOR;

/// The machine on which the best cycles known elsewhere were measured, and those, in nanoseconds.
const THEIR_FLOOR_NS: f64 = 30_000.0;
const THEIR_CYCLES_NS: [(u32, f64); 4] = [
    (1, 39_500.0),
    (16, 40_500.0),
    (256, 70_000.0),
    (1024, 163_000.0),
];

/// Sets the targets of all figures that are there.
pub(crate) fn set(figures: &mut Figures) {
    for (name, at_most) in [
        ("call_null_ratio", 1.15),
        ("host_call_ratio", 1.15),
        ("host_call_polling_ns", 300.0),
        ("restore_per_page_ns", 150.0),
        ("restore_heap_spread", 1.10),
        ("snapshot_heap_spread", 1.10),
        ("pagetable_build_1gib_ns", 60_000.0),
    ] {
        figures.aim(name, Target::AtMost(at_most));
    }
    for name in ["ioctls_per_call", "ioctls_per_host_call"] {
        figures.aim(name, Target::Exactly(1.0));
    }
    relative(figures);
    if let Some(floor) = figures.value(FLOOR) {
        in_floors(figures, floor);
    }
}

/// Those that are a multiple of other figures.
fn relative(figures: &mut Figures) {
    if let Some(requests) = figures.value("create_ioctls_ns") {
        figures.aim("create_from_snapshot_ns", Target::AtMost(1.1 * requests));
    }
    if let (Some(copy), Some(call)) = (
        figures.value("memcpy_50mb_ns"),
        figures.value("call_null_ns"),
    ) {
        figures.aim("bytes_50mb_ns", Target::AtMost(1.2 * copy + call));
    }
    if let Some(pages) = figures.value("dirty_pages_of_null_call") {
        figures.aim("rss_per_sandbox_kib", Target::AtMost(256.0 + 4.0 * pages));
    }
}

/// Those that are a multiple of the floor.
fn in_floors(figures: &mut Figures, floor: f64) {
    figures.aim("restore_clean_ns", Target::AtMost(2.0 * floor));
    figures.aim("log_record_ns", Target::AtMost(floor / 10.0));
    for (pages, theirs) in THEIR_CYCLES_NS {
        let restore = 2.0 * floor + 100.0 * f64::from(pages);
        figures.aim(
            &format!("restore_dirty_{pages}_ns"),
            Target::AtMost(restore),
        );
        let cycle = theirs * floor / THEIR_FLOOR_NS;
        figures.aim(&format!("cycle_dirty_{pages}_ns"), Target::AtMost(cycle));
    }
    if let Some(restore) = figures.value("restore_clean_ns") {
        figures.aim("pool_take_return_ns", Target::AtMost(3.0 * floor + restore));
    }
}

//! Thousands of VMs, one after the other, and nothing of them left. Takes a minute or two, so it runs only when it is asked for:
//! `cargo test -p vellum-conformance --test soak -- --ignored`. Alone in its process, because it counts what the whole process holds.

use std::fs;
use std::io::Write as _;
use std::sync::Arc;

use vellum_backend::Hypervisor;
use vellum_backend::kvm::Kvm;
use vellum_conformance::{Outcome, Subject, checks};

/// Checks that make a VM or more each and take no time of their own.
const QUICK: [&str; 6] = [
    "boots::a_user_guest_begins_in_ring_three",
    "faults::host_and_guest_see_each_others_writes",
    "mapping::many_ranges_live_side_by_side",
    "ports::outputs_in_flat_mode",
    "dirty::writes_are_reported_in_a_bitmap",
    "cancel::the_handle_outlives_the_vm",
];
const ROUNDS: usize = 400;

/// Open descriptors, and lines of the memory map.
fn held() -> (usize, usize) {
    let descriptors = fs::read_dir("/proc/self/fd").expect("readable").count();
    let maps = fs::read_to_string("/proc/self/maps").expect("readable");
    (descriptors, maps.lines().count())
}

#[test]
#[ignore = "takes a minute or two; run it with --ignored"]
fn thousands_of_vms_leave_nothing_behind() {
    let kvm: Arc<dyn Hypervisor> = match Kvm::open() {
        Ok(kvm) => Arc::new(kvm),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "SKIPPED on kvm: {error}");
            return;
        }
    };
    // What this engine does otherwise does not matter here: a check that fails leaves nothing behind either.
    let subject = Subject::new(kvm).expect("a cpu model");
    let round = || {
        checks()
            .iter()
            .filter(|check| QUICK.contains(&check.name))
            .filter(|check| !matches!(check.on(&subject), Outcome::NotHere(_)))
            .count()
    };
    assert_eq!(round(), QUICK.len(), "every quick check runs");
    let (descriptors, lines) = held();
    for _ in 0..ROUNDS {
        round();
    }
    let (descriptors_after, lines_after) = held();
    assert_eq!(descriptors_after, descriptors, "open descriptors");
    // The allocator may have grown a little; a leak would be of a line at least for each VM.
    assert!(
        lines_after < lines + ROUNDS,
        "{lines} lines of the memory map, then {lines_after}"
    );
}

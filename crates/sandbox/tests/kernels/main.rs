//! Guests that bring their own kernel: i686 without paging in C and in Rust, i686 with paging, amd64; those with paging in each
//! mode of copy-on-write. The same tests for all of them, as far as they can do the same.
//!
//! What a machine cannot run is a visible skip with its reason.

mod apic_hole;
mod calls;
mod checkpoints;
#[path = "../vm/engines.rs"]
mod engines;
mod exceptions;
mod failures;
mod faults;
mod hostile_tables;
mod images;
mod limits;
mod outbox;
mod own_paging;
mod residue;
#[path = "../vm/residue_harness.rs"]
mod residue_harness;
#[path = "../vm/residue_watch.rs"]
mod residue_watch;
mod roots;
mod side_by_side;
mod snapshots;
mod state;
mod support;

//! Snapshots on disk, in each mode of copy-on-write and for the kernels that this machine can run.
//!
//! Without a hypervisor each test says so on standard error and does nothing.

mod blobs;
mod crashes;
#[path = "../vm/engines.rs"]
mod engines;
mod hostile;
mod kernels;
mod listing;
mod moves;
mod other_process;
mod support;
mod user_guests;

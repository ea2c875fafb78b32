//! Sandboxes on the machine's own hypervisor, in each mode of copy-on-write.
//!
//! One test binary for all of it: the engines are probed once, and every helper is used. Without a hypervisor each test
//! says so on standard error and does nothing.

mod bad_calls;
mod bad_guests;
mod bad_messages;
mod bad_requests;
mod cancellation;
mod checkpoints;
mod debugger;
mod engines;
mod fork;
mod holdings;
mod host_functions;
mod idle_vms;
mod kept_pages;
mod large_values;
mod logging;
mod metering;
mod outbox;
mod polling;
mod pool;
mod random_orders;
mod residue;
mod residue_harness;
mod residue_programs;
mod residue_watch;
mod sizes;
mod snapshots;
mod support;
mod system_calls;
mod values;

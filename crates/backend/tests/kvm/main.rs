//! The KVM backend against the machine's own /dev/kvm. Without one every test says so and is skipped visibly.

mod exits;
mod host;
mod interruption;
mod memory;
mod msrs;
mod state;
mod support;

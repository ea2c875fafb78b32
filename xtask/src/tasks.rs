//! One module per task.

pub(crate) mod bench;
pub(crate) mod build_guests;
pub(crate) mod ci;
pub(crate) mod conformance;
pub(crate) mod demo;
pub(crate) mod diff_emulator;
pub(crate) mod lint;
pub(crate) mod mshv;
mod other_arch;
pub(crate) mod test;
pub(crate) mod vm_test;

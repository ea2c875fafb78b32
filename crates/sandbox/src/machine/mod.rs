//! The machine that the host builds around an amd64 user guest: descriptor tables, monitor, page tables, PEB.

mod descriptors;
pub(crate) mod monitor;
mod resume;
mod tables;

pub(crate) use descriptors::{amd64_machine, machine_page};
pub(crate) use resume::ResumePage;
pub(crate) use tables::{BuildError, build};

//! The machine that the host builds around an amd64 user guest: descriptor tables, monitor, page tables, PEB.

mod descriptors;
pub(crate) mod monitor;
mod resume;
mod shared_tables;
mod tables;

pub(crate) use descriptors::{amd64_machine, machine_page};
pub(crate) use resume::ResumePage;
pub(crate) use shared_tables::SharedTables;
pub(crate) use tables::{BuildError, build};

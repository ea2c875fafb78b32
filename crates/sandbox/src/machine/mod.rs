//! The machines that the host builds: descriptor tables, monitor and page tables of a user guest, page tables of a kernel.

mod descriptors;
mod kernel_tables;
mod mapping_tables;
pub(crate) mod monitor;
mod resume;
mod shared_tables;
mod tables;

pub(crate) use descriptors::{amd64_machine, machine_page};
pub(crate) use kernel_tables::build_kernel;
pub(crate) use mapping_tables::{ROOT_ENTRY_OFFSET, build_mappings};
pub(crate) use resume::ResumePage;
pub(crate) use shared_tables::SharedTables;
pub(crate) use tables::{BuildError, build, pristine_entry};

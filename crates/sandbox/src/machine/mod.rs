//! The machines that the host builds: descriptor tables, monitor and page tables of a user guest, page tables of a kernel.

mod descriptors;
mod kernel_tables;
mod mapping_tables;
pub(crate) mod monitor;
mod resume;
mod tables;
mod template;

pub(crate) use descriptors::{amd64_machine, machine_page};
pub(crate) use kernel_tables::build_kernel;
pub(crate) use mapping_tables::{ROOT_ENTRY_OFFSET, build_mappings};
pub(crate) use resume::ResumePage;
pub(crate) use tables::{BuildError, build, pristine_entry};
pub(crate) use template::Template;

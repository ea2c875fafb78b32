//! Guest addresses, fixed memory layout and memory planning of Vellum micro-VMs.

#![no_std]
#![forbid(unsafe_code)]

pub mod amd64;
pub mod bookkeeping;
pub mod i686;

mod address;
mod hole;
mod kind;
mod page;
mod plan;
mod range;
mod scratch;

pub use address::{AddressError, Gpa, Gva};
pub use bookkeeping::*;
pub use hole::{Hole, IO_APIC_PAGE, LOCAL_APIC_PAGE, Reserved};
pub use kind::{GuestArch, GuestKind, Translation};
pub use page::{PAGE_SIZE, PageSize};
pub use plan::{
    MAX_RESERVED, MIN_FRAMES_LEN_BYTES, MemoryPlan, Obstacle, PlanError, PlanRequest, RegionName,
    ScratchRequest, minimum_scratch_len,
};
pub use range::{GpaRange, GvaRange, RangeError};
pub use scratch::{GuestPtr, LayoutError, scratch_base_for_guest};

// The facade: to code that *is* a guest, the constants of its own architecture are the crate's.
#[cfg(guest_arch = "amd64")]
pub use amd64::{
    BASE_ADDRESS, MAX_GPA, MAX_GVA, MAX_SCRATCH_LEN_BYTES, scratch_base_gpa, scratch_base_gva,
};
#[cfg(guest_arch = "i686")]
pub use i686::{
    BASE_ADDRESS, MAX_GPA, MAX_GVA_IDENTITY, MAX_GVA_PAGED, MAX_SCRATCH_LEN_BYTES,
    scratch_base_gpa, scratch_base_gva_paged, scratch_base_identity,
};

//! Guest addresses, fixed memory layout and memory planning of Vellum micro-VMs.
//!
//! This crate is the one place that knows where things are in a guest. It has no state, allocates
//! nothing, contains no unsafe code and needs no standard library, so a guest kernel can use it as
//! well as a host.
//!
//! # Addresses
//!
//! [`Gpa`] (guest-physical) and [`Gva`] (guest-virtual) are two types. No arithmetic mixes them,
//! every constructor checks, and every sum that could leave the address space is an [`Option`].
//! [`GpaRange`] and [`GvaRange`] are page-aligned and never empty.
//!
//! ```
//! use vellum_layout::{Gpa, GpaRange, PageSize};
//!
//! let slot = GpaRange::new(Gpa::new(0x20_0000)?, 0x40_0000)?;
//! assert!(slot.start().is_aligned(PageSize::Size2MiB));
//! assert_eq!(slot.offset_of(Gpa::literal(0x20_1000)), Some(0x1000));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Guests
//!
//! A [`GuestKind`] is chosen at run time by the guest image and determines a [`GuestArch`] and a
//! [`Translation`]. One host process runs guests of all kinds side by side, so the constants of
//! both architectures are always compiled: [`amd64`] and [`i686`]. Code that *is* a guest finds
//! the constants of its own architecture at the root of the crate (`vellum_layout::MAX_GPA`), by
//! the target that it is compiled for.
//!
//! # Pointers for a guest
//!
//! A number that the host publishes to a guest must be right under the guest's own translation.
//! [`GuestPtr`] carries number and translation together. For a guest without paging, where
//! GVA == GPA, it can be made of a [`Gpa`] only; a pointer derived from the highest virtual
//! address while the memory lies below the highest physical one does not compile.
//! [`scratch_base_for_guest`] and [`MemoryPlan::guest_ptr`] choose the right derivation.
//!
//! # Plans
//!
//! A guest has two memories: the *image* from `BASE_ADDRESS` upwards, and *scratch* up to
//! `MAX_GPA`. From the bottom, scratch holds the input buffer, the output buffer, page tables and
//! free frames; at its top a guard page, the exception stack and the [`bookkeeping`] page.
//! [`MemoryPlan`] places all of these from sizes, holes and reserved ranges, or says which two
//! things are in each other's way.
//!
//! ```
//! use vellum_layout::{GuestKind, IO_APIC_PAGE, MemoryPlan, PlanRequest, ScratchRequest};
//!
//! let plan = MemoryPlan::new(&PlanRequest {
//!     kind: GuestKind::I686Identity,
//!     image_len_bytes: 0x80_0000,
//!     scratch: ScratchRequest {
//!         len_bytes: 0x400_0000,
//!         input_len_bytes: 0x4000,
//!         output_len_bytes: 0x4000,
//!         tables_len_bytes: 0, // no paging, no tables
//!     },
//!     holes: &[IO_APIC_PAGE],
//!     reserved: &[],
//! })?;
//! // Scratch would reach the I/O APIC, so it lies below.
//! assert_eq!(plan.scratch().end(), IO_APIC_PAGE.range.start());
//! # Ok::<(), vellum_layout::PlanError>(())
//! ```
//!
//! [`MemoryMapPage`] prints the memory-map page of the documentation from the same constants:
//! `cargo run -p vellum-layout --example memory_map`. The example `plan` prints the plan of one
//! guest of each kind.
//!
//! # What this crate does not do
//!
//! It maps nothing and knows no page-table format (`vellum-vmem` does), no hypervisor, and no
//! structure of the host-guest contract (`vellum-abi` has those; only their places are here).

#![no_std]
#![forbid(unsafe_code)]

pub mod amd64;
pub mod bookkeeping;
pub mod i686;

mod address;
mod hole;
mod kind;
mod memory_map;
mod page;
mod plan;
mod range;
mod scratch;

pub use address::{AddressError, Gpa, Gva};
pub use bookkeeping::{
    BOOKKEEPING_LEN_BYTES, EXCEPTION_STACK_LEN_BYTES, EXCEPTION_STACK_OFFSET,
    FAULT_RECORD_MAX_LEN_BYTES, FAULT_RECORD_OFFSET, GUARD_LEN_BYTES, GUARD_OFFSET,
    MONITOR_DATA_LEN_BYTES, MONITOR_DATA_OFFSET, SCRATCH_TOP_ALLOCATOR_OFFSET,
    SCRATCH_TOP_LEN_BYTES, SCRATCH_TOP_SIZE_OFFSET, SCRATCH_TOP_SNAPSHOT_GENERATION_OFFSET,
    SCRATCH_TOP_SNAPSHOT_PT_GPA_BASE_OFFSET,
};
pub use hole::{Hole, IO_APIC_PAGE, LOCAL_APIC_PAGE, Reserved};
pub use kind::{GuestArch, GuestKind, Translation};
pub use memory_map::MemoryMapPage;
pub use page::{PAGE_SIZE, PageSize};
pub use plan::{
    MAX_RESERVED, MIN_FRAMES_LEN_BYTES, MemoryPlan, Obstacle, PlanError, PlanRequest, RegionName,
    ScratchRequest, minimum_scratch_len,
};
pub use range::{GpaRange, GvaRange, RangeError};
pub use scratch::{GuestPtr, LayoutError, scratch_base_for_guest};

// The facade: to code that is a guest, the constants of its own architecture are the crate's own.
#[cfg(guest_arch = "amd64")]
pub use amd64::{
    BASE_ADDRESS, MAX_GPA, MAX_GVA, MAX_SCRATCH_LEN_BYTES, scratch_base_gpa, scratch_base_gva,
};
#[cfg(guest_arch = "i686")]
pub use i686::{
    BASE_ADDRESS, MAX_GPA, MAX_GVA_IDENTITY, MAX_GVA_PAGED, MAX_SCRATCH_LEN_BYTES,
    scratch_base_gpa, scratch_base_gva_paged, scratch_base_identity,
};

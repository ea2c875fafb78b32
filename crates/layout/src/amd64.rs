//! Fixed addresses of amd64 guests.

pub mod user;

use crate::address::{Gpa, Gva};
use crate::bookkeeping::SCRATCH_TOP_LEN_BYTES;
use crate::hole::LOCAL_APIC_PAGE;
use crate::page::{PAGE_SIZE, PageSize};
use crate::scratch::{LayoutError, check_scratch_len};

/// Lowest guest-physical address of guest memory: where the image begins. The page below stays
/// empty, so that no valid object of a guest has the address 0.
pub const BASE_ADDRESS: Gpa = Gpa::literal(PAGE_SIZE);

/// Highest guest-physical address of guest memory: where scratch ends.
///
/// 36 bits, 64 GiB: the physical address width that a CPU with PAE has even when it does not
/// report one (Intel SDM Vol. 3A, chapter "Paging", on MAXPHYADDR), so one plan is valid on
/// every host and a snapshot can move between hosts.
pub const MAX_GPA: Gpa = Gpa::literal(0x0000_000f_ffff_ffff);

/// Highest guest-virtual address that Vellum uses: the last byte of scratch as the guest's
/// supervisor sees it.
///
/// One page below the top of the address space, so that the exclusive end of scratch is itself
/// an address and no end computation wraps to 0.
pub const MAX_GVA: Gva = Gva::literal(0xffff_ffff_ffff_efff);

/// Longest scratch that fits between [`BASE_ADDRESS`] and [`MAX_GPA`], in bytes.
pub const MAX_SCRATCH_LEN_BYTES: u64 = MAX_GPA.as_u64() + 1 - BASE_ADDRESS.as_u64();

/// Where scratch of `len_bytes` begins in guest-physical memory, when no hole is in its way (a
/// [`crate::MemoryPlan`] knows about holes).
///
/// # Errors
///
/// [`LayoutError`] when the length is zero, not a multiple of [`PAGE_SIZE`], or too large.
pub const fn scratch_base_gpa(len_bytes: u64) -> Result<Gpa, LayoutError> {
    match check_scratch_len(len_bytes, MAX_SCRATCH_LEN_BYTES) {
        // The length is at most MAX_GPA + 1 - BASE_ADDRESS, so this is at least BASE_ADDRESS.
        Ok(()) => Ok(Gpa::literal(MAX_GPA.as_u64() + 1 - len_bytes)),
        Err(error) => Err(error),
    }
}

/// Where scratch of `len_bytes` begins for the guest's supervisor, under 4-level paging.
///
/// # Errors
///
/// As for [`scratch_base_gpa`].
pub const fn scratch_base_gva(len_bytes: u64) -> Result<Gva, LayoutError> {
    match check_scratch_len(len_bytes, MAX_SCRATCH_LEN_BYTES) {
        // The length is below 64 GiB, so this stays in the upper half.
        Ok(()) => Ok(Gva::literal(MAX_GVA.as_u64() + 1 - len_bytes)),
        Err(error) => Err(error),
    }
}

const _: () = {
    assert!(BASE_ADDRESS.is_aligned(PageSize::Size4KiB));
    assert!((MAX_GPA.as_u64() + 1).is_power_of_two());
    assert!((MAX_GVA.as_u64() + 1).is_multiple_of(PAGE_SIZE));
    assert!(BASE_ADDRESS.as_u64() < LOCAL_APIC_PAGE.range.start().as_u64());
    assert!(LOCAL_APIC_PAGE.range.end().as_u64() <= MAX_GPA.as_u64());
    assert!(SCRATCH_TOP_LEN_BYTES < MAX_SCRATCH_LEN_BYTES);
    // Both ends of the range of lengths give an address, so `literal` above never panics.
    assert!(
        matches!(scratch_base_gpa(PAGE_SIZE), Ok(base) if base.as_u64() + PAGE_SIZE - 1 == MAX_GPA.as_u64())
    );
    assert!(
        matches!(scratch_base_gpa(MAX_SCRATCH_LEN_BYTES), Ok(base) if base.as_u64() == BASE_ADDRESS.as_u64())
    );
    assert!(
        matches!(scratch_base_gva(PAGE_SIZE), Ok(base) if base.as_u64() + PAGE_SIZE - 1 == MAX_GVA.as_u64())
    );
    assert!(scratch_base_gva(MAX_SCRATCH_LEN_BYTES).is_ok());
};

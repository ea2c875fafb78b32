//! Fixed addresses of i686 guests.
//!
//! There is deliberately no plain `MAX_GVA` here: how far virtual addresses reach depends on
//! whether the guest is entered with paging. An identity guest has only physical addresses, and
//! [`crate::GuestPtr::identity`] is the one way to make a pointer for it.

use crate::address::{Gpa, Gva};
use crate::bookkeeping::SCRATCH_TOP_LEN_BYTES;
use crate::hole::{IO_APIC_PAGE, LOCAL_APIC_PAGE};
use crate::page::{PAGE_SIZE, PageSize};
use crate::scratch::{GuestPtr, LayoutError, check_scratch_len};

/// Lowest guest-physical address of guest memory: where the image begins. The page below stays
/// empty, so that no valid object of a guest has the address 0.
pub const BASE_ADDRESS: Gpa = Gpa::literal(PAGE_SIZE);

/// Highest guest-physical address of guest memory: where scratch ends when no hole is in its way.
/// The last byte below the local APIC page, which is a hole for every guest.
pub const MAX_GPA: Gpa = Gpa::literal(LOCAL_APIC_PAGE.range.start().as_u64() - 1);

/// Highest guest-virtual address of an identity guest: its translation changes nothing, so this
/// is [`MAX_GPA`].
pub const MAX_GVA_IDENTITY: Gva = Gva::literal(MAX_GPA.as_u64());

/// Highest guest-virtual address of a guest with 2-level paging: the last one that 32 bits hold.
/// The local APIC page is no obstacle here, because tables choose what a virtual address means.
pub const MAX_GVA_PAGED: Gva = Gva::literal(0xffff_ffff);

/// Longest scratch that fits between [`BASE_ADDRESS`] and [`MAX_GPA`], in bytes.
pub const MAX_SCRATCH_LEN_BYTES: u64 = MAX_GPA.as_u64() + 1 - BASE_ADDRESS.as_u64();

/// Where scratch of `len_bytes` begins in guest-physical memory, when no hole is in its way (a
/// [`crate::MemoryPlan`] knows about holes, and places scratch below them).
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

/// Where scratch of `len_bytes` begins for a guest without paging: the pointer of
/// [`scratch_base_gpa`], by construction.
///
/// # Errors
///
/// As for [`scratch_base_gpa`].
pub const fn scratch_base_identity(len_bytes: u64) -> Result<GuestPtr, LayoutError> {
    match scratch_base_gpa(len_bytes) {
        Ok(base) => match GuestPtr::identity(base) {
            Ok(pointer) => Ok(pointer),
            Err(error) => Err(LayoutError::Address(error)),
        },
        Err(error) => Err(error),
    }
}

/// Where scratch of `len_bytes` begins for a guest with 2-level paging.
///
/// # Errors
///
/// As for [`scratch_base_gpa`].
pub const fn scratch_base_gva_paged(len_bytes: u64) -> Result<Gva, LayoutError> {
    match check_scratch_len(len_bytes, MAX_SCRATCH_LEN_BYTES) {
        // The length is below 4 GiB, so this is above zero.
        Ok(()) => Ok(Gva::literal(MAX_GVA_PAGED.as_u64() + 1 - len_bytes)),
        Err(error) => Err(error),
    }
}

const _: () = {
    assert!(BASE_ADDRESS.is_aligned(PageSize::Size4KiB));
    assert!(MAX_GPA.as_u64() == 0xfedf_ffff);
    assert!(MAX_GVA_IDENTITY.as_u64() == MAX_GPA.as_u64());
    assert!(MAX_GVA_PAGED.as_u64() == u32::MAX as u64);
    assert!(IO_APIC_PAGE.range.end().as_u64() <= MAX_GPA.as_u64());
    assert!(SCRATCH_TOP_LEN_BYTES < MAX_SCRATCH_LEN_BYTES);
    // Both ends of the range of lengths give an address, so `literal` above never panics.
    assert!(
        matches!(scratch_base_gpa(PAGE_SIZE), Ok(base) if base.as_u64() + PAGE_SIZE - 1 == MAX_GPA.as_u64())
    );
    assert!(
        matches!(scratch_base_gpa(MAX_SCRATCH_LEN_BYTES), Ok(base) if base.as_u64() == BASE_ADDRESS.as_u64())
    );
    assert!(
        matches!(scratch_base_gva_paged(PAGE_SIZE), Ok(base) if base.as_u64() + PAGE_SIZE - 1 == MAX_GVA_PAGED.as_u64())
    );
    assert!(scratch_base_gva_paged(MAX_SCRATCH_LEN_BYTES).is_ok());
};

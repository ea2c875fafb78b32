//! The register page: general registers in memory that the hypervisor shares with us while the vCPU is stopped.
//!
//! What is written takes effect at the next entry, if the bit of its class is set. Only general registers, RIP and RFLAGS travel this way;
//! everything else goes by hypercall, because the order in which the hypervisor applies a page and a hypercall that name the same
//! register is not documented.
#![expect(
    unsafe_code,
    reason = "reads and writes a page that the hypervisor shares"
)]

use std::mem::offset_of;
use std::ptr::NonNull;

use mshv_bindings::{
    HV_X64_REGISTER_CLASS_FLAGS, HV_X64_REGISTER_CLASS_GENERAL, HV_X64_REGISTER_CLASS_IP,
    hv_vp_register_page,
};

use super::registers::{GENERAL_COUNT, GeneralValues};

/// A page that some VP's descriptor maps, valid as long as that VP.
#[derive(Clone, Copy, Debug)]
pub(super) struct SharedPage(NonNull<hv_vp_register_page>);

// SAFETY: the page has no thread affinity; it moves with the vCPU that owns its mapping.
unsafe impl Send for SharedPage {}

/// What was last written to the page and not yet taken over by an entry.
pub(super) type Classes = u32;

const GENERAL: Classes = 1 << HV_X64_REGISTER_CLASS_GENERAL;
const IP: Classes = 1 << HV_X64_REGISTER_CLASS_IP;
const FLAGS: Classes = 1 << HV_X64_REGISTER_CLASS_FLAGS;

const IS_VALID: usize = offset_of!(hv_vp_register_page, isvalid);
/// Of sixteen general registers in the order of their encoding, and then RIP and RFLAGS.
const RAX: usize = 0;
const RIP: usize = 16;

impl SharedPage {
    /// A page at an address.
    ///
    /// # Safety
    /// A whole page must be mapped there, readable and writable, and stay so for as long as the value is used; nothing but the hypervisor may
    /// use it besides.
    pub(super) unsafe fn at(address: *mut hv_vp_register_page) -> Option<Self> {
        NonNull::new(address).map(Self)
    }

    /// Whether the hypervisor keeps the page at all.
    pub(super) fn is_valid(self) -> bool {
        // SAFETY: `at` demands that the page is mapped; the hypervisor may have other ideas about it, so the access is volatile.
        unsafe { self.0.as_ptr().cast::<u8>().add(IS_VALID).read_volatile() != 0 }
    }

    /// Classes that an entry has not taken over yet.
    pub(super) fn dirty(self) -> Classes {
        // SAFETY: as in `is_valid`; the field is aligned to 4 bytes.
        unsafe { self.dirty_field().read_volatile() }
    }

    pub(super) fn general(self) -> GeneralValues {
        let mut values = [0; GENERAL_COUNT];
        for (index, value) in values.iter_mut().enumerate() {
            // SAFETY: as in `is_valid`; 18 aligned numbers lie there.
            *value = unsafe { self.register(index).read_volatile() };
        }
        values
    }

    pub(super) fn set_general(self, values: &GeneralValues) {
        for (index, value) in values.iter().enumerate() {
            self.store(index, *value);
        }
        self.mark(GENERAL | IP | FLAGS);
    }

    pub(super) fn set_rip(self, rip: u64) {
        self.store(RIP, rip);
        self.mark(IP);
    }

    pub(super) fn set_rax(self, rax: u64) {
        self.store(RAX, rax);
        self.mark(GENERAL);
    }

    fn store(self, index: usize, value: u64) {
        // SAFETY: as in `general`.
        unsafe { self.register(index).write_volatile(value) };
    }

    fn mark(self, classes: Classes) {
        // SAFETY: as in `dirty`. The vCPU is stopped, so nobody changes the field in between.
        unsafe { self.dirty_field().write_volatile(self.dirty() | classes) };
    }

    /// A page is aligned for everything that lies in it.
    fn register(self, index: usize) -> *mut u64 {
        debug_assert!(index < GENERAL_COUNT);
        // SAFETY: the fields lie in the page that `at` demands; no reference to them is made.
        let registers = unsafe { &raw mut (*self.0.as_ptr()).__bindgen_anon_1.registers };
        registers.cast::<u64>().wrapping_add(index)
    }

    fn dirty_field(self) -> *mut u32 {
        // SAFETY: as in `register`.
        unsafe { &raw mut (*self.0.as_ptr()).dirty }
    }
}

#[cfg(test)]
mod tests;

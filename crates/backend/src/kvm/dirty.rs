//! The dirty ring: KVM names each page that the guest writes for the first time in shared memory, without a system call.
//!
//! Linux `Documentation/virt/kvm/api.rst`, section 8.29. An entry is collected by setting its `RESET` flag. Only
//! `KVM_RESET_DIRTY_RINGS` write-protects collected pages again, and the backend calls it only when the ring is full: a page
//! that was written once is then written at full speed, and stays in the caller's set.
#![expect(unsafe_code, reason = "maps and reads a ring that the kernel writes")]

use std::fs::File;
use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn};
use rustix::mm::{MapFlags, ProtFlags};

/// Set by the kernel: the entry names a page.
const DIRTY: u32 = 1 << 0;
/// Set by the collector: the entry was read.
const RESET: u32 = 1 << 1;

/// The mapped ring of one vCPU.
#[derive(Debug)]
pub(super) struct DirtyRing {
    entries: NonNull<kvm_dirty_gfn>,
    len: u32,
    next: u32,
}

// SAFETY: the mapping belongs to this value, which is used by one thread at a time.
unsafe impl Send for DirtyRing {}

impl DirtyRing {
    /// Maps the ring of `len` entries, a power of two.
    pub(super) fn map(vcpu: &File, len: u32) -> io::Result<Self> {
        let offset = u64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * vellum_layout::PAGE_SIZE;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no existing memory.
        let entries = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                len as usize * size_of::<kvm_dirty_gfn>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                vcpu,
                offset,
            )
        }?;
        Ok(Self {
            entries: NonNull::new(entries.cast()).ok_or(io::ErrorKind::OutOfMemory)?,
            len,
            next: 0,
        })
    }

    /// Collects the next entry: slot number and page within it.
    pub(super) fn pop(&mut self) -> Option<(u32, u64)> {
        // SAFETY: `next` is masked by the length, so the entry lies in the mapping.
        let entry = unsafe {
            self.entries
                .as_ptr()
                .add((self.next & (self.len - 1)) as usize)
        };
        // SAFETY: the flags are a naturally aligned u32 in a live mapping; kernel and collector share it atomically.
        let flags = unsafe { AtomicU32::from_ptr(&raw mut (*entry).flags) };
        if flags.load(Ordering::Acquire) & DIRTY == 0 {
            return None;
        }
        // SAFETY: the kernel filled the entry before it set DIRTY, and does not touch it until RESET is set and it is asked
        // to reset the ring.
        let page = unsafe { ((*entry).slot & 0xFFFF, (*entry).offset) };
        flags.store(RESET, Ordering::Release);
        self.next = self.next.wrapping_add(1);
        Some(page)
    }
}

impl Drop for DirtyRing {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping.
        let _ = unsafe {
            rustix::mm::munmap(
                self.entries.as_ptr().cast(),
                self.len as usize * size_of::<kvm_dirty_gfn>(),
            )
        };
    }
}

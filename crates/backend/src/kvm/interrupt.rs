//! Making a running vCPU return: `immediate_exit` for the next entry, a signal for the current one.
#![expect(unsafe_code, reason = "maps the kvm_run page")]

use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use rustix::mm::{MapFlags, ProtFlags};

use crate::signal;
use crate::vm::Interrupter;

/// A second mapping of a vCPU's `kvm_run` page, so that the handle may outlive the vCPU.
#[derive(Debug)]
pub(super) struct KvmInterrupter {
    page: NonNull<u8>,
    thread: AtomicI32,
    /// An interruption was asked for and not yet withdrawn.
    is_requested: AtomicBool,
}

// SAFETY: the page is shared memory of the kernel; the one byte that is used is accessed atomically.
unsafe impl Send for KvmInterrupter {}
// SAFETY: as above.
unsafe impl Sync for KvmInterrupter {}

const PAGE_LEN_BYTES: usize = 4096;

impl KvmInterrupter {
    pub(super) fn new(vcpu: &File) -> io::Result<Self> {
        signal::install_handler()?;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no existing memory.
        let page = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                PAGE_LEN_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                vcpu,
                0,
            )
        }?;
        Ok(Self {
            page: NonNull::new(page.cast()).ok_or(io::ErrorKind::OutOfMemory)?,
            thread: AtomicI32::new(0),
            is_requested: AtomicBool::new(false),
        })
    }

    /// Calls `enter_guest`, which then comes back without executing anything. An interruption that is asked for meanwhile hits
    /// the entry after this one.
    pub(super) fn with_immediate_exit<T>(&self, enter_guest: impl FnOnce() -> T) -> T {
        self.immediate_exit().store(1, Ordering::Release);
        let result = enter_guest();
        // Together with `interrupt`, which stores the other way round: whichever comes last leaves the flag set if an
        // interruption is wanted. A store followed by a load of another place needs sequential consistency for that.
        self.immediate_exit().store(0, Ordering::SeqCst);
        if self.is_requested.load(Ordering::SeqCst) {
            self.immediate_exit().store(1, Ordering::Release);
        }
        result
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the field lies inside the page, which stays mapped as long as `self`; every access that this process makes
        // while a call is active is atomic.
        unsafe { AtomicU8::from_ptr(self.page.as_ptr().add(offset_of!(kvm_run, immediate_exit))) }
    }
}

impl Interrupter for KvmInterrupter {
    fn enter(&self) {
        self.thread.store(signal::this_thread(), Ordering::Release);
    }

    fn leave(&self) {
        self.is_requested.store(false, Ordering::Release);
        self.immediate_exit().store(0, Ordering::Release);
    }

    fn interrupt(&self) {
        // One signal for each request: real-time signals queue, and a thread that gets them faster than it handles them does
        // nothing else. One suffices, because `immediate_exit` stays set until `leave`.
        if self.is_requested.swap(true, Ordering::SeqCst) {
            return;
        }
        self.immediate_exit().store(1, Ordering::SeqCst);
        // An error means that the thread is gone.
        let _ = signal::send(self.thread.load(Ordering::Acquire));
    }
}

impl Drop for KvmInterrupter {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping.
        let _ = unsafe { rustix::mm::munmap(self.page.as_ptr().cast(), PAGE_LEN_BYTES) };
    }
}

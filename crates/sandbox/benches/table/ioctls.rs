//! Counts `ioctl` calls exactly: this program defines the symbol, and so gets every call of the libraries in it.
#![expect(unsafe_code, reason = "takes the place of the C library's ioctl")]

use std::ffi::{c_int, c_ulong, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use kvm_bindings::kvm_userspace_memory_region;

use crate::tsc;

static COUNT: AtomicU64 = AtomicU64::new(0);
/// The vCPU that was entered last.
static ENTERED: AtomicI32 = AtomicI32::new(-1);
/// Whether the calls are looked at more closely than counted.
static IS_WATCHED: AtomicBool = AtomicBool::new(false);
static RUN_TICKS: AtomicU64 = AtomicU64::new(0);
static OTHER_TICKS: AtomicU64 = AtomicU64::new(0);
static SLOTS: Mutex<Vec<Slot>> = Mutex::new(Vec::new());

/// The request number of `KVM_RUN` (Linux `include/uapi/linux/kvm.h`: `_IO(0xAE, 0x80)`).
const KVM_RUN: c_ulong = 0xAE80;
/// The request number of `KVM_SET_USER_MEMORY_REGION` (same file: `_IOW(0xAE, 0x46, struct of 32 bytes)`).
const KVM_SET_USER_MEMORY_REGION: c_ulong = 0x4020_AE46;

/// A memory slot that a VM was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) len_bytes: u64,
    pub(crate) flags: u32,
}

/// What was seen of the calls that were watched.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watched {
    /// Ticks of the time-stamp counter in `KVM_RUN`, the guest's own included.
    pub(crate) run_ticks: u64,
    /// Ticks in all others.
    pub(crate) other_ticks: u64,
    pub(crate) slots: Vec<Slot>,
}

/// The C library's `ioctl`, counted.
///
/// # Safety
/// As for the system call.
// SAFETY: the symbol has the C library's signature and does what it does.
#[unsafe(no_mangle)]
unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    COUNT.fetch_add(1, Ordering::Relaxed);
    if request == KVM_RUN {
        ENTERED.store(fd, Ordering::Relaxed);
    }
    if IS_WATCHED.load(Ordering::Relaxed) {
        // SAFETY: passed on as it came.
        return unsafe { watched(fd, request, argument) };
    }
    // SAFETY: passed on as it came; the caller answers for it.
    unsafe { pass_on(fd, request, argument) }
}

/// # Safety
/// As for the system call.
#[inline]
unsafe fn pass_on(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    // SAFETY: the caller answers for it.
    let result = unsafe { libc::syscall(libc::SYS_ioctl, fd, request, argument) };
    // What a request returns is an int.
    #[expect(clippy::cast_possible_truncation, reason = "an int to begin with")]
    {
        result as c_int
    }
}

/// # Safety
/// As for the system call.
#[cold]
unsafe fn watched(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    if request == KVM_SET_USER_MEMORY_REGION {
        // SAFETY: the request takes such a structure, and the kernel is about to read it.
        let region = unsafe { argument.cast::<kvm_userspace_memory_region>().read() };
        if let Ok(mut slots) = SLOTS.lock() {
            slots.push(Slot {
                len_bytes: region.memory_size,
                flags: region.flags,
            });
        }
    }
    let before = tsc::now();
    // SAFETY: passed on as it came; the caller answers for it.
    let result = unsafe { pass_on(fd, request, argument) };
    let ticks = tsc::now() - before;
    let sum = if request == KVM_RUN {
        &RUN_TICKS
    } else {
        &OTHER_TICKS
    };
    sum.fetch_add(ticks, Ordering::Relaxed);
    result
}

/// The file descriptor of the vCPU that this process has entered last; -1 before.
pub(crate) fn last_entered() -> c_int {
    ENTERED.load(Ordering::Relaxed)
}

/// How many calls there were so far.
pub(crate) fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// Looks closely at the calls that `work` makes.
pub(crate) fn watch(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Watched> {
    let ticks = || [&RUN_TICKS, &OTHER_TICKS].map(|sum| sum.load(Ordering::Relaxed));
    let [run_before, other_before] = ticks();
    let slots = || SLOTS.lock().map(|mut slots| std::mem::take(&mut *slots));
    let _ = slots();
    IS_WATCHED.store(true, Ordering::Relaxed);
    let result = work();
    IS_WATCHED.store(false, Ordering::Relaxed);
    result?;
    let [run_after, other_after] = ticks();
    Ok(Watched {
        run_ticks: run_after - run_before,
        other_ticks: other_after - other_before,
        slots: slots().unwrap_or_default(),
    })
}

/// How many calls `work` makes, for each of `times` times that it does its work.
pub(crate) fn count_per(
    times: u32,
    work: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    let before = count();
    work()?;
    let counted = count() - before;
    Ok(f64::from(u32::try_from(counted)?) / f64::from(times))
}

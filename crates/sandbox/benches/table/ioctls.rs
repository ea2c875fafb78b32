//! Counts `ioctl` calls exactly: this program defines the symbol, and so gets every call of the libraries in it.
#![expect(unsafe_code, reason = "takes the place of the C library's ioctl")]

use std::ffi::{c_int, c_ulong, c_void};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

static COUNT: AtomicU64 = AtomicU64::new(0);
/// The vCPU that was entered last.
static ENTERED: AtomicI32 = AtomicI32::new(-1);

/// The request number of `KVM_RUN` (Linux `include/uapi/linux/kvm.h`: `_IO(0xAE, 0x80)`).
const KVM_RUN: c_ulong = 0xAE80;

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
    // SAFETY: passed on as it came; the caller answers for it.
    let result = unsafe { libc::syscall(libc::SYS_ioctl, fd, request, argument) };
    c_int::try_from(result).unwrap_or(-1)
}

/// The file descriptor of the vCPU that this process has entered last; -1 before.
pub(crate) fn last_entered() -> c_int {
    ENTERED.load(Ordering::Relaxed)
}

/// How many calls `work` makes, for each of `times` times that it does its work.
pub(crate) fn count_per(
    times: u32,
    work: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    let before = COUNT.load(Ordering::Relaxed);
    work()?;
    let counted = COUNT.load(Ordering::Relaxed) - before;
    Ok(f64::from(u32::try_from(counted)?) / f64::from(times))
}

//! The signal that makes a vCPU's thread leave its guest.
#![expect(unsafe_code, reason = "sends a signal to one thread")]

use std::io;
use std::sync::OnceLock;

/// Sends the signal to a thread of this process, which is [`this_thread`] of that thread. The caller holds the lock that keeps the
/// thread in its call, so that the number names it and no other; the signal's handler does nothing.
pub(crate) fn send(thread: i32) -> io::Result<()> {
    // SAFETY: `tgkill` touches no memory, and the handler of the signal does nothing.
    let result = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The kernel's number of this thread, asked once; and with it the signal is let through, should the thread block it.
pub(crate) fn this_thread() -> i32 {
    thread_local! {
        static THREAD: i32 = {
            if let Err(error) = vmm_sys_util::signal::unblock_signal(signal()) {
                tracing::error!(%error, "cannot unblock the interruption signal on this thread");
            }
            rustix::thread::gettid().as_raw_nonzero().get()
        };
    }
    THREAD.with(|thread| *thread)
}

/// The signal that ends an entry to a guest: the first real-time signal, which has no meaning of its own.
fn signal() -> i32 {
    libc::SIGRTMIN()
}

/// A handler must exist, or the signal would end the process; it has nothing to do.
pub(crate) fn install_handler() -> io::Result<()> {
    extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| {
            vmm_sys_util::signal::register_signal_handler(signal(), nothing)
                .map_err(vmm_sys_util::errno::Error::errno)
        })
        .map_err(io::Error::from_raw_os_error)
}

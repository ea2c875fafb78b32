//! Stands in for libc's `ioctl`, and lets a request to KVM fail on demand, without any effect. Plans belong to the thread that makes them.
#![expect(unsafe_code, reason = "defines a symbol of libc")]
#![expect(
    unreachable_pub,
    reason = "the symbol is for the linker, not for other crates"
)]

use std::cell::RefCell;
use std::ffi::{c_int, c_ulong, c_void};

/// Bits 8 to 15 of the requests of KVM (Linux `include/uapi/linux/kvm.h`, `KVMIO`).
const KVM_MAGIC: c_ulong = 0xAE;

/// A request that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request(c_ulong);

impl Request {
    /// Its number among KVM's, the low byte.
    pub(crate) fn number(self) -> u64 {
        self.0 & 0xFF
    }
}

#[derive(Debug, Default)]
struct Plan {
    fail_at: Option<(usize, i32)>,
    made: Vec<Request>,
}

thread_local! {
    static PLAN: RefCell<Option<Plan>> = const { RefCell::new(None) };
}

/// Runs `body`, and returns the requests that it made on this thread.
pub(crate) fn recorded<T>(body: impl FnOnce() -> T) -> (T, Vec<Request>) {
    PLAN.with(|plan| *plan.borrow_mut() = Some(Plan::default()));
    let result = body();
    let plan = PLAN.with(|plan| plan.borrow_mut().take());
    (result, plan.unwrap_or_default().made)
}

/// Runs `body`, in which request `index` (from 0) fails.
pub(crate) fn failing<T>(index: usize, errno: i32, body: impl FnOnce() -> T) -> T {
    PLAN.with(|plan| {
        *plan.borrow_mut() = Some(Plan {
            fail_at: Some((index, errno)),
            made: Vec::new(),
        });
    });
    let result = body();
    PLAN.with(|plan| *plan.borrow_mut() = None);
    result
}

/// Counts a request; the errno with which it is to fail, if it is.
fn planned(request: Request) -> Option<i32> {
    PLAN.try_with(|plan| {
        let mut plan = plan.try_borrow_mut().ok()?;
        let plan = plan.as_mut()?;
        let index = plan.made.len();
        plan.made.push(request);
        plan.fail_at
            .filter(|(at, _)| *at == index)
            .map(|(_, errno)| errno)
    })
    .ok()
    .flatten()
}

/// `ioctl`, with one argument: the C function takes any number, and reads one at most, in the same register.
///
/// # Safety
/// As of the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(
    descriptor: c_int,
    request: c_ulong,
    argument: *mut c_void,
) -> c_int {
    if request >> 8 & 0xFF == KVM_MAGIC
        && let Some(errno) = planned(Request(request))
    {
        // SAFETY: the location of errno is valid on every thread.
        unsafe { *libc::__errno_location() = errno };
        return -1;
    }
    // SAFETY: the arguments are the caller's, unchanged.
    let result = unsafe { libc::syscall(libc::SYS_ioctl, descriptor, request, argument) };
    c_int::try_from(result).unwrap_or(-1)
}

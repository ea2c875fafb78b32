//! The symbols that stand in for libc's, and which descriptor is what.
//!
//! A descriptor of the double is a memfd: its number is the kernel's, closing and duplicating work, and mapping a virtual processor's register page needs no
//! help. Raw system calls are not seen; the crates in question make none on these descriptors.
#![expect(unsafe_code, reason = "defines symbols of libc")]
#![expect(
    unreachable_pub,
    reason = "the symbols are for the linker, not for other crates"
)]

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_ulong};
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use crate::device;
use crate::inject::{self, Request, Target, Verdict};
use crate::partition::Partition;
use crate::status::Failure;
use crate::vp::Vp;

const DEVICE: &CStr = c"/dev/mshv";
/// Bits 8 to 15 of a request number: whose it is.
const MSHV_MAGIC: u64 = 0xB8;
const KVM_MAGIC: u64 = 0xAE;
/// Requests beyond this number of descriptors go to the kernel; no test opens so many.
const MAX_DESCRIPTORS: usize = 1 << 16;

/// What a descriptor of the double is.
#[derive(Clone, Debug)]
pub(crate) enum Object {
    Device,
    Partition(Arc<Partition>),
    Vp(Arc<Vp>),
}

static OBJECTS: LazyLock<Mutex<HashMap<RawFd, Object>>> = LazyLock::new(Mutex::default);
/// Looked at for every descriptor of the process, so that nothing else takes the lock.
static IS_OURS: [AtomicBool; MAX_DESCRIPTORS] = [const { AtomicBool::new(false) }; MAX_DESCRIPTORS];

/// Makes a memfd of `pages` pages into a descriptor of the double.
pub(crate) fn publish(file: File, object: Object) -> Result<RawFd, Failure> {
    let descriptor = file.into_raw_fd();
    let Some(is_ours) = flag(descriptor) else {
        // SAFETY: the descriptor was just taken out of its file.
        drop(unsafe { File::from_raw_fd(descriptor) });
        return Err(Failure::Errno(libc::EMFILE));
    };
    let mut objects = OBJECTS.lock().unwrap_or_else(PoisonError::into_inner);
    objects.insert(descriptor, object);
    is_ours.store(true, Ordering::Release);
    Ok(descriptor)
}

/// A memfd, as the file behind a descriptor.
pub(crate) fn memfd(len_bytes: u64) -> Result<File, Failure> {
    // SAFETY: the name is a string that ends in 0; the result is checked.
    let descriptor = unsafe { libc::memfd_create(c"mshv-double".as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let file = unsafe { File::from_raw_fd(descriptor) };
    file.set_len(len_bytes)?;
    Ok(file)
}

fn flag(descriptor: RawFd) -> Option<&'static AtomicBool> {
    IS_OURS.get(usize::try_from(descriptor).ok()?)
}

fn object(descriptor: RawFd) -> Option<Object> {
    if !flag(descriptor)?.load(Ordering::Acquire) {
        return None;
    }
    let objects = OBJECTS.lock().unwrap_or_else(PoisonError::into_inner);
    objects.get(&descriptor).cloned()
}

fn forget(descriptor: RawFd) {
    let is_known = flag(descriptor).is_some_and(|flag| flag.swap(false, Ordering::AcqRel));
    if is_known {
        let removed = OBJECTS
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&descriptor);
        // Outside of the lock: the last reference closes descriptors of KVM.
        inject::uncounted(|| drop(removed));
    }
}

fn fail(errno: i32) -> c_int {
    // SAFETY: the location of errno is valid on every thread.
    unsafe { *libc::__errno_location() = errno };
    -1
}

fn answer(result: Result<c_int, Failure>) -> c_int {
    result.unwrap_or_else(|failure| fail(failure.errno()))
}

fn open_path(path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    // SAFETY: the caller of `open` passes a string that ends in 0.
    let is_device = !path.is_null() && unsafe { CStr::from_ptr(path) } == DEVICE;
    if is_device {
        let request = Request {
            number: inject::OPEN,
            hypercall: None,
        };
        return judged(Target::Mshv, request, || {
            answer(inject::uncounted(device::open))
        });
    }
    // SAFETY: the arguments are the caller's, unchanged.
    let result = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags, mode) };
    c_int::try_from(result).unwrap_or(-1)
}

/// Opens a file, or the double.
///
/// # Safety
/// As `open(2)`. Without `O_CREAT` the third argument is not looked at by the kernel.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    open_path(path, flags, mode)
}

/// Opens a file, or the double.
///
/// # Safety
/// As `open(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    open_path(path, flags, mode)
}

/// Closes a descriptor.
///
/// # Safety
/// As `close(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(descriptor: c_int) -> c_int {
    forget(descriptor);
    // SAFETY: the argument is the caller's, unchanged.
    let result = unsafe { libc::syscall(libc::SYS_close, descriptor) };
    c_int::try_from(result).unwrap_or(-1)
}

/// Makes a request on a descriptor.
///
/// # Safety
/// As `ioctl(2)`: the argument is what the request says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(descriptor: c_int, request: c_ulong, argument: c_ulong) -> c_int {
    // A request has 32 bits; callers that pass it as a signed number extend its sign.
    let number = request & 0xFFFF_FFFF;
    let magic = number >> 8 & 0xFF;
    if magic == MSHV_MAGIC
        && let Some(object) = object(descriptor)
    {
        return mshv(&object, number, argument);
    }
    let pass_on = || {
        // SAFETY: the arguments are the caller's, unchanged.
        let result = unsafe { libc::syscall(libc::SYS_ioctl, descriptor, request, argument) };
        c_int::try_from(result).unwrap_or(-1)
    };
    if magic == KVM_MAGIC {
        let counted = Request {
            number,
            hypercall: None,
        };
        return judged(Target::Kvm, counted, pass_on);
    }
    pass_on()
}

/// Makes a request, unless the plan of this thread has something else in mind.
fn judged(target: Target, request: Request, make: impl FnOnce() -> c_int) -> c_int {
    match inject::judge(target, request) {
        Verdict::Made => make(),
        Verdict::Failed(errno) => fail(errno),
        Verdict::Lost => 0,
    }
}

fn mshv(object: &Object, number: u64, argument: u64) -> c_int {
    let counted = Request {
        number,
        hypercall: crate::hypercall::code_of(number, argument),
    };
    judged(Target::Mshv, counted, || {
        answer(inject::uncounted(|| match object {
            Object::Device => device::request(number, argument),
            Object::Partition(partition) => Partition::request(partition, number, argument),
            Object::Vp(vp) => vp.request(number, argument),
        }))
    })
}

/// Referred to by whoever wants these symbols in its program.
pub(crate) fn keep() {
    std::hint::black_box([
        open as *const () as usize,
        open64 as *const () as usize,
        close as *const () as usize,
        ioctl as *const () as usize,
    ]);
}

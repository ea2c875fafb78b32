//! Leaving with every register filled, behind the library's back.

use core::sync::atomic::{AtomicUsize, Ordering};

use vellum_guest::rt;

use super::{control, machine, narrow};

/// The direction flag, which compiled code counts on.
const DIRECTION: usize = 1 << 10;

/// What the general registers held when [`leave`] was resumed, in the order of their numbers; the flags are the last.
pub(super) static RESUMED_WITH: [AtomicUsize; 17] = [const { AtomicUsize::new(0) }; 17];

/// The stack pointer with which [`leave`] goes on when it is resumed.
pub(super) static STACK: AtomicUsize = AtomicUsize::new(0);

pub(super) fn resumed_with() -> [usize; 17] {
    RESUMED_WITH
        .each_ref()
        .map(|word| word.load(Ordering::Relaxed))
}

/// Leaves with `reply` in the output buffer and every register full of `value`: an end of the call like any other, for the host.
/// Bit 0 of `kind` sets the direction flag; bits 1 and 2 leave in the shadow of `mov ss` or of `sti`.
pub(super) fn leave(kind: u8, value: usize, reply: &[u8]) {
    let peb = rt::peb();
    let output: *mut u8 = core::ptr::with_exposed_provenance_mut(narrow(peb.output_ptr));
    let len_bytes = reply.len().min(narrow(peb.output_len_bytes));
    // SAFETY: the host maps the buffer that the PEB names, writable; the library holds no reference to it while a guest function
    // runs.
    unsafe { output.copy_from_nonoverlapping(reply.as_ptr(), len_bytes) };
    let direction = if kind & 1 == 0 { 0 } else { DIRECTION };
    let flags = value & control::FLAGS | direction | 2;
    // SAFETY: they save the stack pointer, and go on from there in a call of their own when they are resumed.
    unsafe {
        match kind >> 1 & 3 {
            0 => machine::leave_plainly(flags, value),
            1 => machine::leave_after_mov_ss(flags, value),
            _ => machine::leave_after_sti(flags, value),
        }
    }
}

pub(super) extern "C" fn serve() {
    rt::serve();
}

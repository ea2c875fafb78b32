//! Leaving with every register filled, behind the library's back.

#[cfg(target_arch = "x86_64")]
#[path = "leaving/amd64.rs"]
mod machine;
#[cfg(target_arch = "x86")]
#[path = "leaving/i686.rs"]
mod machine;

use core::sync::atomic::{AtomicUsize, Ordering};

use vellum_guest::rt;

// The ways of kernels, and of user guests where there are any.
pub use machine::*;

/// The direction flag, which compiled code counts on.
const DIRECTION: usize = 1 << 10;
/// Bit 1 of the flags, which is always set (Intel SDM volume 1, section 3.4.3).
const ALWAYS_SET: usize = 1 << 1;

/// What the general registers held when [`leave`] was resumed, in the order of their numbers; the flags are the last.
static RESUMED_WITH: [AtomicUsize; 17] = [const { AtomicUsize::new(0) }; 17];

/// The stack pointer with which [`leave`] goes on when it is resumed.
static STACK: AtomicUsize = AtomicUsize::new(0);

/// Leaves with these flags and registers that are made of this value.
type Leave = unsafe extern "C" fn(flags: usize, value: usize);

/// The last instructions before the exit.
#[derive(Clone, Copy, Debug)]
pub struct Ways {
    plainly: Leave,
    after_mov_ss: Leave,
    after_sti: Leave,
}

/// Leaves with `reply` in the output buffer and every register full of `value`: an end of the call like any other, for the host.
/// Bit 0 of `kind` sets the direction flag; bits 1 and 2 leave in the shadow of `mov ss` or of `sti`.
pub fn leave(ways: &Ways, kind: u8, flags: usize, value: usize, reply: &[u8]) {
    let peb = rt::peb();
    let output: *mut u8 = core::ptr::with_exposed_provenance_mut(narrow(peb.output_ptr));
    let len_bytes = reply.len().min(narrow(peb.output_len_bytes));
    // SAFETY: the host maps the buffer that the PEB names, writable; the library holds no reference to it while a guest function
    // runs.
    unsafe { output.copy_from_nonoverlapping(reply.as_ptr(), len_bytes) };
    let direction = if kind & 1 == 0 { 0 } else { DIRECTION };
    let flags = flags | direction | ALWAYS_SET;
    // SAFETY: they save the stack pointer, and go on from there in a call of their own when they are resumed.
    unsafe {
        match kind >> 1 & 3 {
            0 => (ways.plainly)(flags, value),
            1 => (ways.after_mov_ss)(flags, value),
            _ => (ways.after_sti)(flags, value),
        }
    }
}

/// What the registers held when [`leave`] was resumed the last time, in the order of their numbers; the flags are the last.
pub fn resumed_with() -> [usize; 17] {
    RESUMED_WITH
        .each_ref()
        .map(|word| word.load(Ordering::Relaxed))
}

/// Waits for the next call, for a guest that was resumed where it had left.
extern "C" fn serve() {
    rt::serve();
}

/// An address or length of this guest's.
#[expect(
    clippy::cast_possible_truncation,
    reason = "what the PEB says fits into the guest's registers"
)]
const fn narrow(value: u64) -> usize {
    value as usize
}

/// Makes the three ways of one kind of guest, with a macro `leaving` that takes a name, what `$own` says of the guest, and the last lines.
macro_rules! ways {
    ($kind:ident, $module:ident, $own:tt) => {
        /// The ways of such a guest.
        pub const $kind: Ways = Ways {
            plainly: $module::plainly,
            after_mov_ss: $module::after_mov_ss,
            after_sti: $module::after_sti,
        };

        mod $module {
            use super::*;

            leaving!(plainly, $own, []);
            leaving!(after_mov_ss, $own, ["mov ecx, ss", "mov ss, ecx"]);
            leaving!(after_sti, $own, ["sti"]);
        }
    };
}
use ways;

//! What differs on i686: register names and widths.

use core::arch::asm;

/// There is no CR8.
pub(super) fn task_priority() -> usize {
    0
}

pub(super) fn set_task_priority(_: usize) {}

/// # Safety
/// Eight bytes can be read there.
pub(super) unsafe fn output_string(port: u32, at: *const u64) {
    // SAFETY: the caller's promise. ESI, which code for this machine may reserve, is saved by hand.
    unsafe {
        asm!(
            "xchg esi, {at}",
            "rep outsb",
            "mov esi, {at}",
            at = inout(reg) at => _,
            in("edx") port,
            inout("ecx") 8_usize => _,
            options(nostack),
        );
    };
}

/// # Safety
/// Four bytes at `to` can be written.
pub(super) unsafe fn copy_words(from: usize, to: *mut u64) {
    // SAFETY: the caller's promise; for ESI as above.
    unsafe {
        asm!(
            "xchg esi, {from}",
            "movsd",
            "mov esi, {from}",
            from = inout(reg) from => _,
            inout("edi") to => _,
            options(nostack),
        );
    };
}

/// Pushes the word at an address, and pops it.
pub(super) fn push_from(address: usize) {
    // SAFETY: the stack is as it was.
    unsafe { asm!("push dword ptr [{0}]", "pop {0}", inout(reg) address => _) };
}

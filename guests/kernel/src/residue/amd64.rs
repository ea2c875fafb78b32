//! What differs on amd64: register names and widths.

use core::arch::asm;

/// CR8.
pub(super) fn task_priority() -> usize {
    let value;
    // SAFETY: reads a register; ring 0 may.
    unsafe { asm!("mov {}, cr8", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

pub(super) fn set_task_priority(value: usize) {
    // SAFETY: there are no interrupts.
    unsafe { asm!("mov cr8, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

/// # Safety
/// Eight bytes can be read there.
pub(super) unsafe fn output_string(port: u32, at: *const u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep outsb", in("edx") port, inout("rsi") at => _, inout("rcx") 8_usize => _, options(nostack));
    };
}

/// # Safety
/// Four bytes at `to` can be written.
pub(super) unsafe fn copy_words(from: usize, to: *mut u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("movsd", inout("rsi") from => _, inout("rdi") to => _, options(nostack));
    };
}

/// Pushes the word at an address, and pops it.
pub(super) fn push_from(address: usize) {
    // SAFETY: the stack is as it was.
    unsafe { asm!("push qword ptr [{0}]", "pop {0}", inout(reg) address => _) };
}

//! What differs on i686: register names and widths.

use core::arch::{asm, naked_asm};

use vellum_guest::abi::port::{IDLE_REPLY, Port};

use super::leaving::{RESUMED_WITH, STACK, serve};

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

/// Makes a function that loads the registers (but for the stack pointer, which a page fault needs), executes `$last`, and leaves. When it is resumed it writes down what the registers
/// hold before anything else, and waits for the next call.
macro_rules! leaving {
    ($name:ident, $($last:literal),*) => {
        #[unsafe(naked)]
        pub(super) unsafe extern "C" fn $name(flags: usize, value: usize) {
            naked_asm!(
                "mov [{stack}], esp",
                // The flags, and the value.
                "mov eax, [esp + 4]",
                "mov esi, [esp + 8]",
                "push eax",
                "mov ebx, esi",
                "not ebx",
                "lea ecx, [esi + 1]",
                "mov edx, esi",
                "bswap edx",
                "lea ebp, [esi + 3]",
                "lea edi, [edx + 5]",
                // POPF of 32 bits.
                ".byte 0x9D",
                "mov eax, {reply}",
                $($last,)*
                "out {port}, eax",
                "mov [{saved}], eax",
                "mov [{saved} + 4], ecx",
                "mov [{saved} + 8], edx",
                "mov [{saved} + 12], ebx",
                "mov [{saved} + 16], esp",
                "mov [{saved} + 20], ebp",
                "mov [{saved} + 24], esi",
                "mov [{saved} + 28], edi",
                "mov esp, [{stack}]",
                // PUSHF of 32 bits.
                ".byte 0x9C",
                "pop dword ptr [{saved} + 64]",
                "cld",
                "cli",
                // Aligned to 16 for the call.
                "and esp, -16",
                "call {serve}",
                "ud2",
                stack = sym STACK,
                saved = sym RESUMED_WITH,
                reply = const IDLE_REPLY,
                port = const Port::Idle as u8,
                serve = sym serve,
            )
        }
    };
}

leaving!(leave_plainly,);
leaving!(leave_after_mov_ss, "mov ecx, ss", "mov ss, ecx");
leaving!(leave_after_sti, "sti");

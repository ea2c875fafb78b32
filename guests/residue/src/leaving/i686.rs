//! Register names and widths of i686.

use core::arch::naked_asm;

use vellum_guest::abi::port::{IDLE_REPLY, Port};

use super::{RESUMED_WITH, STACK, Ways, serve, ways};

/// Makes a function that loads the registers (but for the stack pointer, which a page fault needs), executes `$last`, and leaves.
/// When it is resumed it writes down what the registers hold before anything else, and waits for the next call.
macro_rules! leaving {
    ($name:ident, {}, [$($last:literal),*]) => {
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

ways!(KERNEL, kernel, {});

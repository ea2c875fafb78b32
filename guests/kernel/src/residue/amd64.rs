//! What differs on amd64: register names and widths.

use core::arch::{asm, naked_asm};

use vellum_guest::abi::port::{IDLE_REPLY, Port};

use super::leaving::{RESUMED_WITH, STACK, serve};

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

/// Makes a function that loads the registers (but for the stack pointer, which a page fault needs), executes `$last`, and leaves. When it is resumed it writes down what the registers
/// hold before anything else, and waits for the next call.
macro_rules! leaving {
    ($name:ident, $($last:literal),*) => {
        #[unsafe(naked)]
        pub(super) unsafe extern "sysv64" fn $name(flags: usize, value: usize) {
            naked_asm!(
                "mov [rip + {stack}], rsp",
                "push rdi",
                "mov rbx, rsi",
                "not rbx",
                "lea rcx, [rsi + 1]",
                "mov rdx, rsi",
                "bswap rdx",
                "lea rbp, [rsi + 3]",
                "lea rdi, [rdx + 5]",
                "lea r8, [rsi + 8]",
                "lea r9, [rdx + 9]",
                "lea r10, [rbx + 10]",
                "lea r11, [rsi + 11]",
                "lea r12, [rdx + 12]",
                "lea r13, [rbx + 13]",
                "lea r14, [rsi + 14]",
                "lea r15, [rdx + 15]",
                "popfq",
                "mov eax, {reply}",
                $($last,)*
                "out {port}, eax",
                "mov [rip + {saved}], rax",
                "mov [rip + {saved} + 8], rcx",
                "mov [rip + {saved} + 16], rdx",
                "mov [rip + {saved} + 24], rbx",
                "mov [rip + {saved} + 32], rsp",
                "mov [rip + {saved} + 40], rbp",
                "mov [rip + {saved} + 48], rsi",
                "mov [rip + {saved} + 56], rdi",
                "mov [rip + {saved} + 64], r8",
                "mov [rip + {saved} + 72], r9",
                "mov [rip + {saved} + 80], r10",
                "mov [rip + {saved} + 88], r11",
                "mov [rip + {saved} + 96], r12",
                "mov [rip + {saved} + 104], r13",
                "mov [rip + {saved} + 112], r14",
                "mov [rip + {saved} + 120], r15",
                "mov rsp, [rip + {stack}]",
                "pushfq",
                "pop qword ptr [rip + {saved} + 128]",
                "cld",
                "cli",
                // Aligned to 16 for the call.
                "and rsp, -16",
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

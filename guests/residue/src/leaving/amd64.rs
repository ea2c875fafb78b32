//! Register names and widths of amd64.

use core::arch::naked_asm;

use vellum_guest::abi::port::{IDLE_REPLY, Port};

use super::{RESUMED_WITH, STACK, Ways, serve, ways};

/// Makes a function that loads the registers, executes `$last`, and leaves. When it is resumed it writes down what the registers
/// hold before anything else, and waits for the next call.
macro_rules! leaving {
    (
        $name:ident,
        { base: [$($base:literal),*], stack: [$($stack:literal),*], resumed: [$($resumed:literal),*] },
        [$($last:literal),*]
    ) => {
        #[unsafe(naked)]
        pub(super) unsafe extern "C" fn $name(flags: usize, value: usize) {
            naked_asm!(
                // The stack is aligned to 16 before a call, so that it is 8 off here.
                "mov [rip + {stack}], rsp",
                "push rdi",
                "mov rbx, rsi",
                "not rbx",
                $($base,)*
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
                $($stack,)*
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
                $($resumed,)*
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

// For RSP as well, an address of the lower half: some hypervisors emulate instructions when it is none, and not all instructions.
ways!(USER, user, {
    base: ["shr rbx, 17"],
    stack: ["mov rsp, rbx"],
    resumed: []
});

// A page fault needs the stack pointer. There are no interrupts.
ways!(KERNEL, kernel, { base: [], stack: [], resumed: ["cli"] });

//! The note and the first instructions of an amd64 user guest.

/// The ELF note: an amd64 user guest.
#[doc(hidden)]
#[macro_export]
macro_rules! __note {
    () => {
        #[used]
        #[unsafe(link_section = ".note.vellum")]
        static __VELLUM_NOTE: $crate::abi::note::Note = $crate::abi::note::Note::AMD64_USER;
    };
}

/// `_start`, and what else has to be assembly.
///
/// The host enters with RDI = PEB, RSP = top of the stack, 16-byte aligned (System V ABI for amd64, section 3.2.2,
/// wants that before a call), DF clear.
#[doc(hidden)]
#[macro_export]
macro_rules! __start {
    () => {
        ::core::arch::global_asm!(
            // The linker defines these where the sections exist; a guest may lack either.
            ".weak __start_vellum_functions",
            ".weak __stop_vellum_functions",
            ".weak __start_vellum_imports",
            ".section .text._start, \"ax\", @progbits",
            ".globl _start",
            ".type _start, @function",
            ".p2align 4",
            "_start:",
            // Outermost frame: a debugger stops here.
            "    xor ebp, ebp",
            // Second to fourth argument: the tables' bounds. The first, the PEB, is in RDI already.
            "    movabs rsi, offset __start_vellum_functions",
            "    movabs rdx, offset __stop_vellum_functions",
            "    movabs rcx, offset __start_vellum_imports",
            // RSP is 16-byte aligned here, as it must be before a call.
            "    call {start}",
            // __vellum_start does not return.
            "    ud2",
            ".size _start, . - _start",
            // `core` and `alloc` come compiled with unwind tables that name these; with panic = "abort" nothing
            // calls them.
            ".globl rust_eh_personality",
            ".type rust_eh_personality, @function",
            "rust_eh_personality:",
            ".globl _Unwind_Resume",
            ".type _Unwind_Resume, @function",
            "_Unwind_Resume:",
            "    ud2",
            ".size rust_eh_personality, . - rust_eh_personality",
            ".size _Unwind_Resume, . - _Unwind_Resume",
            ".text",
            start = sym __vellum_start,
        );
    };
}

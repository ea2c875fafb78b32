//! The note and the first instructions of an i686 identity guest.

/// The ELF note: a 32-bit kernel without paging.
#[doc(hidden)]
#[macro_export]
macro_rules! __note {
    () => {
        #[used]
        #[unsafe(link_section = ".note.vellum")]
        static __VELLUM_NOTE: $crate::abi::note::Note = $crate::abi::note::Note::I686_IDENTITY;
    };
}

/// `_start`.
///
/// The host enters in flat protected mode with EDI = PEB, ESP = top of the stack, 16-byte aligned (System V ABI for
/// i386, section 2.2.2, wants that before a call), DF and IF clear.
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
            // Fourth to second argument: the tables' bounds.
            "    mov eax, offset __start_vellum_imports",
            "    push eax",
            "    mov eax, offset __stop_vellum_functions",
            "    push eax",
            "    mov eax, offset __start_vellum_functions",
            "    push eax",
            // First argument: the PEB.
            "    push edi",
            // Four words later ESP is 16-byte aligned again, as it must be before a call.
            "    call {start}",
            // __vellum_start does not return.
            "    ud2",
            ".size _start, . - _start",
            ".text",
            start = sym __vellum_start,
        );
    };
}

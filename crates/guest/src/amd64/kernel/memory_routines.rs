//! The note and the memory routines of amd64 kernels, which have no vector registers.

/// The ELF note: an amd64 kernel on page tables that the host has built.
#[doc(hidden)]
#[macro_export]
macro_rules! __kernel_note {
    () => {
        #[used]
        #[unsafe(link_section = ".note.vellum")]
        static __VELLUM_NOTE: $crate::abi::note::Note = $crate::abi::note::Note::AMD64_KERNEL;
    };
}

/// Defines `memcpy`, `memmove`, `memset`, `memcmp`, `bcmp` and `strlen`, each with `$prefix` before its name.
///
/// They use `rep` string instructions of eight bytes: a kernel is compiled without vector registers, and some hypervisors
/// emulate ring 0 one instruction at a time. DF is clear before and after (System V ABI for amd64, section 3.2.1).
#[doc(hidden)]
#[macro_export]
macro_rules! __kernel_memory_routines {
    ($prefix:literal) => {
        ::core::arch::global_asm!(
            concat!(".section .text.", $prefix, "memmove, \"ax\", @progbits"),
            concat!(".globl ", $prefix, "memcpy"),
            concat!(".globl ", $prefix, "memmove"),
            concat!(".type ", $prefix, "memcpy, @function"),
            concat!(".type ", $prefix, "memmove, @function"),
            ".p2align 4",
            // RDI = destination, RSI = source, RDX = length; returns RDI in RAX.
            concat!($prefix, "memcpy:"),
            concat!($prefix, "memmove:"),
            "    mov rax, rdi",
            // Backward if the destination starts inside the source, else forward.
            "    mov rcx, rdi",
            "    sub rcx, rsi",
            "    cmp rcx, rdx",
            "    mov rcx, rdx",
            "    jb 12f",
            // Forward: words, then at most seven bytes.
            "    shr rcx, 3",
            "    rep movsq",
            "    mov ecx, edx",
            "    and ecx, 7",
            "    rep movsb",
            "    ret",
            // Backward, from the last byte: at most seven bytes, then words.
            "12: std",
            "    lea rsi, [rsi + rcx - 1]",
            "    lea rdi, [rdi + rcx - 1]",
            "    and ecx, 7",
            "    rep movsb",
            // From the last byte of a word to its first.
            "    sub rsi, 7",
            "    sub rdi, 7",
            "    mov rcx, rdx",
            "    shr rcx, 3",
            "    rep movsq",
            "    cld",
            "    ret",
            concat!(".size ", $prefix, "memmove, . - ", $prefix, "memmove"),
            concat!(".size ", $prefix, "memcpy, . - ", $prefix, "memcpy"),
            concat!(".section .text.", $prefix, "memset, \"ax\", @progbits"),
            concat!(".globl ", $prefix, "memset"),
            concat!(".type ", $prefix, "memset, @function"),
            ".p2align 4",
            // RDI = destination, ESI = byte, RDX = length; returns RDI in RAX.
            concat!($prefix, "memset:"),
            "    mov r8, rdi",
            // The byte in every byte of RAX.
            "    movzx eax, sil",
            "    movabs rcx, 0x0101010101010101",
            "    imul rax, rcx",
            "    mov rcx, rdx",
            "    shr rcx, 3",
            "    rep stosq",
            "    mov ecx, edx",
            "    and ecx, 7",
            "    rep stosb",
            "    mov rax, r8",
            "    ret",
            concat!(".size ", $prefix, "memset, . - ", $prefix, "memset"),
            concat!(".section .text.", $prefix, "memcmp, \"ax\", @progbits"),
            concat!(".globl ", $prefix, "memcmp"),
            concat!(".globl ", $prefix, "bcmp"),
            concat!(".type ", $prefix, "memcmp, @function"),
            concat!(".type ", $prefix, "bcmp, @function"),
            ".p2align 4",
            // RDI, RSI = the two memories, RDX = length; EAX = difference of the first bytes that differ.
            concat!($prefix, "memcmp:"),
            concat!($prefix, "bcmp:"),
            "    mov rcx, rdx",
            // Also sets ZF, which `repe cmpsb` leaves alone when the length is zero.
            "    xor eax, eax",
            "    repe cmpsb",
            "    je 51f",
            "    movzx eax, byte ptr [rdi - 1]",
            "    movzx ecx, byte ptr [rsi - 1]",
            "    sub eax, ecx",
            "51: ret",
            concat!(".size ", $prefix, "memcmp, . - ", $prefix, "memcmp"),
            concat!(".size ", $prefix, "bcmp, . - ", $prefix, "bcmp"),
            concat!(".section .text.", $prefix, "strlen, \"ax\", @progbits"),
            concat!(".globl ", $prefix, "strlen"),
            concat!(".type ", $prefix, "strlen, @function"),
            ".p2align 4",
            // RDI = text; RAX = number of bytes before the zero.
            concat!($prefix, "strlen:"),
            "    xor eax, eax",
            "69: cmp byte ptr [rdi + rax], 0",
            "    je 61f",
            "    inc rax",
            "    jmp 69b",
            "61: ret",
            concat!(".size ", $prefix, "strlen, . - ", $prefix, "strlen"),
            ".text",
        );
    };
}

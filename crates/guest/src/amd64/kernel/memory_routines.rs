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
        $crate::__routine! {
            $prefix, ["memmove", "memcpy"],
            // RDI = destination, RSI = source, RDX = length; returns RDI in RAX.
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
        }
        $crate::__routine! {
            $prefix, ["memset"],
            // RDI = destination, ESI = byte, RDX = length; returns RDI in RAX.
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
        }
        $crate::__routine! {
            $prefix, ["memcmp", "bcmp"],
            // RDI, RSI = the two memories, RDX = length; EAX = difference of the first bytes that differ.
            "    mov rcx, rdx",
            // Also sets ZF, which `repe cmpsb` leaves alone when the length is zero.
            "    xor eax, eax",
            "    repe cmpsb",
            "    je 51f",
            "    movzx eax, byte ptr [rdi - 1]",
            "    movzx ecx, byte ptr [rsi - 1]",
            "    sub eax, ecx",
            "51: ret",
        }
        $crate::__routine! {
            $prefix, ["strlen"],
            // RDI = text; RAX = number of bytes before the zero.
            "    xor eax, eax",
            "69: cmp byte ptr [rdi + rax], 0",
            "    je 61f",
            "    inc rax",
            "    jmp 69b",
            "61: ret",
        }
    };
}

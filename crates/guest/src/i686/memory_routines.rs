//! memcpy and its family, which compiled code calls and no C library provides here.

/// Defines `memcpy`, `memmove`, `memset`, `memcmp`, `bcmp` and `strlen`, each with `$prefix` before its name.
///
/// They are assembly because a compiler may turn a loop that copies into a call of `memcpy`. They use `rep` string
/// instructions of four bytes: a kernel starts without SSE, and some hypervisors emulate ring 0 one instruction at a
/// time. Arguments are on the stack, EBX, ESI, EDI and EBP are the caller's, DF is clear before and after (System V
/// ABI for i386, section 2.2).
#[doc(hidden)]
#[macro_export]
macro_rules! __memory_routines {
    ($prefix:literal) => {
        ::core::arch::global_asm!(
            concat!(".section .text.", $prefix, "memmove, \"ax\", @progbits"),
            concat!(".globl ", $prefix, "memcpy"),
            concat!(".globl ", $prefix, "memmove"),
            concat!(".type ", $prefix, "memcpy, @function"),
            concat!(".type ", $prefix, "memmove, @function"),
            ".p2align 4",
            // Destination, source, length; returns the destination in EAX.
            concat!($prefix, "memcpy:"),
            concat!($prefix, "memmove:"),
            "    push esi",
            "    push edi",
            "    mov edi, [esp + 12]",
            "    mov esi, [esp + 16]",
            "    mov ecx, [esp + 20]",
            "    mov eax, edi",
            // Backward if the destination starts inside the source, else forward.
            "    mov edx, edi",
            "    sub edx, esi",
            "    cmp edx, ecx",
            "    mov edx, ecx",
            "    jb 12f",
            // Forward: words, then at most three bytes.
            "    shr ecx, 2",
            "    rep movsd",
            "    mov ecx, edx",
            "    and ecx, 3",
            "    rep movsb",
            "    pop edi",
            "    pop esi",
            "    ret",
            // Backward, from the last byte: at most three bytes, then words.
            "12: std",
            "    lea esi, [esi + ecx - 1]",
            "    lea edi, [edi + ecx - 1]",
            "    and ecx, 3",
            "    rep movsb",
            // From the last byte of a word to its first.
            "    sub esi, 3",
            "    sub edi, 3",
            "    mov ecx, edx",
            "    shr ecx, 2",
            "    rep movsd",
            "    cld",
            "    pop edi",
            "    pop esi",
            "    ret",
            concat!(".size ", $prefix, "memmove, . - ", $prefix, "memmove"),
            concat!(".size ", $prefix, "memcpy, . - ", $prefix, "memcpy"),
            concat!(".section .text.", $prefix, "memset, \"ax\", @progbits"),
            concat!(".globl ", $prefix, "memset"),
            concat!(".type ", $prefix, "memset, @function"),
            ".p2align 4",
            // Destination, byte, length; returns the destination in EAX.
            concat!($prefix, "memset:"),
            "    push edi",
            "    mov edi, [esp + 8]",
            // The byte in every byte of EAX.
            "    movzx eax, byte ptr [esp + 12]",
            "    imul eax, eax, 0x01010101",
            "    mov edx, [esp + 16]",
            "    mov ecx, edx",
            "    shr ecx, 2",
            "    rep stosd",
            "    mov ecx, edx",
            "    and ecx, 3",
            "    rep stosb",
            "    mov eax, [esp + 8]",
            "    pop edi",
            "    ret",
            concat!(".size ", $prefix, "memset, . - ", $prefix, "memset"),
            concat!(".section .text.", $prefix, "memcmp, \"ax\", @progbits"),
            concat!(".globl ", $prefix, "memcmp"),
            concat!(".globl ", $prefix, "bcmp"),
            concat!(".type ", $prefix, "memcmp, @function"),
            concat!(".type ", $prefix, "bcmp, @function"),
            ".p2align 4",
            // The two memories, length; EAX = difference of the first bytes that differ.
            concat!($prefix, "memcmp:"),
            concat!($prefix, "bcmp:"),
            "    push esi",
            "    push edi",
            "    mov esi, [esp + 12]",
            "    mov edi, [esp + 16]",
            "    mov ecx, [esp + 20]",
            // Also sets ZF, which `repe cmpsb` leaves alone when the length is zero.
            "    xor eax, eax",
            "    repe cmpsb",
            "    je 51f",
            "    movzx eax, byte ptr [esi - 1]",
            "    movzx ecx, byte ptr [edi - 1]",
            "    sub eax, ecx",
            "51: pop edi",
            "    pop esi",
            "    ret",
            concat!(".size ", $prefix, "memcmp, . - ", $prefix, "memcmp"),
            concat!(".size ", $prefix, "bcmp, . - ", $prefix, "bcmp"),
            concat!(".section .text.", $prefix, "strlen, \"ax\", @progbits"),
            concat!(".globl ", $prefix, "strlen"),
            concat!(".type ", $prefix, "strlen, @function"),
            ".p2align 4",
            // The text; EAX = number of bytes before the zero.
            concat!($prefix, "strlen:"),
            "    mov ecx, [esp + 4]",
            "    mov eax, ecx",
            "69: cmp byte ptr [eax], 0",
            "    je 61f",
            "    inc eax",
            "    jmp 69b",
            "61: sub eax, ecx",
            "    ret",
            concat!(".size ", $prefix, "strlen, . - ", $prefix, "strlen"),
            ".text",
        );
    };
}

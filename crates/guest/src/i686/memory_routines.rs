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
        $crate::__routine! {
            $prefix, ["memmove", "memcpy"],
            // Destination, source, length; returns the destination in EAX.
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
        }
        $crate::__routine! {
            $prefix, ["memset"],
            // Destination, byte, length; returns the destination in EAX.
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
        }
        $crate::__routine! {
            $prefix, ["memcmp", "bcmp"],
            // The two memories, length; EAX = difference of the first bytes that differ.
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
        }
        $crate::__routine! {
            $prefix, ["strlen"],
            // The text; EAX = number of bytes before the zero.
            "    mov ecx, [esp + 4]",
            "    mov eax, ecx",
            "69: cmp byte ptr [eax], 0",
            "    je 61f",
            "    inc eax",
            "    jmp 69b",
            "61: sub eax, ecx",
            "    ret",
        }
    };
}

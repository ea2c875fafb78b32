//! The first and last instructions of an exception.

#![expect(unsafe_code, reason = "declares the symbol of assembly")]

use core::arch::global_asm;

use crate::kernel::vellum_handle_exception;

/// Length of one stub; the stub of vector v lies at v times this.
const STUB_LEN_BYTES: u32 = 16;

/// Vectors whose error code the processor pushes: 8, 10 to 14, 17, 21, 29, 30 (Intel SDM volume 3A, table 6-1; AMD APM
/// volume 2, section 8.2 for 29 and 30).
const HAVE_CODE: u32 = 0x6022_7D00;

/// What lies on the stack when the handler runs: registers that compiled code may change, then what the stub and the
/// processor have pushed (Intel SDM volume 3A, section 6.12.1; there is no change of rings, so no stack pointer).
#[repr(C)]
pub(crate) struct Frame {
    registers: [u32; 3],
    vector: u32,
    code: u32,
    eip: u32,
    cs: u32,
    eflags: u32,
}

impl Frame {
    pub(crate) const fn vector(&self) -> u32 {
        self.vector
    }

    pub(crate) const fn code(&self) -> u64 {
        self.code as u64
    }

    pub(crate) const fn instruction(&self) -> u64 {
        self.eip as u64
    }
}

/// The address of the stub of a vector.
pub(crate) fn address(vector: u32) -> u32 {
    unsafe extern "C" {
        static vellum_exception_stubs: u8;
    }
    // Pointers have 32 bits.
    #[expect(clippy::cast_possible_truncation)]
    let stubs = (&raw const vellum_exception_stubs).addr() as u32;
    stubs + vector * STUB_LEN_BYTES
}

// The processor pushes EFLAGS, CS, EIP and for some vectors an error code; it does not align ESP. Compiled code of a
// kernel uses neither vector nor x87 registers, so none are saved. Interrupt gates keep IF clear.
global_asm!(
    ".pushsection .text.vellum_exceptions, \"ax\", @progbits",
    ".p2align 4",
    ".globl vellum_exception_stubs",
    "vellum_exception_stubs:",
    ".set vellum_exception_vector, 0",
    ".rept 32",
    ".p2align 4",
    // A zero in place of the error code, where there is none.
    ".if ({have_code} >> vellum_exception_vector) & 1",
    ".else",
    "    push 0",
    ".endif",
    "    push vellum_exception_vector",
    "    jmp vellum_exception_common",
    ".set vellum_exception_vector, vellum_exception_vector + 1",
    ".endr",
    ".p2align 4",
    "vellum_exception_common:",
    // The registers that a function may change (System V ABI for i386, section 2.2.2), in the order of `Frame`.
    "    push eax",
    "    push ecx",
    "    push edx",
    // Compiled code expects DF clear.
    "    cld",
    // CR2 before anything can fault, and the address of the frame.
    "    mov ecx, cr2",
    "    mov edx, esp",
    // EBX, which functions keep, remembers ESP.
    "    push ebx",
    "    mov ebx, esp",
    // Two words below an address aligned to 16, less two words: aligned before the call.
    "    and esp, -16",
    "    sub esp, 8",
    // Second and first argument.
    "    push ecx",
    "    push edx",
    "    call {handler}",
    "    mov esp, ebx",
    "    pop ebx",
    "    pop edx",
    "    pop ecx",
    "    pop eax",
    // Vector and error code.
    "    add esp, 8",
    "    iretd",
    ".popsection",
    have_code = const HAVE_CODE,
    handler = sym vellum_handle_exception,
);

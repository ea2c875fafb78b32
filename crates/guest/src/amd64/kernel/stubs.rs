//! The first and last instructions of an exception.

#![expect(unsafe_code, reason = "declares the symbol of assembly")]

use core::arch::global_asm;

use crate::kernel::vellum_handle_exception;

/// Length of one stub; the stub of vector v lies at v times this.
const STUB_LEN_BYTES: usize = 16;

/// Vectors whose error code the processor pushes: 8, 10 to 14, 17, 21, 29, 30 (Intel SDM volume 3A, table 6-1; AMD APM
/// volume 2, section 8.2 for 29 and 30).
const HAVE_CODE: u32 = 0x6022_7D00;

/// What lies on the stack when the handler runs: registers that compiled code may change, then what the stub and the
/// processor have pushed (Intel SDM volume 3A, section 6.14.2).
#[repr(C)]
pub(crate) struct Frame {
    registers: [u64; 9],
    vector: u64,
    code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

impl Frame {
    pub(crate) const fn vector(&self) -> u32 {
        // A stub pushes a number below 32.
        #[expect(clippy::cast_possible_truncation)]
        {
            self.vector as u32
        }
    }

    pub(crate) const fn code(&self) -> u64 {
        self.code
    }

    pub(crate) const fn instruction(&self) -> u64 {
        self.rip
    }
}

/// The address of the stub of a vector.
pub(crate) fn address(vector: u32) -> usize {
    unsafe extern "C" {
        static vellum_exception_stubs: u8;
    }
    let stubs = (&raw const vellum_exception_stubs).addr();
    stubs + vector as usize * STUB_LEN_BYTES
}

// The processor aligns RSP to 16 bytes and pushes SS, RSP, RFLAGS, CS, RIP and for some vectors an error code. Nothing
// below RSP is in use: kernels are compiled without a red zone. Compiled code of a kernel uses no vector registers, so
// none are saved. Interrupt gates keep IF clear.
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
    // The registers that a function may change (System V ABI for amd64, section 3.2.1), in the order of `Frame`.
    "    push rax",
    "    push rcx",
    "    push rdx",
    "    push rsi",
    "    push rdi",
    "    push r8",
    "    push r9",
    "    push r10",
    "    push r11",
    // Compiled code expects DF clear.
    "    cld",
    // Second argument: CR2, before anything can fault. First argument: the frame.
    "    mov rsi, cr2",
    "    mov rdi, rsp",
    // Sixteen words after an aligned RSP it is aligned again, as it must be before a call.
    "    call {handler}",
    "    pop r11",
    "    pop r10",
    "    pop r9",
    "    pop r8",
    "    pop rdi",
    "    pop rsi",
    "    pop rdx",
    "    pop rcx",
    "    pop rax",
    // Vector and error code.
    "    add rsp, 16",
    "    iretq",
    ".popsection",
    have_code = const HAVE_CODE,
    handler = sym vellum_handle_exception,
);

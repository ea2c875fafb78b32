//! Functions that misbehave, each in one way. Whoever calls them expects an error.

use core::alloc::Layout;
use core::arch::asm;
use core::fmt;
use core::hint::black_box;

use alloc::string::String;
use alloc::vec::Vec;

use vellum_guest::guest_function;

/// A number of bytes or pages as this machine counts them.
pub(crate) fn length(value: u64) -> usize {
    // usize has 64 bits in this guest.
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[guest_function]
fn do_panic(text: &str) {
    panic!("{text}");
}

/// Panics with a message that panics.
#[guest_function]
fn panic_in_panic() {
    struct Panicking;

    impl fmt::Display for Panicking {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("again");
        }
    }

    panic!("{Panicking}");
}

#[guest_function]
fn do_abort(code: u32) {
    vellum_guest::abort(code);
}

#[guest_function]
fn invalid_opcode() {
    // SAFETY: raises #UD, after which the host does not resume this guest.
    unsafe { asm!("ud2", options(noreturn)) };
}

#[guest_function]
fn int3() {
    // SAFETY: raises #BP; a host that resumes continues after the instruction.
    unsafe { asm!("int3", options(nomem, nostack)) };
}

/// Divides with the CPU's own instruction, which raises #DE for a divisor of 0 and for `i32::MIN / -1`.
#[guest_function]
fn divide(dividend: i32, divisor: i32) -> i32 {
    let quotient;
    // SAFETY: EDX:EAX is the sign-extended dividend; the instruction gives a quotient or raises #DE.
    unsafe {
        asm!("cdq", "idiv {divisor:e}", divisor = in(reg) divisor, inout("eax") dividend => quotient, out("edx") _, options(nomem, nostack));
    }
    quotient
}

/// Recurses until the stack ends.
#[guest_function]
fn overflow_stack() {
    descend(u64::MAX);
}

/// Recurses `depth` times and returns the depth reached.
#[guest_function]
fn recurse(depth: u64) -> u64 {
    descend(depth)
}

/// One frame of at least 64 bytes for each step.
#[inline(never)]
fn descend(steps_left: u64) -> u64 {
    let frame = black_box([steps_left; 8]);
    if frame[0] == 0 {
        0
    } else {
        descend(frame[1] - 1) + black_box(1)
    }
}

/// Writes to a constant.
#[guest_function]
fn write_read_only() {
    static CONSTANT: u64 = 0x5EA1_ED00;
    write(core::ptr::from_ref(&CONSTANT).expose_provenance() as u64, 0);
}

/// Jumps to a return instruction on the stack.
#[guest_function]
fn jump_to_nx() {
    let code = black_box([0xC3_u8; 16]);
    // SAFETY: raises #PF, because the stack is not executable; if it were, the code there would return.
    unsafe { asm!("call {}", in(reg) code.as_ptr(), clobber_abi("C")) };
}

#[guest_function]
fn read_null() {
    read(0);
}

#[guest_function]
fn write_null() {
    write(0, 1);
}

/// Reads the bookkeeping page, which is the supervisor's.
#[guest_function]
fn read_supervisor() {
    read(vellum_layout::amd64::MAX_GVA.as_u64() & !0xFFF);
}

#[guest_function]
fn read_address(address: u64) -> u64 {
    read(address)
}

#[guest_function]
fn write_address(address: u64, value: u64) {
    write(address, value);
}

#[guest_function]
fn halt() {
    // SAFETY: raises #GP in ring 3; touches nothing.
    unsafe { asm!("hlt", options(nomem, nostack)) };
}

#[guest_function]
fn spin() {
    loop {
        core::hint::spin_loop();
    }
}

/// Allocates `len_bytes` bytes, frees them and returns their number; panics when they cannot be had.
#[guest_function]
fn allocate(len_bytes: u64) -> u64 {
    let Ok(layout) = Layout::array::<u8>(length(len_bytes)) else {
        panic!("allocation of {len_bytes} bytes failed");
    };
    if layout.size() == 0 {
        return 0;
    }
    // SAFETY: the layout is not empty.
    let block = black_box(unsafe { alloc::alloc::alloc(layout) });
    if block.is_null() {
        alloc::alloc::handle_alloc_error(layout);
    }
    // SAFETY: the block was allocated with this layout just above.
    unsafe { alloc::alloc::dealloc(block, layout) };
    len_bytes
}

/// Allocates 64 KiB at a time, writes to each block, and keeps them, until there is no more.
#[guest_function]
fn exhaust_heap() {
    loop {
        let mut block = Vec::<u64>::with_capacity(8192);
        block.push(1);
        black_box(block.leak());
    }
}

/// A string that is not UTF-8 on the way out, by way of a broken promise.
#[guest_function]
fn invalid_utf8() -> String {
    // SAFETY: none. The string breaks its invariant; this guest does nothing with it but send it.
    unsafe { String::from_utf8_unchecked(Vec::from([0xFF, 0xFE])) }
}

/// Reads eight bytes with a plain instruction, whatever is there.
pub(crate) fn read(address: u64) -> u64 {
    let value;
    // SAFETY: reads memory that may not be there; the fault ends the call, a success returns some bits.
    unsafe {
        asm!("mov {}, [{}]", out(reg) value, in(reg) address, options(readonly, nostack, preserves_flags));
    };
    value
}

/// Writes eight bytes with a plain instruction, whatever is there.
pub(crate) fn write(address: u64, value: u64) {
    // SAFETY: none. It may destroy this guest's own memory; it cannot reach anybody else's, which is what it tests.
    unsafe {
        asm!("mov [{}], {}", in(reg) address, in(reg) value, options(nostack, preserves_flags));
    };
}

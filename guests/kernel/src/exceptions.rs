//! Exceptions that end the guest, one function each.

use core::arch::asm;

use alloc::boxed::Box;

use vellum_guest::{GuestError, guest_function, kernel};

/// Executes an instruction that no processor has.
#[guest_function]
fn invalid_opcode() {
    // SAFETY: raises an exception, which does not come back.
    unsafe { asm!("ud2", options(nomem, nostack)) };
}

/// Writes to the code of this kernel.
#[guest_function]
fn write_code() {
    let code = write_code as *const () as *mut u8;
    // SAFETY: raises an exception, which does not come back.
    unsafe { asm!("mov byte ptr [{}], 0xCC", in(reg) code, options(nostack)) };
}

/// Jumps into the heap, where the only instruction is a return.
#[guest_function]
fn execute_heap() {
    // RET (Intel SDM volume 2, "RET").
    let code = Box::new([0xC3_u8; 16]);
    // SAFETY: the instruction at the address returns, if it is executed at all.
    unsafe { asm!("call {}", in(reg) code.as_ptr(), clobber_abi("C")) };
}

/// Calls itself for ever.
#[guest_function]
fn overflow_stack() -> u64 {
    descend(0)
}

#[expect(unconditional_recursion, reason = "that is the point")]
fn descend(depth: u64) -> u64 {
    let frame = core::hint::black_box([depth; 32]);
    descend(depth + 1) + frame[0]
}

/// Takes frames until there are none, then returns how many there were.
#[guest_function]
fn exhaust_frames() -> u64 {
    let mut count = 0;
    while kernel::take_frame().is_some() {
        count += 1;
    }
    count
}

/// Clears the direction flag's opposite: sets it while a page is copied on write, to see that the handler does not mind, and
/// returns whether it is set afterwards.
#[guest_function]
fn fault_with_direction_flag(address: u64) -> Result<bool, GuestError> {
    let address = usize::try_from(address).map_err(|_| GuestError::new("address is too wide"))?;
    let flags: usize;
    // SAFETY: writes back the byte that it reads; the flag is clear again at the end.
    unsafe {
        asm!(
            "std",
            "mov {flags:l}, byte ptr [{address}]",
            "mov byte ptr [{address}], {flags:l}",
            // PUSHF of this mode's width. The assembler takes the mnemonic for the 16-bit form in 32-bit code.
            ".byte 0x9C",
            "pop {flags}",
            "cld",
            address = in(reg) address,
            flags = out(reg_abcd) flags,
        );
    }
    // DF is bit 10 (Intel SDM volume 1, section 3.4.3.2).
    Ok(flags & (1 << 10) != 0)
}

//! The registers that hold where the descriptor tables are.

use core::arch::asm;

use alloc::vec::Vec;

use vellum_guest::guest_function;

/// Bytes of GDTR and of IDTR: a limit of two bytes and an address (Intel SDM volume 3A, section 2.4).
const REGISTER_LEN_BYTES: usize = 2 + size_of::<usize>();

/// GDTR, then IDTR, as `sgdt` and `sidt` store them.
#[guest_function]
fn descriptor_tables() -> Vec<u8> {
    let mut gdtr = [0_u8; REGISTER_LEN_BYTES];
    let mut idtr = [0_u8; REGISTER_LEN_BYTES];
    // SAFETY: each instruction writes as many bytes as the array has.
    unsafe {
        asm!(
            "sgdt [{gdtr}]",
            "sidt [{idtr}]",
            gdtr = in(reg) gdtr.as_mut_ptr(),
            idtr = in(reg) idtr.as_mut_ptr(),
            options(nostack, preserves_flags),
        );
    }
    [gdtr, idtr].concat()
}

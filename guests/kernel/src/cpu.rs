//! What only ring 0 can do: control registers, halting, an exception that nothing handles.

use core::arch::asm;

use vellum_guest::guest_function;

/// CR0, of which the upper half is zero in 64-bit code (Intel SDM volume 3, section 2.5).
pub(crate) fn cr0() -> usize {
    let value;
    // SAFETY: reads a register; ring 0 may.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// A control register's value as a function returns it.
pub(crate) fn low_word(value: usize) -> u32 {
    // Control registers have 32 bits on the architecture that this kernel runs on.
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[guest_function]
fn get_cr0() -> u32 {
    low_word(cr0())
}

/// Stops the CPU. Interrupts are off, so only the host can bring it back.
#[guest_function]
fn halt() {
    // SAFETY: touches nothing.
    unsafe { asm!("hlt", options(nomem, nostack, preserves_flags)) };
}

/// Not write-through: CR0 bit 29 (Intel SDM volume 3, section 2.5). Without bit 30 no CPU accepts it.
const CR0_NW: usize = 1 << 29;

/// Raises an exception while there is no interrupt table. Neither it nor the double fault after it can be delivered, so
/// the CPU shuts down (Intel SDM volume 3, section 6.15, "Interrupt 8").
///
/// The exception is the #GP of an impossible CR0 (Intel SDM volume 2, "MOV - Move to/from Control Registers"), which
/// hypervisors that emulate ring 0 raise like any CPU; not all of them know how to raise #BP or #UD.
#[guest_function]
pub(crate) fn triple_fault() {
    // Limit and base of an empty table; the base of 64-bit code has eight bytes.
    static NO_TABLE: [u16; 5] = [0; 5];
    // SAFETY: reads the static and never returns.
    unsafe {
        asm!(
            "lidt [{table}]",
            "mov cr0, {impossible}",
            "ud2",
            table = in(reg) NO_TABLE.as_ptr(),
            impossible = in(reg) cr0() | CR0_NW,
            options(noreturn),
        );
    }
}

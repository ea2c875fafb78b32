//! Register contents that outlive a call, for tests of what a restore leaves behind.
//!
//! Each uses the last register of its file, which compiled code touches least.

use core::arch::asm;

use vellum_guest::guest_function;

#[guest_function]
fn set_xmm(value: u64) {
    // SAFETY: changes only the register that is declared.
    unsafe {
        asm!("movq xmm15, {}", in(reg) value, out("xmm15") _, options(nomem, nostack, preserves_flags));
    };
}

#[guest_function]
fn get_xmm() -> u64 {
    let value;
    // SAFETY: reads a register that every CPU with SSE2 has, whatever it holds.
    unsafe { asm!("movq {}, xmm15", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Sets the upper half of YMM15; raises #UD where AVX is off.
#[guest_function]
fn set_avx(value: u64) {
    // SAFETY: changes only the register that is declared, of which YMM15 is the full width.
    unsafe {
        asm!(
            "vmovq xmm15, {}",
            "vinsertf128 ymm15, ymm15, xmm15, 1",
            in(reg) value,
            out("xmm15") _,
            options(nomem, nostack, preserves_flags),
        );
    }
}

/// The upper half of YMM15; raises #UD where AVX is off.
#[guest_function]
fn get_avx() -> u64 {
    let value;
    // SAFETY: changes only the registers that are declared.
    unsafe {
        asm!(
            "vextractf128 xmm14, ymm15, 1",
            "vmovq {}, xmm14",
            out(reg) value,
            out("xmm14") _,
            options(nomem, nostack, preserves_flags),
        );
    }
    value
}

/// Sets the direction flag and leaves it set, against the calling convention.
#[guest_function]
fn set_flags_df() {
    // SAFETY: none in general. No code that runs between here and the next exit uses string instructions.
    unsafe { asm!("std", options(nomem, nostack)) };
}

/// Whether the direction flag is set.
#[guest_function]
fn get_flags_df() -> bool {
    let flags: u64;
    // SAFETY: pushes and pops one word; `nostack` is absent.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags) };
    // RFLAGS bit 10 is DF (Intel SDM volume 1, section 3.4.3.2).
    flags & (1 << 10) != 0
}

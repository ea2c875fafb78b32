//! Ways for a call to end without a reply, most of them in the middle of an instruction.

use core::arch::asm;

use vellum_guest::rt;
use vellum_guest_residue::{send_nonsense, spin};

use crate::faults::write;

/// Ends the call, as `kind` says. Where a port is needed it is the low half of `value`.
pub(super) fn end(kind: u8, value: u64) {
    let [low, high, ..] = value.to_le_bytes();
    let port = u32::from(u16::from_le_bytes([low, high]));
    // A word that string instructions may read and write.
    let mut word = value;
    let at = &raw mut word;
    // SAFETY: none of them comes back, but where the host lets them go on: then the word is what they write to.
    unsafe {
        match kind {
            0 => asm!("ud2", options(noreturn)),
            1 => spin(),
            2 => asm!("out dx, eax", in("edx") port, in("eax") u32::from(low), options(nostack)),
            3 => asm!("out dx, al", in("edx") port, in("al") low, options(nostack)),
            4 => asm!("in eax, dx", in("edx") port, out("eax") _, options(nostack)),
            5 => asm!("in al, dx", in("edx") port, out("al") _, options(nostack)),
            6 => {
                asm!("rep outsb", in("edx") port, inout("rsi") at => _, inout("rcx") 8_u64 => _, options(nostack));
            }
            7 => {
                asm!("rep insb", in("edx") port, inout("rdi") at => _, inout("rcx") 8_u64 => _, options(nostack));
            }
            8 => asm!("outsd", in("edx") port, inout("rsi") at => _, options(nostack)),
            9 => asm!("insd", in("edx") port, inout("rdi") at => _, options(nostack)),
            10 => asm!("int3", options(nostack)),
            11 => panic!("on purpose: {value:#x}"),
            12 => vellum_guest::abort(port),
            13 => write(value & 0xFFF, value),
            // TF is bit 8 (Intel SDM volume 1, section 3.4.3): #DB behind the next instruction.
            14 => asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop"),
            15 => {
                asm!("xor edx, edx", "div {:e}", in(reg) 0, out("eax") _, out("edx") _, options(nostack));
            }
            16 => asm!("hlt", options(nostack)),
            17 => asm!("jmp {}", in(reg) value | 1 << 62, options(noreturn)),
            _ => {
                write(rt::peb().output_ptr, value);
                send_nonsense(kind);
            }
        }
    }
}

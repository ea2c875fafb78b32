//! Ways for a call to end without a reply, most of them in the middle of an instruction.

use core::arch::asm;

use vellum_guest::rt;
use vellum_guest_residue::{send_nonsense, spin};

use super::{machine, narrow};
use crate::memory::write;

/// Ends the call, as `kind` says. The low half of `value` is the port where one is needed; its quotient by 65,536 is an address at
/// which there is no memory.
pub(super) fn end(kind: u8, value: u64) {
    let [low, high, ..] = value.to_le_bytes();
    let port = u32::from(u16::from_le_bytes([low, high]));
    let absent = narrow(value >> 16);
    // A word that string instructions may read and write.
    let mut word = value;
    let at = &raw mut word;
    // SAFETY: none of them comes back, but where the host lets them go on: then the word is what they write to.
    unsafe {
        match kind {
            0 => asm!("ud2", options(noreturn)),
            1 => spin(),
            2 => asm!("out dx, eax", in("edx") port, in("eax") 0, options(nostack)),
            3 => asm!("in eax, dx", in("edx") port, out("eax") _, options(nostack)),
            4 => asm!("in al, dx", in("edx") port, out("al") _, options(nostack)),
            5 => machine::output_string(port, at),
            6 => {
                asm!("rep insb", in("edx") port, inout("edi") at => _, inout("ecx") 8_usize => _, options(nostack));
            }
            7 => asm!("insd", in("edx") port, inout("edi") at => _, options(nostack)),
            8 => panic!("on purpose: {port}"),
            9 => asm!("hlt", options(nostack)),
            10 => crate::cpu::triple_fault(),
            11 => {
                crate::memory::read(absent);
            }
            12 => asm!("mov dword ptr [{}], {:e}", in(reg) absent, in(reg) port, options(nostack)),
            13 => asm!("add dword ptr [{}], {:e}", in(reg) absent, in(reg) port, options(nostack)),
            14 => {
                asm!("rep stosb", inout("edi") absent => _, inout("ecx") 64_usize => _, in("al") low, options(nostack));
            }
            15 => machine::copy_words(absent, at),
            16 => machine::push_from(absent),
            17 => asm!("int3", options(nostack)),
            // TF is bit 8 (Intel SDM volume 1, section 3.4.3): #DB behind the next instruction.
            18 => {
                asm!(".byte 0x9C", "pop {0}", "or {0}, 0x100", "push {0}", ".byte 0x9D", "nop", out(reg) _);
            }
            19 => {
                asm!("xor edx, edx", "div {:e}", in(reg) 0_u32, out("eax") _, out("edx") _, options(nostack));
            }
            20 => asm!("call {}", in(reg) absent, options(noreturn)),
            _ => {
                let nonsense = u32::from_le_bytes([low, high, 0, 1]);
                write(narrow(rt::peb().output_ptr), nonsense);
                send_nonsense(kind);
            }
        }
    }
}

//! Stack pointer, flags, segments and protection keys.

use core::arch::asm;

/// CF, PF, AF, ZF, SF, IF, OF, AC, ID (Intel SDM volume 1, section 3.4.3). Not NT, which some hypervisors lose at a page fault.
pub(super) const FLAGS: u64 = 0x0024_0AD5;

pub(super) fn stack_pointer() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

pub(super) fn flags() -> u64 {
    let value;
    // SAFETY: pushes and pops one word; `nostack` is absent.
    unsafe { asm!("pushfq", "pop {}", out(reg) value) };
    value
}

pub(super) fn set_flags(value: u64) {
    // SAFETY: pushes and pops one word. What the flags mean for the code behind is the host's affair.
    unsafe { asm!("push {}", "popfq", in(reg) value & FLAGS | 2) };
}

/// DS, ES, FS, GS, SS and CS.
pub(super) fn selectors() -> [u64; 6] {
    macro_rules! selector {
        ($register:literal) => {{
            let value: u64;
            // SAFETY: reads a register.
            unsafe {
                asm!(concat!("mov {:e}, ", $register), out(reg) value, options(nomem, nostack, preserves_flags));
            };
            value
        }};
    }
    [
        selector!("ds"),
        selector!("es"),
        selector!("fs"),
        selector!("gs"),
        selector!("ss"),
        selector!("cs"),
    ]
}

/// Loads DS, ES, FS or GS with a null selector or that of the stack.
pub(super) fn load_segment(register: u8, value: u64) {
    macro_rules! load {
        ($register:literal, $value:expr) => {
            // SAFETY: segments other than those of code and stack have no part in 64-bit addressing, but for FS and GS, which
            // this guest does not use.
            unsafe {
                asm!(concat!("mov ", $register, ", {:e}"), in(reg) $value, options(nostack, preserves_flags));
            }
        };
    }
    let value = match value % 5 {
        4 => selectors()[4],
        null => null,
    };
    match register {
        0 => load!("ds", value),
        1 => load!("es", value),
        2 => load!("fs", value),
        _ => load!("gs", value),
    }
}

/// The bases of FS and GS. Raises #UD where CR4.FSGSBASE is off.
pub(super) fn bases() -> [u64; 2] {
    let (fs, gs);
    // SAFETY: reads registers.
    unsafe {
        asm!("rdfsbase {}", "rdgsbase {}", out(reg) fs, out(reg) gs, options(nomem, nostack, preserves_flags));
    };
    [fs, gs]
}

/// Sets the base of FS or GS, to an address of the lower half.
pub(super) fn set_base(register: u8, value: u64) {
    let value = value >> 17;
    // SAFETY: this guest uses neither segment.
    unsafe {
        if register == 0 {
            asm!("wrfsbase {}", in(reg) value, options(nomem, nostack, preserves_flags));
        } else {
            asm!("wrgsbase {}", in(reg) value, options(nomem, nostack, preserves_flags));
        }
    }
}

/// What `smsw` shows of CR0. Raises #GP where CR4.UMIP is on, as the next two.
pub(super) fn status_word() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { asm!("smsw {:r}", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// GDTR and IDTR.
pub(super) fn descriptor_tables() -> [u8; 20] {
    let mut bytes = [0_u8; 20];
    // SAFETY: each instruction writes ten bytes.
    unsafe {
        asm!("sgdt [{0}]", "sidt [{0} + 10]", in(reg) bytes.as_mut_ptr(), options(nostack, preserves_flags));
    };
    bytes
}

/// The selectors in LDTR and TR.
pub(super) fn system_selectors() -> [u64; 2] {
    let (table, task): (u64, u64);
    // SAFETY: reads registers.
    unsafe {
        asm!("sldt {:e}", "str {:e}", out(reg) table, out(reg) task, options(nomem, nostack, preserves_flags));
    };
    [table, task]
}

/// PKRU. Raises #UD where CR4.PKE is off.
pub(super) fn protection_keys() -> u64 {
    let value: u32;
    // SAFETY: reads a register.
    unsafe {
        asm!("rdpkru", in("ecx") 0, out("eax") value, out("edx") _, options(nomem, nostack, preserves_flags));
    };
    value.into()
}

/// Sets the rights of every key but the first, which all pages of this guest have.
pub(super) fn set_protection_keys(value: u64) {
    #[expect(clippy::cast_possible_truncation, reason = "a register of 32 bits")]
    let value = value as u32 & !3;
    // SAFETY: no page has another key than the first.
    unsafe {
        asm!("wrpkru", in("eax") value, in("ecx") 0, in("edx") 0, options(nostack, preserves_flags));
    };
}

//! Control, debug and model-specific registers, flags, vector state.

use core::arch::asm;
use core::mem::MaybeUninit;

use vellum_guest_residue::{LEGACY_LEN_BYTES, patch_legacy_image};

use super::machine;

/// The model-specific registers that a guest has: the declared ones, EFER, and the bases of FS and GS (Intel SDM volume 4, table
/// 2-2).
pub(super) const MSRS: [u32; 11] = [
    0x174,
    0x175,
    0x176,
    0xC000_0081,
    0xC000_0082,
    0xC000_0083,
    0xC000_0084,
    0xC000_0102,
    0xC000_0080,
    0xC000_0100,
    0xC000_0101,
];

/// Index of EFER, of which only SCE may change.
const EFER: u8 = 8;
/// Index of STAR, which holds selectors, and of FMASK, which has 32 bits; all others hold addresses.
const STAR: u8 = 3;
const FMASK: u8 = 6;

macro_rules! get_register {
    ($register:literal) => {{
        let value: usize;
        // SAFETY: reads a register; ring 0 may.
        unsafe {
            asm!(concat!("mov {}, ", $register), out(reg) value, options(nomem, nostack, preserves_flags));
        };
        value
    }};
}

macro_rules! set_register {
    ($register:literal, $value:expr) => {
        // SAFETY: what the register means for the code behind is the host's affair.
        unsafe { asm!(concat!("mov ", $register, ", {}"), in(reg) $value, options(nostack, preserves_flags)) }
    };
}

/// A control register; 0 for CR8 where there is none.
pub(super) fn get(number: u8) -> usize {
    match number {
        0 => get_register!("cr0"),
        2 => get_register!("cr2"),
        3 => get_register!("cr3"),
        4 => get_register!("cr4"),
        _ => machine::task_priority(),
    }
}

/// Changes what may change of a control register.
pub(super) fn set(number: u8, value: usize) {
    /// TS, MP, NE, AM (Intel SDM volume 3, section 2.5).
    const CR0: usize = 1 << 3 | 1 << 1 | 1 << 5 | 1 << 18;
    const CR0_WP: usize = 1 << 16;
    /// TSD, DE, PGE, OSFXSR, OSXMMEXCPT.
    const CR4: usize = 1 << 2 | 1 << 3 | 1 << 7 | 1 << 9 | 1 << 10;
    match number {
        0 => set_register!("cr0", get(0) ^ value & CR0),
        1 => set_register!("cr0", get(0) ^ CR0_WP),
        2 => set_register!("cr2", value & (usize::MAX >> 17)),
        4 => set_register!("cr4", get(4) ^ value & CR4),
        _ => machine::set_task_priority(value & 0xF),
    }
}

pub(super) fn debug() -> [usize; 6] {
    [
        get_register!("dr0"),
        get_register!("dr1"),
        get_register!("dr2"),
        get_register!("dr3"),
        get_register!("dr6"),
        get_register!("dr7"),
    ]
}

/// Sets a debug register, but arms no breakpoint: QEMU, which emulates a machine with a KVM inside for tests, crashes over random ones.
pub(super) fn set_debug(number: u8, value: usize) {
    /// B0 to B3, BD, BS, BT (Intel SDM volume 3, section 18.2.3).
    const DR6: usize = 0xE00F;
    /// LE, GE, and what the breakpoints are about (section 18.2.4).
    const DR7: usize = 0xFFFF_0300;
    match number {
        0 => set_register!("dr0", value),
        1 => set_register!("dr1", value),
        2 => set_register!("dr2", value),
        3 => set_register!("dr3", value),
        6 => set_register!("dr6", value & DR6 | 0xFFFF_0FF0),
        _ => set_register!("dr7", value & DR7 | 0x400),
    }
}

pub(super) fn msr(number: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a register, or raises #GP.
    unsafe {
        asm!("rdmsr", in("ecx") number, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    };
    u64::from(high) << 32 | u64::from(low)
}

/// Sets a model-specific register to what it can hold.
pub(super) fn set_msr(index: u8, value: u64) {
    let Some(&number) = MSRS.get(usize::from(index)) else {
        return;
    };
    let value = match index {
        EFER => msr(number) ^ 1,
        STAR => value,
        FMASK => value & 0xFFFF_FFFF,
        0 => value & 0xFFFF,
        // An address of the lower half.
        _ => value >> 17,
    };
    #[expect(clippy::cast_possible_truncation, reason = "two halves of a number")]
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: none of them has a part in what this kernel does.
    unsafe {
        asm!("wrmsr", in("ecx") number, in("eax") low, in("edx") high, options(nostack, preserves_flags));
    };
}

/// XCR0. Raises #UD where CR4.OSXSAVE is off.
pub(super) fn extended_control() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a register.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    };
    u64::from(high) << 32 | u64::from(low)
}

/// Sets XCR0 to x87, to that and SSE, or to both and AVX.
pub(super) fn set_extended_control(value: u64) {
    let value: u32 = match value % 3 {
        0 => 1,
        1 => 3,
        _ => 7,
    };
    // SAFETY: code for this machine uses none of it.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value, in("edx") 0, options(nostack, preserves_flags));
    };
}

/// PUSHF and POPF of this mode's width; in 32-bit code the assembler takes the mnemonics for the 16-bit forms.
pub(super) fn flags() -> usize {
    let value;
    // SAFETY: pushes and pops one word; `nostack` is absent.
    unsafe { asm!(".byte 0x9C", "pop {}", out(reg) value) };
    value
}

/// CF, PF, AF, ZF, SF, OF, IOPL, NT, AC, ID (Intel SDM volume 1, section 3.4.3).
pub(super) const FLAGS: usize = 0x0024_78D5;

pub(super) fn set_flags(value: usize) {
    // SAFETY: pushes and pops one word. Interrupts stay off.
    unsafe { asm!("push {}", ".byte 0x9D", in(reg) value & FLAGS | 2) };
}

#[repr(C, align(16))]
struct Area([u8; LEGACY_LEN_BYTES]);

/// The image of `fxsave`, 0 where the instruction leaves bytes alone. Some hypervisors cannot emulate it.
pub(super) fn legacy_image() -> [u8; LEGACY_LEN_BYTES] {
    let mut area = MaybeUninit::<Area>::zeroed();
    // SAFETY: writes 512 bytes, which the area has, aligned to 16; every byte is initialised.
    unsafe {
        asm!("fxsave [{}]", in(reg) area.as_mut_ptr(), options(nostack, preserves_flags));
        area.assume_init().0
    }
}

/// Changes eight bytes of the legacy state: control words, tags, x87 and SSE registers.
pub(super) fn patch_legacy(slot: u8, value: u64) {
    /// Slots of what the instruction loads in 32-bit code.
    const SLOTS: u8 = 36;
    let mut area = Area(legacy_image());
    patch_legacy_image(&mut area.0, slot % SLOTS, value);
    // SAFETY: the area holds an image. Code for this machine uses none of the registers.
    unsafe {
        asm!("fxrstor [{}]", in(reg) area.0.as_ptr(), options(nostack, preserves_flags));
    };
}

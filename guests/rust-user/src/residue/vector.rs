//! x87, MMX, SSE and AVX state.

use core::arch::asm;
use core::mem::MaybeUninit;

use vellum_guest_residue::{LEGACY_LEN_BYTES, patch_legacy_image};

/// Bytes of the area of `xsave` that the components in [`COMPONENTS`] can need.
const EXTENDED_LEN_BYTES: usize = 4096;

/// x87, SSE, AVX, AVX-512 and protection keys, as far as XCR0 has them.
const COMPONENTS: u32 = 0x2E7;
/// x87, SSE and AVX.
const UP_TO_AVX: u32 = 7;

/// Offset of the upper halves of the YMM registers, which CPUID leaf 0xD gives; every processor has them here.
const YMM_HIGH: usize = 576;
/// Offset of the list of components that are not in their initial configuration.
const XSTATE_BV: usize = 512;

#[repr(C, align(64))]
struct Area<const LEN: usize>([u8; LEN]);

/// The image of `fxsave`, 0 where the instruction leaves bytes alone.
pub(super) fn legacy_image() -> [u8; LEGACY_LEN_BYTES] {
    save_legacy().0
}

fn save_legacy() -> Area<LEGACY_LEN_BYTES> {
    let mut area = MaybeUninit::<Area<LEGACY_LEN_BYTES>>::uninit();
    // SAFETY: both instructions write 512 bytes, which the area has, aligned to 16. No register that holds state is used before it is
    // saved.
    unsafe {
        asm!(
            "rep stosq",
            "fxsave64 [{area}]",
            area = in(reg) area.as_mut_ptr(),
            inout("rdi") area.as_mut_ptr() => _,
            inout("rcx") LEGACY_LEN_BYTES / 8 => _,
            in("rax") 0_u64,
            options(nostack, preserves_flags),
        );
        area.assume_init()
    }
}

/// The image of `xsave`. Raises #UD where CR4.OSXSAVE is off.
pub(super) fn extended_image() -> [u8; EXTENDED_LEN_BYTES] {
    save_extended(COMPONENTS).0
}

fn save_extended(components: u32) -> Area<EXTENDED_LEN_BYTES> {
    let mut area = MaybeUninit::<Area<EXTENDED_LEN_BYTES>>::uninit();
    // SAFETY: the area has room for the components, is aligned to 64, and its header is zero before.
    unsafe {
        asm!(
            "rep stosq",
            "mov eax, {components:e}",
            "xor edx, edx",
            "xsave64 [{area}]",
            components = in(reg) components,
            area = in(reg) area.as_mut_ptr(),
            inout("rdi") area.as_mut_ptr() => _,
            inout("rcx") EXTENDED_LEN_BYTES / 8 => _,
            inout("rax") 0_u64 => _,
            out("rdx") _,
            options(nostack),
        );
        area.assume_init()
    }
}

/// Changes eight bytes of the legacy state: control words, tags, x87 and SSE registers.
pub(super) fn patch_legacy(slot: u8, value: u64) {
    /// Slots of what the instruction loads.
    const SLOTS: u8 = 52;
    let mut area = save_legacy();
    patch_legacy_image(&mut area.0, slot % SLOTS, value);
    // SAFETY: the area holds a legacy image. Every register that it loads is declared; those control words that the compiler counts
    // on are the host's to choose.
    unsafe {
        asm!("fxrstor64 [rdi]", in("rdi") area.0.as_ptr(), clobber_abi("sysv64"), options(nostack));
    };
}

/// Changes the upper half of a YMM register. Raises #UD where CR4.OSXSAVE is off, #GP where XCR0 has no AVX.
pub(super) fn patch_avx(register: u8, value: u64) {
    let mut area = save_extended(UP_TO_AVX);
    let at = YMM_HIGH + usize::from(register % 16) * 16;
    for half in [at, at + 8] {
        area.0[half..half + 8].copy_from_slice(&value.to_le_bytes());
    }
    // The component is not initial any more.
    area.0[XSTATE_BV] |= 4;
    // SAFETY: the area holds an image of these components. Every register that it loads is declared.
    unsafe {
        asm!(
            "xrstor64 [rdi]",
            in("rdi") area.0.as_ptr(),
            in("eax") UP_TO_AVX,
            in("edx") 0,
            clobber_abi("sysv64"),
            options(nostack),
        );
    }
}

/// Executes one or two x87 or MMX instructions.
pub(super) fn execute_x87(kind: u8, value: u64) {
    macro_rules! x87 {
        ($($line:literal),+) => {
            // SAFETY: changes x87 state only, which compiled code of this target does not use; reads the value.
            unsafe { asm!($($line,)+ "/* {value} */", value = in(reg) &raw const value, options(nostack)) }
        };
    }
    match kind {
        0 => x87!("fninit"),
        1 => x87!("fild qword ptr [{value}]"),
        2 => x87!("fldcw word ptr [{value}]"),
        3 => x87!("movq mm5, qword ptr [{value}]"),
        4 => x87!("emms"),
        5 => x87!("fnclex"),
        6 => x87!("fld1", "fldz", "fdivp st(1), st"),
        _ => x87!("fldpi", "fmul st, st(0)"),
    }
}

/// XCR0 (index 0), or what of it is in use (index 1).
pub(super) fn extended_control(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a register. Raises #UD where CR4.OSXSAVE is off.
    unsafe {
        asm!("xgetbv", in("ecx") index, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

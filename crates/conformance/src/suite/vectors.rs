//! x87, SSE and AVX: the registers that the guest computes with are those of its state.

use std::ops::Range;

use vellum_backend::state::{Xcr0, XsaveArea};
use vellum_backend::{StateGroup, Tracking, VcpuState};

use crate::failure::{Result, ensure, ensure_eq};
use crate::guest::guest;
use crate::rig::{DATA, Mode, Rig};
use crate::subject::Subject;

/// XMM1, and the upper half of YMM1, in a save area.
const XMM1: Range<usize> = 176..192;
const YMM1_HIGH: Range<usize> = 592..608;
const MXCSR: usize = 24;
const XSTATE_BV: usize = 512;

guest!(
    ADD,
    64,
    "paddd xmm1, xmm1",
    "movd eax, xmm1",
    "out 0xe0, eax"
);
guest!(
    STORE_CONTROL,
    64,
    "fnstcw [rbx]",
    "stmxcsr [rbx + 4]",
    "out 0xe0, eax"
);
guest!(
    X87,
    64,
    "fld1",
    "fadd st(0), st(0)",
    "fistp dword ptr [rbx]",
    "mov eax, [rbx]",
    "out 0xe0, eax",
);
guest!(VECTORS_DIVIDE, 64, "divss xmm0, xmm1");
guest!(
    ADD_WIDE,
    64,
    "vpaddd ymm1, ymm1, ymm1",
    "vmovdqu [rbx], ymm1",
    "out 0xe0, eax",
);
guest!(READ_XCR0, 64, "xor ecx, ecx", "xgetbv", "out 0xe0, eax");
guest!(ADD_FLOATS, 64, "vaddps ymm1, ymm1, ymm1", "out 0xe0, eax");
guest!(
    WRITE_XCR0,
    64,
    "xor ecx, ecx",
    "xor edx, edx",
    "xsetbv",
    "out 0xe0, eax"
);
guest!(SPIN, 64, "2:", "out 0x21, al", "jmp 2b");

/// A save area with some bytes in it.
fn area(components: u8, fill: &[(Range<usize>, u8)]) -> XsaveArea {
    let mut bytes = *XsaveArea::reset().as_bytes();
    bytes[XSTATE_BV] = components;
    for (place, byte) in fill {
        bytes[place.clone()].fill(*byte);
    }
    XsaveArea::from_bytes(bytes)
}

fn sse(subject: &Subject, mode: Mode) -> Result {
    let mut rig = Rig::new(subject, mode, &ADD)?;
    rig.start_with(|state| state.xsave = area(3, &[(XMM1, 0x11)]))?;
    let sum = rig.result()?;
    ensure_eq!(sum, 0x2222_2222, "xmm1 as the guest has it");
    let state = rig.settled()?;
    ensure_eq!(
        &state.xsave.as_bytes()[XMM1],
        &[0x22; 16],
        "xmm1 as the host has it"
    );
    Ok(())
}

pub(crate) fn sse_in_ring_three(subject: &Subject) -> Result {
    sse(subject, Mode::User)
}

pub(crate) fn sse_in_ring_zero(subject: &Subject) -> Result {
    sse(subject, Mode::Kernel)
}

/// Control words are those of a reset at boot, and those of the state otherwise.
pub(crate) fn control_words_are_those_of_the_state(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &STORE_CONTROL)?;
    // FCW with the precision of a single, MXCSR rounding towards zero.
    for (fcw, mxcsr) in [(0x37F_u16, 0x1F80_u32), (0x07F, 0x7F80)] {
        rig.start_with(|state| {
            state.general.rbx = DATA;
            let mut bytes = *state.xsave.as_bytes();
            bytes[..2].copy_from_slice(&fcw.to_le_bytes());
            bytes[MXCSR..MXCSR + 4].copy_from_slice(&mxcsr.to_le_bytes());
            state.xsave = XsaveArea::from_bytes(bytes);
        })?;
        rig.result()?;
        let words = rig.ram.read_u64(DATA)?;
        ensure_eq!(
            (words & 0xFFFF, words >> 32),
            (fcw.into(), mxcsr.into()),
            "fcw and mxcsr"
        );
    }
    Ok(())
}

/// A fresh vCPU runs once it has registers, and has the control words of a reset.
pub(crate) fn a_fresh_vcpu_has_control_words(subject: &Subject) -> Result {
    let mut rig = Rig::fresh(subject, Mode::User, &STORE_CONTROL, Tracking::None)?;
    let mut state = rig.boot_state();
    state.general.rbx = DATA;
    for group in [StateGroup::Special, StateGroup::General] {
        rig.vm.set_state(group, &state)?;
    }
    rig.result()?;
    let words = rig.ram.read_u64(DATA)?;
    ensure_eq!(
        (words & 0xFFFF, words >> 32),
        (0x37F, 0x1F80),
        "fcw and mxcsr"
    );
    Ok(())
}

fn x87(subject: &Subject, mode: Mode) -> Result {
    let mut rig = Rig::new(subject, mode, &X87)?;
    rig.start_with(|state| state.general.rbx = DATA)?;
    let two = rig.result()?;
    ensure_eq!(two, 2, "1.0 + 1.0");
    Ok(())
}

pub(crate) fn x87_in_ring_three(subject: &Subject) -> Result {
    x87(subject, Mode::User)
}

pub(crate) fn x87_in_ring_zero(subject: &Subject) -> Result {
    x87(subject, Mode::Kernel)
}

/// An unmasked SSE exception arrives as #XM (Intel SDM volume 3, section 7.15, interrupt 19).
pub(crate) fn an_unmasked_exception_is_raised(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &VECTORS_DIVIDE)?;
    rig.start_with(|state| {
        // 1.0 by 0.0, with divide-by-zero unmasked.
        let mut bytes = *state.xsave.as_bytes();
        bytes[160..164].copy_from_slice(&1.0_f32.to_le_bytes());
        bytes[MXCSR..MXCSR + 4].copy_from_slice(&0x1D80_u32.to_le_bytes());
        bytes[XSTATE_BV] = 3;
        state.xsave = XsaveArea::from_bytes(bytes);
    })?;
    let exception = rig.exception()?;
    ensure_eq!(exception.vector, 19, "exception");
    Ok(())
}

/// AVX works where the profile offers it, with all 256 bits of the state.
pub(crate) fn avx_in_ring_three(subject: &Subject) -> Result {
    if subject.model().xcr0.0 & Xcr0::AVX == 0 {
        return Ok(());
    }
    let mut rig = Rig::new(subject, Mode::User, &ADD_WIDE)?;
    rig.start_with(|state| {
        state.general.rbx = DATA;
        state.xsave = area(7, &[(XMM1, 0x11), (YMM1_HIGH, 0x33)]);
    })?;
    rig.result()?;
    let mut stored = [0; 32];
    rig.ram.read(DATA, &mut stored)?;
    ensure_eq!(
        (&stored[..16], &stored[16..]),
        (&[0x22; 16][..], &[0x66; 16][..]),
        "ymm1 as the guest has it"
    );
    let state = rig.settled()?;
    ensure_eq!(
        &state.xsave.as_bytes()[YMM1_HIGH],
        &[0x66; 16],
        "the upper half of ymm1 as the host has it"
    );
    Ok(())
}

/// XCR0 as the guest reads it is XCR0 of the state.
pub(crate) fn xcr0_is_that_of_the_state(subject: &Subject) -> Result {
    let widest = subject.model().xcr0;
    let mut rig = Rig::new(subject, Mode::User, &READ_XCR0)?;
    for xcr0 in [widest, Xcr0(3), Xcr0::RESET, widest] {
        rig.start_with(|state| state.xcr0 = xcr0)?;
        let read = rig.result()?;
        ensure_eq!(u64::from(read), xcr0.0, "xcr0");
    }
    Ok(())
}

/// What XCR0 switches off raises #UD.
pub(crate) fn avx_that_is_switched_off_is_undefined(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &ADD_FLOATS)?;
    for xcr0 in [Xcr0(3), Xcr0::RESET] {
        rig.start_with(|state| state.xcr0 = xcr0)?;
        let exception = rig.exception()?;
        ensure_eq!(exception.vector, 6, "with xcr0 {:#x}", xcr0.0);
    }
    Ok(())
}

/// Ring 0 changes XCR0 within what the profile offers, and the host sees it.
pub(crate) fn ring_zero_writes_xcr0(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::Kernel, &WRITE_XCR0)?;
    rig.start_with(|state| state.general.rax = 3)?;
    rig.result()?;
    let state = rig.settled()?;
    ensure_eq!(state.xcr0, Xcr0(3), "xcr0");
    for refused in [0, 6, 1 << 30 | 1] {
        rig.start_with(|state| state.general.rax = refused)?;
        let exception = rig.exception()?;
        ensure_eq!(exception.vector, 13, "xsetbv of {refused:#x}");
    }
    Ok(())
}

/// Registers survive any number of exits, and two VMs on one thread do not see each other's.
pub(crate) fn registers_survive_exits_and_other_vms(subject: &Subject) -> Result {
    let components = if subject.model().xcr0.0 & Xcr0::AVX == 0 {
        3
    } else {
        7
    };
    let mut rigs = [Rig::new(subject, Mode::User, &SPIN)?, {
        Rig::new(subject, Mode::User, &SPIN)?
    }];
    for (rig, byte) in rigs.iter_mut().zip([0x5A, 0xC3]) {
        let fill = [(XMM1, byte), (YMM1_HIGH, byte)];
        let fill = if components == 7 {
            &fill[..]
        } else {
            &fill[..1]
        };
        rig.start_with(|state| state.xsave = area(components, fill))?;
    }
    for _ in 0..20 {
        for rig in &mut rigs {
            rig.run()?;
        }
    }
    for (rig, byte) in rigs.iter_mut().zip([0x5A, 0xC3]) {
        rig.vm.settle()?;
        let mut state = VcpuState::default();
        rig.vm.get_state(StateGroup::Xsave, &mut state)?;
        ensure_eq!(&state.xsave.as_bytes()[XMM1], &[byte; 16], "xmm1");
        let high = &state.xsave.as_bytes()[YMM1_HIGH];
        ensure!(components == 3 || high == [byte; 16], "ymm1: {high:x?}");
    }
    Ok(())
}

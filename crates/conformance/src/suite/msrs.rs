//! Model-specific registers: those that are declared, and that there are no others.

use vellum_backend::msr;
use vellum_backend::state::efer;

use crate::failure::{Result, ensure_eq};
use crate::guest::{Guest, guest};
use crate::rig::{CODE, Mode, Rig, vector_of};
use crate::subject::Subject;

guest!(
    MSRS_READ,
    64,
    "rdmsr",
    "out 0xe0, eax",
    "mov eax, edx",
    "out 0xe0, eax"
);
guest!(WRITE, 64, "wrmsr", "out 0xe0, eax");
guest!(SWAP, 64, "swapgs", "mov eax, gs:[0]", "out 0xe0, eax");

/// What a declared register may hold, and a value to tell it by.
fn sample(index: u32) -> u64 {
    match index {
        msr::IA32_SYSENTER_CS => 0x1238,
        // AMD processors keep 32 bits of these, because they know the instruction in legacy mode only (AMD APM volume 2, section
        // 6.1.2).
        msr::IA32_SYSENTER_ESP | msr::IA32_SYSENTER_EIP => 0x7654_3000 + u64::from(index & 0xFF),
        msr::IA32_FMASK => 0x0004_7700,
        msr::IA32_STAR => 0x0023_0008_1122_3344,
        _ => 0x0000_7654_3210_1000 + u64::from(index & 0xFF),
    }
}

/// Lets ring 0 read a register.
fn read(rig: &mut Rig) -> Result<u64> {
    let low = rig.result()?;
    let high = rig.result()?;
    Ok(u64::from(high) << 32 | u64::from(low))
}

/// What the host wrote is what the guest reads.
pub(crate) fn the_guest_reads_what_the_host_wrote(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::Kernel, &MSRS_READ)?;
    for index in msr::DECLARED {
        rig.start_with(|state| {
            state.general.rcx = index.into();
            for index in msr::DECLARED {
                state.msrs.set(index, sample(index));
            }
        })?;
        let value = read(&mut rig)?;
        ensure_eq!(value, sample(index), "register {index:#x}");
    }
    Ok(())
}

/// What the guest wrote is what the host reads; the other registers stay.
pub(crate) fn the_host_reads_what_the_guest_wrote(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::Kernel, &WRITE)?;
    for written in msr::DECLARED {
        let value = sample(written);
        rig.start_with(|state| {
            state.general.rcx = written.into();
            state.general.rax = value & 0xFFFF_FFFF;
            state.general.rdx = value >> 32;
        })?;
        rig.result()?;
        let state = rig.settled()?;
        for index in msr::DECLARED {
            let expected = if index == written { value } else { 0 };
            ensure_eq!(
                state.msrs.get(index),
                Some(expected),
                "register {index:#x} after a write to {written:#x}"
            );
        }
    }
    Ok(())
}

/// Bases of FS and GS and EFER travel with the special registers.
pub(crate) fn registers_of_the_special_group_are_reached(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::Kernel, &MSRS_READ)?;
    let start = |rig: &mut Rig, index: u32| {
        rig.start_with(|state| {
            state.general.rcx = index.into();
            state.special.fs.base = 0x1111_2000;
            state.special.gs.base = 0x0000_7FFF_0000_3000;
        })
    };
    start(&mut rig, msr::IA32_FS_BASE)?;
    let fs = read(&mut rig)?;
    ensure_eq!(fs, 0x1111_2000, "base of fs");
    start(&mut rig, msr::IA32_GS_BASE)?;
    let gs = read(&mut rig)?;
    ensure_eq!(gs, 0x0000_7FFF_0000_3000, "base of gs");
    start(&mut rig, msr::IA32_EFER)?;
    let value = read(&mut rig)?;
    ensure_eq!(value, efer::LME | efer::LMA | efer::NXE, "efer");
    rig.load(&WRITE)?;
    rig.start_with(|state| {
        state.general.rcx = msr::IA32_FS_BASE.into();
        state.general.rax = 0x5000;
    })?;
    rig.result()?;
    let base = rig.settled()?.special.fs.base;
    ensure_eq!(base, 0x5000, "base of fs that the guest wrote");
    Ok(())
}

/// TSC, APIC base, feature control, PAT, performance counter, debug control, performance select, TSC_AUX, the synthetic registers of
/// KVM and of Hyper-V, and numbers that mean nothing.
const UNDECLARED: [u32; 20] = [
    0x0,
    0x10,
    0x1B,
    0x3A,
    0x48,
    0x49,
    0x8B,
    0xC1,
    0x173,
    0x177,
    0x186,
    0x1A0,
    0x1D9,
    0x277,
    0x2FF,
    0x80B,
    0xC000_0103,
    0x4B56_4D00,
    0x4000_0000,
    0xDEAD,
];

fn denied(subject: &Subject, guest: &Guest) -> Result {
    let mut rig = Rig::new(subject, Mode::Kernel, guest)?;
    for index in UNDECLARED {
        rig.start_with(|state| state.general.rcx = index.into())?;
        let exit = rig.run()?;
        ensure_eq!(vector_of(exit), Some(13), "{} of {index:#x}", guest.name);
        let exception = rig.exception_of(exit)?;
        ensure_eq!(
            (exception.error_code, exception.rip),
            (Some(0), CODE),
            "{} of {index:#x}",
            guest.name
        );
    }
    Ok(())
}

pub(crate) fn undeclared_registers_cannot_be_read(subject: &Subject) -> Result {
    denied(subject, &MSRS_READ)
}

pub(crate) fn undeclared_registers_cannot_be_written(subject: &Subject) -> Result {
    denied(subject, &WRITE)
}

/// Ring 3 reaches none (Intel SDM volume 2, `RDMSR`).
pub(crate) fn ring_three_reaches_none(subject: &Subject) -> Result {
    for guest in [MSRS_READ, WRITE] {
        let mut rig = Rig::new(subject, Mode::User, &guest)?;
        for index in msr::DECLARED {
            rig.start_with(|state| state.general.rcx = index.into())?;
            let exception = rig.exception()?;
            ensure_eq!(
                (exception.vector, exception.error_code),
                (13, Some(0)),
                "{} of {index:#x}",
                guest.name
            );
        }
    }
    Ok(())
}

/// SWAPGS exchanges the bases, and both are saved.
pub(crate) fn swapgs_exchanges_the_bases(subject: &Subject) -> Result {
    let (one, other) = (crate::rig::DATA, crate::rig::DATA + 0x100);
    let mut rig = Rig::new(subject, Mode::Kernel, &SWAP)?;
    rig.ram.write_u64(one, 1)?;
    rig.ram.write_u64(other, 2)?;
    rig.start_with(|state| {
        state.special.gs.base = one;
        state.msrs.set(msr::IA32_KERNEL_GS_BASE, other);
    })?;
    let read = rig.result()?;
    ensure_eq!(read, 2, "what lies at the other base");
    let state = rig.settled()?;
    ensure_eq!(state.special.gs.base, other, "base of gs");
    ensure_eq!(
        state.msrs.get(msr::IA32_KERNEL_GS_BASE),
        Some(one),
        "the base that waits"
    );
    Ok(())
}

guest!(SYSCALL, 64, "syscall");
guest!(
    IN_RING_ZERO,
    64,
    "mov eax, cs",
    "out 0xe0, eax",
    "mov eax, ecx",
    "out 0xe0, eax"
);

/// SYSCALL goes where the registers say (Intel SDM volume 2, `SYSCALL`).
pub(crate) fn syscall_arrives_in_ring_zero(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &SYSCALL)?;
    let handler = CODE + 0x400;
    rig.ram.write(handler, IN_RING_ZERO.code())?;
    rig.start_with(|state| {
        state.special.efer |= efer::SCE;
        state.msrs.set(msr::IA32_LSTAR, handler);
        state.msrs.set(msr::IA32_STAR, 0x0008 << 32);
    })?;
    let selector = rig.result()?;
    ensure_eq!(selector, 8, "code segment");
    let resumes_at = rig.result()?;
    ensure_eq!(u64::from(resumes_at), CODE + 2, "rcx");
    Ok(())
}

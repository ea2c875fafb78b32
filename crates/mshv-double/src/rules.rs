//! Which values are refused: one by one when they are set, and together when the guest is entered.
//!
//! Written independently of the backend's own checks, from the sources that the documentation of each rule names.

use crate::registers::{Segment, Values, name};
use crate::status::Status;

/// RFLAGS: bit 1 is fixed to 1; 3, 5, 15 and 22 to 63 to 0 (Intel SDM volume 1, figure 3-8).
const RFLAGS_FIXED_ONE: u64 = 1 << 1;
const RFLAGS_FIXED_ZERO: u64 = 1 << 3 | 1 << 5 | 1 << 15 | !0 << 22;
/// CR0.ET is fixed to 1 on every processor with a built-in coprocessor (Intel SDM volume 3, section 2.5).
const CR0_ET: u64 = 1 << 4;
const CR0_PE: u64 = 1;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_PG: u64 = 1 << 31;
/// Reserved bits of the lower half, which are dropped without a word.
const CR0_DROPPED: u64 = 0x1FFA_FFC0;
/// VMXE, SMXE, bit 15, KL, PKE and everything from bit 24 on.
const CR4_REFUSED: u64 = 0xFFFF_FFFF_FF48_E000;
const CR4_PAE: u64 = 1 << 5;
/// SCE, LME, LMA, NXE, SVME, FFXSR, TCE.
const EFER_DEFINED: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 14 | 1 << 15;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// DR7: bit 10 is fixed to 1, bits 32 to 63 to 0 (Intel SDM volume 3, section 19.2.4).
const DR7_FIXED_ONE: u64 = 1 << 10;
const PHYSICAL_BITS: u32 = 52;

/// What is stored when `value` is set; the status when it is refused. `xcr0_offered` are the components of the partition.
pub(crate) fn accept(register: u32, value: u128, xcr0_offered: u64) -> Result<u128, Status> {
    let is_wide = matches!(
        register,
        name::ES..=name::TR | name::IDTR..=name::GDTR | 0x10004..=0x10005 | 0x30000..=0x30019
    );
    if is_wide {
        return Ok(value);
    }
    if crate::strictness::is_strict() && value >> 64 != 0 {
        // Bits beyond the size of the register.
        return Err(Status::INVALID_REGISTER_VALUE);
    }
    let value = crate::registers::low(value);
    accept_number(register, value, xcr0_offered).map(u128::from)
}

fn accept_number(register: u32, value: u64, xcr0_offered: u64) -> Result<u64, Status> {
    let is_refused = match register {
        name::RFLAGS => value & RFLAGS_FIXED_ONE == 0 || value & RFLAGS_FIXED_ZERO != 0,
        name::CR0 => {
            value & CR0_ET == 0
                || value >> 32 != 0
                || (value & CR0_PG != 0 && value & CR0_PE == 0)
                || (value & CR0_NW != 0 && value & CR0_CD == 0)
        }
        name::CR3 => value >> PHYSICAL_BITS != 0,
        name::CR4 => value & CR4_REFUSED != 0,
        name::CR8 => value > 0xF,
        name::EFER => value & !EFER_DEFINED != 0,
        name::DR6 => value >> 32 != 0,
        name::DR7 => value & DR7_FIXED_ONE == 0 || value >> 32 != 0,
        name::XFEM => value & 1 == 0 || value & 0b110 == 0b100 || value & !xcr0_offered != 0,
        // KERNEL_GS_BASE, SYSENTER_EIP and ESP, LSTAR, CSTAR.
        0x80002 | 0x80006 | 0x80007 | 0x80009 | 0x8000A => !is_canonical(value),
        // SFMASK.
        0x8000B => value >> 32 != 0,
        // PAT: 2, 3 and everything above 7 are no memory types.
        0x80004 => value
            .to_le_bytes()
            .iter()
            .any(|kind| matches!(kind, 2 | 3 | 8..)),
        name::EXPLICIT_SUSPEND | name::INTERCEPT_SUSPEND => return Err(Status::INVALID_PARAMETER),
        // Without a local APIC nothing can be notified.
        name::DELIVERABILITY_NOTIFICATIONS if value != 0 => return Err(Status::INVALID_PARAMETER),
        _ => false,
    };
    if is_refused {
        return Err(Status::INVALID_REGISTER_VALUE);
    }
    Ok(match register {
        name::CR0 => value & !CR0_DROPPED,
        _ => value,
    })
}

/// Whether registers that were each accepted fit together (Intel SDM volume 3, section 28.3.1; AMD APM volume 2, section 15.5.1).
pub(crate) fn can_enter(values: &Values) -> bool {
    let cr0 = values.u64(name::CR0);
    let efer = values.u64(name::EFER);
    let is_active = efer & EFER_LMA != 0;
    let should_be_active = efer & EFER_LME != 0 && cr0 & CR0_PG != 0;
    if is_active != should_be_active || (is_active && values.u64(name::CR4) & CR4_PAE == 0) {
        return false;
    }
    let tr = values.segment(name::TR);
    // Present, system, busy 32-bit or 64-bit TSS; a 16-bit one outside of long mode.
    let is_busy = tr.kind() == 11 || (tr.kind() == 3 && !is_active);
    if !tr.has(7) || tr.has(4) || !is_busy {
        return false;
    }
    let is_protected = cr0 & CR0_PE != 0;
    let segments_fit = (name::ES..=name::GS).all(|register| limit_fits(values.segment(register)));
    let bases_fit = [name::GS - 1, name::GS, name::TR]
        .iter()
        .all(|&register| is_canonical(values.segment(register).base));
    segments_fit && bases_fit && limit_fits(tr) && (!is_protected || code_and_stack_fit(values))
}

fn code_and_stack_fit(values: &Values) -> bool {
    let cs = values.segment(name::CS);
    let ss = values.segment(name::SS);
    let is_code = cs.has(7) && cs.has(4) && cs.kind() & 0b1001 == 0b1001;
    let has_one_size = !(cs.has(13) && cs.has(14));
    let is_conforming = cs.kind() & 0b0100 != 0;
    let same_privilege = !ss.has(7) || is_conforming || ss.privilege() == cs.privilege();
    is_code && has_one_size && same_privilege
}

/// A limit with low bits clear is one in bytes, one with high bits set one in pages.
fn limit_fits(segment: Segment) -> bool {
    if !segment.has(7) {
        return true;
    }
    if segment.has(15) {
        segment.limit & 0xFFF == 0xFFF
    } else {
        segment.limit >> 20 == 0
    }
}

const fn is_canonical(address: u64) -> bool {
    matches!(address >> 47, 0 | 0x1_FFFF)
}

#[cfg(test)]
mod tests;

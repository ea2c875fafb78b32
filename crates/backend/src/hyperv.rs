//! The rules by which Hyper-V refuses a vCPU state.
//!
//! Hyper-V checks what KVM silently mends: reserved bits must be zero, architecturally fixed bits must have their fixed value,
//! and there is no notion of an unusable segment, so that TR must hold a busy TSS. [`validate_for_hyperv`] is a pure function
//! and runs on every boot and restored state of every backend: a test on KVM catches what MSHV would refuse.
//!
//! Sources: Hypervisor Top-Level Functional Specification, `HvCallSetVpRegisters`; Intel SDM volume 3, section 28.3.1
//! (checks on guest state at VM entry).

use crate::state::{Segment, SpecialRegs, cr0, cr4, efer};

/// Why Hyper-V would refuse the special registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HypervViolation {
    /// CR0.ET is hard-wired to 1.
    #[error("cr0 {0:#x} lacks ET, which is fixed to 1")]
    ExtensionTypeClear(u64),
    /// CR0 has reserved bits, or PG without PE, or NW without CD.
    #[error("cr0 {0:#x} has reserved bits, PG without PE, or NW without CD")]
    Cr0(u64),
    /// CR4 has bits that a partition does not offer.
    #[error("cr4 {0:#x} has bits that a partition does not offer")]
    Cr4(u64),
    /// EFER has undefined bits.
    #[error("efer {0:#x} has undefined bits")]
    Efer(u64),
    /// CR3 does not fit the physical address width.
    #[error("cr3 {0:#x} does not fit the physical address width")]
    Cr3(u64),
    /// EFER.LMA is not EFER.LME and CR0.PG.
    #[error("efer {efer:#x}: LMA does not equal LME and cr0.PG ({cr0:#x})")]
    LongModeActive {
        /// EFER.
        efer: u64,
        /// CR0.
        cr0: u64,
    },
    /// Long mode without CR4.PAE.
    #[error("long mode is active but cr4 {0:#x} lacks PAE")]
    LongModeWithoutPae(u64),
    /// TR is not a present, busy TSS.
    #[error("tr is not a busy tss: attributes {0:#06x}")]
    TaskRegister(u16),
    /// CS is not present, accessed code, or is both 64-bit and 32-bit.
    #[error("cs is not accessed code of one size: attributes {0:#06x}")]
    CodeSegment(u16),
    /// The limit and the granularity flag of a segment disagree.
    #[error("limit {limit:#x} disagrees with the granularity of attributes {attributes:#06x}")]
    Granularity {
        /// The limit in bytes.
        limit: u32,
        /// The attributes.
        attributes: u16,
    },
    /// SS.DPL is not the DPL of a non-conforming CS.
    #[error("ss has privilege level {ss}, cs has {cs}")]
    StackPrivilege {
        /// SS.DPL.
        ss: u8,
        /// CS.DPL.
        cs: u8,
    },
    /// A base address is not canonical.
    #[error("base address {0:#x} is not canonical")]
    NonCanonical(u64),
}

/// CR0 bits that exist; the others are reserved (Intel SDM volume 3, section 2.5).
const CR0_DEFINED: u64 = 0xE005_003F;
/// CR4 bits that a partition refuses: VMXE, SMXE, bit 15, KL, PKE and everything from bit 24 on.
const CR4_REFUSED: u64 = 0xFFFF_FFFF_FF48_E000;
/// EFER bits that a partition may offer: SCE, LME, LMA, NXE, FFXSR, TCE (AMD APM volume 2, section 3.1.7). SVME is never
/// offered to a guest, and LMSLE has gone from processors.
const EFER_DEFINED: u64 = 0xCD01;
/// The widest physical address of any processor (Intel SDM volume 3, section 4.1.4).
const PHYSICAL_ADDRESS_BITS: u32 = 52;

/// Checks special registers against Hyper-V's rules.
///
/// # Errors
/// The first rule that is broken.
pub fn validate_for_hyperv(regs: &SpecialRegs) -> Result<(), HypervViolation> {
    check_control(regs)?;
    check_long_mode(regs)?;
    check_segments(regs)?;
    [
        regs.fs.base,
        regs.gs.base,
        regs.gdtr.base,
        regs.idtr.base,
        regs.tr.base,
    ]
    .into_iter()
    .find(|&base| !is_canonical(base))
    .map_or(Ok(()), |base| Err(HypervViolation::NonCanonical(base)))
}

fn check_control(regs: &SpecialRegs) -> Result<(), HypervViolation> {
    if regs.cr0 & cr0::ET == 0 {
        return Err(HypervViolation::ExtensionTypeClear(regs.cr0));
    }
    let pg_without_pe = regs.cr0 & cr0::PG != 0 && regs.cr0 & cr0::PE == 0;
    let nw_without_cd = regs.cr0 & cr0::NW != 0 && regs.cr0 & cr0::CD == 0;
    if regs.cr0 & !CR0_DEFINED != 0 || pg_without_pe || nw_without_cd {
        return Err(HypervViolation::Cr0(regs.cr0));
    }
    if regs.cr4 & CR4_REFUSED != 0 {
        return Err(HypervViolation::Cr4(regs.cr4));
    }
    if regs.efer & !EFER_DEFINED != 0 {
        return Err(HypervViolation::Efer(regs.efer));
    }
    if regs.cr3 >> PHYSICAL_ADDRESS_BITS != 0 {
        return Err(HypervViolation::Cr3(regs.cr3));
    }
    Ok(())
}

fn check_long_mode(regs: &SpecialRegs) -> Result<(), HypervViolation> {
    let enabled = regs.efer & efer::LME != 0;
    let active = regs.efer & efer::LMA != 0;
    let paging = regs.cr0 & cr0::PG != 0;
    if active != (enabled && paging) {
        return Err(HypervViolation::LongModeActive {
            efer: regs.efer,
            cr0: regs.cr0,
        });
    }
    if active && regs.cr4 & cr4::PAE == 0 {
        return Err(HypervViolation::LongModeWithoutPae(regs.cr4));
    }
    Ok(())
}

fn check_segments(regs: &SpecialRegs) -> Result<(), HypervViolation> {
    /// Type of a busy TSS, 32-bit or 64-bit.
    const BUSY_TSS: u8 = 11;
    let tr = regs.tr.attributes;
    if !tr.is_present() || tr.is_code_or_data() || tr.type_() != BUSY_TSS {
        return Err(HypervViolation::TaskRegister(tr.bits()));
    }
    let protected = regs.cr0 & cr0::PE != 0;
    let cs = regs.cs.attributes;
    let accessed_code = cs.type_() & 0b1001 == 0b1001;
    let both_sizes = cs.is_long() && cs.is_default_32();
    if protected && !(cs.is_present() && cs.is_code_or_data() && accessed_code && !both_sizes) {
        return Err(HypervViolation::CodeSegment(cs.bits()));
    }
    let ss = regs.ss.attributes;
    let conforming = cs.type_() & 0b0100 != 0;
    if protected && ss.is_present() && !conforming && ss.dpl() != cs.dpl() {
        return Err(HypervViolation::StackPrivilege {
            ss: ss.dpl(),
            cs: cs.dpl(),
        });
    }
    [
        regs.cs, regs.ds, regs.es, regs.fs, regs.gs, regs.ss, regs.tr,
    ]
    .iter()
    .try_for_each(check_granularity)
}

/// Bits 0 to 11 of the limit not all 1: G is 0; bits 20 to 31 not all 0: G is 1.
fn check_granularity(segment: &Segment) -> Result<(), HypervViolation> {
    let attributes = segment.attributes;
    if !attributes.is_present() {
        return Ok(());
    }
    let needs_bytes = segment.limit & 0xFFF != 0xFFF;
    let needs_pages = segment.limit >> 20 != 0;
    let wrong = if attributes.is_page_granular() {
        needs_bytes
    } else {
        needs_pages
    };
    if wrong {
        return Err(HypervViolation::Granularity {
            limit: segment.limit,
            attributes: attributes.bits(),
        });
    }
    Ok(())
}

/// Whether bits 47 to 63 are equal.
fn is_canonical(address: u64) -> bool {
    matches!(address >> 47, 0 | 0x1_FFFF)
}

#[cfg(test)]
mod tests;

//! Between the standard format of `XSAVE`, which Vellum keeps, and the compacted one, which the hypervisor speaks.
//!
//! In the compacted format components lie one behind the other, as XCOMP_BV says; a component whose bit in XSTATE_BV is clear is in its
//! initial configuration and its bytes mean nothing (Intel SDM volume 1, sections 13.4.2, 13.4.3 and 13.8).

use crate::cpuid::CpuidLeaf;
use crate::state::{XSAVE_LEN_BYTES, XsaveArea};

/// Offset of XSTATE_BV, and behind it of XCOMP_BV.
const XSTATE_BV: usize = 512;
const XCOMP_BV: usize = 520;
/// Bytes of the parts that every area has: x87 and SSE, and the header.
const LEGACY_AND_HEADER_LEN_BYTES: usize = 512 + 64;
/// XCOMP_BV: the area is compacted.
const COMPACTED: u64 = 1 << 63;
/// x87 and SSE, whose place is fixed.
const LEGACY_COMPONENTS: u64 = 0b11;
/// Components whose place a leaf of `cpuid` names.
const EXTENDED_COMPONENTS: std::ops::Range<u32> = 2..63;
/// PASID, CET user and CET supervisor state: their bits are set in every area that is written, because a hypervisor has been seen that does
/// not initialise these components when they are clear. Their bytes are zero, which is their initial configuration.
const WRITTEN_OUT_COMPONENTS: u64 = 0x1C00;

/// Where the components of a partition lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct XsaveFormat {
    xcomp_bv: u64,
    components: Vec<Component>,
    len_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Component {
    bit: u64,
    compacted: usize,
    /// In the standard format, where it fits into an [`XsaveArea`].
    standard: Option<usize>,
    len_bytes: usize,
}

/// What the hypervisor gave is no compacted area, or names a component of which nothing is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "xsave area has xcomp_bv {xcomp_bv:#x}, which is not compacted or names unknown components"
)]
pub(super) struct UnknownFormat {
    xcomp_bv: u64,
}

/// An area names components that the partition does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "xsave components {missing:#x} are unknown to this partition; use a cpu profile that both machines offer"
)]
pub(super) struct MissingComponents {
    missing: u64,
}

impl XsaveFormat {
    /// The format of `area`, which the hypervisor wrote. `leaf` tells subleaf n of leaf 0Dh: EAX is the length of component n, EBX its place in
    /// the standard format, ECX bit 1 whether it is aligned to 64 bytes in the compacted one.
    pub(super) fn of(area: &[u8], leaf: impl Fn(u32) -> CpuidLeaf) -> Result<Self, UnknownFormat> {
        let xcomp_bv = word(area, XCOMP_BV);
        let unknown = UnknownFormat { xcomp_bv };
        if xcomp_bv & COMPACTED == 0 {
            return Err(unknown);
        }
        let mut components = Vec::new();
        let mut next = LEGACY_AND_HEADER_LEN_BYTES;
        for index in EXTENDED_COMPONENTS.filter(|index| xcomp_bv & 1 << index != 0) {
            const IS_ALIGNED: u32 = 1 << 1;
            let place = leaf(index);
            let len_bytes = place.eax as usize;
            if place.ecx & IS_ALIGNED != 0 {
                next = next.next_multiple_of(64);
            }
            let end = next + len_bytes;
            if len_bytes == 0 || end > area.len() {
                return Err(unknown);
            }
            let standard = place.ebx as usize;
            let fits =
                standard >= LEGACY_AND_HEADER_LEN_BYTES && standard + len_bytes <= XSAVE_LEN_BYTES;
            components.push(Component {
                bit: 1 << index,
                compacted: next,
                standard: fits.then_some(standard),
                len_bytes,
            });
            next = end;
        }
        Ok(Self {
            xcomp_bv,
            components,
            len_bytes: next,
        })
    }

    /// Translates what the hypervisor wrote. x87 and SSE state is always written out, and said to be: so that equal states have equal bytes.
    pub(super) fn to_standard(&self, area: &[u8]) -> XsaveArea {
        let mut bytes = *XsaveArea::reset().as_bytes();
        let present = word(area, XSTATE_BV);
        copy_legacy(&mut bytes, area, present);
        let mut shown = LEGACY_COMPONENTS;
        for component in &self.components {
            let Some(standard) = component.standard else {
                continue;
            };
            if present & component.bit != 0 {
                shown |= component.bit;
                let from = &area[component.compacted..][..component.len_bytes];
                bytes[standard..][..component.len_bytes].copy_from_slice(from);
            }
        }
        bytes[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&shown.to_le_bytes());
        XsaveArea::from_bytes(bytes)
    }

    /// Fills `into`, whose length is at least that of the partition's areas, with what the hypervisor is to read.
    pub(super) fn fill(&self, state: &XsaveArea, into: &mut [u8]) -> Result<(), MissingComponents> {
        into.fill(0);
        let bytes = state.as_bytes();
        let present = state.xstate_bv();
        let mut known = LEGACY_COMPONENTS;
        copy_legacy(into, bytes, present);
        for component in &self.components {
            let Some(standard) = component.standard else {
                continue;
            };
            known |= component.bit;
            if present & component.bit != 0 {
                let from = &bytes[standard..][..component.len_bytes];
                into[component.compacted..][..component.len_bytes].copy_from_slice(from);
            }
        }
        let missing = present & !known;
        if missing != 0 {
            return Err(MissingComponents { missing });
        }
        let xstate_bv =
            present | LEGACY_COMPONENTS | self.xcomp_bv & WRITTEN_OUT_COMPONENTS & !COMPACTED;
        into[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&xstate_bv.to_le_bytes());
        into[XCOMP_BV..XCOMP_BV + 8].copy_from_slice(&self.xcomp_bv.to_le_bytes());
        Ok(())
    }
}

/// Bytes 0 to 23 and 32 to 159 are x87 state, the others SSE state; MXCSR lies among the former and belongs to the latter (Intel SDM
/// volume 1, section 13.4.1).
fn copy_legacy(into: &mut [u8], from: &[u8], present: u64) {
    const X87: u64 = 1;
    const SSE: u64 = 2;
    /// MXCSR and its mask.
    const MXCSR: std::ops::Range<usize> = 24..32;
    const MXCSR_RESET: u32 = 0x1F80;
    const FCW_RESET: u16 = 0x037F;
    let mut copy = |range: std::ops::Range<usize>| {
        into[range.clone()].copy_from_slice(&from[range]);
    };
    if present & X87 != 0 {
        copy(0..MXCSR.start);
        copy(MXCSR.end..160);
    }
    if present & SSE != 0 {
        copy(MXCSR);
        copy(160..416);
    }
    if present & X87 == 0 {
        into[..MXCSR.start].fill(0);
        into[..2].copy_from_slice(&FCW_RESET.to_le_bytes());
    }
    if present & SSE == 0 {
        into[MXCSR].fill(0);
        into[MXCSR.start..MXCSR.start + 4].copy_from_slice(&MXCSR_RESET.to_le_bytes());
    }
}

fn word(area: &[u8], offset: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&area[offset..offset + 8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests;

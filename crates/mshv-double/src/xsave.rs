//! Extended state in the hypervisor's format, which is compacted (Intel SDM volume 1, section 13.4.3), and in KVM's, which is not.

use kvm_bindings::{kvm_cpuid_entry2, kvm_xsave};

use crate::bytes::u64_at;
use crate::status::Failure;

const AREA_LEN: usize = 4096;
const XSTATE_BV: usize = 512;
const XCOMP_BV: usize = 520;
const HEADER_END: usize = 576;
const COMPACTED: u64 = 1 << 63;
const X87: u64 = 1;
const SSE: u64 = 2;
/// Bits of MXCSR that every processor with SSE2 has.
const MXCSR_DEFINED: u32 = 0xFFFF;
const MXCSR: usize = 24;

/// Where components lie on this machine.
#[derive(Clone, Debug)]
pub(crate) struct Format {
    xcomp_bv: u64,
    /// Bit, compacted place, standard place, length.
    components: Vec<(u64, usize, usize, usize)>,
    end: usize,
}

impl Format {
    /// From subleaves of leaf 0Dh.
    pub(crate) fn new(leaves: &[kvm_cpuid_entry2]) -> Self {
        let of = |index: u32| {
            leaves
                .iter()
                .find(move |entry| entry.function == 0xD && entry.index == index)
        };
        let offered = of(0).map_or(0, |entry| entry.eax);
        let mut components = Vec::new();
        let mut xcomp_bv = X87 | SSE;
        let mut end = HEADER_END;
        for index in (2..32).filter(|index| offered & 1 << index != 0) {
            let Some(entry) = of(index) else { continue };
            let (len, standard) = (entry.eax as usize, entry.ebx as usize);
            if len == 0 || standard + len > AREA_LEN {
                continue;
            }
            if entry.ecx & 2 != 0 {
                end = end.next_multiple_of(64);
            }
            components.push((1 << index, end, standard, len));
            xcomp_bv |= 1 << index;
            end += len;
        }
        Self {
            xcomp_bv: COMPACTED | xcomp_bv,
            components,
            end,
        }
    }

    /// The components that exist, as bits of XCR0.
    pub(crate) const fn components(&self) -> u64 {
        self.xcomp_bv & !COMPACTED
    }

    pub(crate) const fn len_bytes(&self) -> usize {
        self.end
    }

    /// What a program reads.
    pub(crate) fn compact(&self, standard: &kvm_xsave) -> Vec<u8> {
        let standard = to_bytes(standard);
        let mut area = vec![0; AREA_LEN];
        area[..416].copy_from_slice(&standard[..416]);
        let present = u64_at(&standard, XSTATE_BV) & self.components();
        for &(bit, compacted, place, len) in &self.components {
            if present & bit != 0 {
                area[compacted..compacted + len].copy_from_slice(&standard[place..place + len]);
            }
        }
        area[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&present.to_le_bytes());
        area[XCOMP_BV..XCOMP_BV + 8].copy_from_slice(&self.xcomp_bv.to_le_bytes());
        area
    }

    /// The state of a virtual processor that nobody initialised: every byte of x87 and SSE state zero, exceptions unmasked.
    pub(crate) fn untouched(&self) -> Vec<u8> {
        let mut area = vec![0; AREA_LEN];
        area[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&(X87 | SSE).to_le_bytes());
        area[XCOMP_BV..XCOMP_BV + 8].copy_from_slice(&self.xcomp_bv.to_le_bytes());
        area
    }

    /// Checks what a program writes, and translates it.
    pub(crate) fn expand(&self, area: &[u8]) -> Result<kvm_xsave, Failure> {
        if area.len() < self.end.max(HEADER_END) {
            return Err(Failure::EINVAL);
        }
        let present = u64_at(area, XSTATE_BV);
        let is_header_wrong = u64_at(area, XCOMP_BV) != self.xcomp_bv
            || present & !self.components() != 0
            || area[XCOMP_BV + 8..HEADER_END].iter().any(|&byte| byte != 0);
        let mxcsr = crate::bytes::u32_at(area, MXCSR);
        let is_mxcsr_wrong = present & SSE != 0 && mxcsr & !MXCSR_DEFINED != 0;
        if is_header_wrong || is_mxcsr_wrong {
            return Err(Failure::EINVAL);
        }
        let mut standard = vec![0; AREA_LEN];
        standard[..416].copy_from_slice(&area[..416]);
        for &(bit, compacted, place, len) in &self.components {
            if present & bit != 0 {
                standard[place..place + len].copy_from_slice(&area[compacted..compacted + len]);
            }
        }
        standard[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&present.to_le_bytes());
        Ok(from_bytes(&standard))
    }
}

fn to_bytes(area: &kvm_xsave) -> Vec<u8> {
    area.region
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

fn from_bytes(bytes: &[u8]) -> kvm_xsave {
    let mut area = kvm_xsave::default();
    for (index, word) in area.region.iter_mut().enumerate() {
        *word = crate::bytes::u32_at(bytes, index * 4);
    }
    area
}

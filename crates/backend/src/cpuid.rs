//! CPU profiles: what `cpuid` shows to a guest.
//!
//! A profile is a named feature level. It is computed once per engine from what the hypervisor can offer, and fixes what
//! differs between machines (hypervisor leaves, topology, address widths), so that a snapshot moves between them. State that
//! a profile does not offer cannot be used, and so cannot leak: XCR0 never goes beyond AVX.

use crate::state::Xcr0;

/// One leaf of `cpuid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the manual's")]
pub struct CpuidLeaf {
    pub leaf: u32,
    /// The subleaf (ECX), for a leaf that has several.
    pub subleaf: Option<u32>,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// A feature level (x86-64 psABI, section 3.1.1), or the host's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CpuProfile {
    /// x86-64-v1: the baseline, SSE2.
    V1,
    /// x86-64-v2: up to SSE4.2 and POPCNT.
    V2,
    /// x86-64-v3: AVX2, BMI, FMA.
    V3,
    /// The best level that the hypervisor offers: v3, v2, else v1.
    #[default]
    Best,
    /// Everything that the hypervisor offers and whose state Vellum saves; snapshots then need an equal processor.
    Host,
}

impl CpuProfile {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V1 => "x86-64-v1",
            Self::V2 => "x86-64-v2",
            Self::V3 => "x86-64-v3",
            Self::Best => "best",
            Self::Host => "host",
        }
    }
}

/// A profile on a processor: what a vCPU gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuModel {
    /// The profile; never [`CpuProfile::Best`].
    pub profile: CpuProfile,
    /// Its leaves.
    pub leaves: Vec<CpuidLeaf>,
    /// The value that XCR0 gets at boot, the widest that the profile offers.
    pub xcr0: Xcr0,
    /// Bits of CR4 for supervisor protection that the processor has: SMEP and SMAP.
    pub cr4_features: u64,
}

/// A feature that a profile lacks, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingFeature(pub &'static str);

/// The feature words that a profile may show.
struct FeatureMask {
    leaf1_ecx: u32,
    leaf7_ebx: u32,
    extended1_ecx: u32,
}

/// Leaf 1 EDX of every profile: FPU DE PSE TSC MSR PAE CX8 SEP PGE CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2 (Intel SDM volume 2,
/// `CPUID`).
const LEAF1_EDX: u32 = 0x078B_A97D;
/// Leaf 8000_0001 EDX: SYSCALL, NX, 1 GiB pages, long mode. RDTSCP is not among them, because it reads a register that is not
/// saved; nor are the bits that repeat leaf 1 on some processors.
const EXTENDED1_EDX: u32 = 1 << 11 | 1 << 20 | 1 << 26 | 1 << 29;
/// SSE3 PCLMULQDQ SSSE3 CMPXCHG16B SSE4.1 SSE4.2 POPCNT AES, and bit 31 (there is a hypervisor).
const V2_LEAF1_ECX: u32 =
    1 | 1 << 1 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 23 | 1 << 25 | HYPERVISOR;
/// FMA MOVBE XSAVE AVX F16C.
const V3_LEAF1_ECX: u32 = V2_LEAF1_ECX | 1 << 12 | 1 << 22 | 1 << 26 | 1 << 28 | 1 << 29;
/// SMEP ERMS SMAP.
const V2_LEAF7_EBX: u32 = SMEP | 1 << 9 | SMAP;
/// BMI1 AVX2 BMI2.
const V3_LEAF7_EBX: u32 = V2_LEAF7_EBX | 1 << 3 | 1 << 5 | 1 << 8;
/// LAHF in long mode.
const V2_EXTENDED1_ECX: u32 = 1;
/// LZCNT.
const V3_EXTENDED1_ECX: u32 = V2_EXTENDED1_ECX | 1 << 5;

/// The leaf of AMD's feature words.
const EXTENDED1: u32 = 0x8000_0001;
const HYPERVISOR: u32 = 1 << 31;
const XSAVE: u32 = 1 << 26;
const AVX: u32 = 1 << 28;
/// x87, SSE, AVX and the three components of AVX-512, which end before byte 4096 of the save area (Intel SDM volume 1,
/// section 13.5).
const SAVEABLE_COMPONENTS: u32 = 0xE7;
/// Bytes of the parts that every save area has: x87 and SSE, and the header (Intel SDM volume 1, section 13.4).
const LEGACY_AREA_AND_HEADER_LEN_BYTES: u32 = 512 + 64;
const SMEP: u32 = 1 << 7;
const SMAP: u32 = 1 << 20;

/// What x86-64-v2 and v3 demand: leaf 1 ECX, leaf 7 EBX, leaf 8000_0001 ECX.
const REQUIRED_V2: [(u32, &str); 6] = [
    (1, "sse3"),
    (1 << 9, "ssse3"),
    (1 << 13, "cmpxchg16b"),
    (1 << 19, "sse4.1"),
    (1 << 20, "sse4.2"),
    (1 << 23, "popcnt"),
];
const REQUIRED_V2_EXTENDED: [(u32, &str); 1] = [(1, "lahf")];
const REQUIRED_V3: [(u32, &str); 5] = [
    (1 << 12, "fma"),
    (1 << 22, "movbe"),
    (XSAVE, "xsave"),
    (AVX, "avx"),
    (1 << 29, "f16c"),
];
const REQUIRED_V3_LEAF7: [(u32, &str); 3] = [(1 << 3, "bmi1"), (1 << 5, "avx2"), (1 << 8, "bmi2")];
const REQUIRED_V3_EXTENDED: [(u32, &str); 1] = [(1 << 5, "lzcnt")];

/// Physical address bits that a guest is told: enough for `MAX_GPA` of amd64, and no more than any processor with
/// virtualization has.
const GUEST_PHYSICAL_BITS: u32 = 39;
/// Linear address bits under 4-level paging.
const GUEST_LINEAR_BITS: u32 = 48;

/// Computes what `profile` shows on a hypervisor that offers `supported`.
///
/// # Errors
/// A feature that the profile demands and the hypervisor does not offer.
pub fn model(profile: CpuProfile, supported: &[CpuidLeaf]) -> Result<CpuModel, MissingFeature> {
    match profile {
        CpuProfile::Best => model(CpuProfile::V3, supported)
            .or_else(|_| model(CpuProfile::V2, supported))
            .or_else(|_| model(CpuProfile::V1, supported)),
        CpuProfile::V1 => Ok(build(profile, supported, Some(&V1_MASK))),
        CpuProfile::V2 => {
            require_v2(supported)?;
            Ok(build(profile, supported, Some(&V2_MASK)))
        }
        CpuProfile::V3 => {
            require_v2(supported)?;
            require(word(supported, 1, |l| l.ecx), &REQUIRED_V3)?;
            require(word(supported, 7, |l| l.ebx), &REQUIRED_V3_LEAF7)?;
            require(word(supported, EXTENDED1, |l| l.ecx), &REQUIRED_V3_EXTENDED)?;
            Ok(build(profile, supported, Some(&V3_MASK)))
        }
        CpuProfile::Host => Ok(build(profile, supported, None)),
    }
}

const V1_MASK: FeatureMask = FeatureMask {
    leaf1_ecx: HYPERVISOR,
    leaf7_ebx: V2_LEAF7_EBX,
    extended1_ecx: V2_EXTENDED1_ECX,
};
const V2_MASK: FeatureMask = FeatureMask {
    leaf1_ecx: V2_LEAF1_ECX,
    leaf7_ebx: V2_LEAF7_EBX,
    extended1_ecx: V2_EXTENDED1_ECX,
};
const V3_MASK: FeatureMask = FeatureMask {
    leaf1_ecx: V3_LEAF1_ECX,
    leaf7_ebx: V3_LEAF7_EBX,
    extended1_ecx: V3_EXTENDED1_ECX,
};

fn require_v2(supported: &[CpuidLeaf]) -> Result<(), MissingFeature> {
    require(word(supported, 1, |l| l.ecx), &REQUIRED_V2)?;
    require(word(supported, EXTENDED1, |l| l.ecx), &REQUIRED_V2_EXTENDED)
}

fn require(word: u32, bits: &[(u32, &'static str)]) -> Result<(), MissingFeature> {
    bits.iter()
        .find(|(bit, _)| word & bit == 0)
        .map_or(Ok(()), |&(_, name)| Err(MissingFeature(name)))
}

/// One register of subleaf 0 of a leaf.
fn word(leaves: &[CpuidLeaf], leaf: u32, register: impl Fn(&CpuidLeaf) -> u32) -> u32 {
    leaves
        .iter()
        .find(|l| l.leaf == leaf && l.subleaf.unwrap_or(0) == 0)
        .map_or(0, register)
}

fn build(profile: CpuProfile, supported: &[CpuidLeaf], mask: Option<&FeatureMask>) -> CpuModel {
    let leaf1_ecx = word(supported, 1, |l| l.ecx) & mask.map_or(u32::MAX, |mask| mask.leaf1_ecx);
    let xcr0 = match (leaf1_ecx & XSAVE != 0, leaf1_ecx & AVX != 0) {
        (true, true) => Xcr0(Xcr0::X87 | Xcr0::SSE | Xcr0::AVX),
        (true, false) => Xcr0(Xcr0::X87 | Xcr0::SSE),
        (false, _) => Xcr0::RESET,
    };
    let saved = Saved::new(supported, xcr0);
    let leaves: Vec<CpuidLeaf> = supported
        .iter()
        .filter_map(|leaf| shape(*leaf, mask, saved))
        .collect();
    let leaf7 = word(&leaves, 7, |l| l.ebx);
    let smep = if leaf7 & SMEP != 0 {
        crate::state::cr4::SMEP
    } else {
        0
    };
    let smap = if leaf7 & SMAP != 0 {
        crate::state::cr4::SMAP
    } else {
        0
    };
    CpuModel {
        profile,
        leaves,
        xcr0,
        cr4_features: smep | smap,
    }
}

/// The state components that leaf 0Dh names, and that the hypervisor therefore saves and restores.
///
/// Where XSAVE is offered, XCR0 confines the guest to them. A hypervisor may also run ring 3 natively without offering XSAVE;
/// the guest then reaches every component of the host, and every one that can be saved must be.
#[derive(Clone, Copy)]
struct Saved {
    /// The components, as bits of XCR0.
    components: u32,
    /// Bytes of an area in the standard format that holds them.
    area_len_bytes: u32,
}

impl Saved {
    fn new(supported: &[CpuidLeaf], xcr0: Xcr0) -> Self {
        let offered = word(supported, 0xD, |l| l.eax);
        let wanted = match xcr0 {
            Xcr0::RESET => SAVEABLE_COMPONENTS,
            Xcr0(bits) => u32::try_from(bits).unwrap_or(0),
        };
        let components = offered & wanted;
        let area_len_bytes = supported
            .iter()
            .filter(|l| is_saved_component(l, components))
            // EBX is the component's offset, EAX its size.
            .map(|l| l.ebx.saturating_add(l.eax))
            .fold(LEGACY_AREA_AND_HEADER_LEN_BYTES, u32::max);
        Self {
            components,
            area_len_bytes,
        }
    }
}

/// Whether a leaf describes the place of one of `components`, of those that have a subleaf of their own.
fn is_saved_component(l: &CpuidLeaf, components: u32) -> bool {
    let subleaf = l.subleaf.unwrap_or(0);
    l.leaf == 0xD && (2..32).contains(&subleaf) && components & 1 << subleaf != 0
}

/// One leaf as the guest sees it; `None` hides it.
fn shape(mut l: CpuidLeaf, mask: Option<&FeatureMask>, saved: Saved) -> Option<CpuidLeaf> {
    match (l.leaf, l.subleaf.unwrap_or(0)) {
        (0, _) => l.eax = l.eax.min(0xD),
        (1, _) => {
            // EBX: brand, CLFLUSH size 64 bytes, one logical processor, APIC ID 0.
            l.ebx = 0x0001_0800;
            if let Some(mask) = mask {
                l.ecx &= mask.leaf1_ecx;
                l.edx &= LEAF1_EDX;
            } else {
                l.ecx &= !UNSAVED_LEAF1_ECX;
            }
            l.ecx |= HYPERVISOR;
        }
        (7, 0) => {
            l.ecx = 0;
            l.edx = 0;
            l.eax = 0;
            l.ebx &= mask.map_or(!UNSAVED_LEAF7_EBX, |mask| mask.leaf7_ebx);
        }
        (0xD, 0) => {
            l.eax = saved.components;
            (l.ebx, l.ecx) = (saved.area_len_bytes, saved.area_len_bytes);
            l.edx = 0;
        }
        (0xD, _) if is_saved_component(&l, saved.components) => {}
        (0x8000_0000, _) => l.eax = l.eax.min(0x8000_0008),
        (EXTENDED1, _) => {
            l.ebx = 0;
            l.edx &= EXTENDED1_EDX;
            l.ecx &= mask.map_or(!UNSAVED_EXTENDED1_ECX, |mask| mask.extended1_ecx);
        }
        (0x8000_0008, _) => {
            l.eax = GUEST_PHYSICAL_BITS | GUEST_LINEAR_BITS << 8;
            (l.ebx, l.ecx, l.edx) = (0, 0, 0);
        }
        (2 | 4 | 0x8000_0002..=0x8000_0004, _) if mask.is_none() => {}
        _ => return None,
    }
    Some(l)
}

/// Leaf 1 ECX bits that a guest never gets: MONITOR, VMX, SMX, x2APIC, TSC-deadline, PDCM, PCID, OSXSAVE (dynamic).
const UNSAVED_LEAF1_ECX: u32 =
    1 << 3 | 1 << 5 | 1 << 6 | 1 << 15 | 1 << 17 | 1 << 21 | 1 << 24 | 1 << 27;
/// Leaf 7 EBX bits that a guest never gets: FSGSBASE (bases would be writable in ring 3), TSC_ADJUST, SGX, HLE, RTM, MPX,
/// processor trace and every AVX-512 feature.
const UNSAVED_LEAF7_EBX: u32 = 1
    | 1 << 1
    | 1 << 2
    | 1 << 4
    | 1 << 11
    | 1 << 14
    | 1 << 16
    | 1 << 17
    | 1 << 21
    | 1 << 25
    | 0xDC00_0000;
/// Leaf 8000_0001 ECX bits that a guest never gets: SVM, extended APIC, IBS, SKINIT, WDT, LWP, performance counters,
/// MONITORX.
const UNSAVED_EXTENDED1_ECX: u32 =
    1 << 2 | 1 << 3 | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 15 | 1 << 23 | 1 << 24 | 1 << 28 | 1 << 29;

#[cfg(test)]
mod tests;

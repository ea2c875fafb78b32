//! The state of a vCPU in a configuration blob, and what of it is believed.

use serde::{Deserialize, Serialize};
use vellum_backend::hyperv::validate_for_hyperv;
use vellum_backend::state::{
    DebugRegs, DescriptorTable, Gprs, Msrs, PendingEvents, Segment, SegmentType, SpecialRegs,
    VcpuState, XSAVE_LEN_BYTES, Xcr0, XsaveArea, cr0, cr4, efer, rflags,
};
use vellum_layout::GuestKind;

use super::error::Invalid;
use super::hex;

/// The state, group by group. A group that the backend gains does not compile until it is here.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct StateRecord(#[serde(with = "StateDef")] pub(super) VcpuState);

#[derive(Serialize, Deserialize)]
#[serde(remote = "VcpuState", deny_unknown_fields)]
struct StateDef {
    #[serde(with = "GprsDef")]
    general: Gprs,
    #[serde(with = "SpecialDef")]
    special: SpecialRegs,
    #[serde(with = "xsave_area")]
    xsave: XsaveArea,
    #[serde(with = "Xcr0Def")]
    xcr0: Xcr0,
    #[serde(with = "DebugDef")]
    debug: DebugRegs,
    #[serde(with = "msr_list")]
    msrs: Msrs,
    #[serde(with = "EventsDef")]
    events: PendingEvents,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Gprs", deny_unknown_fields)]
struct GprsDef {
    rax: u64,
    rbx: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    rsp: u64,
    rbp: u64,
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    rip: u64,
    rflags: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Segment", deny_unknown_fields)]
struct SegmentDef {
    base: u64,
    limit: u32,
    selector: u16,
    #[serde(with = "segment_type")]
    attributes: SegmentType,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "DescriptorTable", deny_unknown_fields)]
struct TableDef {
    base: u64,
    limit: u16,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "SpecialRegs", deny_unknown_fields)]
struct SpecialDef {
    #[serde(with = "SegmentDef")]
    cs: Segment,
    #[serde(with = "SegmentDef")]
    ds: Segment,
    #[serde(with = "SegmentDef")]
    es: Segment,
    #[serde(with = "SegmentDef")]
    fs: Segment,
    #[serde(with = "SegmentDef")]
    gs: Segment,
    #[serde(with = "SegmentDef")]
    ss: Segment,
    #[serde(with = "SegmentDef")]
    tr: Segment,
    #[serde(with = "SegmentDef")]
    ldtr: Segment,
    #[serde(with = "TableDef")]
    gdtr: DescriptorTable,
    #[serde(with = "TableDef")]
    idtr: DescriptorTable,
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    cr8: u64,
    efer: u64,
    apic_base: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Xcr0")]
struct Xcr0Def(u64);

#[derive(Serialize, Deserialize)]
#[serde(remote = "DebugRegs", deny_unknown_fields)]
struct DebugDef {
    dr: [u64; 4],
    dr6: u64,
    dr7: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "PendingEvents", deny_unknown_fields)]
struct EventsDef {
    exception: Option<(u8, Option<u32>)>,
    interrupt_shadow: u8,
    nmi_pending: bool,
    nmi_masked: bool,
}

/// The attributes of a segment, as their bits.
mod segment_type {
    use serde::{Deserialize, Deserializer, Serializer};
    use vellum_backend::state::SegmentType;

    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde passes fields by reference"
    )]
    pub(super) fn serialize<S: Serializer>(
        attributes: &SegmentType,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(attributes.bits())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<SegmentType, D::Error> {
        u16::deserialize(deserializer).map(SegmentType::from_bits)
    }
}

/// The save area, as hexadecimal digits without the zeroes at its end.
mod xsave_area {
    use serde::de::Error;
    use serde::{Deserializer, Serializer};

    use super::{XSAVE_LEN_BYTES, XsaveArea, hex};

    pub(super) fn serialize<S: Serializer>(
        area: &XsaveArea,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let bytes = area.as_bytes();
        let used = bytes.iter().rposition(|&byte| byte != 0);
        hex::bytes::serialize(&bytes[..used.map_or(0, |last| last + 1)], serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<XsaveArea, D::Error> {
        let bytes = hex::bytes::deserialize(deserializer)?;
        let mut area = [0; XSAVE_LEN_BYTES];
        area.get_mut(..bytes.len())
            .ok_or_else(|| D::Error::custom("save area of more than 4096 bytes"))?
            .copy_from_slice(&bytes);
        Ok(XsaveArea::from_bytes(area))
    }
}

/// Model-specific registers: index and value of each that is declared, in that order.
mod msr_list {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};
    use vellum_backend::state::Msrs;

    pub(super) fn serialize<S: Serializer>(msrs: &Msrs, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(msrs.iter().map(|msr| (msr.index, msr.value)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Msrs, D::Error> {
        let list = Vec::<(u32, u64)>::deserialize(deserializer)?;
        let mut msrs = Msrs::default();
        let declared = msrs.iter().map(|msr| msr.index);
        if !declared.eq(list.iter().map(|(index, _)| *index)) {
            return Err(D::Error::custom(
                "model-specific registers are not those that snapshots have",
            ));
        }
        for (index, value) in list {
            msrs.set(index, value);
        }
        Ok(msrs)
    }
}

/// RFLAGS bits that ring 3 with IOPL 3 can have: the status flags, TF, IF, DF, IOPL, NT, RF, AC, ID, and bit 1, which is always 1
/// (Intel SDM volume 1, section 3.4.3).
const USER_RFLAGS: u64 = 0x0025_7FD7;
/// Those that ring 0 can have beside them: none. Virtual-8086 mode and virtual interrupts need features that no profile has.
const KERNEL_RFLAGS: u64 = USER_RFLAGS;
/// CR4 bits of the features that profiles can have: VME to PCE, OSFXSR, OSXMMEXCPT, OSXSAVE, SMEP, SMAP (Intel SDM volume 3,
/// section 2.5).
const KERNEL_CR4: u64 = 0x07FF | cr4::OSXSAVE | cr4::SMEP | cr4::SMAP;
/// The local APIC's address after a reset, and the bits that say that it is on and on the boot processor (Intel SDM volume 3,
/// section 11.4.4).
const APIC_BASE: u64 = 0xFEE0_0900;
/// Bits of MXCSR that exist (Intel SDM volume 1, section 10.2.3).
const MXCSR: u32 = 0xFFFF;
/// State components that are saved where the guest has no XCR0 of its own: up to AVX-512.
const ALL_COMPONENTS: u64 = 0xE7;
/// Exception vectors (Intel SDM volume 3, section 6.2).
const VECTORS: u8 = 32;
/// The highest linear address of the lower half.
const LOWER_HALF_LAST: u64 = 0x7FFF_FFFF_FFFF;

/// Checks the state of a user guest: everything that ring 3 cannot reach must be as `boot` has it.
pub(super) fn check_user(state: &VcpuState, boot: &VcpuState) -> Result<(), Invalid> {
    let (special, expected) = (&state.special, &boot.special);
    check_vectors(state)?;
    validate_for_hyperv(special)?;
    if !is_user_code(&special.cs, &expected.cs) {
        return Err(Invalid::field("state.special.cs", "is not ring 3's code"));
    }
    let data = [special.ds, special.es, special.fs, special.gs];
    if !data.iter().all(is_user_data) {
        return Err(Invalid::field(
            "state.special",
            "has a segment that ring 3 cannot load",
        ));
    }
    if !is_user_stack(&special.ss, &expected.ss) {
        return Err(Invalid::field("state.special.ss", "is not ring 3's stack"));
    }
    // The hidden part of a register that holds nothing is whatever the processor likes.
    let is_absent = |segment: &Segment| !segment.attributes.is_present();
    let ldtr = if is_absent(&special.ldtr) && is_absent(&expected.ldtr) {
        expected.ldtr
    } else {
        special.ldtr
    };
    let unreachable = SpecialRegs {
        ldtr,
        cs: expected.cs,
        ds: expected.ds,
        es: expected.es,
        fs: expected.fs,
        gs: expected.gs,
        ss: expected.ss,
        cr2: expected.cr2,
        // Where the tables lie is each sandbox's own affair.
        cr3: expected.cr3,
        ..*special
    };
    if unreachable != *expected {
        return Err(Invalid::field(
            "state.special",
            format!("differs where ring 3 cannot change it: {unreachable:?}"),
        ));
    }
    let groups = [
        ("state.debug", state.debug == boot.debug),
        ("state.msrs", state.msrs == boot.msrs),
        ("state.events", state.events == boot.events),
    ];
    if let Some((field, _)) = groups.iter().find(|(_, is_equal)| !is_equal) {
        return Err(Invalid::field(
            field,
            "differs, and ring 3 cannot change it",
        ));
    }
    check_flags(&state.general, USER_RFLAGS)?;
    if state.general.rip > LOWER_HALF_LAST {
        return Err(Invalid::field(
            "state.general.rip",
            "is not in the lower half",
        ));
    }
    Ok(())
}

/// Flat, or null; a processor may keep anything in the hidden part of a null selector but the base.
fn is_user_data(segment: &Segment) -> bool {
    let attributes = segment.attributes;
    let usable = attributes.is_code_or_data() && attributes.dpl() == 3;
    segment.base == 0 && (usable || !attributes.is_present() || segment.selector < 4)
}

/// As it was at boot, or as the descriptor table has it, whose limits are zero: 64-bit mode looks at neither limit nor granularity.
fn is_user_code(segment: &Segment, expected: &Segment) -> bool {
    const GRANULARITY: u16 = 1 << 15;
    let differing = segment.attributes.bits() ^ expected.attributes.bits();
    segment.base == 0 && segment.selector == expected.selector && differing & !GRANULARITY == 0
}

fn is_user_stack(segment: &Segment, expected: &Segment) -> bool {
    let attributes = segment.attributes;
    let usable = attributes.is_present() && attributes.is_code_or_data() && attributes.dpl() == 3;
    segment.base == 0 && segment.selector == expected.selector && usable
}

/// Checks the state of a kernel, which can have changed everything that exists.
pub(super) fn check_kernel(state: &VcpuState, kind: GuestKind) -> Result<(), Invalid> {
    let special = &state.special;
    validate_for_hyperv(special)?;
    let is_long = special.efer & efer::LMA != 0;
    let has_wide = kind == GuestKind::Amd64Kernel;
    let registers = [
        ("state.special.cr4", special.cr4 & !KERNEL_CR4 == 0),
        ("state.special.cr8", special.cr8 <= 0xF),
        (
            "state.special.apic_base",
            special.apic_base & !APIC_BASE == 0,
        ),
        ("state.special.efer", has_wide || !is_long),
        ("state.debug.dr6", fits_32_bits(state.debug.dr6)),
        ("state.debug.dr7", fits_32_bits(state.debug.dr7)),
        ("state.special.ldtr.base", is_canonical(special.ldtr.base)),
        (
            "state.general.rip",
            if is_long {
                is_canonical(state.general.rip)
            } else {
                fits_32_bits(state.general.rip)
            },
        ),
        ("state.special.cr0", special.cr0 & cr0::PE != 0 || !has_wide),
        ("state.msrs", state.msrs.iter().all(is_valid_msr)),
        (
            "state.events",
            state
                .events
                .exception
                .is_none_or(|(vector, _)| vector < VECTORS)
                && state.events.interrupt_shadow <= 3,
        ),
    ];
    if let Some((field, _)) = registers.iter().find(|(_, is_valid)| !is_valid) {
        return Err(Invalid::field(
            field,
            "has a value that no guest can give it",
        ));
    }
    check_flags(&state.general, KERNEL_RFLAGS)?;
    check_vectors(state)
}

fn check_flags(general: &Gprs, allowed: u64) -> Result<(), Invalid> {
    let flags = general.rflags;
    if flags & !allowed == 0 && flags & rflags::FIXED != 0 {
        return Ok(());
    }
    Err(Invalid::field(
        "state.general.rflags",
        format!("is {flags:#x}, which has undefined bits"),
    ))
}

/// XCR0, and a save area in the standard format (Intel SDM volume 1, sections 13.3 and 13.4).
fn check_vectors(state: &VcpuState) -> Result<(), Invalid> {
    const MXCSR_AT: usize = 24;
    const HEADER: std::ops::Range<usize> = 520..576;
    let xcr0 = state.xcr0.0;
    let known = [
        Xcr0::X87,
        Xcr0::X87 | Xcr0::SSE,
        Xcr0::X87 | Xcr0::SSE | Xcr0::AVX,
    ];
    if !known.contains(&xcr0) {
        return Err(Invalid::field(
            "state.xcr0",
            format!("is {xcr0:#x}, which no profile has"),
        ));
    }
    let allowed = match state.xcr0 {
        Xcr0::RESET => ALL_COMPONENTS,
        Xcr0(_) => known[2],
    };
    let bytes = state.xsave.as_bytes();
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[MXCSR_AT..MXCSR_AT + 4]);
    let mxcsr = u32::from_le_bytes(raw);
    let compacted = bytes[HEADER].iter().any(|&byte| byte != 0);
    if mxcsr & !MXCSR != 0 || compacted || state.xsave.xstate_bv() & !allowed != 0 {
        return Err(Invalid::field(
            "state.xsave",
            "is not a save area of the components that the profile has",
        ));
    }
    Ok(())
}

fn is_valid_msr(msr: &vellum_backend::state::Msr) -> bool {
    use vellum_backend::msr;
    match msr.index {
        msr::IA32_SYSENTER_CS | msr::IA32_FMASK => fits_32_bits(msr.value),
        msr::IA32_SYSENTER_ESP
        | msr::IA32_SYSENTER_EIP
        | msr::IA32_LSTAR
        | msr::IA32_CSTAR
        | msr::IA32_KERNEL_GS_BASE => is_canonical(msr.value),
        _ => true,
    }
}

fn fits_32_bits(value: u64) -> bool {
    u32::try_from(value).is_ok()
}

/// Whether bits 47 to 63 are equal.
fn is_canonical(address: u64) -> bool {
    matches!(address >> 47, 0 | 0x1_FFFF)
}

#[cfg(test)]
mod tests;

//! Between Vellum's register sets and lists of hypervisor registers.
//!
//! A value is 128 bits wide, always all of them: the upper half of a 64-bit register must be zero, and a union's unused bytes would not be.

use mshv_bindings::{
    hv_register_name, hv_register_name_HV_REGISTER_INTERRUPT_STATE as INTERRUPT_STATE,
    hv_register_name_HV_REGISTER_PENDING_EVENT0 as PENDING_EVENT0,
    hv_register_name_HV_REGISTER_PENDING_EVENT1 as PENDING_EVENT1,
    hv_register_name_HV_REGISTER_PENDING_INTERRUPTION as PENDING_INTERRUPTION,
    hv_register_name_HV_X64_REGISTER_APIC_BASE as APIC_BASE,
    hv_register_name_HV_X64_REGISTER_CR0 as CR0, hv_register_name_HV_X64_REGISTER_CR2 as CR2,
    hv_register_name_HV_X64_REGISTER_CR3 as CR3, hv_register_name_HV_X64_REGISTER_CR4 as CR4,
    hv_register_name_HV_X64_REGISTER_CR8 as CR8, hv_register_name_HV_X64_REGISTER_CS as CS,
    hv_register_name_HV_X64_REGISTER_CSTAR as CSTAR, hv_register_name_HV_X64_REGISTER_DR0 as DR0,
    hv_register_name_HV_X64_REGISTER_DR6 as DR6, hv_register_name_HV_X64_REGISTER_DR7 as DR7,
    hv_register_name_HV_X64_REGISTER_DS as DS, hv_register_name_HV_X64_REGISTER_EFER as EFER,
    hv_register_name_HV_X64_REGISTER_ES as ES, hv_register_name_HV_X64_REGISTER_FS as FS,
    hv_register_name_HV_X64_REGISTER_GDTR as GDTR, hv_register_name_HV_X64_REGISTER_GS as GS,
    hv_register_name_HV_X64_REGISTER_IDTR as IDTR,
    hv_register_name_HV_X64_REGISTER_KERNEL_GS_BASE as KERNEL_GS_BASE,
    hv_register_name_HV_X64_REGISTER_LDTR as LDTR, hv_register_name_HV_X64_REGISTER_LSTAR as LSTAR,
    hv_register_name_HV_X64_REGISTER_RAX as RAX, hv_register_name_HV_X64_REGISTER_RIP as RIP,
    hv_register_name_HV_X64_REGISTER_SFMASK as SFMASK, hv_register_name_HV_X64_REGISTER_SS as SS,
    hv_register_name_HV_X64_REGISTER_STAR as STAR,
    hv_register_name_HV_X64_REGISTER_SYSENTER_CS as SYSENTER_CS,
    hv_register_name_HV_X64_REGISTER_SYSENTER_EIP as SYSENTER_EIP,
    hv_register_name_HV_X64_REGISTER_SYSENTER_ESP as SYSENTER_ESP,
    hv_register_name_HV_X64_REGISTER_TR as TR, hv_register_name_HV_X64_REGISTER_XFEM as XFEM,
};

use crate::msr;
use crate::state::{
    DebugRegs, DescriptorTable, Gprs, PendingEvents, Segment, SegmentType, SpecialRegs,
};

/// A register and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Register {
    pub(super) name: hv_register_name,
    pub(super) value: u128,
}

impl Register {
    pub(super) fn new(name: hv_register_name, value: impl Into<u128>) -> Self {
        Self {
            name,
            value: value.into(),
        }
    }
}

/// General registers in the order of their encoding (RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15), then RIP and RFLAGS: the order of
/// the names and of the register page alike.
pub(super) const GENERAL_COUNT: usize = 18;
pub(super) type GeneralValues = [u64; GENERAL_COUNT];

pub(super) const GENERAL_RAX: hv_register_name = RAX;
pub(super) const GENERAL_RIP: hv_register_name = RIP;
pub(super) const XCR0: hv_register_name = XFEM;

/// The names of the general registers follow each other.
pub(super) fn general_names() -> impl Iterator<Item = hv_register_name> {
    (RAX..).take(GENERAL_COUNT)
}

pub(super) fn general_values(r: &Gprs) -> GeneralValues {
    let mut values = [0; GENERAL_COUNT];
    values[..16].copy_from_slice(&r.in_encoding_order());
    values[16..].copy_from_slice(&[r.rip, r.rflags]);
    values
}

pub(super) fn general_from_values(values: &GeneralValues) -> Gprs {
    let [general @ .., rip, rflags] = *values;
    Gprs::from_encoding_order(general, rip, rflags)
}

/// The names of group Special, in the order of [`special_values`].
pub(super) const SPECIAL: [hv_register_name; 17] = [
    TR, LDTR, GDTR, IDTR, CS, DS, ES, FS, GS, SS, CR0, CR2, CR3, CR4, CR8, EFER, APIC_BASE,
];

pub(super) fn special_values(r: &SpecialRegs) -> [u128; SPECIAL.len()] {
    [
        segment_value(&r.tr),
        segment_value(&r.ldtr),
        table_value(r.gdtr),
        table_value(r.idtr),
        segment_value(&r.cs),
        segment_value(&r.ds),
        segment_value(&r.es),
        segment_value(&r.fs),
        segment_value(&r.gs),
        segment_value(&r.ss),
        r.cr0.into(),
        r.cr2.into(),
        r.cr3.into(),
        r.cr4.into(),
        r.cr8.into(),
        r.efer.into(),
        r.apic_base.into(),
    ]
}

pub(super) fn special_from_values(values: &[u128; SPECIAL.len()]) -> SpecialRegs {
    let [
        tr,
        ldtr,
        gdtr,
        idtr,
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
    ] = *values;
    SpecialRegs {
        cs: segment_from_value(cs),
        ds: segment_from_value(ds),
        es: segment_from_value(es),
        fs: segment_from_value(fs),
        gs: segment_from_value(gs),
        ss: segment_from_value(ss),
        tr: segment_from_value(tr),
        ldtr: segment_from_value(ldtr),
        gdtr: table_from_value(gdtr),
        idtr: table_from_value(idtr),
        cr0: low(cr0),
        cr2: low(cr2),
        cr3: low(cr3),
        cr4: low(cr4),
        cr8: low(cr8),
        efer: low(efer),
        apic_base: low(apic_base),
    }
}

/// `HV_X64_SEGMENT_REGISTER`: base, limit, selector, attributes. The attributes have the layout of [`SegmentType`].
fn segment_value(s: &Segment) -> u128 {
    u128::from(s.base)
        | u128::from(s.limit) << 64
        | u128::from(s.selector) << 96
        | u128::from(s.attributes.bits()) << 112
}

/// A segment that is absent has no limit and no attributes, whatever the hypervisor left there.
fn segment_from_value(value: u128) -> Segment {
    let present = Segment {
        base: low(value),
        limit: bits32(value >> 64),
        selector: bits16(value >> 96),
        attributes: SegmentType::from_bits(bits16(value >> 112)),
    };
    if present.attributes.is_present() {
        return present;
    }
    Segment {
        base: present.base,
        selector: present.selector,
        ..Segment::default()
    }
}

/// `HV_X64_TABLE_REGISTER`: three words of padding, limit, base.
fn table_value(t: DescriptorTable) -> u128 {
    u128::from(t.limit) << 48 | u128::from(t.base) << 64
}

fn table_from_value(value: u128) -> DescriptorTable {
    DescriptorTable {
        limit: bits16(value >> 48),
        base: low(value >> 64),
    }
}

/// The names of group Debug, in the order of [`debug_values`].
pub(super) const DEBUG: [hv_register_name; 6] = [DR0, DR0 + 1, DR0 + 2, DR0 + 3, DR6, DR7];

pub(super) fn debug_values(r: &DebugRegs) -> [u128; DEBUG.len()] {
    let [dr0, dr1, dr2, dr3] = r.dr;
    [dr0, dr1, dr2, dr3, r.dr6, r.dr7].map(u128::from)
}

pub(super) fn debug_from_values(values: &[u128; DEBUG.len()]) -> DebugRegs {
    let [dr0, dr1, dr2, dr3, dr6, dr7] = values.map(low);
    DebugRegs {
        dr: [dr0, dr1, dr2, dr3],
        dr6,
        dr7,
    }
}

/// The registers that [`msr::DECLARED`] names, in its order.
pub(super) const MSRS: [hv_register_name; msr::DECLARED.len()] = [
    SYSENTER_CS,
    SYSENTER_ESP,
    SYSENTER_EIP,
    STAR,
    LSTAR,
    CSTAR,
    SFMASK,
    KERNEL_GS_BASE,
];

/// The names of group Events, in the order of [`event_values`].
pub(super) const EVENTS: [hv_register_name; 4] = [
    PENDING_INTERRUPTION,
    INTERRUPT_STATE,
    PENDING_EVENT0,
    PENDING_EVENT1,
];

/// `HV_X64_PENDING_INTERRUPTION_REGISTER`: pending in bit 0, type in bits 1 to 3, error code present in bit 4, vector in bits 16 to 31,
/// error code in bits 32 to 63.
const INTERRUPTION_PENDING: u64 = 1;
const INTERRUPTION_NMI: u64 = 2 << 1;
const INTERRUPTION_EXCEPTION: u64 = 3 << 1;
const INTERRUPTION_TYPE: u64 = 7 << 1;
const INTERRUPTION_HAS_ERROR_CODE: u64 = 1 << 4;
const NMI_VECTOR: u64 = 2;
/// `HV_X64_INTERRUPT_STATE_REGISTER`.
const INTERRUPT_SHADOW: u64 = 1;
const NMI_MASKED: u64 = 1 << 1;
/// What a vCPU in an interrupt shadow is said to have executed. The hypervisor does not tell `mov ss` from `sti`; the former blocks more.
const SHADOW_OF_MOV_SS: u8 = 1;

/// One exception or NMI can be pending; an exception comes before an NMI (Intel SDM volume 3, section 7.9).
pub(super) fn event_values(e: &PendingEvents) -> [u128; EVENTS.len()] {
    let interruption = match e.exception {
        Some((vector, error_code)) => {
            let code = error_code.map_or(0, |code| {
                INTERRUPTION_HAS_ERROR_CODE | u64::from(code) << 32
            });
            INTERRUPTION_PENDING | INTERRUPTION_EXCEPTION | u64::from(vector) << 16 | code
        }
        None if e.nmi_pending => INTERRUPTION_PENDING | INTERRUPTION_NMI | NMI_VECTOR << 16,
        None => 0,
    };
    let shadow = if e.interrupt_shadow == 0 {
        0
    } else {
        INTERRUPT_SHADOW
    };
    let masked = if e.nmi_masked { NMI_MASKED } else { 0 };
    [interruption.into(), (shadow | masked).into(), 0, 0]
}

pub(super) fn events_from_values(values: &[u128; EVENTS.len()]) -> PendingEvents {
    let [interruption, state, _, _] = values.map(low);
    let is_pending = interruption & INTERRUPTION_PENDING != 0;
    let kind = interruption & INTERRUPTION_TYPE;
    let exception = (is_pending && kind == INTERRUPTION_EXCEPTION).then(|| {
        let has_code = interruption & INTERRUPTION_HAS_ERROR_CODE != 0;
        let vector = (interruption >> 16 & 0xFF) as u8;
        (
            vector,
            has_code.then(|| bits32((interruption >> 32).into())),
        )
    });
    PendingEvents {
        exception,
        interrupt_shadow: if state & INTERRUPT_SHADOW != 0 {
            SHADOW_OF_MOV_SS
        } else {
            0
        },
        nmi_pending: is_pending && kind == INTERRUPTION_NMI,
        nmi_masked: state & NMI_MASKED != 0,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is asked for")]
pub(super) const fn low(value: u128) -> u64 {
    value as u64
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the low bits are asked for"
)]
const fn bits32(value: u128) -> u32 {
    value as u32
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the low bits are asked for"
)]
const fn bits16(value: u128) -> u16 {
    value as u16
}

#[cfg(test)]
mod tests;

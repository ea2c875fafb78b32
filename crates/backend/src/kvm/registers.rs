//! Between Vellum's register sets and KVM's structures.

use std::ops::Range;

use kvm_bindings::{
    KVM_VCPUEVENT_VALID_SHADOW, kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs,
    kvm_vcpu_events,
};

use crate::state::{
    DebugRegs, DescriptorTable, Gprs, PendingEvents, Segment, SegmentType, SpecialRegs, Xcr0,
};

pub(super) fn gprs_to_kvm(r: &Gprs) -> kvm_regs {
    kvm_regs {
        rax: r.rax,
        rbx: r.rbx,
        rcx: r.rcx,
        rdx: r.rdx,
        rsi: r.rsi,
        rdi: r.rdi,
        rsp: r.rsp,
        rbp: r.rbp,
        r8: r.r8,
        r9: r.r9,
        r10: r.r10,
        r11: r.r11,
        r12: r.r12,
        r13: r.r13,
        r14: r.r14,
        r15: r.r15,
        rip: r.rip,
        rflags: r.rflags,
    }
}

pub(super) fn gprs_from_kvm(r: &kvm_regs) -> Gprs {
    Gprs {
        rax: r.rax,
        rbx: r.rbx,
        rcx: r.rcx,
        rdx: r.rdx,
        rsi: r.rsi,
        rdi: r.rdi,
        rsp: r.rsp,
        rbp: r.rbp,
        r8: r.r8,
        r9: r.r9,
        r10: r.r10,
        r11: r.r11,
        r12: r.r12,
        r13: r.r13,
        r14: r.r14,
        r15: r.r15,
        rip: r.rip,
        rflags: r.rflags,
    }
}

pub(super) fn special_to_kvm(r: &SpecialRegs) -> kvm_sregs {
    kvm_sregs {
        cs: segment_to_kvm(&r.cs),
        ds: segment_to_kvm(&r.ds),
        es: segment_to_kvm(&r.es),
        fs: segment_to_kvm(&r.fs),
        gs: segment_to_kvm(&r.gs),
        ss: segment_to_kvm(&r.ss),
        tr: segment_to_kvm(&r.tr),
        ldt: segment_to_kvm(&r.ldtr),
        gdt: table_to_kvm(r.gdtr),
        idt: table_to_kvm(r.idtr),
        cr0: r.cr0,
        cr2: r.cr2,
        cr3: r.cr3,
        cr4: r.cr4,
        cr8: r.cr8,
        efer: r.efer,
        apic_base: r.apic_base,
        interrupt_bitmap: [0; 4],
    }
}

pub(super) fn special_from_kvm(r: &kvm_sregs) -> SpecialRegs {
    SpecialRegs {
        cs: segment_from_kvm(&r.cs),
        ds: segment_from_kvm(&r.ds),
        es: segment_from_kvm(&r.es),
        fs: segment_from_kvm(&r.fs),
        gs: segment_from_kvm(&r.gs),
        ss: segment_from_kvm(&r.ss),
        tr: segment_from_kvm(&r.tr),
        ldtr: segment_from_kvm(&r.ldt),
        gdtr: table_from_kvm(&r.gdt),
        idtr: table_from_kvm(&r.idt),
        cr0: r.cr0,
        cr2: r.cr2,
        cr3: r.cr3,
        cr4: r.cr4,
        cr8: r.cr8,
        efer: r.efer,
        apic_base: r.apic_base,
    }
}

fn segment_to_kvm(s: &Segment) -> kvm_segment {
    let a = s.attributes;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: a.type_(),
        present: u8::from(a.is_present()),
        dpl: a.dpl(),
        db: u8::from(a.is_default_32()),
        s: u8::from(a.is_code_or_data()),
        l: u8::from(a.is_long()),
        g: u8::from(a.is_page_granular()),
        avl: u8::from(a.is_available()),
        unusable: u8::from(!a.is_present()),
        padding: 0,
    }
}

fn segment_from_kvm(s: &kvm_segment) -> Segment {
    if s.unusable != 0 || s.present == 0 {
        return Segment {
            base: s.base,
            selector: s.selector,
            ..Segment::default()
        };
    }
    let bit = |flag: u8, at: u32| u16::from(flag & 1) << at;
    let bits = u16::from(s.type_ & 0xF)
        | bit(s.s, 4)
        | u16::from(s.dpl & 3) << 5
        | bit(s.present, 7)
        | bit(s.avl, 12)
        | bit(s.l, 13)
        | bit(s.db, 14)
        | bit(s.g, 15);
    Segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        attributes: SegmentType::from_bits(bits),
    }
}

fn table_to_kvm(t: DescriptorTable) -> kvm_dtable {
    kvm_dtable {
        base: t.base,
        limit: t.limit,
        padding: [0; 3],
    }
}

fn table_from_kvm(t: &kvm_dtable) -> DescriptorTable {
    DescriptorTable {
        base: t.base,
        limit: t.limit,
    }
}

pub(super) fn debug_to_kvm(r: &DebugRegs) -> kvm_debugregs {
    kvm_debugregs {
        db: r.dr,
        dr6: r.dr6,
        dr7: r.dr7,
        ..kvm_debugregs::default()
    }
}

pub(super) fn debug_from_kvm(r: &kvm_debugregs) -> DebugRegs {
    DebugRegs {
        dr: r.db,
        dr6: r.dr6,
        dr7: r.dr7,
    }
}

pub(super) fn events_to_kvm(e: &PendingEvents) -> kvm_vcpu_events {
    let mut events = kvm_vcpu_events::default();
    if let Some((vector, error_code)) = e.exception {
        events.exception.injected = 1;
        events.exception.nr = vector;
        events.exception.has_error_code = u8::from(error_code.is_some());
        events.exception.error_code = error_code.unwrap_or(0);
    }
    events.interrupt.shadow = e.interrupt_shadow;
    events.nmi.pending = u8::from(e.nmi_pending);
    events.nmi.masked = u8::from(e.nmi_masked);
    events.flags = KVM_VCPUEVENT_VALID_SHADOW | kvm_bindings::KVM_VCPUEVENT_VALID_NMI_PENDING;
    events
}

pub(super) fn events_from_kvm(e: &kvm_vcpu_events) -> PendingEvents {
    let exception = (e.exception.injected != 0).then(|| {
        let error_code = (e.exception.has_error_code != 0).then_some(e.exception.error_code);
        (e.exception.nr, error_code)
    });
    PendingEvents {
        exception,
        interrupt_shadow: e.interrupt.shadow,
        nmi_pending: e.nmi.pending != 0,
        nmi_masked: e.nmi.masked != 0,
    }
}

/// Marks x87 and SSE state as present in a save area, and writes out what absence stands for.
///
/// A kernel that is given an area without them leaves MXCSR as it was, and a processor without `XSAVES` then loads it from there: the
/// register would keep the value of whoever ran before (Intel SDM volume 1, section 13.8.1: the standard form of `XRSTOR` loads
/// MXCSR from memory, whatever XSTATE_BV says).
pub(super) fn write_out_legacy_state(area: &mut [u32]) {
    /// Words of an area in the format of `FXSAVE`, and the first word of XSTATE_BV (sections 10.5.1 and 13.4.2).
    const CONTROL: Range<usize> = 0..6;
    const MXCSR: usize = 6;
    const X87_REGISTERS: Range<usize> = 8..40;
    const XMM: Range<usize> = 40..104;
    const XSTATE_BV: usize = 128;
    const FCW_RESET: u32 = 0x037F;
    const MXCSR_RESET: u32 = 0x1F80;
    let present = u64::from(area[XSTATE_BV]);
    if present & Xcr0::X87 == 0 {
        area[CONTROL].fill(0);
        area[0] = FCW_RESET;
        area[X87_REGISTERS].fill(0);
    }
    if present & Xcr0::SSE == 0 {
        area[XMM].fill(0);
        // MXCSR belongs to AVX as well.
        if present & Xcr0::AVX == 0 {
            area[MXCSR] = MXCSR_RESET;
        }
    }
    area[XSTATE_BV] |= 3;
}

#[cfg(test)]
mod tests;

//! Registers by name, and how they map to KVM's structures.

use std::collections::BTreeMap;

use kvm_bindings::{
    KVM_VCPUEVENT_VALID_SHADOW, kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs,
    kvm_vcpu_events,
};

/// Names, as the specification numbers them.
pub(crate) mod name {
    pub(crate) const EXPLICIT_SUSPEND: u32 = 0;
    pub(crate) const INTERCEPT_SUSPEND: u32 = 1;
    pub(crate) const PENDING_INTERRUPTION: u32 = 0x10002;
    pub(crate) const INTERRUPT_STATE: u32 = 0x10003;
    pub(crate) const DELIVERABILITY_NOTIFICATIONS: u32 = 0x10006;
    pub(crate) const RAX: u32 = 0x20000;
    pub(crate) const RIP: u32 = 0x20010;
    pub(crate) const RFLAGS: u32 = 0x20011;
    pub(crate) const CR0: u32 = 0x40000;
    pub(crate) const CR2: u32 = 0x40001;
    pub(crate) const CR3: u32 = 0x40002;
    pub(crate) const CR4: u32 = 0x40003;
    pub(crate) const CR8: u32 = 0x40004;
    pub(crate) const XFEM: u32 = 0x40005;
    /// The same registers as seen by a guest whose accesses are intercepted, which none is here.
    pub(crate) const INTERMEDIATE_CR0: u32 = 0x41000;
    pub(crate) const INTERMEDIATE_CR8: u32 = 0x41004;
    pub(crate) const DR0: u32 = 0x50000;
    pub(crate) const DR6: u32 = 0x50004;
    pub(crate) const DR7: u32 = 0x50005;
    pub(crate) const ES: u32 = 0x60000;
    pub(crate) const CS: u32 = 0x60001;
    pub(crate) const SS: u32 = 0x60002;
    pub(crate) const GS: u32 = 0x60005;
    pub(crate) const TR: u32 = 0x60007;
    pub(crate) const IDTR: u32 = 0x70000;
    pub(crate) const GDTR: u32 = 0x70001;
    pub(crate) const EFER: u32 = 0x80001;
    pub(crate) const APIC_BASE: u32 = 0x80003;
}

/// A part of the state that KVM takes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Group {
    General,
    Special,
    Debug,
    Xcr0,
    Events,
}

/// The group of a register; `None` for one that only this program keeps.
pub(crate) fn group_of(register: u32) -> Option<Group> {
    use name::{APIC_BASE, CR0, CR8, DR0, DR7, EFER, ES, GDTR, IDTR, RAX, RFLAGS, TR, XFEM};
    match register {
        RAX..=RFLAGS => Some(Group::General),
        CR0..=CR8 | ES..=TR | IDTR..=GDTR | EFER | APIC_BASE => Some(Group::Special),
        DR0..=DR7 => Some(Group::Debug),
        XFEM => Some(Group::Xcr0),
        name::PENDING_INTERRUPTION | name::INTERRUPT_STATE => Some(Group::Events),
        _ => None,
    }
}

/// Another name of the same register.
pub(crate) const fn canonical(register: u32) -> u32 {
    match register {
        name::INTERMEDIATE_CR0..=name::INTERMEDIATE_CR8 => {
            register - name::INTERMEDIATE_CR0 + name::CR0
        }
        other => other,
    }
}

/// The values of all registers that were read from KVM or written by the program.
#[derive(Clone, Debug, Default)]
pub(crate) struct Values(BTreeMap<u32, u128>);

impl Values {
    pub(crate) fn get(&self, register: u32) -> u128 {
        self.0.get(&register).copied().unwrap_or(0)
    }

    pub(crate) fn u64(&self, register: u32) -> u64 {
        low(self.get(register))
    }

    pub(crate) fn set(&mut self, register: u32, value: impl Into<u128>) {
        self.0.insert(register, value.into());
    }

    pub(crate) fn segment(&self, register: u32) -> Segment {
        Segment::from_value(self.get(register))
    }

    pub(crate) fn take_general(&mut self, r: &kvm_regs) {
        for (register, value) in (name::RAX..).zip(general_values(r)) {
            self.set(register, value);
        }
    }

    pub(crate) fn general(&self) -> kvm_regs {
        let value = |index| self.u64(name::RAX + index);
        kvm_regs {
            rax: value(0),
            rcx: value(1),
            rdx: value(2),
            rbx: value(3),
            rsp: value(4),
            rbp: value(5),
            rsi: value(6),
            rdi: value(7),
            r8: value(8),
            r9: value(9),
            r10: value(10),
            r11: value(11),
            r12: value(12),
            r13: value(13),
            r14: value(14),
            r15: value(15),
            rip: value(16),
            rflags: value(17),
        }
    }

    pub(crate) fn take_special(&mut self, r: &kvm_sregs) {
        let segments = [r.es, r.cs, r.ss, r.ds, r.fs, r.gs, r.ldt, r.tr];
        for (register, segment) in (name::ES..).zip(segments) {
            self.set(register, Segment::from_kvm(&segment).value());
        }
        for (register, table) in [(name::IDTR, r.idt), (name::GDTR, r.gdt)] {
            self.set(
                register,
                u128::from(table.limit) << 48 | u128::from(table.base) << 64,
            );
        }
        let numbers = [
            (name::CR0, r.cr0),
            (name::CR2, r.cr2),
            (name::CR3, r.cr3),
            (name::CR4, r.cr4),
            (name::CR8, r.cr8),
            (name::EFER, r.efer),
            (name::APIC_BASE, r.apic_base),
        ];
        for (register, value) in numbers {
            self.set(register, value);
        }
    }

    pub(crate) fn special(&self) -> kvm_sregs {
        let segment = |index| self.segment(name::ES + index).to_kvm();
        let table = |register| {
            let value = self.get(register);
            kvm_dtable {
                limit: u16::try_from(value >> 48 & 0xFFFF).unwrap_or(0),
                base: low(value >> 64),
                ..kvm_dtable::default()
            }
        };
        kvm_sregs {
            es: segment(0),
            cs: segment(1),
            ss: segment(2),
            ds: segment(3),
            fs: segment(4),
            gs: segment(5),
            ldt: segment(6),
            tr: segment(7),
            idt: table(name::IDTR),
            gdt: table(name::GDTR),
            cr0: self.u64(name::CR0),
            cr2: self.u64(name::CR2),
            cr3: self.u64(name::CR3),
            cr4: self.u64(name::CR4),
            cr8: self.u64(name::CR8),
            efer: self.u64(name::EFER),
            apic_base: self.u64(name::APIC_BASE),
            interrupt_bitmap: [0; 4],
        }
    }

    pub(crate) fn take_debug(&mut self, r: &kvm_debugregs) {
        for (register, value) in (name::DR0..).zip(r.db) {
            self.set(register, value);
        }
        self.set(name::DR6, r.dr6);
        self.set(name::DR7, r.dr7);
    }

    pub(crate) fn debug(&self) -> kvm_debugregs {
        kvm_debugregs {
            db: [0, 1, 2, 3].map(|index| self.u64(name::DR0 + index)),
            dr6: self.u64(name::DR6),
            dr7: self.u64(name::DR7),
            ..kvm_debugregs::default()
        }
    }

    /// Pending exception or NMI; interrupt shadow; NMIs masked.
    pub(crate) fn take_events(&mut self, e: &kvm_vcpu_events) {
        let interruption = if e.exception.injected != 0 {
            let code = if e.exception.has_error_code == 0 {
                0
            } else {
                1 << 4 | u64::from(e.exception.error_code) << 32
            };
            1 | 3 << 1 | u64::from(e.exception.nr) << 16 | code
        } else if e.nmi.pending != 0 || e.nmi.injected != 0 {
            1 | 2 << 1 | 2 << 16
        } else {
            0
        };
        self.set(name::PENDING_INTERRUPTION, interruption);
        let shadow = u64::from(e.interrupt.shadow != 0);
        let masked = u64::from(e.nmi.masked != 0) << 1;
        self.set(name::INTERRUPT_STATE, shadow | masked);
    }

    pub(crate) fn events(&self) -> kvm_vcpu_events {
        let interruption = self.u64(name::PENDING_INTERRUPTION);
        let state = self.u64(name::INTERRUPT_STATE);
        let kind = interruption >> 1 & 7;
        let mut events = kvm_vcpu_events::default();
        if interruption & 1 != 0 && kind == 3 {
            events.exception.injected = 1;
            events.exception.nr = (interruption >> 16 & 0xFF) as u8;
            events.exception.has_error_code = u8::from(interruption >> 4 & 1 != 0);
            events.exception.error_code = (interruption >> 32) as u32;
        }
        events.nmi.pending = u8::from(interruption & 1 != 0 && kind == 2);
        events.nmi.masked = u8::from(state & 2 != 0);
        // KVM tells `mov ss` (1) from `sti` (2).
        events.interrupt.shadow = u8::from(state & 1 != 0);
        events.flags = KVM_VCPUEVENT_VALID_SHADOW | kvm_bindings::KVM_VCPUEVENT_VALID_NMI_PENDING;
        events
    }
}

/// The general registers in the order of their names.
pub(crate) fn general_values(r: &kvm_regs) -> [u64; 18] {
    [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15, r.rip, r.rflags,
    ]
}

/// A segment register as the hypervisor lays it out: attributes are type 0-3, S 4, DPL 5-6, P 7, AVL 12, L 13, D/B 14, G 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) base: u64,
    pub(crate) limit: u32,
    pub(crate) selector: u16,
    pub(crate) attributes: u16,
}

impl Segment {
    pub(crate) fn from_value(value: u128) -> Self {
        Self {
            base: low(value),
            limit: u32::try_from(value >> 64 & 0xFFFF_FFFF).unwrap_or(0),
            selector: u16::try_from(value >> 96 & 0xFFFF).unwrap_or(0),
            attributes: u16::try_from(value >> 112).unwrap_or(0),
        }
    }

    pub(crate) fn value(self) -> u128 {
        u128::from(self.base)
            | u128::from(self.limit) << 64
            | u128::from(self.selector) << 96
            | u128::from(self.attributes) << 112
    }

    pub(crate) const fn kind(self) -> u16 {
        self.attributes & 0xF
    }

    pub(crate) const fn has(self, bit: u32) -> bool {
        self.attributes & 1 << bit != 0
    }

    pub(crate) const fn privilege(self) -> u16 {
        self.attributes >> 5 & 3
    }

    fn from_kvm(s: &kvm_segment) -> Self {
        let present = if s.unusable != 0 { 0 } else { s.present };
        let bit = |flag: u8, at: u32| u16::from(flag & 1) << at;
        Self {
            base: s.base,
            limit: s.limit,
            selector: s.selector,
            attributes: u16::from(s.type_ & 0xF)
                | bit(s.s, 4)
                | u16::from(s.dpl & 3) << 5
                | bit(present, 7)
                | bit(s.avl, 12)
                | bit(s.l, 13)
                | bit(s.db, 14)
                | bit(s.g, 15),
        }
    }

    /// A segment that is absent is KVM's unusable one.
    fn to_kvm(self) -> kvm_segment {
        let bit = |at| u8::from(self.has(at));
        kvm_segment {
            base: self.base,
            limit: self.limit,
            selector: self.selector,
            type_: self.attributes.to_le_bytes()[0] & 0xF,
            s: bit(4),
            dpl: self.attributes.to_le_bytes()[0] >> 5 & 3,
            present: bit(7),
            avl: bit(12),
            l: bit(13),
            db: bit(14),
            g: bit(15),
            unusable: u8::from(!self.has(7)),
            padding: 0,
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is asked for")]
pub(crate) const fn low(value: u128) -> u64 {
    value as u64
}

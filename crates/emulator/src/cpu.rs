//! The vCPU: registers, and what is derived from them.

use std::sync::Arc;
use vellum_backend::cpuid::CpuModel;
use vellum_backend::state::{
    DebugRegs, Msrs, PendingEvents, SegmentType, SpecialRegs, XsaveArea, cr0, cr4, efer,
};

use vellum_backend::IoWidth;
use vellum_backend::state::Xcr0;

use crate::exec::{CR0_EM, CR0_TS};
use crate::flags::{self, Flags};
use crate::memory::{Cell, Paging, Physical, Tlb, User};
use crate::op::{Kind, Op, Operand};
use crate::trap::{Cause, Trap, vector};
use crate::width::{RegisterFile, Width};
use crate::x87::X87;

/// Numbers of general-purpose registers.
pub(crate) mod reg {
    pub(crate) const RAX: u8 = 0;
    pub(crate) const RCX: u8 = 1;
    pub(crate) const RDX: u8 = 2;
    pub(crate) const RBX: u8 = 3;
    pub(crate) const RSP: u8 = 4;
    pub(crate) const RBP: u8 = 5;
    pub(crate) const RSI: u8 = 6;
    pub(crate) const RDI: u8 = 7;
}

/// Numbers of segment registers.
pub(crate) mod seg {
    pub(crate) const ES: u8 = 0;
    pub(crate) const CS: u8 = 1;
    pub(crate) const SS: u8 = 2;
    pub(crate) const DS: u8 = 3;
    pub(crate) const FS: u8 = 4;
    pub(crate) const GS: u8 = 5;
}

/// Width of addresses and operands of code, in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CodeSize {
    Bits16,
    Bits32,
    Bits64,
}

/// One vCPU with its view of memory.
#[derive(Debug)]
pub(crate) struct Cpu {
    pub(crate) gpr: RegisterFile,
    /// The instruction at hand or, while one runs, the one behind it.
    pub(crate) rip: u64,
    pub(crate) flags: Flags,
    /// Bases of segments as addresses use them, in the order of [`seg`].
    pub(crate) bases: [u64; 8],
    /// Segments whose accesses need no check.
    pub(crate) plain: u8,
    pub(crate) linear_mask: u64,
    /// Bits of RSP that address the stack.
    pub(crate) stack_mask: u64,
    pub(crate) tlb: Tlb,
    pub(crate) xmm: [u128; 16],
    pub(crate) mxcsr: u32,
    pub(crate) x87: X87,
    /// Bytes of the state-save area that no profile's instruction reaches, kept as they were set.
    pub(crate) untouched: XsaveArea,
    pub(crate) special: SpecialRegs,
    pub(crate) xcr0: Xcr0,
    pub(crate) debug: DebugRegs,
    pub(crate) msrs: Msrs,
    pub(crate) events: PendingEvents,
    pub(crate) cpl: u8,
    /// Vector instructions neither fault nor are undefined.
    pub(crate) vectors_ready: bool,
    pub(crate) code_size: CodeSize,
    /// `None` for a kind of paging that is not emulated.
    pub(crate) paging: Paging,
    pub(crate) physical: Physical,
    /// Decoded code was written by the instruction at hand.
    pub(crate) code_changed: bool,
    pub(crate) cause: Cause,
    /// Instructions that completed: the time-stamp counter.
    pub(crate) retired: u64,
    pub(crate) input: Option<PendingInput>,
    /// RIP after an exit by an instruction that completed.
    pub(crate) left_behind: Option<u64>,
    pub(crate) model: Arc<CpuModel>,
    pub(crate) lacking: crate::lacking::Lacking,
}

/// An `in` that waits for its value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingInput {
    pub(crate) width: IoWidth,
    /// RIP behind the instruction.
    pub(crate) next: u64,
}

impl Cpu {
    pub(crate) fn new(model: Arc<CpuModel>) -> Self {
        let mut cpu = Self {
            gpr: [0; 32],
            rip: 0,
            flags: Flags(flags::FIXED),
            bases: [0; 8],
            plain: 0,
            linear_mask: 0xFFFF_FFFF,
            stack_mask: 0xFFFF,
            tlb: Tlb::default(),
            xmm: [0; 16],
            mxcsr: 0x1F80,
            x87: X87::default(),
            untouched: XsaveArea::reset(),
            special: SpecialRegs::default(),
            xcr0: Xcr0::RESET,
            debug: DebugRegs::default(),
            msrs: Msrs::default(),
            events: PendingEvents::default(),
            cpl: 0,
            vectors_ready: false,
            code_size: CodeSize::Bits16,
            paging: Paging::default(),
            physical: Physical::default(),
            code_changed: false,
            cause: Cause::Again,
            retired: 0,
            input: None,
            left_behind: None,
            model,
            lacking: crate::lacking::Lacking::default(),
        };
        cpu.refresh();
        cpu
    }

    #[inline]
    pub(crate) fn is_user(&self) -> bool {
        self.cpl == 3
    }

    #[inline]
    pub(crate) fn is_long_mode(&self) -> bool {
        self.special.efer & efer::LMA != 0
    }

    pub(crate) fn is_protected(&self) -> bool {
        self.special.cr0 & cr0::PE != 0
    }

    pub(crate) fn is_64_bit(&self) -> bool {
        self.code_size == CodeSize::Bits64
    }

    /// Derives what depends on control registers and segments. Says whether the paging mode is one that is emulated.
    pub(crate) fn refresh(&mut self) -> bool {
        let cs = self.special.cs;
        self.cpl = if self.is_protected() {
            (cs.selector & 3) as u8
        } else {
            0
        };
        self.code_size = match (self.is_long_mode() && cs.attributes.is_long(), cs) {
            (true, _) => CodeSize::Bits64,
            (false, cs) if cs.attributes.is_default_32() => CodeSize::Bits32,
            (false, _) => CodeSize::Bits16,
        };
        self.linear_mask = if self.is_64_bit() {
            u64::MAX
        } else {
            0xFFFF_FFFF
        };
        self.stack_mask = match self.code_size {
            CodeSize::Bits64 => u64::MAX,
            _ if self.special.ss.attributes.is_default_32() => 0xFFFF_FFFF,
            _ => 0xFFFF,
        };
        self.refresh_segments();
        self.tlb
            .select(if self.is_user() { User::Yes } else { User::No });
        self.vectors_ready =
            self.special.cr0 & (CR0_TS | CR0_EM) == 0 && self.special.cr4 & cr4::OSFXSR != 0;
        let paging = Paging::from_registers(&self.special);
        self.paging = paging.unwrap_or_default();
        paging.is_some()
    }

    fn refresh_segments(&mut self) {
        let special = &self.special;
        let all = [
            special.es, special.cs, special.ss, special.ds, special.fs, special.gs,
        ];
        self.plain = 0;
        for (number, segment) in all.iter().enumerate() {
            let ignored = self.code_size == CodeSize::Bits64 && number < usize::from(seg::FS);
            self.bases[number] = if ignored { 0 } else { segment.base };
            if self.code_size == CodeSize::Bits64 || is_plain(segment.attributes, segment.limit) {
                self.plain |= 1 << number;
            }
        }
        if !self.is_protected() {
            self.plain = 0;
        }
    }

    pub(crate) fn segment(&self, number: u8) -> &vellum_backend::state::Segment {
        match number {
            seg::ES => &self.special.es,
            seg::CS => &self.special.cs,
            seg::SS => &self.special.ss,
            seg::DS => &self.special.ds,
            seg::FS => &self.special.fs,
            _ => &self.special.gs,
        }
    }

    pub(crate) fn segment_mut(&mut self, number: u8) -> &mut vellum_backend::state::Segment {
        match number {
            seg::ES => &mut self.special.es,
            seg::CS => &mut self.special.cs,
            seg::SS => &mut self.special.ss,
            seg::DS => &mut self.special.ds,
            seg::FS => &mut self.special.fs,
            _ => &mut self.special.gs,
        }
    }

    /// The effective address of the memory operand.
    #[inline]
    pub(crate) fn effective(&self, op: &Op) -> u64 {
        let base = self.gpr[usize::from(op.base) & 31];
        let index = self.gpr[usize::from(op.index) & 31];
        base.wrapping_add(index << (op.scale & 3))
            .wrapping_add(op.disp)
            & op.address_mask
    }

    /// The linear address of the memory operand, for an access of `len_bytes`.
    #[inline]
    pub(crate) fn linear(&mut self, op: &Op, len_bytes: u64, write: Write) -> Result<u64, Trap> {
        let effective = self.effective(op);
        self.linear_at(op.segment, effective, len_bytes, write)
    }

    /// The linear address of an effective one.
    #[inline]
    pub(crate) fn linear_at(
        &mut self,
        segment: u8,
        effective: u64,
        len_bytes: u64,
        write: Write,
    ) -> Result<u64, Trap> {
        if self.plain & 1 << segment == 0 {
            self.check_segment(segment, effective, len_bytes, write)?;
        }
        let base = self.bases[usize::from(segment) & 7];
        Ok(base.wrapping_add(effective) & self.linear_mask)
    }

    /// Limit and type of a segment (Intel SDM volume 3, sections 6.3 to 6.5).
    #[cold]
    #[inline(never)]
    fn check_segment(
        &mut self,
        number: u8,
        effective: u64,
        len_bytes: u64,
        write: Write,
    ) -> Result<(), Trap> {
        let segment = *self.segment(number);
        let type_ = segment.attributes.type_();
        let code = type_ & 8 != 0;
        let allowed = match write {
            Write::Yes => !code && type_ & 2 != 0,
            Write::No => !code || type_ & 2 != 0,
        };
        let usable = !self.is_protected() || segment.attributes.is_present() && allowed;
        let last = effective.wrapping_add(len_bytes - 1);
        let limit = u64::from(segment.limit);
        let expand_down = !code && type_ & 4 != 0 && self.is_protected();
        let inside = if expand_down {
            let top = if segment.attributes.is_default_32() {
                0xFFFF_FFFF
            } else {
                0xFFFF
            };
            effective > limit && last <= top && last >= effective
        } else {
            last <= limit && last >= effective
        };
        if usable && inside {
            return Ok(());
        }
        let vector = if number == seg::SS {
            vector::SS
        } else {
            vector::GP
        };
        Err(self.fault_with(vector, 0))
    }

    /// Reads a general operand.
    #[inline]
    pub(crate) fn get<W: Width + Cell>(&mut self, op: &Op, operand: Operand) -> Result<u64, Trap> {
        match operand.kind {
            Kind::Register => Ok(W::get(&self.gpr, operand.index)),
            Kind::Memory => {
                let linear = self.linear(op, W::BYTES, Write::No)?;
                self.load::<W>(linear)
            }
            _ => Ok(op.imm & W::MASK),
        }
    }

    /// Writes a general operand.
    #[inline]
    pub(crate) fn put<W: Width + Cell>(
        &mut self,
        op: &Op,
        operand: Operand,
        value: u64,
    ) -> Result<(), Trap> {
        if operand.kind == Kind::Register {
            W::set(&mut self.gpr, operand.index, value);
            return Ok(());
        }
        let linear = self.linear(op, W::BYTES, Write::Yes)?;
        self.store::<W>(linear, value)
    }

    /// Replaces the first operand by what `change` makes of it.
    #[inline]
    pub(crate) fn modify<W: Width + Cell>(
        &mut self,
        op: &Op,
        mut change: impl FnMut(&mut Self, u64) -> u64,
    ) -> Result<(), Trap> {
        if op.a.kind == Kind::Register {
            let old = W::get(&self.gpr, op.a.index);
            let new = change(self, old);
            W::set(&mut self.gpr, op.a.index, new);
            return Ok(());
        }
        let linear = self.linear(op, W::BYTES, Write::Yes)?;
        self.update::<W>(linear, op.locked, change)
    }

    pub(crate) fn rsp(&self) -> u64 {
        self.gpr[usize::from(reg::RSP)]
    }

    /// #GP(0) outside of ring 0.
    pub(crate) fn require_ring_zero(&mut self) -> Result<(), Trap> {
        if self.cpl == 0 {
            Ok(())
        } else {
            Err(self.gp())
        }
    }

    /// Gives the value that the pending `in` reads. Says whether one was pending.
    pub(crate) fn complete_input(&mut self, data: u32) -> bool {
        let Some(input) = self.input.take() else {
            return false;
        };
        let data = u64::from(data);
        match input.width {
            IoWidth::Byte => u8::set(&mut self.gpr, reg::RAX, data),
            IoWidth::Word => u16::set(&mut self.gpr, reg::RAX, data),
            IoWidth::Dword => u32::set(&mut self.gpr, reg::RAX, data),
        }
        self.rip = input.next;
        self.retired += 1;
        true
    }
}

/// Whether an access writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    Yes,
    No,
}

/// A data segment that allows everything: present, expand-up, writable, and of 4 GiB.
fn is_plain(attributes: SegmentType, limit: u32) -> bool {
    let type_ = attributes.type_();
    attributes.is_present() && type_ & 0b1100 == 0 && type_ & 2 != 0 && limit == u32::MAX
}

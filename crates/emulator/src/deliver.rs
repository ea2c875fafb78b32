//! Exceptions and interrupts: from a vector to the guest's handler (Intel SDM volume 3, chapter 7).

use vellum_backend::Exit;
use vellum_backend::state::SpecialRegs;

use crate::cpu::{CodeSize, Cpu, reg};
use crate::flags::{self, Flags};
use crate::segments::{StackFaults, error_of, is_null, null_stack};
use crate::trap::{Cause, Exception, Trap, vector};

/// Who calls a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The processor: an exception or an NMI.
    Processor,
    /// `int`, `int3` or `into`, which need the gate's permission.
    Instruction,
}

/// A gate of the IDT.
struct Gate {
    selector: u16,
    offset: u64,
    /// Interrupt-stack table entry, 0 for none.
    stack: u8,
    /// Bytes of each value that is pushed.
    width: u64,
    masks_interrupts: bool,
}

/// What a failed delivery puts back.
struct Before {
    special: SpecialRegs,
    rsp: u64,
    rip: u64,
    flags: Flags,
}

/// EXT: the fault comes from a delivery that no instruction asked for.
fn external(source: Source) -> u32 {
    u32::from(source == Source::Processor)
}

/// Exceptions that make a double fault of a second one (Intel SDM volume 3, table 7-4).
fn is_contributory(vector: u8) -> bool {
    matches!(
        vector,
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP
    )
}

/// RF as the frame of a handler has it: set by faults, so that the instruction can be carried out again (Intel SDM volume 3,
/// section 19.3.1.1).
fn resume_flag(vector: u8, source: Source) -> u64 {
    let is_trap = matches!(
        vector,
        vector::DB | vector::NMI | vector::BP | vector::OF | vector::DF
    );
    if source == Source::Processor && !is_trap {
        flags::RF
    } else {
        0
    }
}

impl Cpu {
    /// Calls the guest's handler for an exception, and for the exceptions that this causes.
    pub(crate) fn deliver_exception(&mut self, exception: Exception) -> Result<(), Exit> {
        let mut current = exception;
        // No sequence is longer: each step is graver than the one before.
        for _ in 0..8 {
            if current.vector == vector::PF {
                self.special.cr2 = current.address;
            }
            let Err(_) = self.call_handler(current.vector, current.error, Source::Processor) else {
                return Ok(());
            };
            let second = match self.cause {
                Cause::Exception(second) => second,
                Cause::Exit(exit) => return Err(exit),
                Cause::Again => return Err(Exit::EmulationFailure),
            };
            let both = is_contributory(current.vector) && is_contributory(second.vector);
            let fault_in_fault = current.vector == vector::PF
                && (second.vector == vector::PF || is_contributory(second.vector));
            if current.vector == vector::DF {
                return Err(Exit::TripleFault);
            }
            if second.vector == vector::PF {
                self.special.cr2 = second.address;
            }
            current = if both || fault_in_fault {
                Exception::with_error(vector::DF, 0)
            } else {
                second
            };
        }
        Err(Exit::TripleFault)
    }

    /// Calls a handler; on failure everything is as before.
    pub(crate) fn call_handler(
        &mut self,
        vector: u8,
        error: Option<u32>,
        source: Source,
    ) -> Result<(), Trap> {
        let before = Before {
            special: self.special,
            rsp: self.rsp(),
            rip: self.rip,
            flags: self.flags,
        };
        let done = if self.is_long_mode() {
            self.call_long(vector, error, source)
        } else if self.is_protected() {
            self.call_protected(vector, error, source)
        } else {
            self.call_real(vector)
        };
        if done.is_err() {
            self.special = SpecialRegs {
                cr2: self.special.cr2,
                ..before.special
            };
            self.gpr[usize::from(reg::RSP)] = before.rsp;
            self.rip = before.rip;
            self.flags = before.flags;
            self.refresh();
        }
        done
    }

    fn call_real(&mut self, vector: u8) -> Result<(), Trap> {
        let offset = u64::from(vector) * 4;
        if offset + 3 > u64::from(self.special.idtr.limit) {
            return Err(self.fault_with(vector::GP, 0));
        }
        let entry = self.load_implicitly::<u32>(self.special.idtr.base.wrapping_add(offset))?;
        self.push::<u16>(self.flags.0)?;
        self.push::<u16>(u64::from(self.special.cs.selector))?;
        self.push::<u16>(self.rip)?;
        self.flags.0 &= !(flags::IF | flags::TF | flags::AC | flags::RF);
        self.special.cs.selector = (entry >> 16) as u16;
        self.special.cs.base = entry >> 16 << 4;
        self.rip = entry & 0xFFFF;
        self.refresh();
        Ok(())
    }

    /// Reads and checks the gate of a vector.
    fn gate(&mut self, vector: u8, source: Source) -> Result<Gate, Trap> {
        let long = self.is_long_mode();
        let len_bytes = if long { 16 } else { 8 };
        let offset = u64::from(vector) * len_bytes;
        // IDT: the error code names a gate.
        let error = u32::from(vector) << 3 | 2 | external(source);
        if offset + len_bytes - 1 > u64::from(self.special.idtr.limit) {
            return Err(self.fault_with(vector::GP, error));
        }
        let at = self.wrap_table(self.special.idtr.base.wrapping_add(offset));
        let low = self.load_implicitly::<u64>(at)?;
        let high = if long {
            self.load_implicitly::<u64>(self.wrap_table(at.wrapping_add(8)))?
        } else {
            0
        };
        let type_ = (low >> 40 & 0x1F) as u8;
        if !long && type_ == 5 {
            return Err(self.lacks("task gate"));
        }
        let known = matches!(type_, 0xE | 0xF) || !long && matches!(type_, 6 | 7);
        let dpl = (low >> 45 & 3) as u8;
        if !known || source == Source::Instruction && dpl < self.cpl {
            return Err(self.fault_with(vector::GP, error));
        }
        if low & 1 << 47 == 0 {
            return Err(self.fault_with(vector::NP, error));
        }
        let wide = type_ & 8 != 0;
        let offset = low & 0xFFFF | if wide { low >> 32 & 0xFFFF_0000 } else { 0 } | high << 32;
        Ok(Gate {
            selector: (low >> 16) as u16,
            offset,
            stack: if long { (low >> 32 & 7) as u8 } else { 0 },
            width: match (long, wide) {
                (true, _) => 8,
                (false, true) => 4,
                (false, false) => 2,
            },
            masks_interrupts: type_ & 1 == 0,
        })
    }

    /// The privilege at which the code of a gate runs, with its segment checked.
    fn handler_privilege(
        &mut self,
        gate: &Gate,
        source: Source,
    ) -> Result<(crate::segments::Descriptor, u8), Trap> {
        let external = external(source);
        if is_null(gate.selector) {
            return Err(self.fault_with(vector::GP, external));
        }
        let error = error_of(gate.selector) | external;
        let code = self.descriptor(gate.selector, vector::GP)?;
        let long = self.is_long_mode();
        let attributes = code.attributes();
        let wrong_size = long && (!attributes.is_long() || attributes.is_default_32());
        if !code.is_code() || code.dpl() > self.cpl || wrong_size {
            return Err(self.fault_with(vector::GP, error));
        }
        if !attributes.is_present() {
            return Err(self.fault_with(vector::NP, error));
        }
        let cpl = if code.is_conforming() {
            self.cpl
        } else {
            code.dpl()
        };
        Ok((code, cpl))
    }

    fn call_long(&mut self, vector: u8, error: Option<u32>, source: Source) -> Result<(), Trap> {
        let gate = self.gate(vector, source)?;
        let (code, cpl) = self.handler_privilege(&gate, source)?;
        let (old_rsp, old_ss) = (self.rsp(), self.special.ss.selector);
        let (old_cs, old_rip, old_flags) = (self.special.cs.selector, self.rip, self.flags.0);
        let mut rsp = old_rsp;
        if gate.stack != 0 {
            rsp = self.stack_from_tss(0x24 + 8 * (u64::from(gate.stack) - 1))?;
        } else if cpl != self.cpl {
            rsp = self.stack_from_tss(4 + 8 * u64::from(cpl))?;
        }
        if cpl != self.cpl {
            self.special.ss = null_stack(u16::from(cpl), cpl);
        }
        self.put_code_segment(code, gate.selector, cpl)?;
        self.flags.0 &= !flags::AC;
        self.gpr[usize::from(reg::RSP)] = rsp & !0xF;
        let values = [
            u64::from(old_ss),
            old_rsp,
            old_flags | resume_flag(vector, source),
            u64::from(old_cs),
            old_rip,
        ];
        for value in values.into_iter().chain(error.map(u64::from)) {
            self.push::<u64>(value)?;
        }
        self.flags.0 = old_flags;
        self.enter(&gate)
    }

    fn stack_from_tss(&mut self, offset: u64) -> Result<u64, Trap> {
        let tss = self.special.tr;
        if offset + 7 > u64::from(tss.limit) {
            return Err(self.fault_with(vector::TS, error_of(tss.selector)));
        }
        let rsp = self.load_implicitly::<u64>(tss.base.wrapping_add(offset))?;
        if crate::memory::is_canonical(rsp) {
            Ok(rsp)
        } else {
            Err(self.fault_with(vector::SS, 0))
        }
    }

    fn call_protected(
        &mut self,
        vector: u8,
        error: Option<u32>,
        source: Source,
    ) -> Result<(), Trap> {
        let gate = self.gate(vector, source)?;
        let (code, cpl) = self.handler_privilege(&gate, source)?;
        let (old_rsp, old_ss) = (self.rsp(), self.special.ss.selector);
        let old = [
            self.flags.0 | resume_flag(vector, source),
            u64::from(self.special.cs.selector),
            self.rip,
        ];
        let changes = cpl != self.cpl;
        let stack = if changes {
            Some(self.stack_of_privilege(cpl)?)
        } else {
            None
        };
        self.put_code_segment(code, gate.selector, cpl)?;
        let old_flags = self.flags.0;
        self.flags.0 &= !flags::AC;
        if let Some((selector, esp)) = stack {
            self.special.ss = self.stack_segment(selector, cpl, StackFaults::OF_TASK)?;
            self.refresh();
            self.set_stack_pointer(esp);
            self.push_sized(gate.width, u64::from(old_ss))?;
            self.push_sized(gate.width, old_rsp)?;
        }
        for value in old.into_iter().chain(error.map(u64::from)) {
            self.push_sized(gate.width, value)?;
        }
        self.flags.0 = old_flags;
        self.enter(&gate)
    }

    /// SS and ESP for a privilege, from a 32-bit TSS.
    fn stack_of_privilege(&mut self, cpl: u8) -> Result<(u16, u64), Trap> {
        let tss = self.special.tr;
        if tss.attributes.type_() & 8 == 0 {
            return Err(self.lacks("16-bit task-state segment"));
        }
        let offset = 4 + 8 * u64::from(cpl);
        if offset + 5 > u64::from(tss.limit) {
            return Err(self.fault_with(vector::TS, error_of(tss.selector)));
        }
        let at = self.wrap_table(tss.base.wrapping_add(offset));
        let esp = self.load_implicitly::<u32>(at)?;
        let ss = self.load_implicitly::<u16>(self.wrap_table(at.wrapping_add(4)))?;
        Ok((ss as u16, esp))
    }

    pub(crate) fn push_sized(&mut self, width: u64, value: u64) -> Result<(), Trap> {
        match width {
            2 => self.push::<u16>(value),
            4 => self.push::<u32>(value),
            _ => self.push::<u64>(value),
        }
    }

    /// The last steps: flags and RIP.
    fn enter(&mut self, gate: &Gate) -> Result<(), Trap> {
        self.go_to(gate.offset)?;
        self.flags.0 &= !(flags::TF | flags::NT | flags::RF | flags::VM);
        if gate.masks_interrupts {
            self.flags.0 &= !flags::IF;
        }
        debug_assert!(!self.is_long_mode() || self.code_size == CodeSize::Bits64);
        Ok(())
    }
}

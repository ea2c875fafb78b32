//! Port input and output: always an exit.

use iced_x86::{Instruction, Mnemonic, OpKind};
use vellum_backend::{Exit, IoWidth};

use super::{sized, strings};
use crate::cpu::{Cpu, PendingInput, reg};
use crate::memory::Cell;
use crate::op::{Handler, Kind, Op, Repeat};
use crate::trap::Trap;
use crate::width::Width;

pub(super) fn select(instruction: &Instruction, _: u8) -> Option<Handler> {
    let size = |operand: OpKind, register: iced_x86::Register| match operand {
        OpKind::Register => register.size(),
        _ => 0,
    };
    Some(match instruction.mnemonic() {
        Mnemonic::In => {
            let size = size(instruction.op0_kind(), instruction.op0_register());
            sized!(size, input)
        }
        Mnemonic::Out => {
            let size = size(instruction.op1_kind(), instruction.op1_register());
            sized!(size, output)
        }
        Mnemonic::Insb => input_string::<u8>,
        Mnemonic::Insw => input_string::<u16>,
        Mnemonic::Insd => input_string::<u32>,
        Mnemonic::Outsb => output_string::<u8>,
        Mnemonic::Outsw => output_string::<u16>,
        Mnemonic::Outsd => output_string::<u32>,
        _ => return None,
    })
}

fn width<W: Width>() -> IoWidth {
    match W::BYTES {
        1 => IoWidth::Byte,
        2 => IoWidth::Word,
        _ => IoWidth::Dword,
    }
}

/// The port of a plain access: an immediate, else DX.
fn port(cpu: &Cpu, op: &Op) -> u16 {
    if [op.a, op.b]
        .iter()
        .any(|operand| operand.kind == Kind::Immediate)
    {
        (op.imm & 0xFF) as u16
    } else {
        string_port(cpu)
    }
}

fn string_port(cpu: &Cpu) -> u16 {
    cpu.gpr[usize::from(reg::RDX)] as u16
}

impl Cpu {
    /// Rings up to IOPL may use every port; the others those that the bitmap of the TSS allows (Intel SDM volume 1, section 19.5.2).
    fn check_port(&mut self, port: u16, len_bytes: u64) -> Result<(), Trap> {
        /// Where both kinds of TSS keep the offset of the bitmap.
        const BITMAP_BASE: u64 = 0x66;
        if !self.is_protected() || self.cpl <= self.flags.iopl() {
            return Ok(());
        }
        let tss = self.special.tr;
        // Only a 32-bit or 64-bit TSS has a bitmap.
        if !tss.attributes.is_present() || tss.attributes.type_() & 8 == 0 {
            return Err(self.gp());
        }
        let limit = u64::from(tss.limit);
        if limit < BITMAP_BASE + 1 {
            return Err(self.gp());
        }
        let start = self.load_implicitly::<u16>(self.wrap(tss.base.wrapping_add(BITMAP_BASE)))?;
        let byte = start + u64::from(port / 8);
        // Two bytes are read always.
        if byte + 1 > limit {
            return Err(self.gp());
        }
        let bits = self.load_implicitly::<u16>(self.wrap(tss.base.wrapping_add(byte)))?;
        let wanted = ((1 << len_bytes) - 1) << (port % 8);
        if bits & wanted == 0 {
            Ok(())
        } else {
            Err(self.gp())
        }
    }

    /// Completes the instruction at hand and leaves the guest behind it.
    fn leave_behind(&mut self, next: u64, exit: Exit) -> Trap {
        self.left_behind = Some(next);
        self.exit(exit)
    }
}

fn output<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let port = port(cpu, op);
    cpu.check_port(port, W::BYTES)?;
    let data = W::get(&cpu.gpr, reg::RAX) as u32;
    let width = width::<W>();
    Err(cpu.leave_behind(op.next, Exit::IoOut { port, width, data }))
}

fn input<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let port = port(cpu, op);
    cpu.check_port(port, W::BYTES)?;
    let width = width::<W>();
    cpu.input = Some(PendingInput {
        width,
        next: op.next,
    });
    Err(cpu.exit(Exit::IoIn { port, width }))
}

/// One item is an output like any other.
fn output_string<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let port = string_port(cpu);
    if op.repeat != Repeat::No && strings::count(cpu, op) == 0 {
        return Ok(());
    }
    cpu.check_port(port, W::BYTES)?;
    let data = strings::load_source::<W>(cpu, op)? as u32;
    strings::advance(cpu, op, reg::RSI, W::BYTES);
    let mut next = op.next;
    if op.repeat != Repeat::No {
        strings::count_off(cpu, op, 1);
        if strings::count(cpu, op) != 0 {
            next = op.ip();
        }
    }
    let width = width::<W>();
    Err(cpu.leave_behind(next, Exit::IoOut { port, width, data }))
}

/// No Vellum guest needs it: the host is told, and nothing is read.
fn input_string<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let port = string_port(cpu);
    if op.repeat != Repeat::No && strings::count(cpu, op) == 0 {
        return Ok(());
    }
    cpu.check_port(port, W::BYTES)?;
    let items = if op.repeat == Repeat::No {
        1
    } else {
        strings::count(cpu, op)
    };
    strings::advance(cpu, op, reg::RDI, items.wrapping_mul(W::BYTES));
    if op.repeat != Repeat::No {
        strings::count_off(cpu, op, items);
    }
    Err(cpu.leave_behind(op.next, Exit::IoString { port }))
}

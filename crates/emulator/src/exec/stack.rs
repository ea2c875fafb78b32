//! The stack.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::sized;
use crate::cpu::{Cpu, Write, reg, seg};
use crate::flags::{self, Flags};
use crate::memory::Cell;
use crate::op::{Handler, Kind, Op};
use crate::trap::Trap;
use crate::width::Width;

pub(super) fn select(instruction: &Instruction, size: u8) -> Option<Handler> {
    let segment = instruction.op0_kind() == OpKind::Register
        && instruction.op0_register().is_segment_register();
    Some(match instruction.mnemonic() {
        Mnemonic::Push if segment => sized!(size, push_segment),
        Mnemonic::Push => sized!(size, push),
        Mnemonic::Pop if segment => sized!(size, pop_segment),
        Mnemonic::Pop => sized!(size, pop),
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => sized!(size, push_flags),
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => sized!(size, pop_flags),
        Mnemonic::Pusha => push_all::<u16>,
        Mnemonic::Pushad => push_all::<u32>,
        Mnemonic::Popa => pop_all::<u16>,
        Mnemonic::Popad => pop_all::<u32>,
        Mnemonic::Enter => sized!(size, enter),
        Mnemonic::Leave => sized!(size, leave),
        _ => return None,
    })
}

impl Cpu {
    /// Changes the part of RSP that addresses the stack.
    #[inline]
    pub(crate) fn set_stack_pointer(&mut self, value: u64) {
        self.put_address_register(reg::RSP, value & self.stack_mask, self.stack_mask);
    }

    #[inline]
    pub(crate) fn add_to_stack_pointer(&mut self, bytes: u64) {
        let value = self.rsp().wrapping_add(bytes);
        self.set_stack_pointer(value);
    }

    /// Pushes a value.
    #[inline]
    pub(crate) fn push<W: Width + Cell>(&mut self, value: u64) -> Result<(), Trap> {
        let top = self.rsp().wrapping_sub(W::BYTES) & self.stack_mask;
        let linear = self.linear_at(seg::SS, top, W::BYTES, Write::Yes)?;
        self.store::<W>(linear, value & W::MASK)?;
        self.set_stack_pointer(top);
        Ok(())
    }

    /// The value `offset` bytes above the top of the stack.
    #[inline]
    pub(crate) fn peek<W: Width + Cell>(&mut self, offset: u64) -> Result<u64, Trap> {
        let top = self.rsp().wrapping_add(offset) & self.stack_mask;
        let linear = self.linear_at(seg::SS, top, W::BYTES, Write::No)?;
        self.load::<W>(linear)
    }

    /// Pops a value.
    #[inline]
    pub(crate) fn pop<W: Width + Cell>(&mut self) -> Result<u64, Trap> {
        let value = self.peek::<W>(0)?;
        self.add_to_stack_pointer(W::BYTES);
        Ok(value)
    }
}

fn push<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let value = cpu.get::<W>(op, op.a)?;
    cpu.push::<W>(value)
}

/// An address relative to RSP is computed with the RSP behind the pop (Intel SDM volume 2, `POP`).
fn pop<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let rsp = cpu.rsp();
    let value = cpu.pop::<W>()?;
    let done = cpu.put::<W>(op, op.a, value);
    if done.is_err() {
        cpu.gpr[usize::from(reg::RSP)] = rsp;
    }
    done
}

fn push_segment<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let selector = u64::from(cpu.segment(op.a.index).selector);
    let _ = Kind::Special;
    // Wider pushes of Intel's processors write the selector alone and leave the bytes above it (Intel SDM volume 2, `PUSH`); of
    // 64 bits they write all.
    if W::BYTES == 4 {
        let top = cpu.rsp().wrapping_sub(4) & cpu.stack_mask;
        let linear = cpu.linear_at(seg::SS, top, 4, Write::Yes)?;
        cpu.store::<u16>(linear, selector)?;
        cpu.set_stack_pointer(top);
        return Ok(());
    }
    cpu.push::<W>(selector)
}

fn pop_segment<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let selector = cpu.peek::<W>(0)? as u16;
    // The segment may change the width of the stack, but not of this pop.
    let mask = cpu.stack_mask;
    let top = cpu.rsp().wrapping_add(W::BYTES) & mask;
    cpu.load_segment(op.a.index, selector)?;
    cpu.put_address_register(reg::RSP, top, mask);
    if op.a.index == seg::SS {
        cpu.shadow_interrupts();
    }
    Ok(())
}

fn push_flags<W: Width + Cell>(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let value = cpu.flags.0 & !(flags::VM | flags::RF);
    cpu.push::<W>(value)
}

fn pop_flags<W: Width + Cell>(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let value = cpu.pop::<W>()?;
    cpu.load_flags::<W>(value);
    Ok(())
}

impl Cpu {
    /// RFLAGS as `popf` and `iret` load it: IOPL by ring 0 alone, IF by rings up to IOPL (Intel SDM volume 2, `POPF`).
    pub(crate) fn load_flags<W: Width>(&mut self, value: u64) {
        let mut writable =
            flags::STATUS | flags::TF | flags::DF | flags::NT | flags::AC | flags::ID;
        if self.cpl == 0 {
            writable |= flags::IOPL;
        }
        if self.cpl <= self.flags.iopl() {
            writable |= flags::IF;
        }
        let writable = writable & W::MASK;
        let kept = self.flags.0 & !writable & !flags::RF;
        self.flags = Flags(kept | value & writable | flags::FIXED);
    }
}

fn push_all<W: Width + Cell>(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let rsp = cpu.rsp();
    for index in 0..8_u8 {
        let value = if index == reg::RSP {
            rsp & W::MASK
        } else {
            W::get(&cpu.gpr, index)
        };
        if let Err(trap) = cpu.push::<W>(value) {
            cpu.gpr[usize::from(reg::RSP)] = rsp;
            return Err(trap);
        }
    }
    Ok(())
}

fn pop_all<W: Width + Cell>(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let mut values = [0; 8];
    for (slot, offset) in values.iter_mut().zip((0..).step_by(W::BYTES as usize)) {
        *slot = cpu.peek::<W>(offset)?;
    }
    cpu.add_to_stack_pointer(8 * W::BYTES);
    for (index, value) in (0..8_u8).rev().zip(values) {
        if index != reg::RSP {
            W::set(&mut cpu.gpr, index, value);
        }
    }
    Ok(())
}

/// A frame with copies of the frame pointers of enclosing procedures (Intel SDM volume 2, `ENTER`).
fn enter<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let rsp = cpu.rsp();
    let done = build_frame::<W>(cpu, op);
    if done.is_err() {
        cpu.gpr[usize::from(reg::RSP)] = rsp;
    }
    done
}

fn build_frame<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let level = op.imm2 & 31;
    let mut rbp = cpu.gpr[usize::from(reg::RBP)];
    cpu.push::<W>(rbp)?;
    let frame = cpu.rsp();
    for _ in 1..level {
        rbp = rbp.wrapping_sub(W::BYTES);
        let linear = cpu.linear_at(seg::SS, rbp & cpu.stack_mask, W::BYTES, Write::No)?;
        let pointer = cpu.load::<W>(linear)?;
        cpu.push::<W>(pointer)?;
    }
    if level > 0 {
        cpu.push::<W>(frame)?;
    }
    let top = cpu.rsp().wrapping_sub(op.imm) & cpu.stack_mask;
    // The new top must be writable, though nothing is written.
    let linear = cpu.linear_at(seg::SS, top, W::BYTES, Write::Yes)?;
    cpu.check_writable(linear, W::BYTES)?;
    cpu.set_stack_pointer(top);
    W::set(&mut cpu.gpr, reg::RBP, frame);
    Ok(())
}

fn leave<W: Width + Cell>(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let frame = cpu.gpr[usize::from(reg::RBP)] & cpu.stack_mask;
    let linear = cpu.linear_at(seg::SS, frame, W::BYTES, Write::No)?;
    let value = cpu.load::<W>(linear)?;
    cpu.set_stack_pointer(frame.wrapping_add(W::BYTES));
    W::set(&mut cpu.gpr, reg::RBP, value);
    Ok(())
}

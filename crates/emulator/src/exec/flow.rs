//! Near jumps, calls and returns.

use iced_x86::{ConditionCode, FlowControl, Instruction, Mnemonic, OpKind};

use super::sized;
use crate::cpu::{Cpu, reg};
use crate::flags;
use crate::memory::Cell;
use crate::op::{Handler, Op};
use crate::trap::Trap;
use crate::width::Width;

pub(super) fn select(instruction: &Instruction, size: u8) -> Option<Handler> {
    if instruction.is_jcc_short_or_near() {
        return Some(select_condition(instruction.condition_code()));
    }
    let indirect =
        instruction.op0_kind() == OpKind::Register || instruction.op0_kind() == OpKind::Memory;
    Some(match instruction.mnemonic() {
        Mnemonic::Jmp if instruction.flow_control() == FlowControl::UnconditionalBranch => jump,
        Mnemonic::Jmp | Mnemonic::Call if is_far(instruction) => return None,
        Mnemonic::Jmp if indirect => sized!(size, jump_indirect),
        Mnemonic::Call if indirect => sized!(size, call_indirect),
        Mnemonic::Call => sized!(size, call),
        Mnemonic::Ret => sized!(size, return_near),
        Mnemonic::Loop => loop_always,
        Mnemonic::Loope => loop_while_equal,
        Mnemonic::Loopne => loop_while_not_equal,
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => jump_if_count_is_zero,
        _ => return None,
    })
}

fn is_far(instruction: &Instruction) -> bool {
    instruction.is_jmp_far_indirect()
        || instruction.is_call_far_indirect()
        || matches!(
            instruction.op0_kind(),
            OpKind::FarBranch16 | OpKind::FarBranch32
        )
}

fn select_condition(code: ConditionCode) -> Handler {
    match code {
        ConditionCode::o => jump_if::<0>,
        ConditionCode::no => jump_if::<1>,
        ConditionCode::b => jump_if::<2>,
        ConditionCode::ae => jump_if::<3>,
        ConditionCode::e => jump_if::<4>,
        ConditionCode::ne => jump_if::<5>,
        ConditionCode::be => jump_if::<6>,
        ConditionCode::a => jump_if::<7>,
        ConditionCode::s => jump_if::<8>,
        ConditionCode::ns => jump_if::<9>,
        ConditionCode::p => jump_if::<10>,
        ConditionCode::np => jump_if::<11>,
        ConditionCode::l => jump_if::<12>,
        ConditionCode::ge => jump_if::<13>,
        ConditionCode::le => jump_if::<14>,
        ConditionCode::g | ConditionCode::None => jump_if::<15>,
    }
}

impl Cpu {
    /// Goes on elsewhere; #GP when no code can be there.
    #[inline]
    pub(crate) fn go_to(&mut self, target: u64) -> Result<(), Trap> {
        if self.is_64_bit() {
            if !crate::memory::is_canonical(target) {
                return Err(self.gp());
            }
        } else if target > u64::from(self.special.cs.limit) {
            return Err(self.gp());
        }
        self.rip = target;
        Ok(())
    }
}

fn jump(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.go_to(op.imm)
}

fn jump_if<const CONDITION: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if cpu.flags.condition(CONDITION) {
        return cpu.go_to(op.imm);
    }
    Ok(())
}

fn jump_indirect<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let target = cpu.get::<W>(op, op.a)?;
    cpu.go_to(target)
}

/// The return address is written before RIP changes, and RSP changes last: whatever faults leaves no trace in registers.
fn call_to<W: Width + Cell>(cpu: &mut Cpu, op: &Op, target: u64) -> Result<(), Trap> {
    let rsp = cpu.rsp();
    cpu.push::<W>(op.next)?;
    let done = cpu.go_to(target);
    if done.is_err() {
        cpu.gpr[usize::from(reg::RSP)] = rsp;
    }
    done
}

fn call<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    call_to::<W>(cpu, op, op.imm)
}

fn call_indirect<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let target = cpu.get::<W>(op, op.a)?;
    call_to::<W>(cpu, op, target)
}

fn return_near<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let rsp = cpu.rsp();
    let target = cpu.pop::<W>()?;
    let done = cpu.go_to(target);
    if done.is_err() {
        cpu.gpr[usize::from(reg::RSP)] = rsp;
        return done;
    }
    cpu.add_to_stack_pointer(op.imm);
    Ok(())
}

/// Decrements the count register, whose width is that of addresses.
fn count_down(cpu: &mut Cpu, op: &Op) -> bool {
    let old = cpu.gpr[usize::from(reg::RCX)];
    let count = old.wrapping_sub(1) & op.address_mask;
    cpu.put_address_register(reg::RCX, count, op.address_mask);
    count != 0
}

impl Cpu {
    /// Writes a register of the width of addresses.
    #[inline]
    pub(crate) fn put_address_register(&mut self, register: u8, value: u64, mask: u64) {
        match mask {
            0xFFFF => u16::set(&mut self.gpr, register, value),
            0xFFFF_FFFF => u32::set(&mut self.gpr, register, value),
            _ => u64::set(&mut self.gpr, register, value),
        }
    }
}

fn loop_while(cpu: &mut Cpu, op: &Op, condition: bool) -> Result<(), Trap> {
    let count = cpu.gpr[usize::from(reg::RCX)];
    if count_down(cpu, op) && condition {
        let done = cpu.go_to(op.imm);
        if done.is_err() {
            cpu.gpr[usize::from(reg::RCX)] = count;
        }
        return done;
    }
    Ok(())
}

fn loop_always(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    loop_while(cpu, op, true)
}

fn loop_while_equal(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let equal = cpu.flags.has(flags::ZF);
    loop_while(cpu, op, equal)
}

fn loop_while_not_equal(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let equal = cpu.flags.has(flags::ZF);
    loop_while(cpu, op, !equal)
}

fn jump_if_count_is_zero(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if cpu.gpr[usize::from(reg::RCX)] & op.address_mask == 0 {
        return cpu.go_to(op.imm);
    }
    Ok(())
}

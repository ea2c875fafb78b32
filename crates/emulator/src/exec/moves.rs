//! Moves between registers and memory, extensions, conditional moves, address arithmetic.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::sized;
use crate::cpu::{Cpu, Write, reg};
use crate::flags;
use crate::memory::Cell;
use crate::op::{Handler, Op};
use crate::trap::Trap;
use crate::width::Width;

pub(super) fn select(instruction: &Instruction, size: u8) -> Option<Handler> {
    if let Some(handler) = select_conditional(instruction, size) {
        return Some(handler);
    }
    Some(match instruction.mnemonic() {
        Mnemonic::Mov => return select_move(instruction, size),
        Mnemonic::Movnti => sized!(size, store),
        Mnemonic::Movzx => extend_of(instruction, size, sized_zero),
        Mnemonic::Movsx | Mnemonic::Movsxd => extend_of(instruction, size, sized_sign),
        Mnemonic::Lea => sized!(size, address),
        Mnemonic::Cbw => extend_accumulator::<u8, u16>,
        Mnemonic::Cwde => extend_accumulator::<u16, u32>,
        Mnemonic::Cdqe => extend_accumulator::<u32, u64>,
        Mnemonic::Cwd => spread_sign::<u16>,
        Mnemonic::Cdq => spread_sign::<u32>,
        Mnemonic::Cqo => spread_sign::<u64>,
        Mnemonic::Xlatb => translate,
        Mnemonic::Lahf => load_flags,
        Mnemonic::Sahf => store_flags,
        Mnemonic::Clc => set_flag::<{ flags::CF }, false>,
        Mnemonic::Stc => set_flag::<{ flags::CF }, true>,
        Mnemonic::Cld => set_flag::<{ flags::DF }, false>,
        Mnemonic::Std => set_flag::<{ flags::DF }, true>,
        Mnemonic::Cmc => complement_carry,
        Mnemonic::Nop
        | Mnemonic::Pause
        | Mnemonic::Endbr32
        | Mnemonic::Endbr64
        | Mnemonic::Reservednop
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchw
        | Mnemonic::Lfence
        | Mnemonic::Mfence
        | Mnemonic::Sfence => nothing,
        Mnemonic::Clflush => flush_line,
        _ => return None,
    })
}

/// `mov` from and to segment, control and debug registers belongs to other families.
fn select_move(instruction: &Instruction, size: u8) -> Option<Handler> {
    let is_general =
        |kind: OpKind, register: iced_x86::Register| kind != OpKind::Register || register.is_gpr();
    let (a, b) = (instruction.op0_kind(), instruction.op1_kind());
    if !is_general(a, instruction.op0_register()) || !is_general(b, instruction.op1_register()) {
        return None;
    }
    Some(match (a, b) {
        (OpKind::Register, OpKind::Register) => sized!(size, move_register),
        (OpKind::Register, OpKind::Memory) => sized!(size, load),
        (OpKind::Memory, OpKind::Register) => sized!(size, store),
        (OpKind::Register, _) => sized!(size, move_immediate),
        _ => sized!(size, move_any),
    })
}

fn move_register<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let value = W::get(&cpu.gpr, op.b.index);
    W::set(&mut cpu.gpr, op.a.index, value);
    Ok(())
}

fn move_immediate<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    W::set(&mut cpu.gpr, op.a.index, op.imm);
    Ok(())
}

fn load<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let linear = cpu.linear(op, W::BYTES, Write::No)?;
    let value = cpu.load::<W>(linear)?;
    W::set(&mut cpu.gpr, op.a.index, value);
    Ok(())
}

fn store<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let value = W::get(&cpu.gpr, op.b.index);
    let linear = cpu.linear(op, W::BYTES, Write::Yes)?;
    cpu.store::<W>(linear, value)
}

fn move_any<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let value = cpu.get::<W>(op, op.b)?;
    cpu.put::<W>(op, op.a, value)
}

/// Selects by the source's size, which differs from the destination's.
fn extend_of(
    instruction: &Instruction,
    size: u8,
    select: fn(source: usize, size: u8) -> Handler,
) -> Handler {
    let source = match instruction.op1_kind() {
        OpKind::Register => instruction.op1_register().size(),
        _ => instruction.memory_size().size(),
    };
    select(source, size)
}

fn sized_zero(source: usize, size: u8) -> Handler {
    match source {
        1 => sized!(size, extend_zero, u8),
        2 => sized!(size, extend_zero, u16),
        _ => sized!(size, extend_zero, u32),
    }
}

fn sized_sign(source: usize, size: u8) -> Handler {
    match source {
        1 => sized!(size, extend_sign, u8),
        2 => sized!(size, extend_sign, u16),
        _ => sized!(size, extend_sign, u32),
    }
}

fn extend_zero<W: Width + Cell, S: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let value = cpu.get::<S>(op, op.b)?;
    W::set(&mut cpu.gpr, op.a.index, value);
    Ok(())
}

fn extend_sign<W: Width + Cell, S: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let value = cpu.get::<S>(op, op.b)?;
    W::set(&mut cpu.gpr, op.a.index, S::extend(value) as u64 & W::MASK);
    Ok(())
}

fn address<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let effective = cpu.effective(op);
    W::set(&mut cpu.gpr, op.a.index, effective & W::MASK);
    Ok(())
}

/// `cbw` and its kin.
fn extend_accumulator<S: Width, W: Width>(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let value = S::extend(S::get(&cpu.gpr, reg::RAX)) as u64;
    W::set(&mut cpu.gpr, reg::RAX, value & W::MASK);
    Ok(())
}

/// `cwd` and its kin.
fn spread_sign<W: Width>(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let sign = W::extend(W::get(&cpu.gpr, reg::RAX)) >> 63;
    W::set(&mut cpu.gpr, reg::RDX, sign as u64 & W::MASK);
    Ok(())
}

/// `xlatb`: the index is AL, without sign.
fn translate(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let index = u8::get(&cpu.gpr, reg::RAX);
    let effective = cpu.gpr[usize::from(reg::RBX)].wrapping_add(index) & op.address_mask;
    let linear = cpu.linear_at(op.segment, effective, 1, Write::No)?;
    let value = cpu.load::<u8>(linear)?;
    u8::set(&mut cpu.gpr, reg::RAX, value);
    Ok(())
}

const AH: u8 = crate::width::HIGH_BYTES;
/// The flags that `lahf` and `sahf` move.
const LOW_FLAGS: u64 = flags::SF | flags::ZF | flags::AF | flags::PF | flags::CF;

fn load_flags(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    u8::set(&mut cpu.gpr, AH, cpu.flags.0 & LOW_FLAGS | flags::FIXED);
    Ok(())
}

fn store_flags(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let value = u8::get(&cpu.gpr, AH);
    cpu.flags.0 = cpu.flags.0 & !LOW_FLAGS | value & LOW_FLAGS;
    Ok(())
}

fn set_flag<const FLAG: u64, const VALUE: bool>(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.flags.put(FLAG, VALUE);
    Ok(())
}

fn complement_carry(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.flags.0 ^= flags::CF;
    Ok(())
}

#[expect(clippy::unnecessary_wraps, reason = "a handler")]
fn nothing(_: &mut Cpu, _: &Op) -> Result<(), Trap> {
    Ok(())
}

/// There is no cache; the address must be readable all the same (Intel SDM volume 2, `CLFLUSH`).
fn flush_line(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let linear = cpu.linear(op, 1, Write::No)?;
    cpu.load::<u8>(linear).map(|_| ())
}

/// `cmovcc` and `setcc`, one handler for each condition.
fn select_conditional(instruction: &Instruction, size: u8) -> Option<Handler> {
    use iced_x86::ConditionCode;
    let code = instruction.condition_code();
    if code == ConditionCode::None || instruction.is_jcc_short_or_near() {
        return None;
    }
    match instruction.op_count() {
        1 if size == 1 => Some(set_conditionally),
        2 => Some(sized!(size, move_conditionally)),
        _ => None,
    }
}

/// The source is read in any case, and a 32-bit destination loses its upper half in any case.
fn move_conditionally<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let new = cpu.get::<W>(op, op.b)?;
    let old = W::get(&cpu.gpr, op.a.index);
    let value = if cpu.flags.condition(op.imm2) {
        new
    } else {
        old
    };
    W::set(&mut cpu.gpr, op.a.index, value);
    Ok(())
}

fn set_conditionally(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let value = u64::from(cpu.flags.condition(op.imm2));
    cpu.put::<u8>(op, op.a, value)
}

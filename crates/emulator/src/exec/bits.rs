//! Single bits, bit searches, byte order, CRC.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::sized;
use crate::cpu::{Cpu, Write};
use crate::flags::{CF, STATUS, ZF};
use crate::memory::Cell;
use crate::op::{Handler, Kind, Op};
use crate::trap::Trap;
use crate::width::Width;

pub(super) fn select(instruction: &Instruction, size: u8) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Bt => sized!(size, bit, Keep),
        Mnemonic::Bts => sized!(size, bit, Set),
        Mnemonic::Btr => sized!(size, bit, Reset),
        Mnemonic::Btc => sized!(size, bit, Complement),
        // Without BMI1 and LZCNT, which no profile of the emulator has, the prefix means nothing.
        Mnemonic::Bsf | Mnemonic::Tzcnt => sized!(size, scan_forward),
        Mnemonic::Bsr | Mnemonic::Lzcnt => sized!(size, scan_reverse),
        Mnemonic::Popcnt => sized!(size, count_ones),
        Mnemonic::Bswap => sized!(size, swap_bytes),
        Mnemonic::Crc32 => {
            let source = match instruction.op1_kind() {
                OpKind::Register => instruction.op1_register().size(),
                _ => instruction.memory_size().size(),
            };
            sized!(source, crc32)
        }
        _ => return None,
    })
}

trait BitChange: 'static {
    const WRITES: bool = true;
    fn apply(value: u64, bit: u64) -> u64;
}

struct Keep;
impl BitChange for Keep {
    const WRITES: bool = false;
    fn apply(value: u64, _: u64) -> u64 {
        value
    }
}

struct Set;
impl BitChange for Set {
    fn apply(value: u64, bit: u64) -> u64 {
        value | bit
    }
}

struct Reset;
impl BitChange for Reset {
    fn apply(value: u64, bit: u64) -> u64 {
        value & !bit
    }
}

struct Complement;
impl BitChange for Complement {
    fn apply(value: u64, bit: u64) -> u64 {
        value ^ bit
    }
}

/// A bit number in a register reaches beyond a memory operand, to both sides (Intel SDM volume 2, `BT`).
fn bit<W: Width + Cell, O: BitChange>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let number = cpu.get::<W>(op, op.b)?;
    let within = 1_u64 << (number & u64::from(W::BITS - 1));
    let change = |cpu: &mut Cpu, value: u64| {
        cpu.flags.put(CF, value & within != 0);
        O::apply(value, within)
    };
    if op.a.kind == Kind::Register {
        let old = W::get(&cpu.gpr, op.a.index);
        let new = change(cpu, old);
        if O::WRITES {
            W::set(&mut cpu.gpr, op.a.index, new);
        }
        return Ok(());
    }
    let units = if op.b.kind == Kind::Register {
        W::extend(number) >> W::BITS.trailing_zeros()
    } else {
        0
    };
    let displacement = (units as u64).wrapping_mul(W::BYTES);
    let effective = cpu.effective(op).wrapping_add(displacement) & op.address_mask;
    let write = if O::WRITES { Write::Yes } else { Write::No };
    let linear = cpu.linear_at(op.segment, effective, W::BYTES, write)?;
    if O::WRITES {
        return cpu.update::<W>(linear, op.locked, change);
    }
    let value = cpu.load::<W>(linear)?;
    change(cpu, value);
    Ok(())
}

/// With a source of zero the destination is undefined; it stays as it is, as AMD promises.
fn scan<W: Width + Cell>(
    cpu: &mut Cpu,
    op: &Op,
    position: impl FnOnce(u64) -> u32,
) -> Result<(), Trap> {
    let source = cpu.get::<W>(op, op.b)?;
    cpu.flags.logic::<W>(source);
    cpu.flags.put(ZF, source == 0);
    if source != 0 {
        W::set(&mut cpu.gpr, op.a.index, u64::from(position(source)));
    }
    Ok(())
}

fn scan_forward<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    scan::<W>(cpu, op, u64::trailing_zeros)
}

fn scan_reverse<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    scan::<W>(cpu, op, u64::ilog2)
}

fn count_ones<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let source = cpu.get::<W>(op, op.b)?;
    cpu.flags.0 &= !STATUS;
    cpu.flags.put(ZF, source == 0);
    W::set(&mut cpu.gpr, op.a.index, u64::from(source.count_ones()));
    Ok(())
}

/// Of 16 bits the result is undefined; processors clear them.
fn swap_bytes<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let value = W::get(&cpu.gpr, op.a.index);
    let swapped = match W::BYTES {
        2 => 0,
        bytes => value.swap_bytes() >> (64 - 8 * bytes),
    };
    W::set(&mut cpu.gpr, op.a.index, swapped);
    Ok(())
}

/// Polynomial 11EDC6F41h, bits reflected (Intel SDM volume 2, `CRC32`).
fn crc32<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    const REFLECTED: u32 = 0x82F6_3B78;
    let source = cpu.get::<W>(op, op.b)?;
    let mut crc = u32::get(&cpu.gpr, op.a.index) as u32;
    for byte in source.to_le_bytes().iter().take(W::BYTES as usize) {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { REFLECTED } else { 0 };
        }
    }
    u32::set(&mut cpu.gpr, op.a.index, u64::from(crc));
    Ok(())
}

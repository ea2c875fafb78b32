//! `fxsave`, `fxrstor`, MXCSR, and the end of MMX.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::{Cpu, Write};
use crate::op::{Handler, Op};
use crate::state::{MXCSR_DEFINED, area};
use crate::trap::Trap;
use crate::x87::X87;

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Fxsave | Mnemonic::Fxsave64 => save,
        Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => restore,
        Mnemonic::Ldmxcsr => load_control,
        Mnemonic::Stmxcsr => store_control,
        Mnemonic::Emms => end_mmx,
        _ => return None,
    })
}

/// Bytes of an area.
const LEN_BYTES: u64 = 512;

fn area_at(cpu: &mut Cpu, op: &Op, write: Write) -> Result<u64, Trap> {
    cpu.require_x87()?;
    let linear = cpu.linear(op, LEN_BYTES, write)?;
    if !linear.is_multiple_of(16) {
        return Err(cpu.gp());
    }
    Ok(linear)
}

/// How many bytes of an area hold registers: outside of 64-bit code there are eight XMM registers.
fn used(cpu: &Cpu) -> usize {
    if cpu.is_64_bit() {
        area::USED
    } else {
        area::XMM + 128
    }
}

fn save(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let linear = area_at(cpu, op, Write::Yes)?;
    cpu.check_writable(linear, LEN_BYTES)?;
    let mut bytes = [0; LEN_BYTES as usize];
    cpu.write_legacy(&mut bytes);
    bytes[area::MXCSR_MASK..area::MXCSR_MASK + 4].copy_from_slice(&MXCSR_DEFINED.to_le_bytes());
    let used = used(cpu);
    for (at, word) in (linear..).step_by(8).zip(bytes[..used].chunks_exact(8)) {
        let mut raw = [0; 8];
        raw.copy_from_slice(word);
        cpu.store::<u64>(cpu.wrap(at), u64::from_le_bytes(raw))?;
    }
    Ok(())
}

fn restore(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let linear = area_at(cpu, op, Write::No)?;
    let mut bytes = [0; LEN_BYTES as usize];
    for (at, word) in (linear..).step_by(8).zip(bytes.chunks_exact_mut(8)) {
        word.copy_from_slice(&cpu.load::<u64>(cpu.wrap(at))?.to_le_bytes());
    }
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[area::MXCSR..area::MXCSR + 4]);
    let mxcsr = u32::from_le_bytes(raw);
    if mxcsr & !MXCSR_DEFINED != 0 {
        return Err(cpu.gp());
    }
    cpu.mxcsr = mxcsr;
    cpu.x87 = X87::read(&bytes);
    let kept = cpu.xmm;
    cpu.read_vectors(&bytes);
    if !cpu.is_64_bit() {
        cpu.xmm[8..].copy_from_slice(&kept[8..]);
    }
    Ok(())
}

fn load_control(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let linear = cpu.linear(op, 4, Write::No)?;
    let value = cpu.load::<u32>(linear)? as u32;
    if value & !MXCSR_DEFINED != 0 {
        return Err(cpu.gp());
    }
    cpu.mxcsr = value;
    Ok(())
}

fn store_control(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let linear = cpu.linear(op, 4, Write::Yes)?;
    cpu.store::<u32>(linear, u64::from(cpu.mxcsr))
}

fn end_mmx(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.require_x87()?;
    cpu.check_x87_pending()?;
    cpu.x87.set_top(0);
    cpu.x87.used = 0;
    Ok(())
}

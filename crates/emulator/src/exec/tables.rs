//! Segment registers, descriptor tables and questions about descriptors.

use iced_x86::{Instruction, Mnemonic, OpKind};
use vellum_backend::state::{DescriptorTable, Segment};

use super::sized;
use crate::cpu::{Cpu, Write, seg};
use crate::flags;
use crate::memory::{Cell, is_canonical};
use crate::op::{Handler, Kind, Op};
use crate::segments::{Descriptor, error_of, is_null};
use crate::trap::{Cause, Trap, vector};
use crate::width::Width;

pub(super) fn select(instruction: &Instruction, size: u8) -> Option<Handler> {
    let segment = |kind: OpKind, register: iced_x86::Register| {
        kind == OpKind::Register && register.is_segment_register()
    };
    Some(match instruction.mnemonic() {
        Mnemonic::Mov if segment(instruction.op0_kind(), instruction.op0_register()) => {
            move_to_segment
        }
        Mnemonic::Mov if segment(instruction.op1_kind(), instruction.op1_register()) => {
            sized!(size, move_from_segment)
        }
        Mnemonic::Lgdt => load_table::<true>,
        Mnemonic::Lidt => load_table::<false>,
        Mnemonic::Sgdt => store_table::<true>,
        Mnemonic::Sidt => store_table::<false>,
        Mnemonic::Lldt => load_local_table,
        Mnemonic::Ltr => load_task,
        Mnemonic::Sldt => store_local_table,
        Mnemonic::Str => store_task,
        Mnemonic::Verr => verify::<false>,
        Mnemonic::Verw => verify::<true>,
        Mnemonic::Lar => sized!(size, load_rights),
        Mnemonic::Lsl => sized!(size, load_limit),
        _ => return super::transfer::select(instruction, size),
    })
}

fn move_to_segment(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let selector = cpu.get::<u16>(op, op.b)? as u16;
    if op.a.index == seg::CS {
        return Err(cpu.ud());
    }
    cpu.load_segment(op.a.index, selector)?;
    if op.a.index == seg::SS {
        cpu.shadow_interrupts();
    }
    Ok(())
}

/// To memory it is always 16 bits.
fn move_from_segment<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let selector = u64::from(cpu.segment(op.b.index).selector);
    match op.a.kind {
        Kind::Register => cpu.put::<W>(op, op.a, selector),
        _ => cpu.put::<u16>(op, op.a, selector),
    }
}

fn load_table<const GLOBAL: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_ring_zero()?;
    let long = cpu.is_64_bit();
    let linear = cpu.linear(op, if long { 10 } else { 6 }, Write::No)?;
    let limit = cpu.load::<u16>(linear)? as u16;
    let at = cpu.wrap(linear.wrapping_add(2));
    let base = if long {
        cpu.load::<u64>(at)?
    } else {
        // A 16-bit operand size keeps 24 bits.
        cpu.load::<u32>(at)? & if op.size == 2 { 0xFF_FFFF } else { u64::MAX }
    };
    if long && !is_canonical(base) {
        return Err(cpu.gp());
    }
    let table = DescriptorTable { base, limit };
    if GLOBAL {
        cpu.special.gdtr = table;
    } else {
        cpu.special.idtr = table;
    }
    Ok(())
}

fn store_table<const GLOBAL: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let table = if GLOBAL {
        cpu.special.gdtr
    } else {
        cpu.special.idtr
    };
    let long = cpu.is_64_bit();
    let len_bytes = if long { 10 } else { 6 };
    let linear = cpu.linear(op, len_bytes, Write::Yes)?;
    cpu.check_writable(linear, len_bytes)?;
    cpu.store::<u16>(linear, u64::from(table.limit))?;
    let at = cpu.wrap(linear.wrapping_add(2));
    if long {
        cpu.store::<u64>(at, table.base)
    } else {
        cpu.store::<u32>(at, table.base)
    }
}

/// A system descriptor of a type, with its whole base.
fn system_segment(
    cpu: &mut Cpu,
    selector: u16,
    types: &[u8],
) -> Result<(Descriptor, Segment), Trap> {
    let descriptor = if selector & 4 == 0 {
        cpu.require_system_descriptor(selector)?;
        cpu.descriptor(selector, vector::GP)?
    } else {
        return Err(cpu.fault_with(vector::GP, error_of(selector)));
    };
    let attributes = descriptor.attributes();
    if attributes.is_code_or_data() || !types.contains(&attributes.type_()) {
        return Err(cpu.fault_with(vector::GP, error_of(selector)));
    }
    if !attributes.is_present() {
        return Err(cpu.fault_with(vector::NP, error_of(selector)));
    }
    let mut segment = descriptor.segment(selector);
    if cpu.is_long_mode() {
        segment.base |= cpu.descriptor_high(descriptor)? << 32;
        if !is_canonical(segment.base) {
            return Err(cpu.fault_with(vector::GP, error_of(selector)));
        }
    }
    Ok((descriptor, segment))
}

fn load_local_table(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    const LDT: [u8; 1] = [2];
    if !cpu.is_protected() {
        return Err(cpu.ud());
    }
    cpu.require_ring_zero()?;
    let selector = cpu.get::<u16>(op, op.a)? as u16;
    cpu.special.ldtr = if is_null(selector) {
        Segment {
            selector,
            ..Segment::default()
        }
    } else {
        system_segment(cpu, selector, &LDT)?.1
    };
    Ok(())
}

fn load_task(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    /// An available TSS, of 32 or 64 bits.
    const AVAILABLE: [u8; 1] = [9];
    /// The flag that makes it busy.
    const BUSY: u8 = 2;
    if !cpu.is_protected() {
        return Err(cpu.ud());
    }
    cpu.require_ring_zero()?;
    let selector = cpu.get::<u16>(op, op.a)? as u16;
    if is_null(selector) {
        return Err(cpu.gp());
    }
    let (mut descriptor, segment) = system_segment(cpu, selector, &AVAILABLE)?;
    cpu.mark_descriptor(&mut descriptor, BUSY)?;
    cpu.special.tr = Segment {
        attributes: descriptor.attributes(),
        ..segment
    };
    Ok(())
}

fn store_selector(cpu: &mut Cpu, op: &Op, selector: u16) -> Result<(), Trap> {
    if !cpu.is_protected() {
        return Err(cpu.ud());
    }
    let value = u64::from(selector);
    match (op.a.kind, op.size) {
        (Kind::Register, 8) => cpu.put::<u64>(op, op.a, value),
        (Kind::Register, 4) => cpu.put::<u32>(op, op.a, value),
        _ => cpu.put::<u16>(op, op.a, value),
    }
}

fn store_local_table(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    store_selector(cpu, op, cpu.special.ldtr.selector)
}

fn store_task(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    store_selector(cpu, op, cpu.special.tr.selector)
}

/// The descriptor of a selector that a question is about; `None` where the answer is no.
fn asked(cpu: &mut Cpu, selector: u16) -> Result<Option<Descriptor>, Trap> {
    if is_null(selector) {
        return Ok(None);
    }
    match cpu.descriptor(selector, vector::GP) {
        Ok(descriptor) => Ok(Some(descriptor)),
        Err(trap) => match cpu.cause {
            Cause::Exception(exception) if exception.vector == vector::GP => Ok(None),
            _ => Err(trap),
        },
    }
}

/// Whether code of this privilege sees the segment.
fn is_visible(cpu: &Cpu, descriptor: Descriptor, selector: u16) -> bool {
    let rpl = (selector & 3) as u8;
    let conforming = descriptor.is_code() && descriptor.is_conforming();
    conforming || descriptor.dpl() >= rpl.max(cpu.cpl)
}

fn verify<const WRITE: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if !cpu.is_protected() {
        return Err(cpu.ud());
    }
    let selector = cpu.get::<u16>(op, op.a)? as u16;
    let descriptor = asked(cpu, selector)?;
    let allowed = descriptor.is_some_and(|descriptor| {
        let usable = match (descriptor.is_code(), WRITE) {
            (true, true) => false,
            (false, false) => true,
            (true, false) | (false, true) => descriptor.has_second_right(),
        };
        descriptor.attributes().is_code_or_data() && usable && is_visible(cpu, descriptor, selector)
    });
    cpu.flags.put(flags::ZF, allowed);
    Ok(())
}

/// System types that `lar` and `lsl` answer for: TSS, LDT and, for `lar`, call and task gates (Intel SDM volume 2).
fn answers(cpu: &Cpu, descriptor: Descriptor, gates: &[u8]) -> bool {
    let attributes = descriptor.attributes();
    let type_ = attributes.type_();
    let segments: &[u8] = if cpu.is_long_mode() {
        &[2, 9, 11]
    } else {
        &[1, 2, 3, 9, 11]
    };
    attributes.is_code_or_data() || segments.contains(&type_) || gates.contains(&type_)
}

fn load_rights<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if !cpu.is_protected() {
        return Err(cpu.ud());
    }
    let selector = cpu.get::<u16>(op, op.b)? as u16;
    let gates: &[u8] = if cpu.is_long_mode() {
        &[12]
    } else {
        &[4, 5, 12]
    };
    let found = asked(cpu, selector)?
        .filter(|it| answers(cpu, *it, gates) && is_visible(cpu, *it, selector));
    cpu.flags.put(flags::ZF, found.is_some());
    if let Some(descriptor) = found {
        W::set(&mut cpu.gpr, op.a.index, descriptor.raw >> 32 & 0x00FF_FF00);
    }
    Ok(())
}

fn load_limit<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if !cpu.is_protected() {
        return Err(cpu.ud());
    }
    let selector = cpu.get::<u16>(op, op.b)? as u16;
    let found =
        asked(cpu, selector)?.filter(|it| answers(cpu, *it, &[]) && is_visible(cpu, *it, selector));
    cpu.flags.put(flags::ZF, found.is_some());
    if let Some(descriptor) = found {
        W::set(&mut cpu.gpr, op.a.index, u64::from(descriptor.limit()));
    }
    Ok(())
}

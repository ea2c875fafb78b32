//! Transfers to other segments and privileges: far jumps, calls and returns, `int`, `iret`, system calls.

use iced_x86::{Instruction, Mnemonic, OpKind};
use vellum_backend::msr;
use vellum_backend::state::{Segment, SegmentType, efer};

use super::sized;
use crate::cpu::{Cpu, Write, reg, seg};
use crate::deliver::Source;
use crate::flags::{self, Flags};
use crate::memory::{Cell, is_canonical};
use crate::op::{Handler, Op};
use crate::segments::{Descriptor, StackFaults, error_of, is_null};
use crate::trap::{Trap, vector};
use crate::width::Width;

pub(super) fn select(instruction: &Instruction, size: u8) -> Option<Handler> {
    let pointer = matches!(
        instruction.op0_kind(),
        OpKind::FarBranch16 | OpKind::FarBranch32
    );
    Some(match instruction.mnemonic() {
        Mnemonic::Jmp if pointer => jump_far_direct,
        Mnemonic::Jmp => sized!(size, jump_far_indirect),
        Mnemonic::Call if pointer => sized!(size, call_far_direct),
        Mnemonic::Call => sized!(size, call_far_indirect),
        Mnemonic::Lds | Mnemonic::Les | Mnemonic::Lss | Mnemonic::Lfs | Mnemonic::Lgs => {
            sized!(size, load_far_pointer)
        }
        Mnemonic::Retf => sized!(size, return_far),
        Mnemonic::Int => interrupt,
        Mnemonic::Int3 => breakpoint,
        Mnemonic::Int1 => debug_trap,
        Mnemonic::Into => overflow_trap,
        Mnemonic::Iret => return_interrupt::<u16>,
        Mnemonic::Iretd => return_interrupt::<u32>,
        Mnemonic::Iretq => return_interrupt::<u64>,
        Mnemonic::Syscall => system_call,
        Mnemonic::Sysret => return_system_call::<u32>,
        Mnemonic::Sysretq => return_system_call::<u64>,
        Mnemonic::Sysenter => enter_system,
        Mnemonic::Sysexit => exit_system::<u32>,
        Mnemonic::Sysexitq => exit_system::<u64>,
        _ => return None,
    })
}

/// The code segment that a far transfer without a change of privilege goes to.
fn far_code(cpu: &mut Cpu, selector: u16) -> Result<Descriptor, Trap> {
    if is_null(selector) {
        return Err(cpu.gp());
    }
    let code = cpu.descriptor(selector, vector::GP)?;
    if !code.attributes().is_code_or_data() {
        return Err(cpu.lacks("call gate or task switch"));
    }
    let rpl = (selector & 3) as u8;
    let privilege = if code.is_conforming() {
        code.dpl() <= cpu.cpl
    } else {
        rpl <= cpu.cpl && code.dpl() == cpu.cpl
    };
    let attributes = code.attributes();
    let both_sizes = cpu.is_long_mode() && attributes.is_long() && attributes.is_default_32();
    if !code.is_code() || !privilege || both_sizes {
        return Err(cpu.fault_with(vector::GP, error_of(selector)));
    }
    if !attributes.is_present() {
        return Err(cpu.fault_with(vector::NP, error_of(selector)));
    }
    Ok(code)
}

fn jump_far(cpu: &mut Cpu, selector: u16, offset: u64) -> Result<(), Trap> {
    if !cpu.is_protected() {
        cpu.special.cs.selector = selector;
        cpu.special.cs.base = u64::from(selector) << 4;
        cpu.refresh();
        return cpu.go_to(offset);
    }
    let code = far_code(cpu, selector)?;
    check_target(cpu, code, offset)?;
    let cpl = cpu.cpl;
    cpu.put_code_segment(code, selector, cpl)?;
    cpu.rip = offset;
    Ok(())
}

/// Whether code of a segment can start at an offset.
fn check_target(cpu: &mut Cpu, code: Descriptor, offset: u64) -> Result<(), Trap> {
    let long = cpu.is_long_mode() && code.attributes().is_long();
    let inside = if long {
        is_canonical(offset)
    } else {
        offset <= u64::from(code.limit())
    };
    if inside { Ok(()) } else { Err(cpu.gp()) }
}

fn jump_far_direct(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    jump_far(cpu, op.disp as u16, op.imm)
}

/// Offset and selector of a far pointer in memory.
fn far_pointer<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(u16, u64), Trap> {
    let linear = cpu.linear(op, W::BYTES + 2, Write::No)?;
    let offset = cpu.load::<W>(linear)?;
    let selector = cpu.load::<u16>(cpu.wrap(linear.wrapping_add(W::BYTES)))?;
    Ok((selector as u16, offset))
}

/// `lds` and its kin: a segment register and a general-purpose one.
fn load_far_pointer<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let (selector, offset) = far_pointer::<W>(cpu, op)?;
    let code = iced_x86::Code::try_from(usize::from(op.code)).unwrap_or_default();
    let number = match code.mnemonic() {
        Mnemonic::Lds => seg::DS,
        Mnemonic::Les => seg::ES,
        Mnemonic::Lss => seg::SS,
        Mnemonic::Lfs => seg::FS,
        _ => seg::GS,
    };
    cpu.load_segment(number, selector)?;
    W::set(&mut cpu.gpr, op.a.index, offset);
    Ok(())
}

/// The memory operand is the offset and a selector: `size` counts both.
fn jump_far_indirect<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let (selector, offset) = far_pointer::<W>(cpu, op)?;
    jump_far(cpu, selector, offset)
}

fn call_far<W: Width + Cell>(
    cpu: &mut Cpu,
    op: &Op,
    selector: u16,
    offset: u64,
) -> Result<(), Trap> {
    let rsp = cpu.rsp();
    let old = u64::from(cpu.special.cs.selector);
    if cpu.is_protected() {
        let code = far_code(cpu, selector)?;
        check_target(cpu, code, offset)?;
    }
    let done = cpu
        .push::<W>(old)
        .and_then(|()| cpu.push::<W>(op.next))
        .and_then(|()| jump_far(cpu, selector, offset));
    if done.is_err() {
        cpu.gpr[usize::from(reg::RSP)] = rsp;
    }
    done
}

fn call_far_direct<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    call_far::<W>(cpu, op, op.disp as u16, op.imm)
}

fn call_far_indirect<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let (selector, offset) = far_pointer::<W>(cpu, op)?;
    call_far::<W>(cpu, op, selector, offset)
}

fn return_far<W: Width + Cell>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let offset = cpu.peek::<W>(0)?;
    let selector = cpu.peek::<W>(W::BYTES)? as u16;
    if !cpu.is_protected() {
        cpu.add_to_stack_pointer(2 * W::BYTES + op.imm);
        return jump_far(cpu, selector, offset);
    }
    let frame = Frame {
        offset,
        selector,
        released_bytes: op.imm,
    };
    return_to::<W>(cpu, &frame, 2 * W::BYTES, Return::Far)
}

/// What a far return or an `iret` pops first.
struct Frame {
    offset: u64,
    selector: u16,
    /// Bytes of parameters that are popped too.
    released_bytes: u64,
}

/// Which instruction returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Return {
    Far,
    Interrupt,
}

/// Goes to the code segment of a frame of `len_bytes`, of the same or a lower privilege. In 64-bit code `iret` pops SS and RSP in any case.
fn return_to<W: Width + Cell>(
    cpu: &mut Cpu,
    frame: &Frame,
    len_bytes: u64,
    kind: Return,
) -> Result<(), Trap> {
    let selector = frame.selector;
    if is_null(selector) {
        return Err(cpu.gp());
    }
    let code = cpu.descriptor(selector, vector::GP)?;
    let rpl = (selector & 3) as u8;
    let privilege = if code.is_conforming() {
        code.dpl() <= rpl
    } else {
        code.dpl() == rpl
    };
    if !code.is_code() || rpl < cpu.cpl || !privilege {
        return Err(cpu.fault_with(vector::GP, error_of(selector)));
    }
    if !code.attributes().is_present() {
        return Err(cpu.fault_with(vector::NP, error_of(selector)));
    }
    check_target(cpu, code, frame.offset)?;
    let outer = rpl > cpu.cpl;
    let always_stack = kind == Return::Interrupt && cpu.is_64_bit();
    if !outer && !always_stack {
        cpu.put_code_segment(code, selector, rpl)?;
        cpu.add_to_stack_pointer(len_bytes + frame.released_bytes);
        cpu.rip = frame.offset;
        return Ok(());
    }
    let above = len_bytes + frame.released_bytes;
    let rsp = cpu.peek::<W>(above)?;
    let ss = cpu.peek::<W>(above + W::BYTES)? as u16;
    let to_long = cpu.is_long_mode() && code.attributes().is_long();
    let stack = if is_null(ss) && to_long && rpl != 3 {
        crate::segments::null_stack(ss, rpl)
    } else {
        let faults = match kind {
            Return::Far => StackFaults::OF_LOAD,
            Return::Interrupt => StackFaults::OF_IRET,
        };
        cpu.stack_segment(ss, rpl, faults)?
    };
    cpu.put_code_segment(code, selector, rpl)?;
    cpu.special.ss = stack;
    cpu.refresh();
    cpu.set_stack_pointer(rsp.wrapping_add(if outer { frame.released_bytes } else { 0 }));
    cpu.rip = frame.offset;
    if outer {
        cpu.drop_privileged_segments();
    }
    Ok(())
}

fn return_interrupt<W: Width + Cell>(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let offset = cpu.peek::<W>(0)?;
    let selector = cpu.peek::<W>(W::BYTES)? as u16;
    let value = cpu.peek::<W>(2 * W::BYTES)?;
    if !cpu.is_protected() {
        cpu.add_to_stack_pointer(3 * W::BYTES);
        jump_far(cpu, selector, offset & 0xFFFF)?;
        cpu.load_flags::<W>(value);
        return Ok(());
    }
    if cpu.flags.has(flags::NT) {
        if cpu.is_long_mode() {
            return Err(cpu.gp());
        }
        return Err(cpu.lacks("task return"));
    }
    if value & flags::VM != 0 && W::BITS == 32 && cpu.cpl == 0 && !cpu.is_long_mode() {
        return Err(cpu.lacks("virtual-8086 mode"));
    }
    let (cpl, old) = (cpu.cpl, cpu.flags);
    let frame = Frame {
        offset,
        selector,
        released_bytes: 0,
    };
    return_to::<W>(cpu, &frame, 3 * W::BYTES, Return::Interrupt)?;
    // The privilege before the return decides which flags can change.
    let new_cpl = std::mem::replace(&mut cpu.cpl, cpl);
    cpu.flags = old;
    cpu.load_flags::<W>(value);
    // RF is not loaded: the next instruction would clear it, and no breakpoint heeds it.
    cpu.cpl = new_cpl;
    cpu.events.nmi_masked = false;
    Ok(())
}

/// The handler returns behind the instruction.
fn call_handler(cpu: &mut Cpu, op: &Op, vector: u8) -> Result<(), Trap> {
    cpu.rip = op.next;
    cpu.call_handler(vector, None, Source::Instruction)
}

fn interrupt(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    call_handler(cpu, op, op.imm as u8)
}

fn breakpoint(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    call_handler(cpu, op, vector::BP)
}

/// `int1` needs no permission of the gate.
fn debug_trap(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.rip = op.next;
    cpu.call_handler(vector::DB, None, Source::Processor)
}

fn overflow_trap(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if cpu.flags.has(flags::OF) {
        return call_handler(cpu, op, vector::OF);
    }
    Ok(())
}

/// A flat segment as `syscall`, `sysret` and `sysenter` load it, without a look at the table.
fn flat(selector: u64, attributes: SegmentType, dpl: u16) -> Segment {
    Segment {
        base: 0,
        limit: u32::MAX,
        selector: selector as u16,
        attributes: attributes.with_dpl(dpl),
    }
}

fn system_call(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    // Outside of 64-bit code Intel's processors do not have it.
    if !cpu.is_64_bit() || cpu.special.efer & efer::SCE == 0 {
        return Err(cpu.ud());
    }
    cpu.gpr[usize::from(reg::RCX)] = op.next;
    cpu.gpr[11] = cpu.flags.0 & !flags::RF;
    let star = cpu.msr_value(msr::IA32_STAR) >> 32 & 0xFFFC;
    let mask = cpu.msr_value(msr::IA32_FMASK);
    cpu.special.cs = flat(star, SegmentType::CODE64, 0);
    cpu.special.ss = flat(star + 8, SegmentType::DATA, 0);
    cpu.flags = Flags(cpu.flags.0 & !mask & !flags::RF | flags::FIXED);
    cpu.rip = cpu.msr_value(msr::IA32_LSTAR);
    cpu.refresh();
    Ok(())
}

fn return_system_call<W: Width>(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    /// RFLAGS bits that come from R11 (Intel SDM volume 2, `SYSRET`).
    const FROM_R11: u64 = 0x3C_7FD7;
    if !cpu.is_64_bit() || cpu.special.efer & efer::SCE == 0 {
        return Err(cpu.ud());
    }
    cpu.require_ring_zero()?;
    let star = cpu.msr_value(msr::IA32_STAR) >> 48;
    let rip = cpu.gpr[usize::from(reg::RCX)];
    let (cs, rip) = if W::BITS == 64 {
        if !is_canonical(rip) {
            return Err(cpu.gp());
        }
        (flat((star + 16) | 3, SegmentType::CODE64, 3), rip)
    } else {
        (flat(star | 3, SegmentType::CODE32, 3), rip & 0xFFFF_FFFF)
    };
    cpu.special.cs = cs;
    cpu.special.ss = flat((star + 8) | 3, SegmentType::DATA, 3);
    cpu.flags = Flags(cpu.gpr[11] & FROM_R11 | flags::FIXED);
    cpu.rip = rip;
    cpu.refresh();
    Ok(())
}

fn enter_system(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let cs = cpu.msr_value(msr::IA32_SYSENTER_CS) & 0xFFFC;
    if !cpu.is_protected() || cs == 0 {
        return Err(cpu.gp());
    }
    let code = if cpu.is_long_mode() {
        SegmentType::CODE64
    } else {
        SegmentType::CODE32
    };
    cpu.flags.0 &= !(flags::IF | flags::VM | flags::RF);
    cpu.special.cs = flat(cs, code, 0);
    cpu.special.ss = flat(cs + 8, SegmentType::DATA, 0);
    cpu.gpr[usize::from(reg::RSP)] = cpu.msr_value(msr::IA32_SYSENTER_ESP);
    cpu.rip = cpu.msr_value(msr::IA32_SYSENTER_EIP);
    cpu.refresh();
    Ok(())
}

fn exit_system<W: Width>(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let cs = cpu.msr_value(msr::IA32_SYSENTER_CS) & 0xFFFC;
    if !cpu.is_protected() || cs == 0 || cpu.cpl != 0 {
        return Err(cpu.gp());
    }
    let (rip, rsp) = (
        cpu.gpr[usize::from(reg::RDX)],
        cpu.gpr[usize::from(reg::RCX)],
    );
    let long = W::BITS == 64;
    if long && !(is_canonical(rip) && is_canonical(rsp)) {
        return Err(cpu.gp());
    }
    let (offset, code) = if long {
        (32, SegmentType::CODE64)
    } else {
        (16, SegmentType::CODE32)
    };
    cpu.special.cs = flat((cs + offset) | 3, code, 3);
    cpu.special.ss = flat((cs + offset + 8) | 3, SegmentType::DATA, 3);
    cpu.rip = rip & W::MASK;
    cpu.gpr[usize::from(reg::RSP)] = rsp & W::MASK;
    cpu.refresh();
    Ok(())
}

//! From bytes to [`Op`]s.

use iced_x86::{
    Code, ConditionCode, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, Mnemonic,
    OpKind, Register,
};

use crate::cpu::{CodeSize, seg};
use crate::exec;
use crate::lacking;
use crate::op::{Kind, Op, Operand, Repeat};
use crate::width::{HIGH_BYTES, ZERO};

/// Instructions of a block.
pub(crate) const MAX_OPS: usize = 32;
/// No instruction is longer (Intel SDM volume 2, section 2.3.11).
pub(crate) const MAX_LEN_BYTES: usize = 15;

/// What a decoder made of some bytes.
pub(crate) struct Decoded {
    pub(crate) ops: Vec<Op>,
    /// Bytes that they take.
    pub(crate) len_bytes: usize,
}

/// Decodes instructions that are executed one after the other, from `rip` on. Without any, the first one does not end within `bytes`.
pub(crate) fn decode(bytes: &[u8], rip: u64, size: CodeSize, max_ops: usize) -> Decoded {
    let bits = match size {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    };
    let mut decoder = Decoder::with_ip(bits, bytes, rip, DecoderOptions::NONE);
    let mut ops = Vec::new();
    let mut instruction = Instruction::default();
    let mut len_bytes = 0;
    while ops.len() < max_ops && decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if decoder.last_error() == DecoderError::NoMoreBytes
            && bytes.len() - len_bytes < MAX_LEN_BYTES
        {
            break;
        }
        let mut op = translate(&instruction, size, ops.len());
        if let Some(opcode) = x87_opcode(&bytes[len_bytes..]) {
            op.imm = opcode;
        }
        len_bytes += instruction.len();
        ops.push(op);
        if ends_block(&instruction) {
            break;
        }
    }
    Decoded { ops, len_bytes }
}

/// What an x87 instruction leaves as its opcode: the low bits of the first byte, and the second (Intel SDM volume 1, section 8.1.9).
fn x87_opcode(bytes: &[u8]) -> Option<u64> {
    let is_prefix = |byte: &u8| matches!(byte, 0x26 | 0x2E | 0x36 | 0x3E | 0x40..=0x4F | 0x64..=0x67 | 0xF0 | 0xF2 | 0xF3);
    let mut bytes = bytes.iter().skip_while(|byte| is_prefix(byte));
    let (first, second) = (*bytes.next()?, *bytes.next()?);
    matches!(first, 0xD8..=0xDF).then(|| u64::from(first & 7) << 8 | u64::from(second))
}

/// Whether what follows may run in another mode, elsewhere, or after an exit.
fn ends_block(instruction: &Instruction) -> bool {
    let segment_load = instruction.op_count() > 0
        && instruction.op0_kind() == OpKind::Register
        && (instruction.op0_register().is_segment_register() || instruction.op0_register().is_cr());
    instruction.flow_control() != FlowControl::Next
        || segment_load
        || matches!(
            instruction.mnemonic(),
            Mnemonic::In
                | Mnemonic::Out
                | Mnemonic::Hlt
                | Mnemonic::Sti
                | Mnemonic::Lds
                | Mnemonic::Les
                | Mnemonic::Lss
                | Mnemonic::Lfs
                | Mnemonic::Lgs
                | Mnemonic::Popf
                | Mnemonic::Popfd
                | Mnemonic::Popfq
                | Mnemonic::Wrmsr
                | Mnemonic::Rdtsc
                | Mnemonic::Lmsw
                | Mnemonic::Invlpg
                | Mnemonic::Swapgs
                | Mnemonic::Cpuid
        )
}

fn translate(instruction: &Instruction, size: CodeSize, position: usize) -> Op {
    let next = instruction.next_ip()
        & match size {
            CodeSize::Bits64 => u64::MAX,
            CodeSize::Bits32 => 0xFFFF_FFFF,
            CodeSize::Bits16 => 0xFFFF,
        };
    let mut op = Op {
        run: lacking::undefined,
        vector: |_, b, _| b,
        next,
        imm: 0,
        disp: 0,
        address_mask: mask_of(size),
        a: Operand::NONE,
        b: Operand::NONE,
        c: Operand::NONE,
        base: ZERO,
        index: ZERO,
        scale: 0,
        segment: seg::DS,
        len: u8::try_from(instruction.len()).unwrap_or(0),
        size: size_of_operands(instruction),
        imm2: 0,
        locked: instruction.has_lock_prefix(),
        repeat: repeat_of(instruction),
        code: instruction.code() as u16,
    };
    if instruction.is_invalid() {
        // What has no end within 15 bytes is not undefined but too long.
        if instruction.len() >= MAX_LEN_BYTES {
            op.run = lacking::too_long;
        }
        return op;
    }
    fill_operands(&mut op, instruction, size);
    if instruction.condition_code() != ConditionCode::None {
        op.imm2 = instruction.condition_code() as u8 - 1;
    }
    if instruction.mnemonic() == Mnemonic::Rdtsc {
        op.imm = position as u64;
    }
    if let Some(function) = exec::simd::function(instruction) {
        op.vector = function;
    }
    op.run = exec::select(instruction, op.size).unwrap_or(lacking::unsupported);
    op
}

fn repeat_of(instruction: &Instruction) -> Repeat {
    if instruction.has_repne_prefix() {
        Repeat::NotEqual
    } else if instruction.has_rep_prefix() {
        Repeat::Equal
    } else {
        Repeat::No
    }
}

/// The operand size, which for what uses the stack is that of what is pushed or popped.
fn size_of_operands(instruction: &Instruction) -> u8 {
    let pushed = instruction.stack_pointer_increment().unsigned_abs();
    let size = match instruction.mnemonic() {
        Mnemonic::Push
        | Mnemonic::Pop
        | Mnemonic::Pushf
        | Mnemonic::Pushfd
        | Mnemonic::Pushfq
        | Mnemonic::Popf
        | Mnemonic::Popfd
        | Mnemonic::Popfq => pushed,
        Mnemonic::Ret => pushed - u32::from(released(instruction)),
        Mnemonic::Retf => (pushed - u32::from(released(instruction))) / 2,
        Mnemonic::Call if is_near(instruction) => pushed,
        Mnemonic::Call => pushed / 2,
        Mnemonic::Jmp if instruction.is_jmp_far_indirect() => {
            u32::try_from(instruction.memory_size().size())
                .unwrap_or(0)
                .saturating_sub(2)
        }
        Mnemonic::Enter | Mnemonic::Leave => match instruction.code() {
            Code::Enterw_imm16_imm8 | Code::Leavew => 2,
            Code::Enterd_imm16_imm8 | Code::Leaved => 4,
            _ => 8,
        },
        _ => return exec::operand_size(instruction),
    };
    u8::try_from(size).unwrap_or(0)
}

fn is_near(instruction: &Instruction) -> bool {
    instruction.is_call_near() || instruction.is_call_near_indirect()
}

/// Bytes that a return releases beside the return address.
fn released(instruction: &Instruction) -> u16 {
    if instruction.op_count() > 0 {
        instruction.immediate16()
    } else {
        0
    }
}

fn fill_operands(op: &mut Op, instruction: &Instruction, size: CodeSize) {
    let operand = |index: u32| {
        if index < instruction.op_count() {
            operand_of(instruction, index)
        } else {
            Operand::NONE
        }
    };
    (op.a, op.b, op.c) = (operand(0), operand(1), operand(2));
    for index in 0..instruction.op_count() {
        match instruction.op_kind(index) {
            OpKind::Memory => fill_memory(op, instruction, size),
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => {
                fill_string(op, instruction, 0xFFFF);
            }
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => {
                fill_string(op, instruction, 0xFFFF_FFFF);
            }
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => {
                fill_string(op, instruction, u64::MAX);
            }
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                op.imm = instruction.near_branch_target();
                op.address_mask = count_mask(instruction, size);
            }
            OpKind::FarBranch16 => {
                op.imm = u64::from(instruction.far_branch16());
                op.disp = u64::from(instruction.far_branch_selector());
            }
            OpKind::FarBranch32 => {
                op.imm = u64::from(instruction.far_branch32());
                op.disp = u64::from(instruction.far_branch_selector());
            }
            OpKind::Register => {}
            OpKind::Immediate8_2nd => op.imm2 = instruction.immediate8_2nd(),
            _ => op.imm = instruction.immediate(index),
        }
    }
    // What uses the stack without a memory operand faults as an access to it.
    if instruction.stack_pointer_increment() != 0 && ![op.a, op.b].iter().any(|it| it.is_memory()) {
        op.segment = seg::SS;
    }
}

/// The width of the count register of `loop` and `jcxz`.
fn count_mask(instruction: &Instruction, size: CodeSize) -> u64 {
    use Code as C;
    match instruction.code() {
        C::Jcxz_rel8_16
        | C::Jcxz_rel8_32
        | C::Loop_rel8_16_CX
        | C::Loop_rel8_32_CX
        | C::Loope_rel8_16_CX
        | C::Loope_rel8_32_CX
        | C::Loopne_rel8_16_CX
        | C::Loopne_rel8_32_CX => 0xFFFF,
        C::Jecxz_rel8_16
        | C::Jecxz_rel8_32
        | C::Jecxz_rel8_64
        | C::Loop_rel8_16_ECX
        | C::Loop_rel8_32_ECX
        | C::Loop_rel8_64_ECX
        | C::Loope_rel8_16_ECX
        | C::Loope_rel8_32_ECX
        | C::Loope_rel8_64_ECX
        | C::Loopne_rel8_16_ECX
        | C::Loopne_rel8_32_ECX
        | C::Loopne_rel8_64_ECX => 0xFFFF_FFFF,
        _ => mask_of(size),
    }
}

fn mask_of(size: CodeSize) -> u64 {
    match size {
        CodeSize::Bits16 => 0xFFFF,
        CodeSize::Bits32 => 0xFFFF_FFFF,
        CodeSize::Bits64 => u64::MAX,
    }
}

fn fill_memory(op: &mut Op, instruction: &Instruction, size: CodeSize) {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    op.disp = instruction.memory_displacement64();
    op.segment = segment_number(instruction.memory_segment());
    op.scale = u8::try_from(instruction.memory_index_scale().trailing_zeros()).unwrap_or(0);
    if base.is_gpr() {
        op.base = register_number(base);
    }
    if index.is_gpr() {
        op.index = register_number(index);
    }
    let width = match (base, index) {
        (Register::None, Register::None) => instruction.memory_displ_size() as usize,
        (Register::None, index) => index.size(),
        (base, _) => base.size(),
    };
    op.address_mask = match (width, size) {
        (2, _) => 0xFFFF,
        (4, CodeSize::Bits64) if base == Register::None && index == Register::None => u64::MAX,
        (4, _) => 0xFFFF_FFFF,
        _ => u64::MAX,
    };
    if instruction.mnemonic() == Mnemonic::Xlatb {
        op.index = ZERO;
    }
}

fn fill_string(op: &mut Op, instruction: &Instruction, mask: u64) {
    op.address_mask = mask;
    op.segment = segment_number(instruction.memory_segment());
}

fn segment_number(register: Register) -> u8 {
    match register {
        Register::ES => seg::ES,
        Register::CS => seg::CS,
        Register::SS => seg::SS,
        Register::FS => seg::FS,
        Register::GS => seg::GS,
        _ => seg::DS,
    }
}

/// The number of a general-purpose register in a register file, which tells AH from SPL.
fn register_number(register: Register) -> u8 {
    let number = u8::try_from(register.number()).unwrap_or(0);
    if !register.is_gpr8() {
        return number;
    }
    match number {
        4..8 => HIGH_BYTES + number - 4,
        8.. => number - 4,
        _ => number,
    }
}

fn operand_of(instruction: &Instruction, index: u32) -> Operand {
    let kind = match instruction.op_kind(index) {
        OpKind::Register => {
            let register = instruction.op_register(index);
            let number = u8::try_from(register.number()).unwrap_or(0);
            return if register.is_gpr() {
                Operand {
                    kind: Kind::Register,
                    index: register_number(register),
                }
            } else if register.is_xmm() {
                Operand {
                    kind: Kind::Vector,
                    index: number,
                }
            } else if register.is_mm() {
                Operand {
                    kind: Kind::Mmx,
                    index: number,
                }
            } else if register.is_segment_register() {
                Operand {
                    kind: Kind::Special,
                    index: segment_number(register),
                }
            } else {
                Operand {
                    kind: Kind::Special,
                    index: number,
                }
            };
        }
        OpKind::Memory => Kind::Memory,
        _ => Kind::Immediate,
    };
    Operand { kind, index: 0 }
}

/// Whether an instruction has a handler.
///
/// Those who compare the emulator with a processor ask, so as to leave out what it does not claim to do.
pub fn is_emulated(instruction: &Instruction) -> bool {
    let size = size_of_operands(instruction);
    !instruction.is_invalid() && exec::select(instruction, size).is_some()
}

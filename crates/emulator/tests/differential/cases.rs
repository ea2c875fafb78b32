//! Random cases: a few instructions and the state that they start from.

use std::collections::BTreeMap;
use std::fmt;

use iced_x86::{
    Code, CpuidFeature as F, Decoder, DecoderOptions, FlowControl, Instruction,
    InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, RflagsBits,
};

use crate::guest::{CASE_LEN, DATA, at};
use crate::random::Random;

/// Code that instructions of a case may take.
const MAX_CODE_LEN: usize = 56;

/// A case.
pub(crate) struct Case {
    gprs: [u64; 16],
    flags: u64,
    fxsave: Vec<u8>,
    data: Vec<u8>,
    pub(crate) instructions: Vec<Instruction>,
    code: Vec<u8>,
    /// RFLAGS bits that the manuals leave undefined at the end.
    pub(crate) undefined_flags: u64,
}

impl Case {
    pub(crate) fn mnemonics(&self) -> Vec<String> {
        let name = |it: &Instruction| format!("{:?}", it.mnemonic()).to_lowercase();
        self.instructions.iter().map(name).collect()
    }

    /// The case as it lies in guest memory, with its code at `code_at`, which then jumps to `done`.
    pub(crate) fn bytes(&self, code_at: u64, done: u64) -> Vec<u8> {
        let mut bytes = vec![0; CASE_LEN];
        let mut put = |offset: usize, raw: &[u8]| {
            bytes[offset..offset + raw.len()].copy_from_slice(raw);
        };
        for (index, value) in self.gprs.iter().enumerate() {
            put(at::GPRS + index * 8, &value.to_le_bytes());
        }
        put(at::FLAGS, &self.flags.to_le_bytes());
        put(at::VECTOR, &u64::MAX.to_le_bytes());
        put(at::CODE, &self.code);
        let end = at::CODE + self.code.len();
        let distance = done.wrapping_sub(code_at + self.code.len() as u64 + 5);
        put(end, &[0xE9]);
        put(end + 1, &distance.to_le_bytes()[..4]);
        put(at::FXSAVE, &self.fxsave);
        put(at::DATA, &self.data);
        bytes
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for instruction in &self.instructions {
            write!(
                f,
                "{:?} ({:?}); ",
                instruction.code(),
                instruction.memory_base()
            )?;
        }
        write!(
            f,
            "code {:02x?}, flags {:#x}, gprs {:x?}",
            self.code, self.flags, self.gprs
        )?;
        write!(
            f,
            ", st0 {:x?}, st1 {:x?}, xmm0 {:x?}, xmm1 {:x?}",
            &self.fxsave[32..42],
            &self.fxsave[48..58],
            &self.fxsave[160..176],
            &self.fxsave[176..192]
        )
    }
}

/// Makes cases.
pub(crate) struct Generator {
    random: Random,
    info: InstructionInfoFactory,
    lacking: BTreeMap<String, u64>,
}

/// Whether flags of an instruction with a count of zero stay as they are.
fn may_keep_flags(instruction: &Instruction) -> bool {
    let shifts_or_compares = matches!(
        instruction.mnemonic(),
        Mnemonic::Shl
            | Mnemonic::Sal
            | Mnemonic::Shr
            | Mnemonic::Sar
            | Mnemonic::Rol
            | Mnemonic::Ror
            | Mnemonic::Rcl
            | Mnemonic::Rcr
            | Mnemonic::Shld
            | Mnemonic::Shrd
    );
    shifts_or_compares || instruction.is_string_instruction()
}

/// Features that every profile has, or that processors have whatever it says.
const FEATURES: [F; 28] = [
    F::INTEL8086,
    F::INTEL8086_ONLY,
    F::INTEL186,
    F::INTEL286,
    F::INTEL386,
    F::INTEL486,
    F::X64,
    F::CMOV,
    F::CX8,
    F::CMPXCHG16B,
    F::FPU,
    F::FPU287,
    F::FPU387,
    F::FXSR,
    F::SSE,
    F::SSE2,
    F::SSE3,
    F::SSSE3,
    F::SSE4_1,
    F::SSE4_2,
    F::POPCNT,
    F::PCLMULQDQ,
    F::MULTIBYTENOP,
    F::MMX,
    F::CLFSH,
    F::PAUSE,
    F::TSC,
    F::CPUID,
];

/// Whether it belongs to the comparison: in every profile, without an effect on anything but registers and the window of data, and defined.
fn is_comparable(instruction: &Instruction) -> bool {
    let features = instruction.cpuid_features();
    let known = features.iter().all(|feature| FEATURES.contains(feature));
    let forbidden = matches!(
        instruction.mnemonic(),
        Mnemonic::Rdtsc
            | Mnemonic::Cpuid
            | Mnemonic::Sgdt
            | Mnemonic::Sidt
            | Mnemonic::Sldt
            | Mnemonic::Str
            | Mnemonic::Smsw
            | Mnemonic::Lar
            | Mnemonic::Lsl
            | Mnemonic::Verr
            | Mnemonic::Verw
            | Mnemonic::Enter
            | Mnemonic::Leave
            | Mnemonic::In
            | Mnemonic::Out
            | Mnemonic::Insb
            | Mnemonic::Insw
            | Mnemonic::Insd
            | Mnemonic::Outsb
            | Mnemonic::Outsw
            | Mnemonic::Outsd
            | Mnemonic::Popf
            | Mnemonic::Popfq
            | Mnemonic::Pushf
            | Mnemonic::Pushfq
            | Mnemonic::Cli
            | Mnemonic::Sti
            | Mnemonic::Rcpps
            | Mnemonic::Rcpss
            | Mnemonic::Rsqrtps
            | Mnemonic::Rsqrtss
            | Mnemonic::Maskmovq
            | Mnemonic::Maskmovdqu
            | Mnemonic::Clflush
            | Mnemonic::Fxsave
            | Mnemonic::Fxsave64
            | Mnemonic::Fxrstor
            | Mnemonic::Fxrstor64
            | Mnemonic::Ldmxcsr
            // A software KVM runs them with descriptors of its own.
            | Mnemonic::Lfs
            | Mnemonic::Lgs
            | Mnemonic::Lss
            | Mnemonic::Fnstenv
            | Mnemonic::Fnsave
    );
    let undefined_result = matches!(
        instruction.code(),
        Code::Bswap_r16
            | Code::Shld_rm16_r16_CL
            | Code::Shrd_rm16_r16_CL
            | Code::Shld_rm16_r16_imm8
            | Code::Shrd_rm16_r16_imm8
    );
    let segment = instruction.has_segment_prefix()
        || (0..instruction.op_count()).any(|index| {
            instruction.op_kind(index) == OpKind::Register
                && instruction.op_register(index).is_segment_register()
        });
    known
        && !forbidden
        && !undefined_result
        && !segment
        && !instruction.is_privileged()
        && !instruction.has_lock_prefix()
        && instruction.flow_control() == FlowControl::Next
}

/// Whether a vector operand in memory could lack the alignment that the instruction asks for. A #GP for it is tested elsewhere: software KVMs
/// that emulate whatever got a #GP do not survive every one.
fn may_be_misaligned(instruction: &Instruction) -> bool {
    let explicit = (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory);
    let wide = explicit && instruction.memory_size().size() == 16;
    let free = matches!(
        instruction.mnemonic(),
        Mnemonic::Movups | Mnemonic::Movupd | Mnemonic::Movdqu | Mnemonic::Lddqu
    );
    let aligned = instruction.memory_displacement64().is_multiple_of(16)
        && instruction.memory_index() == Register::None;
    wide && !free && !aligned
}

impl Generator {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            info: InstructionInfoFactory::new(),
            lacking: BTreeMap::new(),
        }
    }

    /// Instructions that were drawn but that the emulator lacks, by name.
    pub(crate) fn lacking(&self) -> &BTreeMap<String, u64> {
        &self.lacking
    }

    /// Bytes that may be an instruction, with operands of the kind that [`Generator::case`] prepares.
    fn draw(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        let mut bytes = Vec::new();
        let numeric = random.one_in(4);
        if !numeric && random.one_in(3) {
            bytes.push(0x66);
        }
        match random.below(6) {
            0 => bytes.push(0xF2),
            1 => bytes.push(0xF3),
            _ => {}
        }
        if random.one_in(2) {
            // REX without B, so that bases of memory operands stay what they are.
            bytes.push(0x40 | random.byte() & 0x0C);
        }
        match random.below(10) {
            _ if numeric => {}
            0..4 => {}
            4..8 => bytes.push(0x0F),
            8 => bytes.extend([0x0F, 0x38]),
            _ => bytes.extend([0x0F, 0x3A]),
        }
        // x87 has opcodes D8 to DF.
        let opcode = random.byte();
        bytes.push(if numeric { 0xD8 | opcode & 7 } else { opcode });
        let register = random.byte() & 0x38;
        if random.one_in(2) {
            bytes.push(0xC0 | register | random.byte() & 7);
        } else if random.one_in(4) {
            // [rbx + rbp * scale + disp8]
            bytes.push(0x44 | register);
            bytes.push(random.byte() & 0xC0 | 5 << 3 | 3);
        } else {
            bytes.push(0x40 | register | random.pick(&[3, 6, 7]));
        }
        let displacement = random.byte();
        bytes.push(if random.one_in(3) {
            displacement
        } else {
            displacement & 0xF0
        });
        bytes.extend(random.next().to_le_bytes());
        bytes
    }

    /// An instruction that may follow `before`.
    fn instruction(&mut self, before: &[Instruction]) -> (Instruction, Vec<u8>) {
        loop {
            let bytes = self.draw();
            let mut decoder = Decoder::with_ip(64, &bytes, 0, DecoderOptions::NONE);
            let instruction = decoder.decode();
            if instruction.is_invalid() || !is_comparable(&instruction) {
                continue;
            }
            let base = instruction.memory_base();
            let stack = instruction.stack_pointer_increment() != 0;
            let memory = stack
                || (0..instruction.op_count()).any(|index| {
                    !matches!(instruction.op_kind(index), OpKind::Register)
                        && instruction.op_kind(index) >= OpKind::MemorySegSI
                });
            let known_base =
                matches!(
                    base,
                    Register::RBX | Register::RSI | Register::RDI | Register::RSP
                ) && matches!(instruction.memory_index(), Register::None | Register::RBP)
                    && i8::try_from(instruction.memory_displacement64().cast_signed()).is_ok();
            let is_lea = instruction.mnemonic() == Mnemonic::Lea;
            let is_nop = instruction.mnemonic() == Mnemonic::Nop;
            let explicit =
                (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory);
            if explicit && !known_base && !is_lea && !is_nop {
                continue;
            }
            if may_be_misaligned(&instruction) {
                continue;
            }
            if memory && before.iter().any(|it| self.writes_addresses(it)) {
                continue;
            }
            if !vellum_emulator::is_emulated(&instruction) {
                let name = format!("{:?}", instruction.mnemonic()).to_lowercase();
                *self.lacking.entry(name).or_default() += 1;
                continue;
            }
            return (instruction, bytes[..instruction.len()].to_vec());
        }
    }

    /// Whether an instruction changes a register that addresses of later ones use.
    fn writes_addresses(&mut self, instruction: &Instruction) -> bool {
        const ADDRESSES: [Register; 6] = [
            Register::RBX,
            Register::RSI,
            Register::RDI,
            Register::RBP,
            Register::RSP,
            Register::RCX,
        ];
        self.info
            .info(instruction)
            .used_registers()
            .iter()
            .any(|used| {
                !matches!(used.access(), OpAccess::Read | OpAccess::CondRead)
                    && ADDRESSES.contains(&used.register().full_register())
            })
    }

    pub(crate) fn case(&mut self) -> Case {
        let count = 1 + self.random.below(3);
        let (mut instructions, mut code) = (Vec::new(), Vec::new());
        let mut undefined = 0;
        while (instructions.len() as u64) < count && code.len() < MAX_CODE_LEN - 15 {
            let (instruction, bytes) = self.instruction(&instructions);
            if instruction.rflags_read() & undefined != 0 {
                continue;
            }
            if !may_keep_flags(&instruction) {
                undefined &= !instruction.rflags_modified();
            }
            undefined |= instruction.rflags_undefined();
            code.extend(bytes);
            instructions.push(instruction);
        }
        let strings = instructions.iter().any(Instruction::is_string_instruction);
        Case {
            gprs: self.gprs(strings),
            flags: self.random.next() & 0x8D5 | 2 | self.direction(strings),
            fxsave: self.fxsave(),
            data: self.data(),
            undefined_flags: flag_bits(undefined),
            instructions,
            code,
        }
    }

    fn direction(&mut self, strings: bool) -> u64 {
        if strings && self.random.one_in(4) {
            1 << 10
        } else {
            0
        }
    }

    /// RBX, RSI and RDI point into the window of data, RBP is a small index, and RSP has room on both sides.
    fn gprs(&mut self, strings: bool) -> [u64; 16] {
        let mut gprs = [0; 16];
        for register in &mut gprs {
            *register = self.random.interesting();
        }
        let mut pointer = || DATA + 0x80 + self.random.below(4) * 16;
        (gprs[3], gprs[6], gprs[7]) = (pointer(), pointer(), pointer());
        gprs[4] = DATA + 0x100;
        gprs[5] = self.random.below(8);
        if strings || self.random.one_in(2) {
            gprs[1] = self.random.below(12);
        }
        gprs
    }

    fn data(&mut self) -> Vec<u8> {
        let mut data = Vec::new();
        while data.len() < at::DATA_LEN {
            let word = self.vector_word();
            data.extend(word.to_le_bytes());
        }
        data
    }

    fn vector_word(&mut self) -> u64 {
        match self.random.below(4) {
            0 => self.random.double(),
            1 => self.random.floats(),
            2 => self.random.interesting(),
            _ => self.random.next(),
        }
    }

    /// x87 and SSE registers. MXCSR masks every exception in most cases, and rounds in any way.
    fn fxsave(&mut self) -> Vec<u8> {
        let mut area = vec![0; 512];
        let mut control: u16 = 0x37F;
        if self.random.one_in(3) {
            control = control & !0xF00 | (self.random.byte() as u16 & 0xF) << 8;
        }
        if self.random.one_in(4) {
            control &= !(self.random.byte() as u16 & 0x3F);
        }
        area[..2].copy_from_slice(&control.to_le_bytes());
        let top = self.random.below(8) as u16;
        area[2..4].copy_from_slice(&(top << 11).to_le_bytes());
        area[4] = self.random.byte();
        let mut mxcsr: u32 = 0x1F80;
        if self.random.one_in(3) {
            mxcsr |= (self.random.byte() as u32 & 3) << 13;
        }
        if self.random.one_in(3) {
            mxcsr |= self.random.byte() as u32 & 0x3F;
        }
        if self.random.one_in(8) {
            mxcsr |= self.random.pick(&[1 << 15, 1 << 6, 1 << 15 | 1 << 6]);
        }
        if self.random.one_in(16) {
            mxcsr &= !((self.random.byte() as u32 & 0x3F) << 7);
        }
        area[24..28].copy_from_slice(&mxcsr.to_le_bytes());
        for index in 0..8 {
            let at = 32 + index * 16;
            let value = self.extended();
            area[at..at + 10].copy_from_slice(&value.to_le_bytes()[..10]);
        }
        let same_kind = self.random.below(4);
        for at in (160..416).step_by(8) {
            let word = match same_kind {
                0 => self.random.double(),
                1 => self.random.floats(),
                _ => self.vector_word(),
            };
            area[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        area
    }

    /// A number of 80 bits, one in the format's own terms.
    fn extended(&mut self) -> u128 {
        let sign = u128::from(self.random.below(2)) << 79;
        let integer = 1_u128 << 63;
        let fraction = u128::from(self.random.next() >> 1);
        let exponent = match self.random.below(8) {
            0 => 0,
            1 => 0x7FFF,
            2 => 1,
            3 => 0x7FFE,
            _ => 0x3FFF - 40 + u128::from(self.random.below(80)),
        };
        let fraction = match self.random.below(4) {
            0 => 0,
            1 => fraction & !0xFFFF_FFFF_FFFF,
            _ => fraction,
        };
        let integer = if exponent == 0 { 0 } else { integer };
        sign | exponent << 64 | integer | fraction
    }
}

/// The decoder's names of flags as bits of RFLAGS.
fn flag_bits(bits: u32) -> u64 {
    const NAMES: [(u32, u64); 6] = [
        (RflagsBits::OF, 1 << 11),
        (RflagsBits::SF, 1 << 7),
        (RflagsBits::ZF, 1 << 6),
        (RflagsBits::AF, 1 << 4),
        (RflagsBits::CF, 1),
        (RflagsBits::PF, 1 << 2),
    ];
    NAMES
        .iter()
        .filter(|(name, _)| bits & name != 0)
        .fold(0, |flags, (_, bit)| flags | bit)
}

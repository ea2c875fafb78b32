//! Random sequences of privileged instructions.

use std::fmt;

use iced_x86::{Decoder, DecoderOptions};
use vellum_backend::msr;
use vellum_backend::state::Gprs;

use crate::machine::{ABSENT, DATA, DONE_PORT, READ_ONLY, STACK, SUPERVISOR};
use crate::random::Random;

/// A case: code, and the registers that it starts with.
pub(crate) struct Case {
    pub(crate) code: Vec<u8>,
    registers: [u64; 14],
}

impl Case {
    pub(crate) fn fill(&self, general: &mut Gprs) {
        let g = general;
        let targets = [
            &mut g.rax, &mut g.rbx, &mut g.rcx, &mut g.rdx, &mut g.rsi, &mut g.rdi, &mut g.r8,
            &mut g.r9, &mut g.r10, &mut g.r11, &mut g.r12, &mut g.r13, &mut g.r14, &mut g.r15,
        ];
        for (target, value) in targets.into_iter().zip(self.registers) {
            *target = value;
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for instruction in Decoder::with_ip(64, &self.code, 0xC000, DecoderOptions::NONE) {
            write!(f, "{:?}; ", instruction.code())?;
        }
        write!(f, "code {:02x?}", self.code)
    }
}

pub(crate) struct Generator {
    random: Random,
}

/// Selectors of every kind of descriptor, null, of the local table, and beyond the ends.
const SELECTORS: [u16; 26] = [
    0, 1, 3, 8, 0xB, 0x10, 0x13, 0x18, 0x1B, 0x20, 0x23, 0x28, 0x38, 0x40, 0x48, 0x4B, 0x50, 0x58,
    0x68, 0x78, 0x80, 0x88, 0x90, 0xC, 0x98, 0xFFF8,
];

/// `lar`, `lsl`, `verr`, `verw`, `sldt`, `str`, `smsw`, `sgdt`, `sidt`, of EAX or to where RBX points.
const QUESTIONS: [&[u8]; 9] = [
    &[0x66, 0x0F, 0x02, 0xC8],
    &[0x48, 0x0F, 0x03, 0xC8],
    &[0x0F, 0x00, 0xE0],
    &[0x0F, 0x00, 0xE8],
    &[0x48, 0x0F, 0x00, 0xC0],
    &[0x0F, 0x00, 0xC8],
    &[0x48, 0x0F, 0x01, 0xE0],
    &[0x0F, 0x01, 0x03],
    &[0x0F, 0x01, 0x0B],
];

/// Instructions without operands that matter. No interrupts without a gate: in error codes QEMU counts gates of 16 bytes as two.
/// Exceptions, interrupts, `hlt`, `swapgs`, `clts`, vector instructions, system calls.
const PLAIN: [&[u8]; 18] = [
    &[0xCC],
    &[0xCD, 13],
    &[0x0F, 0x0B],
    &[0xF4],
    &[0x0F, 0x01, 0xF8],
    &[0x0F, 0x06],
    &[0xFA],
    &[0xFB],
    &[0x0F, 0x01, 0x3B],
    &[0x0F, 0x09],
    &[0x0F, 0x01, 0xCA],
    &[0x0F, 0x01, 0xCB],
    &[0xD9, 0xE8],
    &[0x9B],
    &[0x0F, 0x58, 0xC1],
    &[0x0F, 0x6F, 0xC1],
    &[0x0F, 0x05],
    &[0x0F, 0x01, 0xD0],
];

/// Addresses of pages of every kind, and of no page.
const ADDRESSES: [u64; 10] = [
    ABSENT,
    ABSENT - 4,
    READ_ONLY,
    READ_ONLY - 4,
    SUPERVISOR,
    DATA,
    0x4_0000,
    0xFFFF_FFFF_FFFF_FFFC,
    0x0000_8000_0000_0000,
    0xFFFF_7FFF_FFFF_FFFC,
];
const FIRST_NOT_CANONICAL: usize = 8;

/// Of [`ACCESSES`] a push and a jump.
const TO_CANONICAL: [&[u8]; 2] = [&[0x48, 0x89, 0xCC, 0x50], &[0xFF, 0xE1]];

/// Loads, stores and jumps, at RCX. None that reads and writes: QEMU faults at the read, processors at the write.
const ACCESSES: [&[u8]; 7] = [
    &[0x48, 0x8B, 0x01],
    &[0x48, 0x89, 0x01],
    &[0x64, 0x8B, 0x01],
    &[0x0F, 0x01, 0x01],
    &[0x0F, 0xB2, 0x01],
    &[0x48, 0x89, 0xCC, 0x50],
    &[0xFF, 0xE1],
];

/// The selector of a descriptor without the accessed flag.
const NEVER_USED: u16 = 0x50;

/// How many null ones come first.
const NULL_SELECTORS: usize = 3;

impl Generator {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
        }
    }

    pub(crate) fn case(&mut self) -> Case {
        let mut code = Vec::new();
        for _ in 0..=self.random.below(3) {
            self.piece(&mut code);
        }
        code.extend([0xE7, DONE_PORT]);
        let mut registers = [0; 14];
        for register in &mut registers {
            *register = self.random.interesting();
        }
        registers[1] = DATA + 0x80;
        Case { code, registers }
    }

    fn piece(&mut self, code: &mut Vec<u8>) {
        match self.random.below(12) {
            0 | 1 => self.load_segment(code),
            2 => self.ask_about_segment(code),
            3 | 4 => self.change_control(code),
            5 | 6 => self.use_msr(code),
            7 => self.return_from_interrupt(code),
            8 => self.plain(code),
            9 => self.access_memory(code),
            10 => self.far_return(code),
            _ => self.change_flags(code),
        }
    }

    /// mov eax, selector
    fn selector(&mut self, code: &mut Vec<u8>) {
        code.push(0xB8);
        let selector = self.random.pick(&SELECTORS);
        code.extend(u32::from(selector).to_le_bytes());
    }

    /// mov eax, selector, without those for which QEMU's stack segment is another than processors': null, with rings of its own.
    fn stack_selector(&mut self, code: &mut Vec<u8>) {
        code.push(0xB8);
        let selector = self.random.pick(&SELECTORS[NULL_SELECTORS..]);
        code.extend(u32::from(selector).to_le_bytes());
    }

    /// `mov` to ES, SS, DS, FS or GS, `lldt`, `ltr`.
    fn load_segment(&mut self, code: &mut Vec<u8>) {
        if self.random.one_in(8) {
            // ltr ax. QEMU lets TR become null, which ends it at the next exception.
            let selector = self.random.pick(&SELECTORS[NULL_SELECTORS..]);
            code.extend([
                0xB8,
                selector as u8,
                (selector >> 8) as u8,
                0,
                0,
                0x0F,
                0x00,
                0xD8,
            ]);
            return;
        }
        if self.random.one_in(5) {
            // mov ss, ax
            self.stack_selector(code);
            code.extend([0x8E, 0xD0]);
            return;
        }
        self.selector(code);
        if self.random.one_in(6) {
            code.extend([0x0F, 0x00, 0xD0]);
        } else {
            let register = self.random.pick(&[0, 3, 4, 5]);
            code.extend([0x8E, 0xC0 | register << 3]);
        }
    }

    /// `lar`, `lsl`, `verr`, `verw`, `sldt`, `str`, `smsw`, `sgdt`, `sidt`.
    fn ask_about_segment(&mut self, code: &mut Vec<u8>) {
        self.selector(code);
        code.extend(self.random.pick(&QUESTIONS));
    }

    /// A bit of CR0 or CR4 is flipped, or another register read or written. Not SMEP and SMAP: all code lies in pages of ring 3, so that
    /// nothing could run behind it; the conformance suite tests them.
    fn change_control(&mut self, code: &mut Vec<u8>) {
        let register = self.random.pick(&[0_u8, 4]);
        match self.random.below(6) {
            0 => {
                // mov cr8, rax; mov rcx, cr8
                // Never lower than before, which KVM makes an exit of.
                code.extend([0xB8, self.random.pick(&[0xF, 0x10, 0x1F]), 0, 0, 0]);
                code.extend([0x44, 0x0F, 0x22, 0xC0, 0x44, 0x0F, 0x20, 0xC1]);
            }
            // mov cr2, rcx; mov rcx, cr2; mov rcx, cr3
            1 => code.extend(self.random.pick(&[
                [0x0F, 0x22, 0xD1],
                [0x0F, 0x20, 0xD1],
                [0x0F, 0x20, 0xD9],
            ])),
            2 => {
                // mov rcx, n; mov drN, rcx; mov rdx, drN, without breakpoints that are switched on.
                let number = self.random.pick(&[0, 1, 2, 3]);
                code.extend([
                    0x0F,
                    0x23,
                    0xC1 | number << 3,
                    0x0F,
                    0x21,
                    0xC2 | number << 3,
                ]);
            }
            _ => {
                let bits: &[u8] = if register == 0 {
                    &[0, 1, 2, 3, 4, 5, 16, 18, 29, 30, 31]
                } else {
                    &[0, 1, 2, 3, 4, 5, 7, 9, 10, 11, 12, 13, 14, 16, 18, 22]
                };
                // mov rax, crN; btc rax, bit; mov crN, rax
                code.extend([0x0F, 0x20, 0xC0 | register << 3]);
                code.extend([0x48, 0x0F, 0xBA, 0xF8, self.random.pick(bits)]);
                code.extend([0x0F, 0x22, 0xC0 | register << 3]);
            }
        }
    }

    fn use_msr(&mut self, code: &mut Vec<u8>) {
        let mut indices = msr::DECLARED.to_vec();
        indices.extend([
            msr::IA32_FS_BASE,
            msr::IA32_GS_BASE,
            msr::IA32_EFER,
            0x1234_5678,
        ]);
        let index = self.random.pick(&indices);
        // mov ecx, index
        code.push(0xB9);
        code.extend(index.to_le_bytes());
        if self.random.one_in(2) && index != msr::IA32_EFER {
            // Canonical, which QEMU does not check; and no wider than what processors of AMD keep.
            let value = self.random.interesting() & 0x7FFF_FFFF_FFFF;
            let value = match index {
                msr::IA32_SYSENTER_CS => value & 0xFFFF,
                msr::IA32_SYSENTER_ESP | msr::IA32_SYSENTER_EIP => value & 0xFFFF_FFFF,
                _ if self.random.one_in(2) => value,
                _ => value | 0xFFFF_8000_0000_0000,
            };
            // mov eax, low; mov edx, high; wrmsr
            code.push(0xB8);
            code.extend((value as u32).to_le_bytes());
            code.push(0xBA);
            code.extend(((value >> 32) as u32).to_le_bytes());
            code.extend([0x0F, 0x30]);
        }
        // rdmsr
        code.extend([0x0F, 0x32]);
    }

    /// push imm32
    fn push(code: &mut Vec<u8>, value: u32) {
        code.push(0x68);
        code.extend(value.to_le_bytes());
    }

    /// A frame for `iretq`, which mostly leads behind it.
    fn return_from_interrupt(&mut self, code: &mut Vec<u8>) {
        let ring_3 = self.random.one_in(3);
        let either = |random: &mut Random, good: u16| {
            let any = random.pick(&SELECTORS[NULL_SELECTORS..]);
            // QEMU does not mark a stack segment as used.
            if random.one_in(3) && any != NEVER_USED {
                any
            } else {
                good
            }
        };
        let ss = either(&mut self.random, if ring_3 { 0x1B } else { 0x10 });
        let cs = either(&mut self.random, if ring_3 { 0x23 } else { 8 });
        Self::push(code, u32::from(ss));
        Self::push(code, STACK as u32 - 0x200);
        // Without TF and VM, and without AC, because alignment checks are not emulated.
        Self::push(code, self.random.next() as u32 & 0x7ED7 | 2);
        Self::push(code, u32::from(cs));
        Self::push_next(code, 0xCF);
    }

    /// lea rax, [behind]; push rax; the instruction with REX.W
    fn push_next(code: &mut Vec<u8>, opcode: u8) {
        code.extend([0x48, 0x8D, 0x05, 3, 0, 0, 0, 0x50, 0x48, opcode]);
    }

    fn far_return(&mut self, code: &mut Vec<u8>) {
        let cs = if self.random.one_in(2) {
            self.random.pick(&[8, 0x48, 0x80])
        } else {
            self.random.pick(&SELECTORS)
        };
        Self::push(code, u32::from(cs));
        Self::push_next(code, 0xCB);
    }

    /// Instructions without operands that matter.
    fn plain(&mut self, code: &mut Vec<u8>) {
        code.extend(self.random.pick(&PLAIN));
    }

    /// A load, store or fetch at an address of some kind.
    fn access_memory(&mut self, code: &mut Vec<u8>) {
        let code_of_access = self.random.pick(&ACCESSES);
        // QEMU knows no #SS for the stack, and notices a jump only at its target.
        let known = if TO_CANONICAL.contains(&code_of_access) {
            &ADDRESSES[..FIRST_NOT_CANONICAL]
        } else {
            &ADDRESSES
        };
        let address = self.random.pick(known);
        // mov rcx, address
        code.extend([0x48, 0xB9]);
        code.extend(address.to_le_bytes());
        code.extend(code_of_access);
    }

    /// push imm32; popfq; pushfq; pop rdx
    fn change_flags(&mut self, code: &mut Vec<u8>) {
        Self::push(code, self.random.next() as u32 & 0x0024_7ED7);
        code.extend([0x9D, 0x9C, 0x5A]);
    }
}

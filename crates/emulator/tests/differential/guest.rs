//! The guest that carries cases out: a loop in ring 3 that loads a state, runs some instructions, and stores the state; a handler in ring
//! 0 that notes exceptions.
#![expect(unsafe_code, reason = "lends memory to guests; the guest is assembly")]

use std::arch::global_asm;

use vellum_backend::boot::{self, Amd64Machine, EntryPoint};
use vellum_backend::cpuid::CpuProfile;
use vellum_backend::state::{DescriptorTable, Xcr0};
use vellum_backend::{Exit, HostMemory, Hypervisor, Protection, Tracking, Vm, VmConfig};
use vellum_layout::{Gpa, GpaRange, Gva};

use crate::cases::Case;

/// Cases that one entry of the guest carries out.
pub(crate) const BATCH_CASES: usize = 512;
/// Bytes of a case in guest memory.
pub(crate) const CASE_LEN: usize = 0x800;

const ROOT: u64 = 0x1000;
const LEVEL_3: u64 = 0x2000;
const LEVEL_2: u64 = 0x3000;
const LEVEL_1: u64 = 0x4000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const TSS: u64 = 0x7000;
const KERNEL_STACK: u64 = 0xA000;
/// Words of the loop: the current case, the end of the cases, where to jump, saved registers.
const CURRENT: u64 = 0xB000;
const END: u64 = 0xB008;
const JUMP: u64 = 0xB010;
const SAVED_RBX: u64 = 0xB018;
const SAVED_RSP: u64 = 0xB020;
/// Where a handler returns to: the end of a case.
const DONE: u64 = 0xB028;
const LOOP_STACK: u64 = 0xC000;
const CODE: u64 = 0xD000;
/// The window of data that instructions reach.
pub(crate) const DATA: u64 = 0x1_0000;
const CASES: u64 = 0x20_0000;
const MEMORY_LEN_BYTES: u64 = 0x40_0000;

/// Offsets in a case.
pub(crate) mod at {
    pub(crate) const GPRS: usize = 0;
    pub(crate) const FLAGS: usize = 0x80;
    pub(crate) const VECTOR: usize = 0x88;
    pub(crate) const ERROR: usize = 0x90;
    pub(crate) const RIP: usize = 0x98;
    pub(crate) const CODE: usize = 0xC0;
    pub(crate) const FXSAVE: usize = 0x200;
    pub(crate) const DATA: usize = 0x400;
    pub(crate) const DATA_LEN: usize = 0x200;
}

// The loop keeps nothing in registers while a case runs. [CURRENT] points to the case.
global_asm!(
    ".pushsection .rodata.vellum_diff, \"a\"",
    ".globl vellum_diff_start",
    ".globl vellum_diff_done",
    ".globl vellum_diff_stubs",
    ".globl vellum_diff_end",
    "vellum_diff_start:",
    "mov rbx, qword ptr [{current}]",
    "cmp rbx, qword ptr [{end}]",
    "jae 9f",
    "cld",
    "lea rsi, [rbx + 0x400]",
    "mov edi, {data}",
    "mov ecx, 64",
    "rep movsq",
    "lea rax, [rbx + 0xC0]",
    "mov qword ptr [{jump}], rax",
    "fxrstor64 [rbx + 0x200]",
    "mov esp, {stack}",
    "push qword ptr [rbx + 0x80]",
    "popfq",
    "mov rax, [rbx]",
    "mov rcx, [rbx + 8]",
    "mov rdx, [rbx + 16]",
    "mov rsp, [rbx + 32]",
    "mov rbp, [rbx + 40]",
    "mov rsi, [rbx + 48]",
    "mov rdi, [rbx + 56]",
    "mov r8, [rbx + 64]",
    "mov r9, [rbx + 72]",
    "mov r10, [rbx + 80]",
    "mov r11, [rbx + 88]",
    "mov r12, [rbx + 96]",
    "mov r13, [rbx + 104]",
    "mov r14, [rbx + 112]",
    "mov r15, [rbx + 120]",
    "mov rbx, [rbx + 24]",
    "jmp qword ptr [{jump}]",
    // Instructions of a case jump here when they are done.
    "vellum_diff_done:",
    "mov qword ptr [{saved_rbx}], rbx",
    "mov qword ptr [{saved_rsp}], rsp",
    "mov rbx, qword ptr [{current}]",
    "mov esp, {stack}",
    "pushfq",
    "pop qword ptr [rbx + 0x80]",
    "mov [rbx], rax",
    "mov [rbx + 8], rcx",
    "mov [rbx + 16], rdx",
    "mov [rbx + 40], rbp",
    "mov [rbx + 48], rsi",
    "mov [rbx + 56], rdi",
    "mov [rbx + 64], r8",
    "mov [rbx + 72], r9",
    "mov [rbx + 80], r10",
    "mov [rbx + 88], r11",
    "mov [rbx + 96], r12",
    "mov [rbx + 104], r13",
    "mov [rbx + 112], r14",
    "mov [rbx + 120], r15",
    "mov rax, qword ptr [{saved_rbx}]",
    "mov [rbx + 24], rax",
    "mov rax, qword ptr [{saved_rsp}]",
    "mov [rbx + 32], rax",
    "fxsave64 [rbx + 0x200]",
    "cld",
    "mov esi, {data}",
    "lea rdi, [rbx + 0x400]",
    "mov ecx, 64",
    "rep movsq",
    "add rbx, {case_len}",
    "mov qword ptr [{current}], rbx",
    "jmp vellum_diff_start",
    "9:",
    "out 0xE0, eax",
    "jmp vellum_diff_start",
    // Handlers of vectors 0 to 31, 16 bytes each: [rsp] vector, [rsp + 8] error code, [rsp + 16] RIP.
    ".balign 16",
    "vellum_diff_stubs:",
    ".set vector, 0",
    ".rept 32",
    ".balign 16",
    // Vectors 8, 10 to 14, 17, 21, 29 and 30 push an error code themselves.
    ".if ((0x60227D00 >> vector) & 1) == 0",
    "push 0",
    ".endif",
    "push vector",
    "jmp 8f",
    ".set vector, vector + 1",
    ".endr",
    ".balign 16",
    "8:",
    "mov qword ptr [{saved_rbx}], rbx",
    "mov rbx, qword ptr [{current}]",
    "push rax",
    "mov rax, [rsp + 8]",
    "mov [rbx + 0x88], rax",
    "mov rax, [rsp + 16]",
    "mov [rbx + 0x90], rax",
    "mov rax, [rsp + 24]",
    "mov [rbx + 0x98], rax",
    "mov rax, qword ptr [{done}]",
    "mov [rsp + 24], rax",
    "pop rax",
    "mov rbx, qword ptr [{saved_rbx}]",
    "add rsp, 16",
    "iretq",
    "vellum_diff_end:",
    ".popsection",
    current = const CURRENT,
    end = const END,
    jump = const JUMP,
    data = const DATA,
    stack = const LOOP_STACK,
    saved_rbx = const SAVED_RBX,
    saved_rsp = const SAVED_RSP,
    case_len = const CASE_LEN,
    done = const DONE,
);

unsafe extern "C" {
    static vellum_diff_start: u8;
    static vellum_diff_done: u8;
    static vellum_diff_stubs: u8;
    static vellum_diff_end: u8;
}

/// Offsets in the assembly.
fn done_offset() -> u64 {
    ((&raw const vellum_diff_done).addr() - (&raw const vellum_diff_start).addr()) as u64
}

fn stubs_offset() -> u64 {
    ((&raw const vellum_diff_stubs).addr() - (&raw const vellum_diff_start).addr()) as u64
}

fn assembly() -> &'static [u8] {
    let start = &raw const vellum_diff_start;
    let len = (&raw const vellum_diff_end).addr() - start.addr();
    // SAFETY: both symbols are defined by the assembly above in one section, the end behind the start; nothing writes it.
    unsafe { std::slice::from_raw_parts(start, len) }
}

/// The guest on one engine.
pub(crate) struct Guest {
    vm: Box<dyn Vm>,
    memory: HostMemory,
}

impl Guest {
    pub(crate) fn new(hypervisor: &dyn Hypervisor) -> Self {
        let model = hypervisor.cpu_model(CpuProfile::V1).expect("a model");
        let config = VmConfig::new(model, Tracking::None);
        let mut vm = hypervisor.create_vm(&config).expect("a vm");
        let memory = HostMemory::zeroed(MEMORY_LEN_BYTES).expect("memory");
        write_machine(&memory);
        let range = GpaRange::new(Gpa::literal(0), MEMORY_LEN_BYTES).expect("a range");
        // SAFETY: the memory lives in the same struct and is dropped after the VM; nothing borrows its bytes.
        unsafe { vm.map(range, memory.hva(), Protection::Write) }.expect("mapped");
        let machine = Amd64Machine {
            root: Gpa::literal(ROOT),
            gdt: table(GDT, 0x37),
            idt: table(IDT, 32 * 16 - 1),
            tss: table(TSS, 0x68 + 32),
            xcr0: Xcr0::RESET,
            cr4_features: 0,
        };
        let start = EntryPoint {
            entry: Gva::literal(CODE),
            stack_top: Gva::literal(LOOP_STACK),
            peb: Gva::literal(0),
        };
        boot::amd64_user(&machine, &start)
            .restore(vm.as_mut())
            .expect("restored");
        Self { vm, memory }
    }

    /// Carries cases out. An exit that is not the expected one comes with the number of the case that it happened in.
    pub(crate) fn run(&mut self, cases: &[Case]) -> Result<Vec<Outcome>, (usize, Exit)> {
        let done = CODE + done_offset();
        for (case, address) in cases.iter().zip((CASES..).step_by(CASE_LEN)) {
            let bytes = case.bytes(address + at::CODE as u64, done);
            self.memory.write(address, &bytes).expect("in bounds");
        }
        let end = CASES + (cases.len() * CASE_LEN) as u64;
        self.memory.write_u64(CURRENT, CASES).expect("in bounds");
        self.memory.write_u64(DONE, done).expect("in bounds");
        self.memory.write_u64(END, end).expect("in bounds");
        let exit = self.vm.run().expect("ran");
        if !matches!(exit, Exit::IoOut { port: 0xE0, .. }) {
            let current = self.memory.read_u64(CURRENT).expect("in bounds");
            return Err((((current - CASES) / CASE_LEN as u64) as usize, exit));
        }
        let mut outcomes = Vec::new();
        for address in (CASES..end).step_by(CASE_LEN) {
            let mut bytes = vec![0; CASE_LEN];
            self.memory.read(address, &mut bytes).expect("in bounds");
            outcomes.push(Outcome(bytes));
        }
        Ok(outcomes)
    }
}

/// The state behind a case.
pub(crate) struct Outcome(pub(crate) Vec<u8>);

impl Outcome {
    pub(crate) fn word(&self, offset: usize) -> u64 {
        let mut raw = [0; 8];
        raw.copy_from_slice(&self.0[offset..offset + 8]);
        u64::from_le_bytes(raw)
    }

    /// The exception that ended it.
    pub(crate) fn vector(&self) -> Option<u64> {
        Some(self.word(at::VECTOR)).filter(|vector| *vector != u64::MAX)
    }
}

fn table(base: u64, limit: u16) -> DescriptorTable {
    DescriptorTable { base, limit }
}

/// A 64-bit interrupt gate to ring 0.
fn gate(address: u64) -> (u64, u64) {
    let low = address & 0xFFFF | 8 << 16 | 0x8E00 << 32 | (address >> 16 & 0xFFFF) << 48;
    (low, address >> 32)
}

fn write_machine(memory: &HostMemory) {
    let write = |at, value| memory.write_u64(at, value).expect("in bounds");
    /// Present, writable, user, accessed, dirty.
    const RIGHTS: u64 = 0x67;
    const LARGE: u64 = 1 << 7;
    write(ROOT, LEVEL_3 | RIGHTS);
    write(LEVEL_3, LEVEL_2 | RIGHTS);
    write(LEVEL_2, LEVEL_1 | RIGHTS);
    for page in 0..512 {
        write(LEVEL_1 + page * 8, page << 12 | RIGHTS);
    }
    write(LEVEL_2 + 8, CASES | LARGE | RIGHTS);
    // Ring-0 code and data, ring-3 data and code, the TSS.
    let descriptors = [
        0,
        0x00AF_9B00_0000_FFFF,
        0x00CF_9300_0000_FFFF,
        0x00CF_F300_0000_FFFF,
        0x00AF_FB00_0000_FFFF,
        0x0000_8B00_0000_0000 | TSS << 16 | (0x68 + 32),
        0,
    ];
    for (at, descriptor) in (GDT..).step_by(8).zip(descriptors) {
        write(at, descriptor);
    }
    for vector in 0..32 {
        let (low, high) = gate(CODE + stubs_offset() + vector * 16);
        write(IDT + vector * 16, low);
        write(IDT + vector * 16 + 8, high);
    }
    memory
        .write(TSS + 4, &KERNEL_STACK.to_le_bytes())
        .expect("in bounds");
    memory.write(TSS + 0x66, &[0x68, 0]).expect("in bounds");
    memory.write(TSS + 0x68 + 32, &[0xFF]).expect("in bounds");
    memory.write(CODE, assembly()).expect("in bounds");
}

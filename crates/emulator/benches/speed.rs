//! How many million instructions the emulator carries out in a second of processor time: a loop of integers, one that copies memory, one of SSE.
//!
//! Prints each figure as its name and a number.
#![expect(unsafe_code, reason = "lends memory to a guest")]

use rustix::time::{ClockId, clock_gettime};
use vellum_backend::boot::{self, Amd64Machine, EntryPoint};
use vellum_backend::cpuid::CpuProfile;
use vellum_backend::state::Xcr0;
use vellum_backend::{HostMemory, Hypervisor, Protection, Tracking, Vm, VmConfig};
use vellum_emulator::{EmulatedVm, Emulator};
use vellum_layout::{Gpa, GpaRange, Gva};

const MEMORY_LEN_BYTES: u64 = 0x20_0000;
const CODE: u64 = 0x1_0000;
/// Instructions of a measurement.
const INSTRUCTIONS: u64 = 30_000_000;
/// Measurements of each loop, of which the fastest counts.
const ROUNDS: u32 = 3;

/// Arithmetic, a table look-up and a branch that is taken half of the time.
const INTEGERS: &[u8] = &[
    0x48, 0x89, 0xC2, // mov rdx, rax
    0x48, 0xC1, 0xE2, 0x0D, // shl rdx, 13
    0x48, 0x31, 0xD0, // xor rax, rdx
    0x48, 0x89, 0xC2, // mov rdx, rax
    0x48, 0xC1, 0xEA, 0x07, // shr rdx, 7
    0x48, 0x31, 0xD0, // xor rax, rdx
    0x0F, 0xB6, 0xC8, // movzx ecx, al
    0x48, 0x03, 0x1C, 0xCE, // add rbx, [rsi + rcx * 8]
    0xA8, 0x01, // test al, 1
    0x74, 0x03, // je +3
    0x48, 0xFF, 0xC3, // inc rbx
    0x48, 0xFF, 0xC7, // inc rdi
    0xEB, 0xD9, // jmp to the start
];
/// Eight bytes from one place to another.
const COPY: &[u8] = &[
    0x48, 0x8B, 0x04, 0x0E, // mov rax, [rsi + rcx]
    0x48, 0x89, 0x84, 0x0E, 0x00, 0x00, 0x01, 0x00, // mov [rsi + rcx + 0x10000], rax
    0x48, 0x83, 0xC1, 0x08, // add rcx, 8
    0x81, 0xE1, 0xFF, 0x7F, 0x00, 0x00, // and ecx, 0x7fff
    0xEB, 0xE8, // jmp to the start
];
/// A multiplication, additions and a load of doubles.
const SSE: &[u8] = &[
    0xF2, 0x0F, 0x10, 0x06, // movsd xmm0, [rsi]
    0xF2, 0x0F, 0x59, 0xC1, // mulsd xmm0, xmm1
    0xF2, 0x0F, 0x58, 0xD0, // addsd xmm2, xmm0
    0x66, 0x0F, 0x58, 0xDC, // addpd xmm3, xmm4
    0x48, 0xFF, 0xC7, // inc rdi
    0xEB, 0xEB, // jmp to the start
];

fn main() {
    for (name, code) in [
        ("emulator_mips", INTEGERS),
        ("emulator_mips_copy", COPY),
        ("emulator_mips_sse", SSE),
    ] {
        let best = (0..ROUNDS).map(|_| mips(code)).fold(0.0, f64::max);
        println!("{name} {best:.1}");
    }
}

/// Million instructions in a second of this thread's processor time, which a neighbour on the machine changes less than the clock on the wall.
fn mips(code: &[u8]) -> f64 {
    let (mut vm, _memory) = guest(code);
    vm.set_fuel(Some(INSTRUCTIONS));
    let start = processor_seconds();
    vm.run().expect("ran");
    let seconds = processor_seconds() - start;
    #[expect(clippy::cast_precision_loss, reason = "a figure to be printed")]
    let instructions = vm.retired_instructions() as f64;
    instructions / seconds / 1e6
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a few seconds in nanoseconds are exact"
)]
fn processor_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn guest(code: &[u8]) -> (EmulatedVm, HostMemory) {
    let emulator = Emulator::new();
    let model = emulator.cpu_model(CpuProfile::V2).expect("a model");
    let config = VmConfig::new(model, Tracking::None);
    let mut vm = emulator.create_emulated_vm(&config).expect("a vm");
    let memory = HostMemory::zeroed(MEMORY_LEN_BYTES).expect("memory");
    for (at, entry) in [(0x1000, 0x2067), (0x2000, 0x3067), (0x3000, 0xE7)] {
        memory.write_u64(at, entry).expect("in bounds");
    }
    memory.write(CODE, code).expect("in bounds");
    let range = GpaRange::new(Gpa::literal(0), MEMORY_LEN_BYTES).expect("a range");
    // SAFETY: the caller keeps the memory as long as the VM, and nothing borrows its bytes.
    unsafe { vm.map(range, memory.hva(), Protection::Write) }.expect("mapped");
    let start = EntryPoint {
        entry: Gva::literal(CODE),
        stack_top: Gva::literal(0x1_0000),
        peb: Gva::literal(0),
    };
    let machine = Amd64Machine::bare(Gpa::literal(0x1000), Xcr0::RESET);
    let mut state = boot::amd64_user(&machine, &start);
    state.general.rsi = 0x2_0000;
    state.general.rax = 0x1234_5678;
    state.restore(&mut vm).expect("restored");
    (vm, memory)
}

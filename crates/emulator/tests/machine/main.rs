//! Guests of a few bytes of code, and what becomes of them.
#![expect(unsafe_code, reason = "lends memory to guests")]

use vellum_backend::boot::{self, Amd64Machine, EntryPoint};
use vellum_backend::cpuid::CpuProfile;
use vellum_backend::state::{DescriptorTable, Xcr0};
use vellum_backend::{Exit, HostMemory, Hypervisor, Protection, Tracking, VcpuState, Vm, VmConfig};
use vellum_emulator::{EmulatedVm, Emulator};
use vellum_layout::{Gpa, GpaRange, Gva};

mod exceptions;
mod files;
mod hostile;
mod instructions;

const MEMORY_LEN_BYTES: u64 = 0x2_0000;
const CODE: u64 = 0x5000;
const ROOT: u64 = 0x1000;
const STACK_TOP: u64 = 0x1_0000;
/// Instructions that a case may execute.
const FUEL: u64 = 2_000;

/// Memory at guest-physical 0, with code. The memory outlives the VM.
struct Guest {
    vm: EmulatedVm,
    memory: HostMemory,
}

fn guest(code: &[u8]) -> Guest {
    let emulator = Emulator::new();
    let model = emulator.cpu_model(CpuProfile::V2).expect("a model");
    let config = VmConfig::new(model, Tracking::FirstWrites);
    let mut vm = emulator.create_emulated_vm(&config).expect("a vm");
    let memory = HostMemory::zeroed(MEMORY_LEN_BYTES).expect("memory");
    // 4-level tables of one large page at 0, for all rings.
    for (at, entry) in [(ROOT, 0x2067), (0x2000, 0x3067), (0x3000, 0xE7)] {
        memory.write_u64(at, entry).expect("in bounds");
    }
    memory.write(CODE, code).expect("in bounds");
    let range = GpaRange::new(Gpa::literal(0), MEMORY_LEN_BYTES).expect("a range");
    // SAFETY: the memory lives in the same struct and is dropped after the VM; nothing borrows its bytes.
    unsafe { vm.map(range, memory.hva(), Protection::TrackedWrite) }.expect("mapped");
    vm.set_fuel(Some(FUEL));
    Guest { vm, memory }
}

fn machine() -> Amd64Machine {
    Amd64Machine {
        root: Gpa::literal(ROOT),
        gdt: DescriptorTable {
            base: 0x8000,
            limit: 0x7F,
        },
        idt: DescriptorTable {
            base: 0x9000,
            limit: 0xFFF,
        },
        tss: DescriptorTable {
            base: 0xA000,
            limit: 0xFFF,
        },
        xcr0: Xcr0::RESET,
        cr4_features: 0,
    }
}

fn start() -> EntryPoint {
    EntryPoint {
        entry: Gva::literal(CODE),
        stack_top: Gva::literal(STACK_TOP),
        peb: Gva::literal(0),
    }
}

/// One state of each kind.
fn states() -> [VcpuState; 5] {
    [
        boot::real_mode(0, 0x5000),
        boot::flat32(Gpa::literal(CODE), Gpa::literal(STACK_TOP), 1, 2),
        boot::i686_paged(Gpa::literal(0xB000), &start()),
        boot::amd64_user(&machine(), &start()),
        boot::amd64_kernel(&machine(), &start()),
    ]
}

/// Runs until the guest cannot go on or has run often enough.
fn run(guest: &mut Guest) {
    for _ in 0..20 {
        match guest.vm.run().expect("the emulator does not fail") {
            Exit::IoIn { .. } => guest.vm.complete_io_in(0x1234_5678).expect("pending"),
            Exit::IoOut { .. } | Exit::IoString { .. } | Exit::Halt => {}
            _ => return,
        }
    }
}

fn user(code: &[u8]) -> Guest {
    let mut guest = guest(code);
    boot::amd64_user(&machine(), &start())
        .restore(&mut guest.vm)
        .expect("restored");
    guest
}

fn flat(code: &[u8]) -> Guest {
    let mut guest = guest(code);
    boot::flat32(Gpa::literal(CODE), Gpa::literal(STACK_TOP), 40, 2)
        .restore(&mut guest.vm)
        .expect("restored");
    guest
}

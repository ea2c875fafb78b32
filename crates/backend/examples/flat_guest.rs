//! Boots a few bytes of 32-bit code on the backend alone: no sandbox, no page tables.
//!
//! `cargo run -p vellum-backend --example flat_guest`

use vellum_backend::cpuid::CpuProfile;
use vellum_backend::kvm::Kvm;
use vellum_backend::{Exit, HostMemory, Protection, Vm, boot};
use vellum_backend::{Tracking, VmConfig};
use vellum_layout::{Gpa, GpaRange};

/// Adds EBX to EAX, sends the sum to port 0x10 and halts.
const PROGRAM: [u8; 5] = [
    0x01, 0xD8, // add eax, ebx
    0xE7, 0x10, // out 0x10, eax
    0xF4, // hlt
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let kvm = Kvm::open()?;
    println!("{:#?}", kvm.capabilities());

    let memory = HostMemory::zeroed(0x1_0000)?;
    memory.write(0x1000, &PROGRAM)?;
    let model = kvm.cpu_model(CpuProfile::Best)?;
    let mut vm = kvm.create_vm(&VmConfig::new(model, Tracking::None))?;
    let ram = GpaRange::new(Gpa::new(0)?, memory.len_bytes())?;
    #[expect(unsafe_code, reason = "lends `memory` to the guest")]
    // SAFETY: `memory` was made before `vm`, so it is dropped after it, and nothing borrows its bytes.
    unsafe {
        vm.map(ram, memory.hva(), Protection::Write)?;
    }
    boot::flat32(Gpa::new(0x1000)?, Gpa::new(0x8000)?, 40, 2).restore(&mut vm)?;
    loop {
        match vm.run()? {
            Exit::IoOut { port, data, .. } => println!("port {port:#x}: {data}"),
            Exit::Halt => break println!("the guest halted"),
            other => break println!("unexpected: {other:?}"),
        }
    }
    Ok(())
}

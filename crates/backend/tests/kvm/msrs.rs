//! Model-specific registers: what is not declared raises #GP.

use vellum_backend::boot;
use vellum_backend::kvm::Kvm;
use vellum_backend::msr;
use vellum_backend::state::DescriptorTable;
use vellum_backend::{Exit, IoWidth, Protection};

use crate::support::{Guest, guest, kvm, machine, skip, start, user_state};

const GDT: u64 = 0x800;
const IDT: u64 = 0x900;
const HANDLER: u64 = 0x5800;
/// General-protection exception (Intel SDM volume 3, section 7.15).
const GP: u64 = 13;

/// mov ecx, index; rdmsr; out 0xe0, eax; hlt
fn read(index: u32) -> Vec<u8> {
    let [a, b, c, d] = index.to_le_bytes();
    vec![0xB9, a, b, c, d, 0x0F, 0x32, 0xE7, 0xE0, 0xF4]
}

/// mov ecx, index; xor eax, eax; xor edx, edx; wrmsr; out 0xe0, eax; hlt
fn write(index: u32) -> Vec<u8> {
    let [a, b, c, d] = index.to_le_bytes();
    vec![
        0xB9, a, b, c, d, 0x31, 0xC0, 0x31, 0xD2, 0x0F, 0x30, 0xE7, 0xE0, 0xF4,
    ]
}

/// Ring 0 with a handler of #GP that sends the error code to port 0xE1.
fn ring_zero(kvm: &Kvm, code: &[u8]) -> Guest {
    let mut guest = guest(kvm, code, Protection::Write);
    let write = |at, value| guest.memory.write_u64(at, value).expect("in bounds");
    // Null, and 64-bit ring-0 code and data (Intel SDM volume 3, section 3.4.5).
    for (index, descriptor) in (0..).zip([0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF]) {
        write(GDT + index * 8, descriptor);
    }
    // An interrupt gate to selector 8 (Intel SDM volume 3, section 7.14.1); the handler lies below 64 KiB.
    write(IDT + GP * 16, 0x8E00 << 32 | 8 << 16 | HANDLER);
    // pop rax; out 0xe1, eax; hlt
    guest
        .memory
        .write(HANDLER, &[0x58, 0xE7, 0xE1, 0xF4])
        .expect("in bounds");
    let machine = boot::Amd64Machine {
        gdt: DescriptorTable {
            base: GDT,
            limit: 3 * 8 - 1,
        },
        idt: DescriptorTable {
            base: IDT,
            limit: 32 * 16 - 1,
        },
        ..machine()
    };
    boot::amd64_kernel(&machine, &start())
        .restore(&mut guest.vm)
        .expect("restored");
    guest
}

fn is_refused(exit: Exit) -> bool {
    match exit {
        Exit::IoOut {
            port: 0xE1,
            width: IoWidth::Dword,
            data: 0,
        } => true,
        Exit::IoOut { port: 0xE0, .. } => false,
        other => panic!("{other:?}"),
    }
}

#[test]
fn undeclared_registers_raise_a_general_protection_exception_in_ring_zero() {
    let Some(kvm) = kvm() else { return };
    if !kvm.capabilities().msr_filter {
        skip("this kernel cannot deny model-specific registers");
        return;
    }
    // TSC, APIC base, feature control, PAT, performance counter, debug control, performance select, TSC_AUX, the synthetic
    // registers of KVM and of Hyper-V, and a number that means nothing.
    let undeclared = [
        0x10,
        0x1B,
        0x3A,
        0x277,
        0xC1,
        0x1D9,
        0x186,
        0xC000_0103,
        0x4B56_4D00,
        0x4000_0000,
        0xDEAD,
    ];
    for index in undeclared {
        for code in [read(index), write(index)] {
            let exit = ring_zero(&kvm, &code).run();
            assert!(is_refused(exit), "{index:#x}: {exit:?}");
        }
    }
}

#[test]
fn declared_registers_are_within_reach_of_ring_zero() {
    let Some(kvm) = kvm() else { return };
    for index in msr::DECLARED
        .into_iter()
        .chain([msr::IA32_FS_BASE, msr::IA32_GS_BASE])
    {
        for code in [read(index), write(index)] {
            let exit = ring_zero(&kvm, &code).run();
            assert!(!is_refused(exit), "{index:#x}: {exit:?}");
        }
    }
}

#[test]
fn ring_three_reaches_no_register() {
    let Some(kvm) = kvm() else { return };
    for code in [read(msr::IA32_LSTAR), write(msr::IA32_LSTAR)] {
        let mut guest = guest(&kvm, &code, Protection::Write);
        user_state().restore(&mut guest.vm).expect("restored");
        let exit = guest.run();
        assert!(!matches!(exit, Exit::IoOut { .. }), "{exit:?}");
    }
}

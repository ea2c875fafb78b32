//! The machine page: GDT, TSS with its I/O bitmap, and IDT, in one read-only page of the supervisor area.
//!
//! Intel SDM volume 3: sections 3.4.5 (descriptors), 7.7 (64-bit TSS), 6.14.1 (64-bit IDT), volume 1 section 19.5.2 (I/O
//! bitmap).

use vellum_abi::port;
use vellum_backend::boot::{Amd64Machine, selector};
use vellum_backend::cpuid::CpuModel;
use vellum_backend::state::DescriptorTable;
use vellum_layout::Gpa;
use vellum_layout::amd64::user::{EXCEPTION_STACK, MACHINE_AREA};

use super::monitor;
use crate::memory::PAGE_LEN_BYTES;

/// Offsets in the page.
const GDT: usize = 0;
const TSS: usize = 0x80;
const IDT: usize = 0x200;

/// Null, kernel code, kernel data, user data, user code, TSS (two entries).
const GDT_ENTRIES: usize = 7;
/// Bytes of a 64-bit TSS without a bitmap.
const TSS_LEN_BYTES: usize = 0x68;
/// Ports that the bitmap names; it ends behind them, which denies every higher one.
const BITMAP_PORTS: usize = 0x100;
/// The bitmap, and the byte of ones that must follow it.
const BITMAP_LEN_BYTES: usize = BITMAP_PORTS / 8 + 1;
const TSS_LIMIT: usize = TSS_LEN_BYTES + BITMAP_LEN_BYTES - 1;
/// Bytes of an IDT gate.
const GATE_LEN_BYTES: usize = 16;
/// Exception vectors; interrupts do not exist.
pub(super) const VECTORS: usize = 32;
/// `int3`, which ring 3 may execute.
const BREAKPOINT: usize = 3;
/// The double fault, which gets a stack of its own.
const DOUBLE_FAULT: usize = 8;

const _: () = {
    assert!(GDT + GDT_ENTRIES * 8 <= TSS);
    assert!(TSS + TSS_LIMIT < IDT);
    assert!(IDT + VECTORS * GATE_LEN_BYTES <= PAGE_LEN_BYTES);
};

/// 64-bit code, present, accessed, ring 0.
const KERNEL_CODE: u64 = 0x0020_9B00_0000_0000;
/// Data, present, writable, accessed, ring 0.
const KERNEL_DATA: u64 = 0x0000_9300_0000_0000;
const RING_3: u64 = 3 << 45;
/// A busy 64-bit TSS, present.
const TSS_TYPE: u64 = 0x0000_8B00_0000_0000;

/// Where the stack for exceptions begins, and the one for double faults: the upper and the lower half of one page.
const STACK_TOP: u64 = EXCEPTION_STACK.end().as_u64();
const DOUBLE_FAULT_STACK_TOP: u64 =
    EXCEPTION_STACK.start().as_u64() + EXCEPTION_STACK.len_bytes() / 2;

/// The content of the machine page.
pub(crate) fn machine_page() -> [u8; PAGE_LEN_BYTES] {
    let mut page = [0; PAGE_LEN_BYTES];
    let base = MACHINE_AREA.start().as_u64() + TSS as u64;
    let tss_low =
        TSS_TYPE | TSS_LIMIT as u64 | (base & 0xFF_FFFF) << 16 | (base >> 24 & 0xFF) << 56;
    let gdt = [
        0,
        KERNEL_CODE,
        KERNEL_DATA,
        KERNEL_DATA | RING_3,
        KERNEL_CODE | RING_3,
        tss_low,
        base >> 32,
    ];
    for (index, entry) in gdt.into_iter().enumerate() {
        put(&mut page, GDT + index * 8, &entry.to_le_bytes());
    }
    write_tss(&mut page);
    for vector in 0..VECTORS {
        let gate = gate(vector);
        put(
            &mut page,
            IDT + vector * GATE_LEN_BYTES,
            &gate.to_le_bytes(),
        );
    }
    page
}

/// RSP0, IST1 and the bitmap that allows the ports of the ABI.
fn write_tss(page: &mut [u8; PAGE_LEN_BYTES]) {
    const RSP0: usize = 0x04;
    const IST1: usize = 0x24;
    const BITMAP_BASE: usize = 0x66;
    put(page, TSS + RSP0, &STACK_TOP.to_le_bytes());
    put(page, TSS + IST1, &DOUBLE_FAULT_STACK_TOP.to_le_bytes());
    put(page, TSS + BITMAP_BASE, &TSS_LEN_BYTES.to_le_bytes()[..2]);
    let mut bitmap = [0xFF; BITMAP_LEN_BYTES];
    for port in port::USER {
        // A 4-byte access needs the bits of four consecutive ports (SDM volume 1, section 19.5.2).
        for port in usize::from(port.number())..usize::from(port.number()) + 4 {
            bitmap[port / 8] &= !(1 << (port % 8));
        }
    }
    put(page, TSS + TSS_LEN_BYTES, &bitmap);
}

/// An interrupt gate to the monitor's stub for `vector`. Software interrupts of ring 3 pass only the one for breakpoints: without
/// that, `int3` is a general protection fault (Intel SDM volume 3, section 6.12.1.2).
fn gate(vector: usize) -> u128 {
    const PRESENT_INTERRUPT_GATE: u128 = 0x8E00 << 32;
    const FROM_RING_3: u128 = 0x6000 << 32;
    let handler = u128::from(monitor::stub_address(vector));
    let ist = if vector == DOUBLE_FAULT { 1 << 32 } else { 0 };
    let privilege = if vector == BREAKPOINT { FROM_RING_3 } else { 0 };
    handler & 0xFFFF
        | privilege
        | u128::from(selector::KERNEL_CODE) << 16
        | ist
        | PRESENT_INTERRUPT_GATE
        | (handler >> 16 & 0xFFFF) << 48
        | (handler >> 32) << 64
}

fn put(page: &mut [u8; PAGE_LEN_BYTES], at: usize, bytes: &[u8]) {
    page[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The registers' view of the machine page.
pub(crate) fn amd64_machine(root: Gpa, model: &CpuModel) -> Amd64Machine {
    let base = MACHINE_AREA.start().as_u64();
    let table = |offset: usize, len_bytes: usize| DescriptorTable {
        base: base + offset as u64,
        // Each table fits the page.
        limit: u16::try_from(len_bytes - 1).unwrap_or(u16::MAX),
    };
    Amd64Machine {
        root,
        gdt: table(GDT, GDT_ENTRIES * 8),
        idt: table(IDT, VECTORS * GATE_LEN_BYTES),
        tss: table(TSS, TSS_LIMIT + 1),
        xcr0: model.xcr0,
        cr4_features: model.cr4_features,
    }
}

#[cfg(test)]
mod tests;

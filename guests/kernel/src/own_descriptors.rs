//! Descriptor tables of the kernel's own, in place of those that the host has described in the segment registers.

use core::arch::asm;

use vellum_guest::guest_function;
use vellum_guest::kernel::descriptor::{CODE_32, DATA};

/// Null, flat code at selector 0x08, flat data at 0x10: what the host has loaded into the segment registers.
static GDT: [u64; 3] = [0, CODE_32, DATA];

/// Gates that are not present.
static IDT: [u64; 32] = [0; 32];

/// What `lgdt` and `lidt` read.
#[repr(C, packed)]
struct Register {
    limit: u16,
    base: usize,
}

impl Register {
    fn of(table: &'static [u64]) -> Self {
        // The tables have less than 64 KiB.
        #[expect(clippy::cast_possible_truncation)]
        let limit = (size_of_val(table) - 1) as u16;
        Self {
            limit,
            base: table.as_ptr().addr(),
        }
    }
}

/// Loads a GDT and an IDT, and the data segments from the former.
#[guest_function]
fn load_descriptor_tables() {
    let (gdt, idt) = (Register::of(&GDT), Register::of(&IDT));
    // SAFETY: the new segments are the old ones, and there was no interrupt table before.
    unsafe {
        asm!(
            "lgdt [{gdt}]",
            "lidt [{idt}]",
            "mov ds, {data:x}",
            "mov es, {data:x}",
            "mov ss, {data:x}",
            gdt = in(reg) &raw const gdt,
            idt = in(reg) &raw const idt,
            data = in(reg) 0x10,
            options(nostack, preserves_flags),
        );
    }
}

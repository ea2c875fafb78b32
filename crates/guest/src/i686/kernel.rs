//! The i686 processor as a kernel sees it: control registers, descriptor tables, exception frames.

#![expect(unsafe_code, reason = "control registers and descriptor tables")]

mod note;
mod stubs;

use core::arch::asm;

use vellum_layout::{Gpa, Gva};
use vellum_vmem::{Attrs, Format};

use crate::kernel::descriptor::{CODE_32, DATA, gate_32};
use crate::kernel::vector;

pub(crate) use stubs::Frame;

/// The format of the page tables: CR4.PSE set.
pub(crate) const FORMAT: Format = Format::TWO_LEVEL_PSE;

/// What pages of data have beside WRITE: two levels cannot forbid execution.
pub(crate) const DATA_ATTRS: Attrs = Attrs::empty();

/// Selector of the code segment, as the host has loaded it; the table makes it true. The data segment follows it.
const CODE_SELECTOR: u16 = 0x08;

/// GDT and IDT.
#[repr(C, align(16))]
pub(crate) struct DescriptorTables {
    idt: [u64; vector::COUNT],
    gdt: [u64; 3],
}

/// What `lgdt` and `lidt` read and `sidt` writes.
#[repr(C, packed)]
struct TableRegister {
    limit: u16,
    base: u32,
}

impl DescriptorTables {
    /// The tables. All exceptions use the current stack, so their place and the exception stack do not matter.
    pub(crate) fn new(_place: usize, _exception_stack_top: u64) -> Self {
        let mut idt = [0; vector::COUNT];
        for (number, gate) in (0..).zip(&mut idt) {
            *gate = gate_32(stubs::address(number), CODE_SELECTOR);
        }
        Self {
            idt,
            gdt: [0, CODE_32, DATA],
        }
    }

    /// Makes the processor use the tables. The selectors in CS, SS and the others, 0x08 and 0x10, mean in the new table what
    /// they meant before, so no segment is loaded again.
    ///
    /// # Safety
    /// The tables stay where they are, unchanged. Ring 0.
    pub(crate) unsafe fn load(&'static self) {
        let gdt = TableRegister::of(&self.gdt);
        let idt = TableRegister::of(&self.idt);
        // SAFETY: the descriptors are those of flat segments and of gates to the stubs, and live for ever.
        unsafe {
            asm!(
                "lgdt [{gdt}]",
                "lidt [{idt}]",
                gdt = in(reg) &raw const gdt,
                idt = in(reg) &raw const idt,
                options(nostack, preserves_flags),
            );
        }
    }
}

impl TableRegister {
    fn of<T>(table: &'static T) -> Self {
        Self {
            // The tables have less than 4096 bytes, and pointers 32 bits.
            #[expect(clippy::cast_possible_truncation)]
            limit: (size_of::<T>() - 1) as u16,
            #[expect(clippy::cast_possible_truncation)]
            base: core::ptr::from_ref(table).addr() as u32,
        }
    }
}

/// CR3 without its cache bits.
pub(crate) fn root() -> Gpa {
    let cr3: u32;
    // SAFETY: reads a register; outside ring 0 it raises an exception.
    unsafe { asm!("mov {}, cr3", out(reg) cr3, options(nomem, nostack, preserves_flags)) };
    // CR3 holds bits 12 to 31 of the address (Intel SDM volume 3A, table 4-3).
    Gpa::new(u64::from(cr3 & 0xFFFF_F000)).unwrap_or(Gpa::literal(0))
}

/// # Safety
/// As for [`crate::kernel::switch_root`].
pub(crate) unsafe fn switch_root(root: Gpa) {
    // Roots of 32-bit paging lie below 4 GiB.
    #[expect(clippy::cast_possible_truncation)]
    let cr3 = root.as_u64() as u32;
    // SAFETY: the caller promises that what is in use stays mapped as it is.
    unsafe { asm!("mov cr3, {}", in(reg) cr3, options(nostack, preserves_flags)) };
}

/// Forgets the translation of one address.
pub(crate) fn invalidate(address: Gva) {
    // Addresses of 32-bit code.
    #[expect(clippy::cast_possible_truncation)]
    let address = address.as_u64() as u32;
    // SAFETY: a translation that is looked up again changes nothing; outside ring 0 it raises an exception.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

/// The base of the interrupt table.
pub(crate) fn interrupt_table() -> usize {
    let mut register = TableRegister { limit: 0, base: 0 };
    // SAFETY: writes the six bytes of the local.
    unsafe { asm!("sidt [{}]", in(reg) &raw mut register, options(nostack, preserves_flags)) };
    // An address of 32-bit code.
    register.base as usize
}

/// Copies a page, by one instruction: some hypervisors emulate ring 0 one instruction at a time.
///
/// # Safety
/// Both pages are mapped, aligned and distinct, `from` readable, `to` writable.
pub(crate) unsafe fn copy_page(from: *const u8, to: *mut u8) {
    // SAFETY: the caller's promise; 1024 words are a page. DF is clear in Rust code. ESI, which code for this machine
    // may reserve, is saved by hand.
    unsafe {
        asm!(
            "xchg esi, {from}",
            "rep movsd",
            "mov esi, {from}",
            from = inout(reg) from => _,
            inout("ecx") 1024_usize => _,
            inout("edi") to => _,
            options(nostack, preserves_flags),
        );
    }
}

//! The amd64 processor as a kernel sees it: control registers, descriptor tables, exception frames.

#![expect(unsafe_code, reason = "control registers and descriptor tables")]

mod memory_routines;
mod stubs;

use core::arch::asm;

use vellum_layout::{Gpa, Gva};
use vellum_vmem::{Attrs, Format};

use crate::kernel::descriptor::{CODE_64, DATA, gate_64, tss_64};
use crate::kernel::vector;

pub(crate) use stubs::Frame;

/// The format of the page tables: long mode, EFER.NXE set.
pub(crate) const FORMAT: Format = Format::FOUR_LEVEL;

/// What pages of data have beside WRITE.
pub(crate) const DATA_ATTRS: Attrs = Attrs::NO_EXECUTE;

/// Selector of the code segment, as the host has loaded it; the table makes it true.
const CODE_SELECTOR: u16 = 0x08;
/// Selector of the task-state segment. The data segment lies between the two.
const TSS_SELECTOR: u16 = 0x18;

/// The stack of the interrupt stack table that double faults use.
const DOUBLE_FAULT_STACK: u8 = 1;

/// Length of a 64-bit task-state segment (Intel SDM volume 3A, figure 8-11).
const TSS_LEN_BYTES: u16 = 104;

/// GDT, IDT and TSS, made for the place where they lie.
#[repr(C, align(16))]
pub(crate) struct DescriptorTables {
    idt: [[u64; 2]; vector::COUNT],
    gdt: [u64; 5],
    tss: [u32; TSS_LEN_BYTES as usize / 4],
}

/// What `lgdt` and `lidt` read and `sidt` writes.
#[repr(C, packed)]
struct TableRegister {
    limit: u16,
    base: u64,
}

impl DescriptorTables {
    /// Tables for the address `place`. Double faults use the stack below `exception_stack_top`.
    pub(crate) fn new(place: usize, exception_stack_top: u64) -> Self {
        let mut idt = [[0; 2]; vector::COUNT];
        for (number, gate) in (0..).zip(&mut idt) {
            let stack = if number == vector::DOUBLE_FAULT {
                DOUBLE_FAULT_STACK
            } else {
                0
            };
            *gate = gate_64(stubs::address(number) as u64, CODE_SELECTOR, stack);
        }
        let tss_at = (place + core::mem::offset_of!(Self, tss)) as u64;
        let [tss_low, tss_high] = tss_64(tss_at, TSS_LEN_BYTES);
        Self {
            idt,
            gdt: [0, CODE_64, DATA, tss_low, tss_high],
            tss: task_state(exception_stack_top),
        }
    }

    /// Makes the processor use the tables. The selectors in CS and SS, 0x08 and 0x10, mean in the new table what they meant
    /// before, so no segment is loaded again.
    ///
    /// # Safety
    /// The tables lie at the place that they were made for, and stay there unchanged. Ring 0.
    pub(crate) unsafe fn load(&'static self) {
        let gdt = TableRegister::of(&self.gdt);
        let idt = TableRegister::of(&self.idt);
        // SAFETY: the descriptors are those of flat segments, of a TSS that lives for ever, and of gates to the stubs. LTR
        // marks the TSS as busy in the table, which is memory that nobody else uses.
        unsafe {
            asm!(
                "lgdt [{gdt}]",
                "lidt [{idt}]",
                "ltr {tss:x}",
                gdt = in(reg) &raw const gdt,
                idt = in(reg) &raw const idt,
                tss = in(reg) TSS_SELECTOR,
                options(nostack, preserves_flags),
            );
        }
    }
}

impl TableRegister {
    fn of<T>(table: &'static T) -> Self {
        Self {
            // The tables have less than 4096 bytes.
            #[expect(clippy::cast_possible_truncation)]
            limit: (size_of::<T>() - 1) as u16,
            base: core::ptr::from_ref(table).addr() as u64,
        }
    }
}

/// A task-state segment with one interrupt stack and no I/O bitmap: ring 0 needs none.
fn task_state(exception_stack_top: u64) -> [u32; TSS_LEN_BYTES as usize / 4] {
    /// Index of the lower half of IST1, which is at byte 36, and of the word that holds the offset of the bitmap in its
    /// upper half, at byte 102 (Intel SDM volume 3A, figure 8-11).
    const IST1: usize = 9;
    const BITMAP: usize = 25;
    let mut tss = [0; TSS_LEN_BYTES as usize / 4];
    #[expect(clippy::cast_possible_truncation, reason = "two halves of a number")]
    {
        tss[IST1] = exception_stack_top as u32;
        tss[IST1 + 1] = (exception_stack_top >> 32) as u32;
    }
    // Behind the end: there is no bitmap.
    tss[BITMAP] = u32::from(TSS_LEN_BYTES) << 16;
    tss
}

/// CR3 without its cache bits.
pub(crate) fn root() -> Gpa {
    let cr3: u64;
    // SAFETY: reads a register; outside ring 0 it raises an exception.
    unsafe { asm!("mov {}, cr3", out(reg) cr3, options(nomem, nostack, preserves_flags)) };
    // CR3 holds bits 12 to 51 of the address (Intel SDM volume 3A, table 4-12).
    Gpa::new(cr3 & 0x000F_FFFF_FFFF_F000).unwrap_or(Gpa::literal(0))
}

/// # Safety
/// As for [`crate::kernel::switch_root`].
pub(crate) unsafe fn switch_root(root: Gpa) {
    // SAFETY: the caller promises that what is in use stays mapped as it is.
    unsafe { asm!("mov cr3, {}", in(reg) root.as_u64(), options(nostack, preserves_flags)) };
}

/// Forgets the translation of one address.
pub(crate) fn invalidate(address: Gva) {
    // SAFETY: a translation that is looked up again changes nothing; outside ring 0 it raises an exception.
    unsafe { asm!("invlpg [{}]", in(reg) address.as_u64(), options(nostack, preserves_flags)) };
}

/// The base of the interrupt table.
pub(crate) fn interrupt_table() -> usize {
    let mut register = TableRegister { limit: 0, base: 0 };
    // SAFETY: writes the ten bytes of the local.
    unsafe { asm!("sidt [{}]", in(reg) &raw mut register, options(nostack, preserves_flags)) };
    // An address of 64-bit code.
    #[expect(clippy::cast_possible_truncation)]
    {
        register.base as usize
    }
}

/// Copies a page, by one instruction: some hypervisors emulate ring 0 one instruction at a time.
///
/// # Safety
/// Both pages are mapped, aligned and distinct, `from` readable, `to` writable.
pub(crate) unsafe fn copy_page(from: *const u8, to: *mut u8) {
    // SAFETY: the caller's promise; 512 words are a page. DF is clear in Rust code.
    unsafe {
        asm!(
            "rep movsq",
            inout("rcx") 512_usize => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
}

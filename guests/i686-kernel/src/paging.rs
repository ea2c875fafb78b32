//! Turning on paging, long after the host has booted this kernel without.

use core::arch::asm;

use alloc::boxed::Box;

use vellum_guest::{GuestError, guest_function};
use vellum_layout::{Gpa, PageSize};
use vellum_vmem::{Attrs, Entry, Format, Leaf, Level};

use crate::cpu::{cr0, low_word};

/// Page size extensions: CR4 bit 4 (Intel SDM volume 3, section 2.5).
const CR4_PSE: usize = 1 << 4;
/// Paging: CR0 bit 31 (Intel SDM volume 3, section 2.5).
const CR0_PG: usize = 1 << 31;

/// A page directory, one entry for each 4 MiB of the address space.
#[repr(C, align(4096))]
struct Directory([u32; 1024]);

/// Builds a page directory that maps every address to itself in pages of 4 MiB, makes the CPU use it, and returns CR0.
#[guest_function]
fn enable_paging() -> Result<u32, GuestError> {
    let mut directory = Box::new(Directory([0; 1024]));
    for (entry, frame) in directory.0.iter_mut().zip((0..).step_by(0x40_0000)) {
        *entry = identity_leaf(frame)?;
    }
    let directory = Box::leak(directory);
    // SAFETY: after this every address means what it meant before. The directory stays in place for ever.
    unsafe {
        asm!(
            "mov {scratch}, cr4",
            "or {scratch}, {pse}",
            "mov cr4, {scratch}",
            "mov cr3, {directory}",
            "mov {scratch}, cr0",
            "or {scratch}, {paging}",
            "mov cr0, {scratch}",
            scratch = out(reg) _,
            pse = in(reg) CR4_PSE,
            paging = in(reg) CR0_PG,
            directory = in(reg) core::ptr::from_mut(directory),
            options(nostack),
        );
    }
    Ok(low_word(cr0()))
}

/// The entry that maps the 4 MiB at `frame` to themselves, for the kernel only.
fn identity_leaf(frame: u64) -> Result<u32, GuestError> {
    let leaf = Entry::Leaf(Leaf {
        frame: Gpa::new(frame).map_err(error)?,
        attrs: Attrs::WRITE,
        size: PageSize::Size4MiB,
    });
    let raw = Format::TWO_LEVEL_PSE
        .encode(Level::L2, &leaf)
        .map_err(error)?;
    u32::try_from(raw).map_err(error)
}

fn error(error: impl core::fmt::Display) -> GuestError {
    GuestError::new(alloc::format!("{error}"))
}

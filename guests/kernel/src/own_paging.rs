//! Turning on paging, long after the host has booted this kernel without.

use core::arch::asm;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};

use alloc::boxed::Box;

use vellum_guest::{GuestError, guest_function};
use vellum_layout::{Gpa, PageSize};
use vellum_vmem::{Attrs, Entry, Format, Leaf, Level};

use crate::cpu::{cr0, low_word};

/// Page size extensions: CR4 bit 4 (Intel SDM volume 3, section 2.5).
const CR4_PSE: usize = 1 << 4;
/// Paging: CR0 bit 31 (Intel SDM volume 3, section 2.5).
const CR0_PG: usize = 1 << 31;

/// A page directory, one entry for each 4 MiB of the address space; a page table; or any page.
#[repr(C, align(4096))]
struct Directory([u32; 1024]);

/// Bytes that an entry of the directory covers.
const SPAN_LEN_BYTES: usize = 0x40_0000;

/// An address that leads to a page of the heap once this kernel has turned on paging, and nowhere before.
const ALIAS: usize = 0xB000_0000;

/// The page at [`ALIAS`]; 0 before there is one.
static ALIAS_PAGE: AtomicUsize = AtomicUsize::new(0);

/// Builds a page directory that maps every address to itself in pages of 4 MiB, but [`ALIAS`] to a page of the heap, makes the
/// CPU use it, and returns CR0.
#[guest_function]
fn enable_paging() -> Result<u32, GuestError> {
    let mut directory = Box::new(Directory([0; 1024]));
    for (entry, frame) in directory.0.iter_mut().zip((0..).step_by(SPAN_LEN_BYTES)) {
        *entry = identity_leaf(frame)?;
    }
    directory.0[ALIAS / SPAN_LEN_BYTES] = alias_table()?;
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

/// Writes to the page at [`ALIAS`].
#[guest_function]
fn alias_write(value: u32) {
    // SAFETY: with this kernel's paging on, the page is mapped and used for nothing else. Without, the access leaves the guest.
    unsafe { ptr::with_exposed_provenance_mut::<u32>(ALIAS).write_volatile(value) };
}

/// Reads from the page at [`ALIAS`].
#[guest_function]
fn alias_read() -> u32 {
    // SAFETY: as above.
    unsafe { ptr::with_exposed_provenance::<u32>(ALIAS).read_volatile() }
}

/// The guest-physical address of the page at [`ALIAS`]; 0 before there is one.
#[guest_function]
fn alias_page() -> u64 {
    ALIAS_PAGE.load(Ordering::Relaxed) as u64
}

/// The directory entry of a new table that maps a new page at [`ALIAS`].
fn alias_table() -> Result<u32, GuestError> {
    let table = Box::leak(Box::new(Directory([0; 1024])));
    let page = Box::leak(Box::new(Directory([0; 1024])));
    let page = ptr::from_mut(page).expose_provenance();
    ALIAS_PAGE.store(page, Ordering::Relaxed);
    table.0[0] = encode(
        Level::L1,
        &Entry::Leaf(Leaf {
            frame: Gpa::new(page as u64).map_err(error)?,
            attrs: Attrs::WRITE,
            size: PageSize::Size4KiB,
        }),
    )?;
    let table = ptr::from_mut(table).expose_provenance();
    encode(
        Level::L2,
        &Entry::Table {
            table: Gpa::new(table as u64).map_err(error)?,
            attrs: Attrs::WRITE,
        },
    )
}

/// The entry that maps the 4 MiB at `frame` to themselves, for the kernel only.
fn identity_leaf(frame: u64) -> Result<u32, GuestError> {
    let leaf = Entry::Leaf(Leaf {
        frame: Gpa::new(frame).map_err(error)?,
        attrs: Attrs::WRITE,
        size: PageSize::Size4MiB,
    });
    encode(Level::L2, &leaf)
}

fn encode(level: Level, entry: &Entry) -> Result<u32, GuestError> {
    let raw = Format::TWO_LEVEL_PSE.encode(level, entry).map_err(error)?;
    u32::try_from(raw).map_err(error)
}

fn error(error: impl core::fmt::Display) -> GuestError {
    GuestError::new(alloc::format!("{error}"))
}

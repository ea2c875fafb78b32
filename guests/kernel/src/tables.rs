//! The page tables that the host has built, seen and changed from inside.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use vellum_guest::{GuestError, guest_function, kernel};
use vellum_layout::{Gpa, Gva, GvaRange, PAGE_SIZE, PageSize};
use vellum_vmem::{Attrs, Budget, Format, Mapper, Walker};

/// How many page faults the guest library has served.
#[guest_function]
fn fault_count() -> u64 {
    kernel::page_faults()
}

#[guest_function]
fn read_cr3() -> u64 {
    let value: usize;
    // SAFETY: reads a register; ring 0 may.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value as u64
}

#[guest_function]
fn read_cr4() -> u64 {
    let value: usize;
    // SAFETY: reads a register; ring 0 may.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value as u64
}

/// Where an address leads in the home root.
#[guest_function]
fn physical_address(address: u64) -> Result<u64, GuestError> {
    let address = Gva::new(address).map_err(error)?;
    let mapping = kernel::translate(kernel::home_root(), address).map_err(error)?;
    Ok(mapping.gpa.as_u64())
}

/// Whether ring 3 could access an address of the home root: the table entries on the way to it and the page's own entry allow it.
#[guest_function]
fn is_user(address: u64) -> Result<bool, GuestError> {
    is_user_in(kernel::home_root(), address)
}

/// Whether ring 3 could access an address of `root`.
pub(crate) fn is_user_in(root: Gpa, address: u64) -> Result<bool, GuestError> {
    let address = Gva::new(address).map_err(error)?;
    let mapping = kernel::translate(root, address).map_err(error)?;
    Ok(mapping.effective.contains(Attrs::USER))
}

/// Number of large pages in the home root.
#[guest_function]
fn large_pages() -> Result<u32, GuestError> {
    let budget = Budget {
        tables: 1 << 16,
        leaves: 1 << 24,
    };
    // SAFETY: the tables are only read.
    let tables = unsafe { kernel::tables() };
    let walker =
        Walker::new(&tables, kernel::home_root(), kernel::FORMAT, budget).map_err(error)?;
    let mut count = 0;
    for leaf in walker.leaves() {
        count += u32::from(leaf.map_err(error)?.leaf.size > PageSize::Size4KiB);
    }
    Ok(count)
}

/// Where [`map_physical`] maps: an area of 256 MiB that the host leaves alone.
const WINDOWS: GvaRange = GvaRange::literal(
    Gva::literal(if usize::BITS == 64 {
        0x6000_0000_0000
    } else {
        0xC000_0000
    }),
    0x1000_0000,
);

/// Bytes of [`WINDOWS`] in use.
static USED_LEN_BYTES: AtomicU64 = AtomicU64::new(0);

/// Maps guest-physical memory behind what was mapped so before, and returns where.
#[guest_function]
fn map_physical(gpa: u64, len_bytes: u64, writable: bool) -> Result<u64, GuestError> {
    let gpa = Gpa::new(gpa).map_err(error)?;
    let used_len_bytes = USED_LEN_BYTES.load(Ordering::Relaxed);
    let len_bytes = len_bytes
        .checked_next_multiple_of(PAGE_SIZE)
        .ok_or_else(|| GuestError::new("mapping is too long"))?;
    let range = WINDOWS
        .part(used_len_bytes, len_bytes)
        .ok_or_else(|| GuestError::new("mapping does not fit behind those before it"))?;
    let rights = if writable {
        Attrs::WRITE | Attrs::DIRTY
    } else {
        Attrs::empty()
    };
    let attrs = data(rights | Attrs::ACCESSED);
    mapper(kernel::home_root())?
        .with_max_leaf(PageSize::Size4KiB)
        .map(range, gpa, attrs)
        .map_err(error)?
        .flush_pages(kernel::invalidate);
    USED_LEN_BYTES.store(used_len_bytes + len_bytes, Ordering::Relaxed);
    Ok(range.start().as_u64())
}

/// A mapper for the live tables under `root`, which makes tables for the supervisor and the user.
pub(crate) fn mapper(root: Gpa) -> Result<Mapper<kernel::Tables, kernel::Frames>, GuestError> {
    // SAFETY: this kernel maps only addresses that nothing was at before.
    let tables = unsafe { kernel::tables() };
    Mapper::new(tables, kernel::frames(), root, kernel::FORMAT).map_err(error)
}

/// These attributes, not executable where the format can say so.
pub(crate) fn data(attrs: Attrs) -> Attrs {
    if kernel::FORMAT == Format::FOUR_LEVEL {
        attrs | Attrs::NO_EXECUTE
    } else {
        attrs
    }
}

pub(crate) fn error(error: impl core::fmt::Display) -> GuestError {
    GuestError::new(alloc::format!("{error}"))
}

//! What a kernel with paging can do beside what every guest can: frames, page tables, address spaces.
//!
//! A program made with [`kernel_entry!`](crate::kernel_entry) runs in ring 0, on page tables that the host has built. Before
//! its first function runs, this library loads a GDT, an IDT and, on amd64, a TSS, all of which lie in one frame of scratch. From
//! then on it serves the page faults of copy-on-write and of the heap, and reports every other exception as a panic that
//! names it.
//!
//! The kernel owns its tables. It can take frames ([`take_frame`]), see them ([`frame_ptr`]), edit the tables with a
//! [`Mapper`](vellum_vmem::Mapper) over [`tables`] and [`Frames`], and make further roots.
//!
//! # Several roots
//!
//! A root shares memory with the *home root*, the one that the host built, by having equal entries at its top level.
//! What the home root gets later at an address for which another root has no top-level entry, that root gets at its first
//! touch. So it is enough to copy the top-level entries of the home root when a root is made.
//!
//! # Scratch
//!
//! Page tables must lie in scratch, where [`take_frame`] takes them from. Frames are never given back; a restore takes
//! them all at once. A restored kernel finds its frames, tables and registers where they were.
//!
//! # Limits
//!
//! A page at the top level (4 MiB on i686) cannot be copied on write for several roots; the host makes none. No interrupts.
//! On i686 a stack overflow ends the machine (a triple fault), because an exception needs room on the stack to be
//! reported; on amd64 it is reported from a stack of its own.

#![expect(
    unsafe_code,
    reason = "page tables and control registers are the kernel's own memory and its own risk"
)]

pub mod descriptor;
pub mod vector;

mod exception;
mod fault;
mod live;
mod supervisor;
mod window;

use vellum_layout::{Gpa, Gva};
use vellum_vmem::{Format, Mapping, TranslateError};

use crate::arch::kernel as machine;

pub(crate) use exception::vellum_handle_exception;
pub use live::{Frames, Tables};
pub(crate) use supervisor::start;

/// The format of this machine's page tables.
pub const FORMAT: Format = machine::FORMAT;

/// Takes a frame that is filled with zeros; `None` when scratch has no more.
///
/// # Panics
/// Outside a kernel with paging.
#[must_use]
pub fn take_frame() -> Option<Gpa> {
    supervisor::current().window().take_frame()
}

/// Where the kernel sees a frame of scratch; `None` for a frame that is none of scratch, or its guard page.
///
/// # Panics
/// Outside a kernel with paging.
#[must_use]
pub fn frame_ptr(frame: Gpa) -> Option<*mut u8> {
    supervisor::current().window().frame_ptr(frame)
}

/// How many page faults this library has served, in this sandbox and in those that its snapshot comes from.
///
/// # Panics
/// Outside a kernel with paging.
#[must_use]
pub fn page_faults() -> u64 {
    supervisor::current().page_faults()
}

/// The root that the host built.
///
/// # Panics
/// Outside a kernel with paging.
#[must_use]
pub fn home_root() -> Gpa {
    supervisor::current().home_root()
}

/// The root in use: CR3 without its cache bits.
///
/// Raises an exception outside ring 0.
#[must_use]
pub fn root() -> Gpa {
    machine::root()
}

/// Makes the CPU use the tables at `root`. It forgets the translations that it has cached, but for global ones.
///
/// # Safety
/// The tables map the running code, its stack, its data, scratch and the descriptor tables as before. Ring 0.
pub unsafe fn switch_root(root: Gpa) {
    // SAFETY: the caller's promise.
    unsafe { machine::switch_root(root) };
}

/// Makes the CPU forget what it has cached of the translation of one address.
///
/// Raises an exception outside ring 0.
pub fn invalidate(address: Gva) {
    machine::invalidate(address);
}

/// Translates an address through the tables at `root`.
///
/// # Errors
/// It has no translation, or a table lies outside of scratch.
///
/// # Panics
/// Outside a kernel with paging.
pub fn translate(root: Gpa, address: Gva) -> Result<Mapping, TranslateError> {
    vellum_vmem::translate(&supervisor::current().tables(), root, address, FORMAT)
}

/// The live page tables, for a [`Mapper`](vellum_vmem::Mapper) or a [`Walker`](vellum_vmem::Walker).
///
/// # Safety
/// Whoever writes through it keeps mapped, with the same rights and contents, every address that anything else uses, and
/// writes entries only: frames of scratch that are no tables hold other data.
///
/// # Panics
/// Outside a kernel with paging.
#[must_use]
pub unsafe fn tables() -> Tables {
    supervisor::current().tables()
}

/// The frames that are left, for a [`Mapper`](vellum_vmem::Mapper) that makes tables.
///
/// # Panics
/// Outside a kernel with paging.
#[must_use]
pub fn frames() -> Frames {
    supervisor::current().frames()
}

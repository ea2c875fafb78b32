//! Fixed guest-virtual addresses of the amd64 user guest.
//!
//! The lower half belongs to the guest's functions in ring 3. What is theirs lies in the first entry of
//! the top-level table (512 GiB), so that one level-3 table serves the whole guest:
//!
//! ```text
//! 0x00_0001_0000  ELF segments
//! 0x40_0000_0000  heap
//! 0x70_0000_0000  I/O area: PEB, input buffer, output buffer
//! 0x74_0000_0000  stack area; the stack grows down from 0x78_0000_0000
//! ```
//!
//! Files and memories that the embedder maps into the guest have the second entry for themselves.
//!
//! The upper half is for ring 0 only: a window on guest-physical memory for the monitor's copy on
//! write, and in the last 2 MiB the monitor, the machine's tables and the top of scratch, so
//! that one level-1 table serves all of these.

use super::{MAX_GPA, MAX_GVA};
use crate::address::{Gpa, Gva};
use crate::bookkeeping::{
    BOOKKEEPING_LEN_BYTES, EXCEPTION_STACK_LEN_BYTES, EXCEPTION_STACK_OFFSET, GUARD_LEN_BYTES,
    GUARD_OFFSET,
};
use crate::page::{PAGE_SIZE, PageSize};
use crate::range::{GpaRange, GvaRange};
use crate::scratch::{LayoutError, check_len};

/// Where ELF segments may lie. Not in the first 64 KiB, so that a null pointer with a small
/// offset faults (the same limit that Linux sets by default, `vm.mmap_min_addr`); 256 GiB are
/// far more than a static image has.
pub const ELF_AREA: GvaRange = area(0x1_0000, 0x40_0000_0000);

/// Where the heap grows up from. 192 GiB: three times all guest-physical memory, so a heap is
/// limited by scratch and never by addresses.
pub const HEAP_AREA: GvaRange = area(0x40_0000_0000, 0x70_0000_0000);

/// Where the PEB and the input and output buffers lie; [`io_area`] places them. 16 GiB.
pub const IO_AREA: GvaRange = area(0x70_0000_0000, 0x74_0000_0000);

/// Where the stack and the guard page below it lie. 16 GiB.
pub const STACK_AREA: GvaRange = area(0x74_0000_0000, 0x78_0000_0000);

/// Where files and memories that the embedder maps are seen: what is at GPA `g` is at the window's
/// start plus `g`; everything else in the window is unmapped. 64 GiB, all guest-physical memory, in
/// a top-level entry of its own, so that mapping and unmapping changes one entry of tables that
/// other code edits. Aligned to all page sizes, so that large pages serve wherever the
/// guest-physical address allows them.
pub const MAPPINGS_WINDOW: GvaRange =
    GvaRange::literal(Gva::literal(0x80_0000_0000), MAX_GPA.as_u64() + 1);

/// Lowest address of the heap.
pub const HEAP_BASE: Gva = HEAP_AREA.start();

/// Lowest address of the I/O area, where the PEB lies.
pub const IO_BASE: Gva = IO_AREA.start();

/// Initial stack pointer: the exclusive end of the stack.
pub const STACK_TOP: Gva = STACK_AREA.end();

/// Room for the PEB, in bytes.
pub const PEB_LEN_BYTES: u64 = PAGE_SIZE;

/// Length of the resume page in bytes: an XSAVE area of up to 2688 bytes and a few instructions.
pub const RESUME_LEN_BYTES: u64 = PAGE_SIZE;

/// Length of each unmapped page below the stack and between the parts of the I/O area, in bytes.
pub const USER_GUARD_LEN_BYTES: u64 = PAGE_SIZE;

/// Supervisor window on guest-physical memory: GPA `g` is at the window's start plus `g`. At the
/// bottom of the upper half, in 2 MiB pages, never executable.
pub const PHYSICAL_WINDOW: GvaRange =
    GvaRange::literal(Gva::literal(0xffff_8000_0000_0000), MAX_GPA.as_u64() + 1);

/// The last 2 MiB up to [`MAX_GVA`]: all that ring 0 of a user guest needs besides the window.
pub const SUPERVISOR_AREA: GvaRange = area(0xffff_ffff_ffe0_0000, MAX_GVA.as_u64() + 1);

/// Monitor code: read and execute. 64 KiB, for a monitor of a few hundred instructions.
pub const MONITOR_CODE_AREA: GvaRange = GvaRange::literal(SUPERVISOR_AREA.start(), 0x1_0000);

/// The machine's tables (GDT, TSS with its I/O bitmap, IDT): read only. 16 KiB: an IDT of 256
/// gates takes 4 KiB (Intel SDM Vol. 3A, section on IDT descriptors in 64-bit mode, 16 bytes a
/// gate), a bitmap of all 65,536 ports another 8 KiB and a byte; the rest is for the GDT and the
/// fixed part of the TSS (104 bytes). A guest that names fewer ports needs one page only.
pub const MACHINE_AREA: GvaRange = GvaRange::literal(
    Gva::literal(MONITOR_CODE_AREA.end().as_u64() + 0x1_0000),
    0x4000,
);

/// The bookkeeping page at the top of scratch: read and write.
pub const BOOKKEEPING: GvaRange = scratch_top(BOOKKEEPING_LEN_BYTES, BOOKKEEPING_LEN_BYTES);

/// The exception stack below the bookkeeping page: read and write.
pub const EXCEPTION_STACK: GvaRange = scratch_top(
    EXCEPTION_STACK_OFFSET + EXCEPTION_STACK_LEN_BYTES,
    EXCEPTION_STACK_LEN_BYTES,
);

/// The guard page below the exception stack: never mapped.
pub const EXCEPTION_STACK_GUARD: GvaRange = scratch_top(GUARD_OFFSET, GUARD_LEN_BYTES);

/// Where the parts of the I/O area lie, with an unmapped page between neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IoArea {
    /// The PEB.
    pub peb: GvaRange,
    /// The resume page: host-written code and data with which a restored guest gets its vector registers back.
    pub resume: GvaRange,
    /// The input buffer (host to guest).
    pub input: GvaRange,
    /// The output buffer (guest to host).
    pub output: GvaRange,
}

/// Places the PEB and buffers of the given lengths. They lie close together, so that buffers of
/// usual sizes share one level-1 table.
///
/// # Errors
///
/// [`LayoutError`] when a length is zero, not a multiple of [`PAGE_SIZE`], or the buffers do not
/// both fit into [`IO_AREA`].
pub const fn io_area(input_len_bytes: u64, output_len_bytes: u64) -> Result<IoArea, LayoutError> {
    const RESUME_OFFSET: u64 = PEB_LEN_BYTES + USER_GUARD_LEN_BYTES;
    const INPUT_OFFSET: u64 = RESUME_OFFSET + RESUME_LEN_BYTES + USER_GUARD_LEN_BYTES;
    const ROOM: u64 = IO_AREA.len_bytes() - INPUT_OFFSET - 2 * USER_GUARD_LEN_BYTES;

    if let Err(error) = check_len("input buffer", input_len_bytes, ROOM) {
        return Err(error);
    }
    if let Err(error) = check_len("output buffer", output_len_bytes, ROOM - input_len_bytes) {
        return Err(error);
    }
    let base = IO_AREA.start().as_u64();
    let input = base + INPUT_OFFSET;
    let output = input + input_len_bytes + USER_GUARD_LEN_BYTES;
    Ok(IoArea {
        peb: GvaRange::literal(IO_AREA.start(), PEB_LEN_BYTES),
        resume: GvaRange::literal(Gva::literal(base + RESUME_OFFSET), RESUME_LEN_BYTES),
        input: GvaRange::literal(Gva::literal(input), input_len_bytes),
        output: GvaRange::literal(Gva::literal(output), output_len_bytes),
    })
}

/// The heap of the given length.
///
/// # Errors
///
/// [`LayoutError`] when the length is zero, not a multiple of [`PAGE_SIZE`], or does not fit into
/// [`HEAP_AREA`].
pub const fn heap(len_bytes: u64) -> Result<GvaRange, LayoutError> {
    match check_len("heap", len_bytes, HEAP_AREA.len_bytes()) {
        Ok(()) => Ok(GvaRange::literal(HEAP_BASE, len_bytes)),
        Err(error) => Err(error),
    }
}

/// The stack of the given length, which ends at [`STACK_TOP`].
///
/// # Errors
///
/// [`LayoutError`] when the length is zero, not a multiple of [`PAGE_SIZE`], or does not fit into
/// [`STACK_AREA`] with its guard page.
pub const fn stack(len_bytes: u64) -> Result<GvaRange, LayoutError> {
    let room = STACK_AREA.len_bytes() - USER_GUARD_LEN_BYTES;
    match check_len("stack", len_bytes, room) {
        Ok(()) => Ok(GvaRange::literal(
            Gva::literal(STACK_TOP.as_u64() - len_bytes),
            len_bytes,
        )),
        Err(error) => Err(error),
    }
}

/// The guard page below a stack of the given length. A fault in it is a stack overflow.
///
/// # Errors
///
/// As for [`stack`].
pub const fn stack_guard(len_bytes: u64) -> Result<GvaRange, LayoutError> {
    match stack(len_bytes) {
        Ok(stack) => Ok(GvaRange::literal(
            Gva::literal(stack.start().as_u64() - USER_GUARD_LEN_BYTES),
            USER_GUARD_LEN_BYTES,
        )),
        Err(error) => Err(error),
    }
}

/// Where the monitor sees a guest-physical address.
///
/// # Errors
///
/// [`LayoutError::AboveMaxGpa`] when the address is above [`MAX_GPA`].
pub const fn window_gva(gpa: Gpa) -> Result<Gva, LayoutError> {
    match PHYSICAL_WINDOW.at(gpa.as_u64()) {
        Some(gva) => Ok(gva),
        None => Err(LayoutError::AboveMaxGpa {
            gpa,
            max_gpa: MAX_GPA,
        }),
    }
}

/// Where ring 3 sees what is mapped at a guest-physical range.
///
/// # Errors
///
/// [`LayoutError::AboveMaxGpa`] when the range ends above [`MAX_GPA`].
pub const fn mapping_gva(range: GpaRange) -> Result<GvaRange, LayoutError> {
    match MAPPINGS_WINDOW.part(range.start().as_u64(), range.len_bytes()) {
        Some(gva) => Ok(gva),
        None => Err(LayoutError::AboveMaxGpa {
            gpa: range.last(),
            max_gpa: MAX_GPA,
        }),
    }
}

const fn area(start: u64, end: u64) -> GvaRange {
    GvaRange::literal(Gva::literal(start), end - start)
}

/// The part of scratch that begins `offset` below its top, as the supervisor sees it.
const fn scratch_top(offset: u64, len_bytes: u64) -> GvaRange {
    GvaRange::literal(Gva::literal(MAX_GVA.as_u64() + 1 - offset), len_bytes)
}

const _: () = {
    let ascending = [
        ELF_AREA,
        HEAP_AREA,
        IO_AREA,
        STACK_AREA,
        MAPPINGS_WINDOW,
        PHYSICAL_WINDOW,
        MONITOR_CODE_AREA,
        MACHINE_AREA,
        EXCEPTION_STACK_GUARD,
        EXCEPTION_STACK,
        BOOKKEEPING,
    ];
    let mut index = 1;
    while index < ascending.len() {
        assert!(ascending[index - 1].end().as_u64() <= ascending[index].start().as_u64());
        index += 1;
    }

    // The guest's own areas share one top-level entry, 512 GiB each (Intel SDM Vol. 3A, 4-level
    // paging), the mappings have the next one, and the supervisor's last pages share one level-1
    // table, 2 MiB each.
    assert!(STACK_AREA.end().as_u64() <= 1 << 39);
    assert!(MAPPINGS_WINDOW.start().as_u64() == 1 << 39);
    assert!(MAPPINGS_WINDOW.end().as_u64() <= 2 << 39);
    assert!(SUPERVISOR_AREA.start().is_aligned(PageSize::Size2MiB));
    assert!(SUPERVISOR_AREA.len_bytes() <= PageSize::Size2MiB.bytes());
    assert!(SUPERVISOR_AREA.contains_range(&MONITOR_CODE_AREA));
    assert!(SUPERVISOR_AREA.contains_range(&BOOKKEEPING));
    assert!(BOOKKEEPING.last().as_u64() == MAX_GVA.as_u64());

    // Areas that are filled independently begin on a level-1 table of their own.
    assert!(HEAP_AREA.start().is_aligned(PageSize::Size1GiB));
    assert!(IO_AREA.start().is_aligned(PageSize::Size1GiB));
    assert!(STACK_AREA.start().is_aligned(PageSize::Size1GiB));
    assert!(STACK_TOP.is_aligned(PageSize::Size1GiB));

    // The window is made of 2 MiB pages and shows all guest-physical memory.
    assert!(PHYSICAL_WINDOW.start().is_aligned(PageSize::Size2MiB));
    assert!(
        PHYSICAL_WINDOW
            .len_bytes()
            .is_multiple_of(PageSize::Size2MiB.bytes())
    );
    assert!(window_gva(MAX_GPA).is_ok());

    // 256 gates of 16 bytes, 65,536 bits and the byte of ones behind them, 104 bytes of TSS.
    assert!(MACHINE_AREA.len_bytes() >= 256 * 16 + 65_536 / 8 + 1 + 104);
};

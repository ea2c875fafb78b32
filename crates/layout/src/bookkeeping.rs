//! What lies at the top of scratch, as offsets counted down from its exclusive end.
//!
//! The word of 8 bytes at offset `n` is at `top - n`. Both guest architectures use the same
//! offsets, so one description serves every guest kind:
//!
//! ```text
//! top - 0x0008  scratch length in bytes
//! top - 0x0010  allocator: GPA of the next free scratch frame
//! top - 0x0018  GPA base of the snapshot's page tables
//! top - 0x0020  snapshot generation
//! top - 0x0040  (four words up to here: room for more words)
//! top - 0x0100  fault record, growing upwards, at most 0xc0 bytes
//! top - 0x0800  monitor data, 0x700 bytes
//! top - 0x1000  start of the bookkeeping page = top of the exception stack
//! top - 0x2000  lowest address of the exception stack
//! top - 0x3000  guard page: never mapped
//! ```

use crate::page::PAGE_SIZE;

/// Offset of the length of scratch in bytes (u64). First of all words, so that a guest that
/// knows only where scratch ends can find where it begins.
pub const SCRATCH_TOP_SIZE_OFFSET: u64 = 0x08;

/// Offset of the bump allocator's state (u64): the GPA of the next free scratch frame. Putting
/// this word back is how a restore frees all frames at once.
pub const SCRATCH_TOP_ALLOCATOR_OFFSET: u64 = 0x10;

/// Offset of the GPA (u64) at which the page tables of the snapshot begin, so that a guest that
/// copies on write can tell shared tables from its own.
pub const SCRATCH_TOP_SNAPSHOT_PT_GPA_BASE_OFFSET: u64 = 0x18;

/// Offset of the snapshot generation (u64): how a guest learns whether it is the original or a
/// restored copy.
pub const SCRATCH_TOP_SNAPSHOT_GENERATION_OFFSET: u64 = 0x20;

/// Offset of the fault record that the monitor writes. The record begins here and grows
/// upwards; its fields belong to the ABI crate.
pub const FAULT_RECORD_OFFSET: u64 = 0x100;

/// Length of the room for the fault record, in bytes. It ends at offset 0x40, which leaves four
/// more words above it for bookkeeping to come.
pub const FAULT_RECORD_MAX_LEN_BYTES: u64 = 0xc0;

/// Offset of the monitor's own data (bounds of demand-zero areas, end of the free frames and
/// the like). Unused by guests that bring their own supervisor.
pub const MONITOR_DATA_OFFSET: u64 = 0x800;

/// Length of the monitor's own data, in bytes: all between its start and the fault record.
pub const MONITOR_DATA_LEN_BYTES: u64 = MONITOR_DATA_OFFSET - FAULT_RECORD_OFFSET;

/// Length of the bookkeeping page, in bytes. Exactly one page, so that one table entry decides
/// who may read and write it.
pub const BOOKKEEPING_LEN_BYTES: u64 = PAGE_SIZE;

/// Offset of the initial stack pointer for exceptions. The stack grows down from here, so that
/// it shares no byte with the bookkeeping page above.
pub const EXCEPTION_STACK_OFFSET: u64 = BOOKKEEPING_LEN_BYTES;

/// Length of the exception stack, in bytes. One page: the monitor neither recurses nor calls
/// deeply, and a kernel guest that wants more can switch stacks.
pub const EXCEPTION_STACK_LEN_BYTES: u64 = PAGE_SIZE;

/// Offset of the start of the guard page below the exception stack.
pub const GUARD_OFFSET: u64 = EXCEPTION_STACK_OFFSET + EXCEPTION_STACK_LEN_BYTES + GUARD_LEN_BYTES;

/// Length of the guard page, in bytes. No stack frame of the monitor is larger, so an overflow
/// cannot step over it.
pub const GUARD_LEN_BYTES: u64 = PAGE_SIZE;

/// Length of everything at the top of scratch: bookkeeping, exception stack and guard page.
pub const SCRATCH_TOP_LEN_BYTES: u64 = GUARD_OFFSET;

const WORD_BYTES: u64 = 8;

const _: () = {
    // Words are aligned, each follows the one before without overlap, none leaves the page.
    let words = [
        SCRATCH_TOP_SIZE_OFFSET,
        SCRATCH_TOP_ALLOCATOR_OFFSET,
        SCRATCH_TOP_SNAPSHOT_PT_GPA_BASE_OFFSET,
        SCRATCH_TOP_SNAPSHOT_GENERATION_OFFSET,
    ];
    let mut above = 0;
    let mut index = 0;
    while index < words.len() {
        assert!(words[index].is_multiple_of(WORD_BYTES));
        assert!(words[index] >= above + WORD_BYTES);
        above = words[index];
        index += 1;
    }
    assert!(FAULT_RECORD_OFFSET.is_multiple_of(WORD_BYTES));
    assert!(FAULT_RECORD_OFFSET - FAULT_RECORD_MAX_LEN_BYTES >= above);
    assert!(MONITOR_DATA_OFFSET.is_multiple_of(WORD_BYTES));
    assert!(MONITOR_DATA_OFFSET - MONITOR_DATA_LEN_BYTES >= FAULT_RECORD_OFFSET);
    assert!(MONITOR_DATA_OFFSET <= BOOKKEEPING_LEN_BYTES);
    // The stack pointer must be 16-byte aligned where a call chain begins (System V ABI 3.2.2).
    assert!(EXCEPTION_STACK_OFFSET.is_multiple_of(16));
    assert!(EXCEPTION_STACK_OFFSET >= BOOKKEEPING_LEN_BYTES);
    assert!(GUARD_OFFSET.is_multiple_of(PAGE_SIZE));
};

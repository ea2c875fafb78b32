//! The monitor: the ring-0 program that the host places in a user guest.
//!
//! It runs only on exceptions, on a stack of its own, with interrupts off. A write to a copy-on-write page gets a private
//! frame; a first touch of heap or stack gets a zeroed frame; everything else becomes a fault record and an exit. It uses
//! integer instructions only, because some hosts emulate ring 0, and reads nothing that ring 3 can write. The page tables, its
//! data and its stack are out of the guest's reach.
//!
//! Its data lies in the bookkeeping page at the top of scratch, at fixed guest-virtual addresses; page tables and frames are
//! reached through the physical window. Each frame that it hands out is logged with the address that faulted: the host finds the
//! frame again on the way to that address, as the page itself or as one of the tables above it.
#![expect(
    unsafe_code,
    reason = "the monitor is assembly; its bytes are read through linker symbols"
)]

use std::arch::global_asm;

use vellum_abi::fault::{REASON_EXCEPTION, REASON_NESTED_FAULT, REASON_SCRATCH_EXHAUSTED};
use vellum_abi::port::Port;
use vellum_layout::amd64::user::{BOOKKEEPING, MONITOR_CODE_AREA, PHYSICAL_WINDOW};
use vellum_layout::{
    FAULT_RECORD_OFFSET, Gpa, GpaRange, Gva, MONITOR_DATA_OFFSET, PAGE_SIZE,
    SCRATCH_TOP_ALLOCATOR_OFFSET,
};
use vellum_vmem::Attrs;

/// Size of one exception stub; the stub of vector v lies at v times this.
const STUB_LEN_BYTES: usize = 16;

/// First address above scratch, as the monitor sees it.
const TOP: u64 = BOOKKEEPING.end().as_u64();
/// Next free frame (GPA).
const ALLOCATOR: u64 = TOP - SCRATCH_TOP_ALLOCATOR_OFFSET;
const RECORD: u64 = TOP - FAULT_RECORD_OFFSET;
const DATA: u64 = TOP - MONITOR_DATA_OFFSET;

/// Fields of the monitor's data, by offset.
const DATA_FRAMES_END: u64 = 0;
const DATA_FRAMES_BASE: u64 = 8;
const DATA_LOG: u64 = 16;
const DATA_AREA_COUNT: u64 = 24;
const DATA_AREAS: u64 = 32;
/// An area: first address, address of its last byte, bits of its page-table entries.
const AREA_LEN_BYTES: u64 = 24;
/// Demand-zero areas that a guest can have.
pub(crate) const MAX_AREAS: usize = 16;

const _: () = assert!(
    DATA_AREAS + MAX_AREAS as u64 * AREA_LEN_BYTES <= vellum_layout::MONITOR_DATA_LEN_BYTES
);

/// Present, writable, user, accessed: an entry that points to a table.
const TABLE_BITS: u64 = 0x27;
/// Present, accessed, dirty.
const LEAF_BITS: u64 = 0x61;
/// Bits of an entry that hold a frame (bits 12 to 51).
const FRAME_MASK: u64 = 0x000F_FFFF_FFFF_F000;

/// An area whose pages are zero until first touched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DemandZero {
    pub(crate) first: Gva,
    pub(crate) last: Gva,
    pub(crate) rights: Attrs,
}

/// What the monitor needs to know of a sandbox.
#[derive(Clone, Debug)]
pub(crate) struct MonitorData {
    pub(crate) frames: GpaRange,
    pub(crate) log: Gpa,
    pub(crate) areas: Vec<DemandZero>,
}

impl MonitorData {
    /// The words of the data area, in order.
    pub(crate) fn words(&self) -> impl Iterator<Item = u64> + '_ {
        let window = |gpa: Gpa| PHYSICAL_WINDOW.start().as_u64() + gpa.as_u64();
        let areas = self.areas.iter().take(MAX_AREAS).flat_map(|area| {
            let rights = area.rights | Attrs::USER;
            [
                area.first.as_u64(),
                area.last.as_u64(),
                rights.bits() | LEAF_BITS,
            ]
        });
        [
            self.frames.end().as_u64(),
            self.frames.start().as_u64(),
            window(self.log),
            self.areas.len().min(MAX_AREAS) as u64,
        ]
        .into_iter()
        .chain(areas)
    }
}

/// The address of the stub for an exception vector.
pub(super) fn stub_address(vector: usize) -> u64 {
    MONITOR_CODE_AREA.start().as_u64() + (vector * STUB_LEN_BYTES) as u64
}

/// The monitor's code, to be mapped at the start of [`MONITOR_CODE_AREA`]. It is position-independent but for the fixed
/// addresses of its data.
pub(crate) fn code() -> &'static [u8] {
    unsafe extern "C" {
        static vellum_monitor_start: u8;
        static vellum_monitor_end: u8;
    }
    // SAFETY: both symbols are defined by the assembly below, in one section of read-only data, the end behind the start. The
    // bytes between them are initialised and never written.
    unsafe {
        let start = &raw const vellum_monitor_start;
        let end = &raw const vellum_monitor_end;
        std::slice::from_raw_parts(start, end.addr() - start.addr())
    }
}

// On entry of a stub the processor has pushed SS, RSP, RFLAGS, CS, RIP and, for some vectors, an error code (Intel SDM
// volume 3, section 6.14.2); the stub makes that uniform: [rsp] vector, [rsp+8] error code, [rsp+16] RIP, [rsp+24] CS,
// [rsp+32] RFLAGS, [rsp+40] RSP, [rsp+48] SS. Handlers save what they use. The stack is aligned to 16 bytes by the
// processor before it pushes; no call of a compiled function is made, so its alignment does not matter further.
global_asm!(
    ".pushsection .rodata.vellum_monitor, \"a\", @progbits",
    ".balign 4096",
    ".globl vellum_monitor_start",
    "vellum_monitor_start:",
    // ---- one stub for each vector, 16 bytes apart
    ".set vellum_monitor_vector, 0",
    ".rept 32",
    ".balign {STUB}",
    // vectors with an error code of their own: 8, 10 to 14, 17, 21, 29, 30
    ".if (0x60227D00 >> vellum_monitor_vector) & 1",
    ".else",
    "push 0", // stands for the error code
    ".endif",
    "push vellum_monitor_vector",
    ".if vellum_monitor_vector == 14",
    "jmp vellum_monitor_page_fault",
    ".else",
    "jmp vellum_monitor_report",
    ".endif",
    ".set vellum_monitor_vector, vellum_monitor_vector + 1",
    ".endr",

    // ---- page faults
    ".balign 16",
    "vellum_monitor_page_fault:",
    "push rax",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    // now [rsp+72] vector, [rsp+80] error code, [rsp+96] CS
    "cld",
    "test byte ptr [rsp + 96], 3", // from ring 0: a fault inside the monitor
    "jz vellum_monitor_not_handled",
    "mov r8, cr2",
    "mov r9, [rsp + 80]",
    "mov r10, {WINDOW}", // physical window: GPA + r10 = GVA
    "mov rdx, {DATA}",
    "cmp qword ptr [rdx + {FRAMES_END}], 0", // host-side copy-on-write: there is nothing to do here
    "je vellum_monitor_not_handled",
    "test r9d, 0x1",
    "jz vellum_monitor_absent",
    // Error code: present (0), write (1), user (2), reserved bit (3), fetch (4); SDM volume 3, section 4.7.
    "and r9d, 0x1a",
    "cmp r9d, 0x2", // a write, nothing else
    "jne vellum_monitor_not_handled",

    // ---- a write to a present page: find its entry
    "mov rsi, cr3",
    "and rsi, {FRAME_LOW}", // CR3 holds only a frame and two cache bits
    "mov ecx, 39",
    "vellum_monitor_walk:",
    "mov rax, r8",
    "shr rax, cl",
    "and eax, 511",
    "lea rsi, [rsi + rax * 8]", // GPA of the entry
    "mov rax, [rsi + r10]",
    "test al, 1",
    "jz vellum_monitor_not_handled",
    "cmp ecx, 12",
    "je vellum_monitor_leaf",
    "test al, 0x80",
    "jnz vellum_monitor_large",
    "vellum_monitor_below:",
    "mov rsi, {FRAME_MASK}",
    "and rsi, rax",
    "sub ecx, 9",
    "jmp vellum_monitor_walk",

    // ---- a large leaf in the way: split it into a table of small ones, which say the same, and walk on through that
    "vellum_monitor_large:",
    "cmp ecx, 21", // a leaf of 2 MiB; the host makes no larger ones
    "jne vellum_monitor_not_handled",
    "test al, 4", // the same questions as of a small leaf
    "jz vellum_monitor_not_handled",
    "test al, 2",
    "jnz vellum_monitor_retry",
    "test eax, 0x200",
    "jz vellum_monitor_not_handled",
    "mov r9, rax",
    "call vellum_monitor_frame", // rdi = GPA of the table
    "mov rax, r9",
    "and rax, ~0x80", // bit 7 means something else in a small leaf; bit 12, where a large one keeps that, is clear
    "lea rdx, [rdi + r10]",
    "mov r9d, 512",
    "vellum_monitor_split:",
    "mov [rdx], rax",
    "add rax, 4096",
    "add rdx, 8",
    "dec r9d",
    "jnz vellum_monitor_split",
    "mov rax, rdi",
    "or rax, {TABLE_BITS}",
    "mov [rsi + r10], rax",
    "jmp vellum_monitor_below",

    "vellum_monitor_leaf:",
    "test al, 4", // the monitor's own memory: not for ring 3, whether writable or not
    "jz vellum_monitor_not_handled",
    "test al, 2", // writable already: a stale translation
    "jnz vellum_monitor_retry",
    "test eax, 0x200", // not marked copy-on-write: the guest may not write here
    "jz vellum_monitor_not_handled",
    "mov r9, rax", // old entry
    "call vellum_monitor_frame", // rdi = GPA of a fresh frame
    "mov r11, rsi",
    // copy the page through the window
    "mov rsi, {FRAME_MASK}",
    "and rsi, r9",
    "add rsi, r10",
    "mov rdx, rdi",
    "add rdi, r10",
    "mov ecx, 512",
    "rep movsq",
    // new entry: the old rights, writable, not marked, on the new frame
    "mov rax, {FRAME_MASK}",
    "not rax",
    "and rax, r9",
    "and rax, ~0x200",
    "or rax, 0x62", // writable, accessed, dirty
    "or rax, rdx",
    "mov [r11 + r10], rax",
    "vellum_monitor_retry:",
    "invlpg [r8]",
    "jmp vellum_monitor_return",

    // ---- a touch of an absent page: is it in a demand-zero area?
    "vellum_monitor_absent:",
    "test r9d, 0x8", // a reserved bit: corrupt tables
    "jnz vellum_monitor_not_handled",
    "test r9d, 0x10", // a fetch: these areas are never executable
    "jnz vellum_monitor_not_handled",
    "mov rdx, {DATA}",
    "mov ecx, [rdx + {AREA_COUNT}]",
    "add rdx, {AREAS}",
    "vellum_monitor_area:",
    "test ecx, ecx",
    "jz vellum_monitor_not_handled",
    "cmp r8, [rdx]",
    "jb vellum_monitor_next_area",
    "cmp r8, [rdx + 8]",
    "jbe vellum_monitor_zero",
    "vellum_monitor_next_area:",
    "add rdx, {AREA_LEN}",
    "dec ecx",
    "jmp vellum_monitor_area",

    // rdx: the area. Walk down, making tables where they are absent.
    "vellum_monitor_zero:",
    "mov r11, [rdx + 16]", // bits of the leaf
    "mov rsi, cr3",
    "and rsi, {FRAME_LOW}",
    "mov ecx, 39",
    "vellum_monitor_descend:",
    "mov rax, r8",
    "shr rax, cl",
    "and eax, 511",
    "lea rsi, [rsi + rax * 8]",
    "mov rax, [rsi + r10]",
    "cmp ecx, 12",
    "je vellum_monitor_zero_leaf",
    "test al, 1",
    "jnz vellum_monitor_table",
    "call vellum_monitor_zeroed_frame", // rdi = GPA of a zeroed frame
    "mov rax, rdi",
    "or rax, {TABLE_BITS}",
    "mov [rsi + r10], rax",
    "vellum_monitor_table:",
    "test al, 0x80",
    "jnz vellum_monitor_not_handled",
    "mov rsi, {FRAME_MASK}",
    "and rsi, rax",
    "sub ecx, 9",
    "jmp vellum_monitor_descend",
    "vellum_monitor_zero_leaf:",
    "test al, 1", // present by now: somebody else's translation was stale
    "jnz vellum_monitor_retry",
    "call vellum_monitor_zeroed_frame",
    "or rdi, r11",
    "mov [rsi + r10], rdi",

    "vellum_monitor_return:",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "add rsp, 16", // vector, error code
    "iretq",

    // ---- rdi = GPA of a fresh frame, logged with the address r8. Clobbers rax, rdx.
    "vellum_monitor_frame:",
    "mov rax, {ALLOCATOR}",
    "mov rdi, [rax]",
    "mov rdx, {DATA}",
    "cmp rdi, [rdx + {FRAMES_END}]",
    "jae vellum_monitor_exhausted",
    "add qword ptr [rax], 4096",
    "mov rax, rdi",
    "sub rax, [rdx + {FRAMES_BASE}]",
    "shr rax, 9", // index of the frame, times 8
    "add rax, [rdx + {LOG}]",
    "mov [rax], r8",
    "ret",

    // ---- the same, zeroed. Clobbers rax, rdx; keeps rcx.
    "vellum_monitor_zeroed_frame:",
    "call vellum_monitor_frame",
    "push rcx",
    "push rdi",
    "add rdi, r10",
    "xor eax, eax",
    "mov ecx, 512",
    "rep stosq",
    "pop rdi",
    "pop rcx",
    "ret",

    // ---- no frame left: rsp is one or two return addresses (and a saved rcx) deep, so find the frame by the stack's top
    "vellum_monitor_exhausted:",
    "mov rsp, {FRAME_AT}",
    "mov ecx, {EXHAUSTED}",
    "jmp vellum_monitor_write_record",

    // ---- a page fault that is the guest's own
    "vellum_monitor_not_handled:",
    "add rsp, 72",

    // ---- write a fault record and exit. [rsp] vector, [rsp+8] error code, then what the processor pushed
    "vellum_monitor_report:",
    "mov ecx, {EXCEPTION}",
    "test byte ptr [rsp + 24], 3",
    "jnz vellum_monitor_write_record",
    "mov ecx, {NESTED}",
    "vellum_monitor_write_record:",
    "mov rdi, {RECORD}",
    "mov [rdi + 64], rcx", // reason
    "mov rax, [rsp]",
    "mov [rdi], rax", // vector
    "mov rax, [rsp + 8]",
    "mov [rdi + 8], rax", // error code
    "mov rax, cr2",
    "mov [rdi + 16], rax",
    "mov rax, [rsp + 16]",
    "mov [rdi + 24], rax", // RIP
    "mov rax, [rsp + 24]",
    "mov [rdi + 32], rax", // CS
    "mov rax, [rsp + 32]",
    "mov [rdi + 40], rax", // RFLAGS
    "mov rax, [rsp + 40]",
    "mov [rdi + 48], rax", // RSP
    "mov rax, [rsp + 48]",
    "mov [rdi + 56], rax", // SS
    "out {FAULT_PORT}, eax",
    "2: jmp 2b", // the host does not come back
    ".balign 16",
    ".globl vellum_monitor_end",
    "vellum_monitor_end:",
    ".popsection",
    STUB = const STUB_LEN_BYTES,
    WINDOW = const PHYSICAL_WINDOW.start().as_u64(),
    FRAME_MASK = const FRAME_MASK,
    FRAME_LOW = const -4096_i64,
    DATA = const DATA,
    AREA_COUNT = const DATA_AREA_COUNT,
    AREAS = const DATA_AREAS,
    AREA_LEN = const AREA_LEN_BYTES,
    FRAMES_END = const DATA_FRAMES_END,
    FRAMES_BASE = const DATA_FRAMES_BASE,
    LOG = const DATA_LOG,
    TABLE_BITS = const TABLE_BITS,
    ALLOCATOR = const ALLOCATOR,
    RECORD = const RECORD,
    FRAME_AT = const EXCEPTION_FRAME,
    EXHAUSTED = const REASON_SCRATCH_EXHAUSTED,
    EXCEPTION = const REASON_EXCEPTION,
    NESTED = const REASON_NESTED_FAULT,
    FAULT_PORT = const Port::Fault as u8,
);

/// Where the uniform frame of an exception from ring 3 begins: seven words below the top of the exception stack.
const EXCEPTION_FRAME: u64 = vellum_layout::amd64::user::EXCEPTION_STACK.end().as_u64() - 7 * 8;

/// The code fits the page that is mapped for it.
pub(crate) const MAX_CODE_LEN_BYTES: u64 = PAGE_SIZE;

#[cfg(test)]
mod tests;

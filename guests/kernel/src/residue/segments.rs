//! Descriptor tables of this module's own, and segments out of them.

use core::arch::asm;
use core::cell::UnsafeCell;

use vellum_guest::kernel::descriptor::{CODE_32, DATA};

/// Entries of the own GDT: what the kernel's holds (of which the first three are null, code and data on every machine), then a data
/// segment with a base, a local table and a task, of two entries each.
const WITH_BASE: usize = 5;
const LOCAL: usize = 6;
const TASK: usize = 8;
const ENTRIES: usize = 10;

/// Present data segment for ring 0 of 4 GiB at `0x123_4000`.
const DATA_WITH_BASE: u64 = 0x01CF_9323_4000_0000;
/// Present local descriptor table of 256 bytes at 0x2000 (Intel SDM volume 3A, section 3.5).
const LOCAL_TABLE: u64 = 0x0000_8200_2000_00FF;
/// Present, available task-state segment of 104 bytes at 0x3000, where a task is never switched to (section 8.2.2).
const TASK_STATE: u64 = 0x0000_8900_3000_0067;

/// Bytes of GDTR and of IDTR: a limit of two bytes and an address.
const REGISTER_LEN_BYTES: usize = 2 + size_of::<usize>();

/// Length of an interrupt table that can be copied.
const GATES_LEN_BYTES: usize = 32 * 2 * size_of::<usize>();

#[repr(C, align(16))]
struct Table<const LEN: usize>(UnsafeCell<[u64; LEN]>);

// SAFETY: this machine has one processor and no interrupts.
unsafe impl<const LEN: usize> Sync for Table<LEN> {}

static GDT: Table<ENTRIES> = Table(UnsafeCell::new([0; ENTRIES]));
static IDT: Table<{ GATES_LEN_BYTES / 8 }> = Table(UnsafeCell::new([0; GATES_LEN_BYTES / 8]));

/// What `lgdt` and `lidt` read and `sgdt` and `sidt` write.
#[repr(C, packed)]
struct Register {
    limit: u16,
    base: usize,
}

impl Register {
    const EMPTY: Self = Self { limit: 0, base: 0 };
}

/// GDTR and IDTR, as the processor stores them.
pub(super) fn tables() -> [u8; 2 * REGISTER_LEN_BYTES] {
    let mut bytes = [0_u8; 2 * REGISTER_LEN_BYTES];
    // SAFETY: each instruction writes as many bytes as it has room for.
    unsafe {
        asm!(
            "sgdt [{0}]",
            "sidt [{0} + {1}]",
            in(reg) bytes.as_mut_ptr(),
            const REGISTER_LEN_BYTES,
            options(nostack, preserves_flags),
        );
    }
    bytes
}

/// Loads the own GDT (always), the own IDT (1), a local table (2), a task (3), or empties the latter two's registers (4).
pub(super) fn load_tables(which: u8) {
    if which == 1 {
        return load_gates();
    }
    load_segments();
    let selector = |index: usize| index * 8;
    // SAFETY: the segments in use mean in the own table what they meant before; nothing uses a local table or a task.
    unsafe {
        match which {
            2 => {
                asm!("lldt {:x}", in(reg) selector(LOCAL), options(nostack, preserves_flags));
            }
            3 => {
                asm!("ltr {:x}", in(reg) selector(TASK), options(nostack, preserves_flags));
            }
            4 => {
                asm!("lldt {:x}", in(reg) 0_usize, options(nostack, preserves_flags));
            }
            _ => {}
        }
    }
}

fn load_segments() {
    let mut old = Register::EMPTY;
    let table = GDT.0.get();
    // SAFETY: reads the table in use, as far as it goes, and writes the own one, which nobody else does. The segments in use mean the
    // same in both.
    unsafe {
        asm!("sgdt [{}]", in(reg) &raw mut old, options(nostack, preserves_flags));
        let mut entries = [0, CODE_32, DATA, 0, 0];
        if usize::from(old.limit) >= 3 * 8 - 1 {
            let base = core::ptr::with_exposed_provenance::<u64>(old.base);
            for (index, entry) in entries.iter_mut().enumerate() {
                if index * 8 < usize::from(old.limit) {
                    *entry = base.add(index).read();
                }
            }
        }
        let table = &mut *table;
        table[..5].copy_from_slice(&entries);
        table[WITH_BASE] = DATA_WITH_BASE;
        table[LOCAL..].copy_from_slice(&[LOCAL_TABLE, 0, TASK_STATE, 0]);
        let own = register(GDT.0.get().addr(), ENTRIES * 8);
        asm!("lgdt [{}]", in(reg) &raw const own, options(nostack, preserves_flags));
    }
}

/// Loads a copy of the interrupt table in use.
fn load_gates() {
    let mut old = Register::EMPTY;
    // SAFETY: reads the table in use, as far as it goes, and writes the own one, which nobody else does.
    unsafe {
        asm!("sidt [{}]", in(reg) &raw mut old, options(nostack, preserves_flags));
        let len_bytes = if old.limit == 0 {
            0
        } else {
            usize::from(old.limit) + 1
        };
        let from = core::ptr::with_exposed_provenance::<u8>(old.base);
        from.copy_to(IDT.0.get().cast(), len_bytes.min(GATES_LEN_BYTES));
        let own = register(IDT.0.get().addr(), GATES_LEN_BYTES);
        asm!("lidt [{}]", in(reg) &raw const own, options(nostack, preserves_flags));
    }
}

fn register(base: usize, len_bytes: usize) -> Register {
    Register {
        // The tables have less than 4096 bytes.
        #[expect(clippy::cast_possible_truncation)]
        limit: (len_bytes - 1) as u16,
        base,
    }
}

/// DS, ES, FS, GS, SS, CS, LDTR and TR.
pub(super) fn selectors() -> [usize; 8] {
    macro_rules! selector {
        ($instruction:literal) => {{
            let value: u32;
            // SAFETY: reads a register.
            unsafe {
                asm!($instruction, out(reg) value, options(nomem, nostack, preserves_flags));
            };
            value as usize & 0xFFFF
        }};
    }
    [
        selector!("mov {:e}, ds"),
        selector!("mov {:e}, es"),
        selector!("mov {:e}, fs"),
        selector!("mov {:e}, gs"),
        selector!("mov {:e}, ss"),
        selector!("mov {:e}, cs"),
        selector!("sldt {:e}"),
        selector!("str {:e}"),
    ]
}

/// Loads FS or GS with a null selector, the flat data segment, or the one with a base.
pub(super) fn load_segment(register: u8, value: u64) {
    load_segments();
    let selector: usize = match value % 5 {
        0 => 0,
        1 => 3,
        2 => 2 * 8,
        _ => WITH_BASE * 8,
    };
    // SAFETY: this kernel uses neither segment.
    unsafe {
        if register == 0 {
            asm!("mov fs, {:e}", in(reg) selector, options(nostack, preserves_flags));
        } else {
            asm!("mov gs, {:e}", in(reg) selector, options(nostack, preserves_flags));
        }
    }
}

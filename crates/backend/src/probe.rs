//! What kind of hypervisor is this? A guest of a dozen instructions tells.
//!
//! In ring 3 it reads a page through its page tables, lets the host point the entry at another page, and reads again: a shadow
//! MMU that was not told shows the old page. (An emulated ring 0 would show the new one, because the emulator walks the tables
//! itself.) Then it executes an SSE instruction in ring 0: an emulator cannot. Last it tries 2-level paging.
#![expect(unsafe_code, reason = "lends memory to the probing guest")]

mod two_level;

use std::io;

use vellum_layout::{Gpa, GpaRange, Gva};

use crate::boot::{self, Amd64Machine, EntryPoint};
use crate::cpuid::CpuProfile;
use crate::hypervisor::{Hypervisor, Tracking, VmConfig};
use crate::memory::HostMemory;
use crate::state::{DescriptorTable, StateGroup, Xcr0};
use crate::vm::{Capabilities, Exit, Mmu, Protection, RingZero, VmError};

/// The guest's memory, from GPA 0: task-state segment, four tables, code, two data pages, two 32-bit tables.
const MEMORY_LEN_BYTES: u64 = 0xA000;
const TSS: u64 = 0;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const PT: u64 = 0x4000;
const CODE: u64 = 0x5000;
const FIRST_PAGE: u64 = 0x6000;
const SECOND_PAGE: u64 = 0x7000;
/// The guest-virtual page whose entry the host edits.
const WINDOW: u64 = 0x8000;
const FIRST_VALUE: u64 = 0x11;
const SECOND_VALUE: u64 = 0x22;

/// Present, writable, user (Intel SDM volume 3, table 4-19).
const PRESENT_WRITE_USER: u64 = 7;
/// Offset in the TSS of the word that holds the offset of the I/O bitmap (Intel SDM volume 3, section 7.7).
const TSS_BITMAP_BASE: u64 = 0x66;
/// The bitmap follows the TSS and allows ports 0 to 255: zeroes, and a last byte of ones behind its end.
const TSS_BITMAP: u16 = 0x68;
const TSS_LAST: u16 = TSS_BITMAP + 32;
/// CR3.PWT, which changes nothing here but makes CR3 another value, so that loading it flushes the TLB.
const CR3_PWT: u64 = 1 << 3;

/// `mov eax,[0x8000]; out 0xe0,eax` twice for ring 3; `paddd xmm0,xmm0; out 0xe0,eax` for ring 0.
const PROGRAM: [u8; 24] = [
    0x8B, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00, 0xE7, 0xE0, // first read
    0x8B, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00, 0xE7, 0xE0, // second read
    0x66, 0x0F, 0xFE, 0xC0, 0xE7, 0xE0, // SSE2
];
/// Offset in the program of its ring-0 part.
const RING_ZERO_PART: u64 = 18;

/// What only a guest can tell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probed {
    pub(crate) mmu: Mmu,
    pub(crate) ring_zero: RingZero,
    pub(crate) two_level_paging: bool,
}

impl Probed {
    /// What a hypervisor can do, of which it was assumed what only a guest can tell.
    pub(crate) fn correct(self, assumed: &Capabilities) -> Capabilities {
        Capabilities {
            mmu: self.mmu,
            ring_zero: self.ring_zero,
            two_level_paging: self.two_level_paging,
            ..assumed.clone()
        }
    }
}

/// Runs the guest.
pub(crate) fn run(hypervisor: &dyn Hypervisor) -> Result<Probed, VmError> {
    let model = hypervisor.cpu_model(CpuProfile::V1)?;
    let memory = guest_memory()
        .map_err(|error| VmError::hypervisor("preparing the probe's memory", error))?;
    let mut vm = hypervisor.create_vm(&VmConfig::new(model, Tracking::None))?;
    let vm = vm.as_mut();
    let all = GpaRange::new(Gpa::literal(0), MEMORY_LEN_BYTES).map_err(|_| {
        VmError::hypervisor("preparing the probe's memory", io::ErrorKind::InvalidInput)
    })?;
    // SAFETY: `memory` is declared before the VM, so it outlives it, and no reference into it exists.
    unsafe { vm.map(all, memory.hva(), Protection::Write) }?;
    let mut state = boot::amd64_user(&machine(), &start(CODE));
    state.restore(vm)?;

    let before = value_of(vm.run()?)?;
    vm.settle()?;
    memory
        .write_u64(PT + (WINDOW >> 12) * 8, SECOND_PAGE | PRESENT_WRITE_USER)
        .map_err(|error| {
            VmError::hypervisor("editing the probe's tables", io::Error::other(error))
        })?;
    vm.get_state(StateGroup::Special, &mut state)?;
    state.special.cr3 |= CR3_PWT;
    vm.set_state(StateGroup::Special, &state)?;
    let after = value_of(vm.run()?)?;
    vm.settle()?;
    boot::amd64_kernel(&machine(), &start(CODE + RING_ZERO_PART)).restore(vm)?;
    let vector = vm.run()?;
    let two_level_paging = two_level::works(vm, &memory);

    if u64::from(before) != FIRST_VALUE {
        return Err(VmError::hypervisor(
            "the probe's first read",
            io::ErrorKind::InvalidData,
        ));
    }
    Ok(Probed {
        mmu: if u64::from(after) == SECOND_VALUE {
            Mmu::Nested
        } else {
            Mmu::Shadow
        },
        ring_zero: if matches!(vector, Exit::IoOut { .. }) {
            RingZero::Native
        } else {
            RingZero::Emulated
        },
        two_level_paging,
    })
}

fn value_of(exit: Exit) -> Result<u32, VmError> {
    match exit {
        Exit::IoOut { data, .. } => Ok(data),
        _ => Err(VmError::hypervisor(
            "running the probe",
            io::ErrorKind::Unsupported,
        )),
    }
}

fn guest_memory() -> io::Result<HostMemory> {
    let memory = HostMemory::zeroed(MEMORY_LEN_BYTES)?;
    let write = |at, value| memory.write_u64(at, value).map_err(io::Error::other);
    write(PML4, PDPT | PRESENT_WRITE_USER)?;
    write(PDPT, PD | PRESENT_WRITE_USER)?;
    write(PD, PT | PRESENT_WRITE_USER)?;
    for page in 0..MEMORY_LEN_BYTES >> 12 {
        write(PT + page * 8, page << 12 | PRESENT_WRITE_USER)?;
    }
    write(PT + (WINDOW >> 12) * 8, FIRST_PAGE | PRESENT_WRITE_USER)?;
    write(FIRST_PAGE, FIRST_VALUE)?;
    write(SECOND_PAGE, SECOND_VALUE)?;
    write_u16(&memory, TSS + TSS_BITMAP_BASE, TSS_BITMAP)?;
    memory
        .write(TSS + u64::from(TSS_LAST), &[0xFF])
        .map_err(io::Error::other)?;
    memory.write(CODE, &PROGRAM).map_err(io::Error::other)?;
    Ok(memory)
}

fn write_u16(memory: &HostMemory, at: u64, value: u16) -> io::Result<()> {
    memory
        .write(at, &value.to_le_bytes())
        .map_err(io::Error::other)
}

fn machine() -> Amd64Machine {
    Amd64Machine {
        root: Gpa::literal(PML4),
        gdt: DescriptorTable::default(),
        idt: DescriptorTable::default(),
        tss: DescriptorTable {
            base: TSS,
            limit: TSS_LAST,
        },
        xcr0: Xcr0::RESET,
        cr4_features: 0,
    }
}

fn start(entry: u64) -> EntryPoint {
    EntryPoint {
        entry: Gva::literal(entry),
        stack_top: Gva::literal(CODE),
        peb: Gva::literal(0),
    }
}

//! Does 2-level paging work? Some hypervisors that emulate ring 0 know only the formats of PAE and of long mode.
//!
//! Two ways lead to it, and a host must know both: entering a vCPU with it, as every restore does, and a guest that turns it on
//! itself. Each time the guest then reads a word through its tables.

use std::io;

use super::{CODE, FIRST_PAGE, FIRST_VALUE, MEMORY_LEN_BYTES, PRESENT_WRITE_USER, WINDOW};
use crate::boot;
use crate::memory::HostMemory;
use crate::state::VcpuState;
use crate::vm::{Exit, Vm, VmError};
use vellum_layout::Gpa;

/// Page directory and page table, in the last two pages of the probe's memory.
const DIRECTORY: u64 = 0x8000;
const TABLE: u64 = 0x9000;
/// Where the program lies: on the page of the other one.
const ENTRY: u64 = CODE + 0x100;
/// Offset in the program of the part that expects paging to be on.
const PAGED_PART: u64 = 28;

/// Turns on CR4.PSE (bit 4), loads CR3, turns on CR0.PG (bit 31); then `mov eax,[0x8000]; out 0xe0,eax`.
const PROGRAM: [u8; 35] = [
    0x0F, 0x20, 0xE0, // mov eax, cr4
    0x83, 0xC8, 0x10, // or eax, 1 << 4
    0x0F, 0x22, 0xE0, // mov cr4, eax
    0xB8, 0x00, 0x80, 0x00, 0x00, // mov eax, DIRECTORY
    0x0F, 0x22, 0xD8, // mov cr3, eax
    0x0F, 0x20, 0xC0, // mov eax, cr0
    0x0D, 0x00, 0x00, 0x00, 0x80, // or eax, 1 << 31
    0x0F, 0x22, 0xC0, // mov cr0, eax
    0xA1, 0x00, 0x80, 0x00, 0x00, // mov eax, [WINDOW]
    0xE7, 0xE0, // out 0xe0, eax
];

/// Whether the guest reads the right word both ways. Whatever goes wrong on the way means that it does not.
pub(super) fn works(vm: &mut dyn Vm, memory: &HostMemory) -> bool {
    if write_guest(memory).is_err() {
        return false;
    }
    let entered = boot::i686_paged(Gpa::literal(DIRECTORY), &super::start(ENTRY + PAGED_PART));
    let turned_on = boot::flat32(Gpa::literal(ENTRY), Gpa::literal(CODE), 0, 0);
    [entered, turned_on]
        .iter()
        .all(|state| reads_the_word(vm, state).unwrap_or(false))
}

fn reads_the_word(vm: &mut dyn Vm, state: &VcpuState) -> Result<bool, VmError> {
    vm.settle()?;
    state.restore(vm)?;
    let exit = vm.run()?;
    Ok(matches!(exit, Exit::IoOut { data, .. } if u64::from(data) == FIRST_VALUE))
}

/// Maps the probe's memory to itself, but the window to the first page. Entries have four bytes (Intel SDM volume 3, section 4.3).
fn write_guest(memory: &HostMemory) -> io::Result<()> {
    let write = |at, bytes: &[u8]| memory.write(at, bytes).map_err(io::Error::other);
    let entry = |target: u64| (target | PRESENT_WRITE_USER).to_le_bytes();
    write(DIRECTORY, &entry(TABLE)[..4])?;
    for page in 0..MEMORY_LEN_BYTES >> 12 {
        write(TABLE + page * 4, &entry(page << 12)[..4])?;
    }
    write(TABLE + (WINDOW >> 12) * 4, &entry(FIRST_PAGE)[..4])?;
    write(ENTRY, &PROGRAM)
}

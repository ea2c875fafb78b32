//! The KVM backend against the machine's own /dev/kvm. Without one every test says so and is skipped visibly.
#![expect(unsafe_code, reason = "lends memory to test guests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vellum_backend::boot::{self, Amd64Machine, EntryPoint};
use vellum_backend::cpuid::CpuProfile;
use vellum_backend::kvm::{Kvm, KvmVm, OpenError, Tracking, VmConfig};
use vellum_backend::state::{DescriptorTable, Xcr0};
use vellum_backend::{
    Access, Exit, HostMemory, IoWidth, Mmu, Protection, RingZero, StateGroup, VcpuState, Vm,
    VmError,
};
use vellum_layout::{Gpa, GpaRange, Gva};

const MEMORY_LEN_BYTES: u64 = 0x10_0000;
const CODE: u64 = 0x5000;
const PT: u64 = 0x4000;
const PRESENT_WRITE_USER_USED: u64 = 0x67;

/// A VM with 1 MiB of memory at GPA 0, identity-mapped in long mode, and code at 0x5000. The memory outlives the VM.
struct Guest {
    vm: KvmVm,
    memory: HostMemory,
}

/// Opens KVM, or says why not.
fn kvm() -> Option<Kvm> {
    match Kvm::open() {
        Ok(kvm) => Some(kvm),
        Err(error @ (OpenError::Absent | OpenError::Permission)) => {
            eprintln!("SKIPPED: {error}");
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

fn guest(kvm: &Kvm, code: &[u8], protection: Protection) -> Guest {
    let memory = HostMemory::zeroed(MEMORY_LEN_BYTES).expect("memory");
    for (table, next) in [(0x1000, 0x2000), (0x2000, 0x3000), (0x3000, PT)] {
        memory
            .write_u64(table, next | PRESENT_WRITE_USER_USED)
            .expect("in bounds");
    }
    for page in 0..MEMORY_LEN_BYTES >> 12 {
        memory
            .write_u64(PT + page * 8, page << 12 | PRESENT_WRITE_USER_USED)
            .expect("in bounds");
    }
    memory
        .write(0x66, &0x68_u16.to_le_bytes())
        .expect("in bounds");
    memory.write(0x68 + 32, &[0xFF]).expect("in bounds");
    memory.write(CODE, code).expect("in bounds");
    let model = kvm.cpu_model(CpuProfile::Best).expect("a model");
    let config = VmConfig::new(&model, Tracking::FirstWrites).expect("a config");
    let mut vm = kvm.create_vm(&config).expect("a vm");
    // SAFETY: the memory lives in the same struct and is dropped after the VM; nothing borrows its bytes.
    unsafe { vm.map(range(0, MEMORY_LEN_BYTES), memory.hva(), protection) }.expect("mapped");
    Guest { vm, memory }
}

fn range(start: u64, len_bytes: u64) -> GpaRange {
    GpaRange::new(Gpa::new(start).expect("an address"), len_bytes).expect("a range")
}

fn user_state() -> VcpuState {
    let machine = Amd64Machine {
        root: Gpa::literal(0x1000),
        gdt: DescriptorTable::default(),
        idt: DescriptorTable::default(),
        tss: DescriptorTable {
            base: 0,
            limit: 0x68 + 32,
        },
        xcr0: Xcr0::RESET,
        cr4_features: 0,
    };
    boot::amd64_user(
        &machine,
        &EntryPoint {
            entry: Gva::literal(CODE),
            stack_top: Gva::literal(0x1_0000),
            peb: Gva::literal(0),
        },
    )
}

fn flat_state() -> VcpuState {
    boot::flat32(Gpa::literal(CODE), Gpa::literal(0x1_0000), 40, 2)
}

fn out_data(exit: Exit) -> u32 {
    match exit {
        Exit::IoOut {
            port: 0xE0,
            width: IoWidth::Dword,
            data,
        } => data,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_host_edit_of_page_tables_is_visible_once_published() {
    let Some(kvm) = kvm() else { return };
    // again: mov eax, [0x8000]; out 0xe0, eax; jmp again
    let code = [0x8B, 0x04, 0x25, 0, 0x80, 0, 0, 0xE7, 0xE0, 0xEB, 0xF5];
    let mut guest = guest(&kvm, &code, Protection::Write);
    for (page, value) in [(0x6000, 1), (0x7000, 2)] {
        guest.memory.write_u64(page, value).expect("in bounds");
    }
    let point_window_at = |memory: &HostMemory, page: u64| {
        memory
            .write_u64(PT + 8 * 8, page | PRESENT_WRITE_USER_USED)
            .expect("in bounds");
    };
    point_window_at(&guest.memory, 0x6000);
    let mut state = user_state();
    state.restore(&mut guest.vm).expect("restored");
    assert_eq!(out_data(guest.vm.run().expect("ran")), 1);
    for (page, value, old) in [
        (0x7000, 2, 0x6000),
        (0x6000, 1, 0x7000),
        (0x7000, 2, 0x6000),
        (0x6000, 1, 0x7000),
    ] {
        point_window_at(&guest.memory, page);
        if page == 0x7000 {
            guest.vm.publish_tables().expect("published");
        } else {
            guest
                .vm
                .publish_remap(range(old, 0x1000))
                .expect("published");
        }
        state.special.cr3 ^= 1 << 3;
        guest
            .vm
            .set_state(StateGroup::Special, &state)
            .expect("set");
        assert_eq!(out_data(guest.vm.run().expect("ran")), value);
    }
}

#[test]
fn a_run_continues_behind_an_out_instruction() {
    let Some(kvm) = kvm() else { return };
    // add eax, ebx; out 0xe0, eax; inc eax; out 0xe0, eax; hlt
    let mut guest = guest(
        &kvm,
        &[0x01, 0xD8, 0xE7, 0xE0, 0x40, 0xE7, 0xE0, 0xF4],
        Protection::Write,
    );
    flat_state().restore(&mut guest.vm).expect("restored");
    assert_eq!(out_data(guest.vm.run().expect("ran")), 42);
    assert_eq!(out_data(guest.vm.run().expect("ran")), 43);
    assert_eq!(guest.vm.run().expect("ran"), Exit::Halt);
}

#[test]
fn a_settled_state_stands_behind_the_out_and_resumes_there() {
    let Some(kvm) = kvm() else { return };
    // out 0xe0, eax; inc eax; out 0xe0, eax; hlt
    let mut guest = guest(
        &kvm,
        &[0xE7, 0xE0, 0x40, 0xE7, 0xE0, 0xF4],
        Protection::Write,
    );
    flat_state().restore(&mut guest.vm).expect("restored");
    assert_eq!(out_data(guest.vm.run().expect("ran")), 40);
    let saved = VcpuState::save(&mut guest.vm).expect("saved");
    assert_eq!(saved.general.rip, CODE + 2);
    assert_eq!(out_data(guest.vm.run().expect("ran")), 41);
    assert_eq!(guest.vm.run().expect("ran"), Exit::Halt);
    saved.restore(&mut guest.vm).expect("restored");
    assert_eq!(
        out_data(guest.vm.run().expect("ran")),
        41,
        "the out before the snapshot is not repeated"
    );
}

#[test]
fn an_in_instruction_reads_what_the_host_gives() {
    let Some(kvm) = kvm() else { return };
    // mov eax, -1; in al, 0x10; out 0xe0, eax; in eax, 0x10; out 0xe0, eax
    let code = [
        0xB8, 0xFF, 0xFF, 0xFF, 0xFF, 0xE4, 0x10, 0xE7, 0xE0, 0xE5, 0x10, 0xE7, 0xE0,
    ];
    let mut guest = guest(&kvm, &code, Protection::Write);
    flat_state().restore(&mut guest.vm).expect("restored");
    assert_eq!(
        guest.vm.run().expect("ran"),
        Exit::IoIn {
            port: 0x10,
            width: IoWidth::Byte
        }
    );
    assert!(
        matches!(guest.vm.run(), Err(VmError::InputPending)),
        "the input must be given first"
    );
    guest
        .vm
        .complete_io_in(0xAABB_CC12)
        .expect("an input is pending");
    assert_eq!(out_data(guest.vm.run().expect("ran")), 0xFFFF_FF12);
    assert_eq!(
        guest.vm.run().expect("ran"),
        Exit::IoIn {
            port: 0x10,
            width: IoWidth::Dword
        }
    );
    guest.vm.complete_io_in(7).expect("an input is pending");
    assert_eq!(out_data(guest.vm.run().expect("ran")), 7);
    assert!(matches!(
        guest.vm.complete_io_in(0),
        Err(VmError::NoPendingInput)
    ));
}

#[test]
fn unbacked_and_protected_memory_fault_with_address_and_direction() {
    let Some(kvm) = kvm() else { return };
    // mov [0x200000], eax
    let write_absent = [0xA3, 0, 0, 0x20, 0];
    // mov eax, [0x200000]
    let read_absent = [0xA1, 0, 0, 0x20, 0];
    // mov [0x300000], eax
    let write_read_only = [0xA3, 0, 0, 0x30, 0];
    let cases = [
        (write_absent, 0x20_0000, Access::Write, false),
        (read_absent, 0x20_0000, Access::Read, false),
        (write_read_only, 0x30_0000, Access::Write, true),
    ];
    for (code, gpa, access, mapped) in cases {
        let mut guest = guest(&kvm, &code, Protection::Write);
        let rom = HostMemory::zeroed(0x1000).expect("memory");
        // SAFETY: `rom` lives until the end of this block, where `guest` was dropped before it.
        unsafe {
            guest
                .vm
                .map(range(0x30_0000, 0x1000), rom.hva(), Protection::ReadOnly)
        }
        .expect("mapped");
        flat_state().restore(&mut guest.vm).expect("restored");
        assert_eq!(
            guest.vm.run().expect("ran"),
            Exit::MemoryFault {
                gpa,
                access,
                mapped
            }
        );
        drop(guest);
        drop(rom);
    }
}

#[test]
fn overlapping_unaligned_and_unknown_ranges_are_refused() {
    let Some(kvm) = kvm() else { return };
    let mut guest = guest(&kvm, &[0xF4], Protection::Write);
    let extra = HostMemory::zeroed(0x2000).expect("memory");
    for start in [0, 0xF_F000] {
        // SAFETY: nothing is mapped when the call fails, which is asserted.
        let result = unsafe {
            guest
                .vm
                .map(range(start, 0x2000), extra.hva(), Protection::Write)
        };
        assert!(matches!(result, Err(VmError::Overlap { .. })), "{result:?}");
    }
    let unaligned = extra.hva().checked_add(8).expect("an address");
    // SAFETY: as above.
    let result = unsafe {
        guest
            .vm
            .map(range(0x20_0000, 0x1000), unaligned, Protection::Write)
    };
    assert!(
        matches!(result, Err(VmError::Unaligned { .. })),
        "{result:?}"
    );
    for unknown in [range(0x20_0000, 0x1000), range(0, 0x1000)] {
        assert!(matches!(
            guest.vm.unmap(unknown),
            Err(VmError::NotMapped { .. })
        ));
        assert!(guest.vm.publish_remap(range(0x20_0000, 0x1000)).is_err());
    }
    guest
        .vm
        .unmap(range(0, MEMORY_LEN_BYTES))
        .expect("exactly what was mapped");
}

#[test]
fn every_state_group_round_trips() {
    let Some(kvm) = kvm() else { return };
    let mut guest = guest(&kvm, &[0xF4], Protection::Write);
    let mut wanted = VcpuState::save(&mut guest.vm).expect("saved");
    let user = user_state();
    wanted.special = user.special;
    wanted.special.cr2 = 0x1234_5000;
    wanted.general = user.general;
    wanted.general.r15 = 0xDEAD_BEEF;
    wanted.debug.dr[0] = 0x7000;
    let values = [
        0x10,
        0x1000,
        0x2000,
        0x10 << 32,
        0x3000,
        0x4000,
        0x200,
        0x5000,
    ];
    for (index, value) in vellum_backend::msr::DECLARED.into_iter().zip(values) {
        assert!(wanted.msrs.set(index, value));
    }
    let mut xsave = *wanted.xsave.as_bytes();
    xsave[160] = 0x5A; // XMM0
    xsave[512] = 3;
    wanted.xsave = vellum_backend::state::XsaveArea::from_bytes(xsave);
    wanted.restore(&mut guest.vm).expect("restored");
    let read = VcpuState::save(&mut guest.vm).expect("saved");
    assert_eq!(read.general, wanted.general);
    assert_eq!(read.special.cr0, wanted.special.cr0);
    assert_eq!(read.special.cr2, wanted.special.cr2);
    assert_eq!(read.special.cr3, wanted.special.cr3);
    assert_eq!(read.debug, wanted.debug);
    assert_eq!(read.msrs, wanted.msrs);
    assert_eq!(read.xsave.as_bytes()[160], 0x5A);
    // What was read back is a fixed point.
    read.restore(&mut guest.vm).expect("restored");
    let again = VcpuState::save(&mut guest.vm).expect("saved");
    assert_eq!(again.differences(&read).collect::<Vec<_>>(), []);
}

#[test]
fn a_state_that_hyper_v_refuses_is_refused_here() {
    let Some(kvm) = kvm() else { return };
    let mut guest = guest(&kvm, &[0xF4], Protection::Write);
    let mut state = flat_state();
    state.special.cr0 &= !vellum_backend::state::cr0::ET;
    let result = guest.vm.set_state(StateGroup::Special, &state);
    assert!(
        matches!(result, Err(VmError::InvalidState(_))),
        "{result:?}"
    );
}

#[test]
fn first_writes_are_reported_once_until_the_ring_is_reset() {
    let Some(kvm) = kvm() else { return };
    // ring 3: mov ecx, 4; mov edi, 0x20000; again: mov [rdi], cl; add edi, 0x1000; dec ecx; jnz again; out 0xe0, eax; jmp start
    let code = [
        0xB9, 4, 0, 0, 0, 0xBF, 0, 0, 2, 0, 0x88, 0x0F, 0x81, 0xC7, 0, 0x10, 0, 0, 0xFF, 0xC9,
        0x75, 0xF4, 0xE7, 0xE0, 0xEB, 0xE6,
    ];
    let mut guest = guest(&kvm, &code, Protection::TrackedWrite);
    user_state().restore(&mut guest.vm).expect("restored");
    let written = [0x2_0000, 0x2_1000, 0x2_2000, 0x2_3000];
    out_data(guest.vm.run().expect("ran"));
    let mut dirty = Vec::new();
    guest
        .vm
        .take_dirty(&mut |page| dirty.push(page.as_u64()))
        .expect("taken");
    for page in written {
        assert!(dirty.contains(&page), "{page:#x} in {dirty:x?}");
    }
    out_data(guest.vm.run().expect("ran"));
    let mut again = Vec::new();
    guest
        .vm
        .take_dirty(&mut |page| again.push(page.as_u64()))
        .expect("taken");
    assert!(
        again.iter().all(|page| !written.contains(page)),
        "{again:x?}"
    );
}

#[test]
fn an_endless_loop_is_interrupted() {
    let Some(kvm) = kvm() else { return };
    let mut guest = guest(&kvm, &[0xEB, 0xFE], Protection::Write);
    user_state().restore(&mut guest.vm).expect("restored");
    let interrupter = guest.vm.interrupter();
    let done = Arc::new(AtomicBool::new(false));
    let other = std::thread::spawn({
        let (interrupter, done) = (interrupter.clone(), done.clone());
        // The vCPU's thread stays in this test until it has joined this one: the signal finds it alive.
        move || {
            while !done.load(Ordering::Acquire) {
                interrupter.interrupt();
                std::thread::yield_now();
            }
        }
    });
    interrupter.enter();
    assert_eq!(guest.vm.run().expect("ran"), Exit::Interrupted);
    done.store(true, Ordering::Release);
    other.join().expect("the other thread ends");
    interrupter.leave();
}

#[test]
fn an_interruption_before_the_run_counts() {
    let Some(kvm) = kvm() else { return };
    // out 0xe0, eax
    let mut guest = guest(&kvm, &[0xE7, 0xE0], Protection::Write);
    flat_state().restore(&mut guest.vm).expect("restored");
    let interrupter = guest.vm.interrupter();
    interrupter.enter();
    interrupter.interrupt();
    assert_eq!(guest.vm.run().expect("ran"), Exit::Interrupted);
    interrupter.leave();
    assert_eq!(
        out_data(guest.vm.run().expect("ran")),
        40,
        "the next run is not hit"
    );
}

#[test]
fn a_fault_without_handlers_is_a_triple_fault() {
    let Some(kvm) = kvm() else { return };
    // ud2, without an interrupt table
    let mut guest = guest(&kvm, &[0x0F, 0x0B], Protection::Write);
    flat_state().restore(&mut guest.vm).expect("restored");
    let exit = guest.vm.run().expect("ran");
    assert!(
        matches!(exit, Exit::TripleFault | Exit::EmulationFailure),
        "{exit:?}"
    );
}

#[test]
fn the_probe_agrees_with_itself() {
    let Some(kvm) = kvm() else { return };
    let again = Kvm::open().expect("opens twice");
    assert_eq!(kvm.capabilities(), again.capabilities());
    let capabilities = kvm.capabilities();
    if capabilities.ring_zero == RingZero::Emulated {
        assert_eq!(
            capabilities.mmu,
            Mmu::Shadow,
            "no software hypervisor walks nested tables"
        );
    }
}

//! The double refuses what the backend must not forget, and a backend that forgot it would not get past it.
//!
//! The sequence is the backend's own, with the crate that it uses; each test leaves out or changes one step.
#![expect(unsafe_code, reason = "lends memory to a partition")]

mod machine;

use mshv_bindings::{
    HV_STATUS_INVALID_PARTITION_STATE, HV_STATUS_INVALID_REGISTER_VALUE, mshv_user_mem_region,
};
use mshv_ioctls::MshvError;

use machine::{EXECUTABLE, Machine, WRITABLE, device, machine, partition};

const CR0: u32 = 0x40000;
const RIP: u32 = 0x20010;
const INVALID_VP_REGISTER_VALUE: u32 = 0x8000_0020;
const IO_PORT_INTERCEPT: u32 = 0x8001_0000;
const GPA_INTERCEPT: u32 = 0x8000_0001;
const SYNTHETIC_PROC_FEATURES: u32 = 0x10001;

fn message_of(machine: &Machine) -> u32 {
    machine.vcpu.run().expect("runs").header.message_type
}

fn status(result: Result<(), MshvError>) -> Option<u32> {
    match result {
        Err(MshvError::Hypercall { status_raw, .. }) => Some(status_raw.into()),
        _ => None,
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "calls are passed as they are"
)]
fn errno<T>(result: Result<T, MshvError>) -> Option<i32> {
    match result {
        Err(MshvError::Errno(error)) => Some(error.errno()),
        _ => None,
    }
}

#[test]
fn a_machine_of_which_nothing_is_missing_runs() {
    let Some(device) = device() else { return };
    let machine = machine(&device, WRITABLE | EXECUTABLE);
    machine.reset_extended_state();
    machine.set(&[(CR0, 0x10)]).expect("accepted");
    assert_eq!(message_of(&machine), IO_PORT_INTERCEPT);
}

#[test]
fn without_the_extension_type_bit_cr0_is_refused() {
    let Some(device) = device() else { return };
    let machine = machine(&device, WRITABLE | EXECUTABLE);
    assert_eq!(
        status(machine.set(&[(CR0, 0)])),
        Some(HV_STATUS_INVALID_REGISTER_VALUE)
    );
}

#[test]
fn without_extended_state_nothing_runs() {
    let Some(device) = device() else { return };
    let machine = machine(&device, WRITABLE | EXECUTABLE);
    assert_eq!(message_of(&machine), INVALID_VP_REGISTER_VALUE);
    machine.reset_extended_state();
    assert_eq!(message_of(&machine), IO_PORT_INTERCEPT);
}

#[test]
fn extended_state_keeps_its_format_and_its_reserved_bits() {
    type Edit = fn(&mut [u8]);
    let Some(device) = device() else { return };
    let machine = machine(&device, WRITABLE | EXECUTABLE);
    let edits: [(&str, Edit); 4] = [
        ("xcomp_bv lost", |area| area[520..528].fill(0)),
        ("an unknown component", |area| area[519] = 1),
        ("a reserved byte of the header", |area| area[530] = 1),
        ("a reserved bit of mxcsr", |area| {
            area[512] = 2;
            area[26] = 1;
        }),
    ];
    for (what, edit) in edits {
        let result = machine.write_extended_state(edit);
        assert_eq!(errno(result), Some(libc::EINVAL), "{what}");
    }
}

#[test]
fn a_port_access_that_is_not_stepped_over_comes_again() {
    let Some(device) = device() else { return };
    let machine = machine(&device, WRITABLE | EXECUTABLE);
    machine.reset_extended_state();
    for _ in 0..3 {
        let message = machine.vcpu.run().expect("runs");
        let info = message.to_ioport_info().expect("a port access");
        let (port, rip) = (info.port_number, info.header.rip);
        assert_eq!((port, rip), (0x10, 0));
    }
}

#[test]
fn registers_that_each_are_right_may_not_fit_together() {
    let Some(device) = device() else { return };
    let machine = machine(&device, WRITABLE | EXECUTABLE);
    machine.reset_extended_state();
    // EFER.LME without LMA, with paging.
    machine
        .set(&[(0x80001, 0x100), (0x40003, 1 << 5), (CR0, 0x8000_0011)])
        .expect("each is accepted");
    assert_eq!(message_of(&machine), INVALID_VP_REGISTER_VALUE);
}

#[test]
fn bits_beyond_a_register_are_refused() {
    let Some(device) = device() else { return };
    let machine = machine(&device, WRITABLE | EXECUTABLE);
    assert_eq!(
        status(machine.set(&[(RIP, 1 << 64)])),
        Some(HV_STATUS_INVALID_REGISTER_VALUE)
    );
}

#[test]
fn memory_that_is_not_executable_is_not_executed() {
    let Some(device) = device() else { return };
    let machine = machine(&device, WRITABLE);
    machine.reset_extended_state();
    assert_eq!(message_of(&machine), GPA_INTERCEPT);
}

#[test]
fn an_early_property_comes_too_late_after_initialisation() {
    let Some(device) = device() else { return };
    let partition = partition(&device);
    let result = partition.set_partition_property(SYNTHETIC_PROC_FEATURES, 0);
    assert_eq!(status(result), Some(HV_STATUS_INVALID_PARTITION_STATE));
}

#[test]
fn there_is_one_virtual_processor_of_each_number() {
    let Some(device) = device() else { return };
    let partition = partition(&device);
    let _first = partition.create_vcpu(0).expect("a virtual processor");
    assert_eq!(errno(partition.create_vcpu(0)), Some(libc::EEXIST));
}

#[test]
fn a_region_goes_as_it_came() {
    let Some(device) = device() else { return };
    let machine = machine(&device, WRITABLE | EXECUTABLE);
    let region = machine.region(WRITABLE | EXECUTABLE);
    let moved = mshv_user_mem_region {
        guest_pfn: 1,
        ..region
    };
    let map = |region| errno(machine.partition.map_user_memory(region));
    assert_eq!(map(region), Some(libc::EEXIST), "twice");
    assert_eq!(map(moved), Some(libc::EEXIST), "the same host memory twice");
    let unmap = |region| errno(machine.partition.unmap_user_memory(region));
    assert_eq!(unmap(moved), Some(libc::EINVAL), "at another address");
    assert_eq!(unmap(region), None);
    assert_eq!(unmap(region), Some(libc::EINVAL), "twice");
}

#[test]
fn host_memory_must_be_writable_even_for_a_read_only_region() {
    let Some(device) = device() else { return };
    let machine = machine(&device, WRITABLE | EXECUTABLE);
    // SAFETY: a new mapping at an address of the kernel's choice.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(address, libc::MAP_FAILED);
    let region = mshv_user_mem_region {
        guest_pfn: 7,
        userspace_addr: address.addr() as u64,
        ..machine.region(EXECUTABLE)
    };
    let result = errno(machine.partition.map_user_memory(region));
    // SAFETY: the mapping is this test's own and nothing refers to it.
    unsafe { libc::munmap(address, 4096) };
    assert_eq!(result, Some(libc::EFAULT));
}

#[test]
fn memory_that_vanishes_from_a_mapped_range_is_noticed() {
    let Some(device) = device() else { return };
    let machine = machine(&device, WRITABLE | EXECUTABLE);
    machine.reset_extended_state();
    assert_eq!(message_of(&machine), IO_PORT_INTERCEPT);
    let address = (&raw const *machine.memory).cast_mut().cast();
    // SAFETY: the page belongs to this test, which reads no more from it; it reads as zeroes from then on.
    let result = unsafe { libc::madvise(address, 4096, libc::MADV_DONTNEED) };
    assert_eq!(result, 0);
    assert_eq!(errno(machine.vcpu.run()), Some(libc::EFAULT));
}

#[test]
fn tracking_goes_off_only_when_every_bit_is_set_again() {
    const CLEAR: u8 = 1;
    const SET: u8 = 2;
    let Some(device) = device() else { return };
    let machine = machine(&device, WRITABLE | EXECUTABLE);
    let partition = &machine.partition;
    let bits = |operation| partition.get_dirty_log(0, 4096, operation).expect("read");
    partition.enable_dirty_page_tracking().expect("on");
    assert_eq!(bits(CLEAR), [1], "everything counts as accessed at first");
    assert_eq!(bits(CLEAR), [0]);
    assert!(partition.disable_dirty_page_tracking().is_err());
    bits(SET);
    partition.disable_dirty_page_tracking().expect("off");
    assert_eq!(
        errno(partition.get_dirty_log(0, 4096, CLEAR)),
        Some(libc::EINVAL)
    );
}

//! Flat guests on the machine's own /dev/kvm: boot states, port hooks, interrupt controllers. Without KVM every test says so
//! and is skipped visibly.

#[path = "kvm/support.rs"]
#[expect(dead_code, reason = "made for another suite, too")]
mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use vellum_backend::cpuid::CpuProfile;
use vellum_backend::flat::{End, FlatError, FlatGuest, Flow};
use vellum_backend::kvm::Kvm;
use vellum_backend::{Exit, IoWidth, VcpuState, VmError, boot};
use vellum_backend::{IRQCHIP_HOLES, Irqchip, Tracking, VmConfig};
use vellum_layout::{Gpa, GpaRange};

const RAM_LEN_BYTES: u64 = 0x10_0000;

fn guest(kvm: &Kvm, irqchip: Irqchip) -> FlatGuest {
    let model = kvm.cpu_model(CpuProfile::Best).expect("a model");
    let config = VmConfig::new(model, Tracking::None).with_irqchip(irqchip);
    let mut guest = FlatGuest::new(Box::new(kvm.create_vm(&config).expect("a vm")));
    guest.add_ram(range(0, RAM_LEN_BYTES)).expect("memory");
    guest
}

fn range(start: u64, len_bytes: u64) -> GpaRange {
    GpaRange::new(Gpa::new(start).expect("an address"), len_bytes).expect("a range")
}

fn start(guest: &mut FlatGuest, state: &VcpuState, code: &[u8]) {
    let at = state.special.cs.base + state.general.rip;
    guest
        .write(Gpa::new(at).expect("an address"), code)
        .expect("in memory");
    guest.boot(state).expect("a valid state");
}

fn flat32(eax: u32, ebx: u32) -> VcpuState {
    boot::flat32(Gpa::literal(0x1000), Gpa::literal(0x8000), eax, ebx)
}

/// Collects what the guest writes to a port.
fn collect(guest: &mut FlatGuest, port: u16) -> Arc<Mutex<Vec<(IoWidth, u32)>>> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let into = seen.clone();
    guest.on_output(port, move |width, data| {
        into.lock().expect("not poisoned").push((width, data));
        Flow::Continue
    });
    seen
}

#[test]
fn a_real_mode_guest_runs_at_its_segment_and_offset() {
    let Some(kvm) = support::kvm() else { return };
    let mut guest = guest(&kvm, Irqchip::None);
    let seen = collect(&mut guest, 0xE9);
    // mov ax, cs; out 0xe9, ax; mov al, 'A'; out 0xe9, al; hlt
    let code = [0x8C, 0xC8, 0xE7, 0xE9, 0xB0, b'A', 0xE6, 0xE9, 0xF4];
    start(&mut guest, &boot::real_mode(0x07C0, 0x0010), &code);
    assert_eq!(guest.run().expect("ran"), End::Exit(Exit::Halt));
    let expected = [(IoWidth::Word, 0x07C0), (IoWidth::Byte, u32::from(b'A'))];
    assert_eq!(*seen.lock().expect("not poisoned"), expected);
}

#[test]
fn a_flat_32_bit_guest_gets_eax_and_ebx() {
    let Some(kvm) = support::kvm() else { return };
    let mut guest = guest(&kvm, Irqchip::None);
    let seen = collect(&mut guest, 0x80);
    // out 0x80, eax; mov eax, ebx; out 0x80, eax; hlt
    start(
        &mut guest,
        &flat32(0x2BAD_B002, 0x9000),
        &[0xE7, 0x80, 0x89, 0xD8, 0xE7, 0x80, 0xF4],
    );
    assert_eq!(guest.run().expect("ran"), End::Exit(Exit::Halt));
    let expected = [(IoWidth::Dword, 0x2BAD_B002), (IoWidth::Dword, 0x9000)];
    assert_eq!(*seen.lock().expect("not poisoned"), expected);
}

#[test]
fn an_input_hook_answers_and_the_guest_goes_on() {
    let Some(kvm) = support::kvm() else { return };
    let mut guest = guest(&kvm, Irqchip::None);
    let seen = collect(&mut guest, 0x80);
    let mut next = 40;
    guest.on_input(0x60, move |width| {
        assert_eq!(width, IoWidth::Byte);
        next += 1;
        next
    });
    // in al, 0x60; mov bl, al; in al, 0x60; add al, bl; out 0x80, al; hlt
    start(
        &mut guest,
        &flat32(0, 0),
        &[
            0xE4, 0x60, 0x88, 0xC3, 0xE4, 0x60, 0x00, 0xD8, 0xE6, 0x80, 0xF4,
        ],
    );
    assert_eq!(guest.run().expect("ran"), End::Exit(Exit::Halt));
    assert_eq!(*seen.lock().expect("not poisoned"), [(IoWidth::Byte, 83)]);
}

#[test]
fn a_hook_can_stop_the_guest_and_run_takes_it_up_again() {
    let Some(kvm) = support::kvm() else { return };
    let mut guest = guest(&kvm, Irqchip::None);
    guest.on_output(0x80, |_, data| {
        if data == 1 {
            Flow::Stop
        } else {
            Flow::Continue
        }
    });
    // out 0x80, eax; inc eax; out 0x80, eax; out 0x81, eax
    start(
        &mut guest,
        &flat32(1, 0),
        &[0xE7, 0x80, 0x40, 0xE7, 0x80, 0xE7, 0x81],
    );
    assert_eq!(guest.run().expect("ran"), End::Stopped { port: 0x80 });
    let unserved = Exit::IoOut {
        port: 0x81,
        width: IoWidth::Dword,
        data: 2,
    };
    assert_eq!(guest.run().expect("ran"), End::Exit(unserved));
}

#[test]
fn memory_that_is_not_there_is_refused() {
    let Some(kvm) = support::kvm() else { return };
    let mut guest = guest(&kvm, Irqchip::None);
    let absent = guest.write(Gpa::literal(RAM_LEN_BYTES), &[1]);
    assert!(
        matches!(absent, Err(FlatError::Absent { .. })),
        "{absent:?}"
    );
    let across = guest.read(Gpa::literal(RAM_LEN_BYTES - 1), &mut [0; 2]);
    assert!(
        matches!(across, Err(FlatError::OutOfBounds(_))),
        "{across:?}"
    );
    let overlapping = guest.add_ram(range(RAM_LEN_BYTES - 0x1000, 0x2000));
    assert!(
        matches!(overlapping, Err(FlatError::Vm(_))),
        "{overlapping:?}"
    );
    guest
        .add_ram(range(RAM_LEN_BYTES, 0x1000))
        .expect("next to the first");
}

#[test]
fn with_interrupt_controllers_a_halt_waits_inside() {
    let Some(kvm) = support::kvm() else { return };
    let mut guest = guest(&kvm, Irqchip::InKernel);
    let halted = collect(&mut guest, 0x80);
    // out 0x80, al; hlt
    start(&mut guest, &flat32(7, 0), &[0xE6, 0x80, 0xF4]);
    let interrupter = guest.interrupter();
    interrupter.enter();
    let other = std::thread::spawn({
        let (interrupter, halted) = (interrupter.clone(), halted.clone());
        move || {
            while halted.lock().expect("not poisoned").is_empty() {
                std::thread::sleep(Duration::from_millis(1));
            }
            // This thread is joined before the vCPU's thread leaves the test, so the signal finds it alive.
            interrupter.interrupt();
        }
    });
    assert_eq!(guest.run().expect("ran"), End::Exit(Exit::Interrupted));
    other.join().expect("the other thread ends");
    interrupter.leave();
}

#[test]
fn memory_keeps_clear_of_the_interrupt_controllers() {
    let Some(kvm) = support::kvm() else { return };
    for hole in IRQCHIP_HOLES {
        let mut with = guest(&kvm, Irqchip::InKernel);
        let result = with.add_ram(hole.range);
        assert!(
            matches!(result, Err(FlatError::Vm(VmError::Hole { .. }))),
            "{result:?}"
        );
        let mut without = guest(&kvm, Irqchip::None);
        without.add_ram(hole.range).expect("nothing is there");
    }
}

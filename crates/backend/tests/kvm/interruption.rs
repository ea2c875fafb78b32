//! Making a guest stop from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vellum_backend::{Exit, Protection, Vm};

use crate::support::{flat_state, guest, kvm, out_data, user_state};

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
fn an_interruption_survives_settling() {
    let Some(kvm) = kvm() else { return };
    // out 0xe0, eax; out 0xe0, eax
    let mut guest = guest(&kvm, &[0xE7, 0xE0, 0xE7, 0xE0], Protection::Write);
    flat_state().restore(&mut guest.vm).expect("restored");
    let interrupter = guest.vm.interrupter();
    interrupter.enter();
    out_data(guest.run());
    interrupter.interrupt();
    guest.vm.settle().expect("settled");
    assert_eq!(guest.run(), Exit::Interrupted);
    assert_eq!(guest.run(), Exit::Interrupted, "until it is withdrawn");
    interrupter.leave();
    assert_eq!(out_data(guest.run()), 40, "the next run is not hit");
}

#[test]
fn an_interrupter_outlives_its_vm() {
    let Some(kvm) = kvm() else { return };
    let guest = guest(&kvm, &[0xF4], Protection::Write);
    let interrupter = guest.vm.interrupter();
    drop(guest);
    interrupter.enter();
    interrupter.interrupt();
    interrupter.leave();
}

#[test]
fn repeated_interruptions_are_one() {
    let Some(kvm) = kvm() else { return };
    let mut guest = guest(&kvm, &[0xEB, 0xFE], Protection::Write);
    user_state().restore(&mut guest.vm).expect("restored");
    let interrupter = guest.vm.interrupter();
    let queued = || {
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
        let line = status
            .lines()
            .find(|line| line.starts_with("SigQ:"))
            .expect("a line");
        let number = line.trim_start_matches("SigQ:").trim().split('/').next();
        number
            .and_then(|number| number.parse::<u64>().ok())
            .expect("a number")
    };
    interrupter.enter();
    // Blocked, so that what was sent stays queued.
    vmm_sys_util::signal::block_signal(libc::SIGRTMIN()).expect("blocked");
    let before = queued();
    for _ in 0..1000 {
        interrupter.interrupt();
    }
    let after = queued();
    vmm_sys_util::signal::unblock_signal(libc::SIGRTMIN()).expect("unblocked");
    assert!(
        after <= before + 100,
        "{before} signals were queued, then {after}"
    );
    assert_eq!(guest.vm.run().expect("ran"), Exit::Interrupted);
    interrupter.leave();
}

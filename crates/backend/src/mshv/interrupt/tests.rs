#![expect(unsafe_code, reason = "sleeps")]
use std::sync::Arc;

use super::*;

#[test]
fn an_interruption_before_an_entry_prevents_it_until_it_is_withdrawn() {
    let interrupter = MshvInterrupter::new().expect("a handler");
    interrupter.enter();
    assert!(interrupter.entry().is_some());
    interrupter.interrupt();
    for _ in 0..2 {
        assert!(interrupter.entry().is_none());
    }
    interrupter.leave();
    assert!(interrupter.entry().is_some());
}

#[test]
fn an_interruption_is_repeated_until_the_thread_has_left() {
    let interrupter = Arc::new(MshvInterrupter::new().expect("a handler"));
    let (entered, is_entered) = std::sync::mpsc::channel();
    let vcpu = thread::spawn({
        let interrupter = interrupter.clone();
        move || {
            interrupter.enter();
            let entry = interrupter.entry().expect("nobody interrupted yet");
            entered.send(()).expect("somebody waits");
            let mut signals = 0;
            // Three signals end three sleeps; the first ones count as lost.
            while signals < 3 {
                let before = std::time::Instant::now();
                let hour = libc::timespec {
                    tv_sec: 3600,
                    tv_nsec: 0,
                };
                // SAFETY: the pointers are to a live value and null, which the call allows.
                let result = unsafe { libc::nanosleep(&raw const hour, std::ptr::null_mut()) };
                assert_eq!(result, -1, "slept {:?}", before.elapsed());
                signals += 1;
            }
            drop(entry);
        }
    });
    is_entered.recv().expect("it lives");
    interrupter.interrupt();
    vcpu.join().expect("it ended");
    interrupter.leave();
}

#[test]
fn a_thread_that_is_gone_is_not_signalled_for_ever() {
    let interrupter = Arc::new(MshvInterrupter::new().expect("a handler"));
    let vcpu = interrupter.clone();
    thread::spawn(move || {
        vcpu.enter();
        std::mem::forget(vcpu.entry());
    })
    .join()
    .expect("it ended");
    interrupter.interrupt();
}

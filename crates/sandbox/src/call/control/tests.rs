use std::sync::Arc;

use super::super::fake_interrupter::FakeInterrupter;
use super::{Control, StopReason};

fn control() -> (Arc<FakeInterrupter>, Arc<Control>) {
    let interrupter = Arc::new(FakeInterrupter::default());
    (interrupter.clone(), Control::new(interrupter))
}

#[test]
fn a_stop_of_the_current_call_interrupts_it_and_gives_its_reason() {
    let (interrupter, control) = control();
    let serial = control.arm();
    assert_eq!(control.reason(), None);
    control.stop(serial, StopReason::Cancelled);
    assert_eq!(control.reason(), Some(StopReason::Cancelled));
    control.disarm();
    assert_eq!(interrupter.events(), ["enter", "interrupt", "leave"]);
}

#[test]
fn the_first_reason_counts() {
    let (_, control) = control();
    let serial = control.arm();
    control.stop(serial, StopReason::DeadlineExceeded);
    control.stop(serial, StopReason::Cancelled);
    assert_eq!(control.reason(), Some(StopReason::DeadlineExceeded));
}

#[test]
fn a_stop_that_comes_after_its_call_does_nothing() {
    let (interrupter, control) = control();
    let first = control.arm();
    control.disarm();
    control.stop(first, StopReason::Cancelled);
    assert_eq!(control.reason(), None);
    let second = control.arm();
    assert_ne!(first, second);
    control.stop(first, StopReason::Cancelled);
    assert_eq!(control.reason(), None, "the next call is not its");
    control.disarm();
    assert_eq!(interrupter.events(), ["enter", "leave", "enter", "leave"]);
}

#[test]
fn a_stop_before_any_call_does_nothing() {
    let (interrupter, control) = control();
    for serial in [0, 1, u64::MAX] {
        control.stop(serial, StopReason::Cancelled);
    }
    assert_eq!(control.reason(), None);
    assert!(interrupter.events().is_empty());
}

#[test]
fn the_reason_does_not_outlive_its_call() {
    let (_, control) = control();
    let serial = control.arm();
    control.stop(serial, StopReason::Cancelled);
    control.disarm();
    // A call without options does not arm; were it interrupted now, it would ask for the reason.
    assert_eq!(control.reason(), None);
    control.arm();
    assert_eq!(control.reason(), None);
}

#[test]
fn a_stop_comes_from_any_thread() {
    let (interrupter, control) = control();
    let serial = control.arm();
    std::thread::scope(|scope| {
        scope.spawn(|| control.stop(serial, StopReason::Cancelled));
        interrupter.wait_for_interrupt();
    });
    assert_eq!(control.reason(), Some(StopReason::Cancelled));
}

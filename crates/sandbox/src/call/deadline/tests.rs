use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::fake_interrupter::FakeInterrupter;
use super::{Control, StopReason, lock, watch};

const HOUR: Duration = Duration::from_hours(1);

fn control() -> (Arc<FakeInterrupter>, Arc<Control>) {
    let interrupter = Arc::new(FakeInterrupter::default());
    (interrupter.clone(), Control::new(interrupter))
}

#[test]
fn a_call_is_stopped_when_its_time_has_come() {
    for _ in 0..3 {
        let (interrupter, control) = control();
        let serial = control.arm();
        let ticket = watch(Instant::now(), &control, serial);
        interrupter.wait_for_interrupt();
        assert_eq!(control.reason(), Some(StopReason::DeadlineExceeded));
        drop(ticket);
        control.disarm();
        assert_eq!(interrupter.events(), ["enter", "interrupt", "leave"]);
    }
}

#[test]
fn a_later_deadline_does_not_delay_an_earlier_one() {
    let (late, early) = (control(), control());
    let late_ticket = watch(Instant::now() + HOUR, &late.1, late.1.arm());
    let early_ticket = watch(Instant::now(), &early.1, early.1.arm());
    early.0.wait_for_interrupt();
    assert_eq!(late.0.events(), ["enter"]);
    drop((late_ticket, early_ticket));
}

#[test]
fn a_ticket_that_is_dropped_is_no_longer_watched() {
    let (_, control) = control();
    let ticket = watch(Instant::now() + HOUR, &control, control.arm());
    let key = ticket.key;
    assert!(lock().deadlines.contains_key(&key));
    drop(ticket);
    assert!(!lock().deadlines.contains_key(&key));
}

#[test]
fn deadlines_at_the_same_instant_are_kept_apart() {
    let (first, second) = (control(), control());
    let at = Instant::now();
    let tickets = (
        watch(at, &first.1, first.1.arm()),
        watch(at, &second.1, second.1.arm()),
    );
    first.0.wait_for_interrupt();
    second.0.wait_for_interrupt();
    drop(tickets);
}

#[test]
fn a_deadline_whose_sandbox_is_gone_harms_nobody() {
    let gone = control();
    let serial = gone.1.arm();
    let ticket = watch(Instant::now(), &gone.1, serial);
    drop(gone);
    let (interrupter, control) = control();
    let next = watch(Instant::now(), &control, control.arm());
    interrupter.wait_for_interrupt();
    drop((ticket, next));
}

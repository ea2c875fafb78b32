use std::sync::Arc;
use std::time::Duration;

use vellum_backend::Meter;

use super::super::fake_interrupter::FakeInterrupter;
use super::{CallOptions, CancelToken, Control, StopReason};
use crate::error::Failure;

fn control() -> (Arc<FakeInterrupter>, Arc<Control>) {
    let interrupter = Arc::new(FakeInterrupter::default());
    (interrupter.clone(), Control::new(interrupter))
}

#[test]
fn a_call_without_options_is_not_armed() {
    let (interrupter, control) = control();
    assert!(
        CallOptions::new()
            .begin(&control, || None)
            .expect("begun")
            .is_none()
    );
    assert!(interrupter.events().is_empty());
}

#[test]
fn a_token_stops_the_call_that_it_was_given_to() {
    let (interrupter, control) = control();
    let token = CancelToken::new();
    let options = CallOptions::new().cancel_token(&token);
    let guard = options.begin(&control, || None).expect("begun");
    assert_eq!(control.reason(), None);
    token.cancel();
    assert_eq!(control.reason(), Some(StopReason::Cancelled));
    drop(guard);
    assert_eq!(interrupter.events(), ["enter", "interrupt", "leave"]);
}

#[test]
fn a_cancelled_token_stops_a_call_before_it_begins() {
    let (interrupter, control) = control();
    let token = CancelToken::new();
    token.cancel();
    token.cancel();
    assert!(token.is_cancelled());
    let options = CallOptions::new()
        .timeout(Duration::from_hours(1))
        .cancel_token(&token);
    for _ in 0..2 {
        assert!(matches!(
            options.begin(&control, || None),
            Err(Failure::Cancelled)
        ));
    }
    assert_eq!(control.reason(), None);
    assert_eq!(interrupter.events(), ["enter", "leave", "enter", "leave"]);
}

#[test]
fn a_token_forgets_a_call_that_has_ended() {
    let (interrupter, control) = control();
    let token = CancelToken::new();
    let options = CallOptions::new().cancel_token(&token);
    drop(options.begin(&control, || None).expect("begun"));
    assert!(token.lock().calls.is_empty());
    let unrelated = CallOptions::new().cancel_token(&CancelToken::new());
    let guard = unrelated.begin(&control, || None).expect("begun");
    token.cancel();
    assert_eq!(control.reason(), None);
    drop(guard);
    assert!(!interrupter.events().contains(&"interrupt"));
}

#[test]
fn the_end_of_one_call_does_not_take_another_from_the_token() {
    let (first, second) = (control(), control());
    let token = CancelToken::new();
    let options = CallOptions::new().cancel_token(&token);
    // Both have serial number 1.
    let ended = options.begin(&first.1, || None).expect("begun");
    let running = options.begin(&second.1, || None).expect("begun");
    drop(ended);
    token.clone().cancel();
    assert_eq!(first.1.reason(), None);
    assert_eq!(second.1.reason(), Some(StopReason::Cancelled));
    drop(running);
}

#[test]
fn a_timeout_of_zero_stops_a_call_before_it_begins() {
    let (interrupter, control) = control();
    let token = CancelToken::new();
    let options = CallOptions::new()
        .timeout(Duration::ZERO)
        .cancel_token(&token);
    assert!(matches!(
        options.begin(&control, || None),
        Err(Failure::DeadlineExceeded)
    ));
    assert!(token.lock().calls.is_empty());
    assert_eq!(interrupter.events(), ["enter", "leave"]);
}

#[test]
fn a_timeout_that_no_clock_can_show_never_comes() {
    let (_, control) = control();
    let options = CallOptions::new().timeout(Duration::MAX);
    let guard = options.begin(&control, || None).expect("begun");
    assert!(guard.expect("armed").deadline.is_none());
}

#[test]
fn a_short_timeout_stops_the_call() {
    let (interrupter, control) = control();
    let options = CallOptions::new().timeout(Duration::from_nanos(1));
    let guard = options.begin(&control, || None).expect("begun");
    interrupter.wait_for_interrupt();
    assert_eq!(control.reason(), Some(StopReason::DeadlineExceeded));
    drop(guard);
}

/// A meter that remembers its limit.
#[derive(Default)]
struct Limited(Option<u64>);

impl Meter for Limited {
    fn executed(&self) -> u64 {
        0
    }

    fn limit(&mut self, instructions: Option<u64>) {
        self.0 = instructions;
    }

    fn trace_blocks(&mut self) {}

    fn traced_blocks(&self) -> Vec<u64> {
        Vec::new()
    }
}

#[test]
fn fuel_is_for_the_meter_or_else_a_time() {
    let options = CallOptions::new().fuel(5_000_000);
    let meter = Limited::default();
    assert_eq!(options.time(Some(&meter)), None);
    assert_eq!(options.time(None), Some(Duration::from_millis(5)));
    let sooner = options.clone().timeout(Duration::from_millis(2));
    assert_eq!(sooner.time(Some(&meter)), Some(Duration::from_millis(2)));
    assert_eq!(sooner.time(None), Some(Duration::from_millis(2)));
    let later = options.timeout(Duration::from_millis(9));
    assert_eq!(later.time(None), Some(Duration::from_millis(5)));
}

#[test]
fn a_call_that_does_not_begin_leaves_no_limit_behind() {
    let (control, token) = (control().1, CancelToken::new());
    let options = CallOptions::new().fuel(7).cancel_token(&token);
    let mut meter = Limited::default();
    drop(options.begin(&control, || Some(&mut meter)).expect("begun"));
    assert_eq!(meter.0, Some(7));
    meter.limit(None);
    token.cancel();
    assert!(options.begin(&control, || Some(&mut meter)).is_err());
    assert_eq!(meter.0, None);
}

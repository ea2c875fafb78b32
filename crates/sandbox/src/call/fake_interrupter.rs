//! An interrupter for tests: it remembers what it was asked to do.

use std::sync::{Condvar, Mutex};

use vellum_backend::Interrupter;

#[derive(Debug, Default)]
pub(super) struct FakeInterrupter {
    events: Mutex<Vec<&'static str>>,
    changed: Condvar,
}

impl FakeInterrupter {
    /// What it was asked to do, in order.
    pub(super) fn events(&self) -> Vec<&'static str> {
        self.events.lock().expect("no panic").clone()
    }

    /// Waits, for as long as it takes, until it was asked to interrupt.
    pub(super) fn wait_for_interrupt(&self) {
        let events = self.events.lock().expect("no panic");
        let interrupted = self
            .changed
            .wait_while(events, |events| !events.contains(&"interrupt"));
        drop(interrupted.expect("no panic"));
    }

    fn push(&self, event: &'static str) {
        self.events.lock().expect("no panic").push(event);
        self.changed.notify_all();
    }
}

impl Interrupter for FakeInterrupter {
    fn enter(&self) {
        self.push("enter");
    }

    fn leave(&self) {
        self.push("leave");
    }

    fn interrupt(&self) {
        self.push("interrupt");
    }
}

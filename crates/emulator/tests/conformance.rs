//! The suite that defines what an engine is, on the emulator.

use std::sync::{Arc, LazyLock};

use vellum_conformance::{Quirk, Subject};
use vellum_emulator::Emulator;

static SUBJECT: LazyLock<Subject> = LazyLock::new(open);

fn subject() -> &'static Subject {
    &SUBJECT
}

fn open() -> Subject {
    let emulator = Arc::new(Emulator::new());
    let mut subject = Subject::new(emulator).expect("a cpu model");
    for name in [
        "debug::a_data_breakpoint_is_hit",
        "debug::an_execution_breakpoint_is_hit",
        "debug::a_restored_guest_hits_no_breakpoint_of_another",
    ] {
        subject = subject.but(
            Quirk::NotHere(name),
            "debug registers are state, and no breakpoint fires",
        );
    }
    subject
}

vellum_conformance::conformance_tests!(crate::subject);

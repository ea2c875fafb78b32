//! The suite that defines what an engine is, on the emulator.

use std::sync::{Arc, LazyLock};

use vellum_conformance::Subject;
use vellum_emulator::Emulator;

static SUBJECT: LazyLock<Option<Subject>> = LazyLock::new(open);

fn subject() -> Option<&'static Subject> {
    SUBJECT.as_ref()
}

fn open() -> Option<Subject> {
    let emulator = Arc::new(Emulator::new());
    Some(Subject::new(emulator).expect("a cpu model"))
}

vellum_conformance::conformance_tests!(crate::subject);

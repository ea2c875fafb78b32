//! The suite of all engines over the MSHV backend, on the double of its device.

mod support;

use std::sync::LazyLock;

use vellum_conformance::Subject;

static SUBJECT: LazyLock<Subject> = LazyLock::new(|| support::subject("mshv-double"));

fn subject() -> &'static Subject {
    &SUBJECT
}

vellum_conformance::conformance_tests!(crate::subject);

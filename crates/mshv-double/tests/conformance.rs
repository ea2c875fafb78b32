//! The suite of all engines over the MSHV backend, on the double of its device.

mod double;
mod subject;

use std::sync::LazyLock;

use vellum_conformance::Subject;

static SUBJECT: LazyLock<Subject> = LazyLock::new(|| subject::subject("mshv-double"));

fn subject() -> &'static Subject {
    &SUBJECT
}

vellum_conformance::conformance_tests!(crate::subject);

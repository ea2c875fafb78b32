//! The suite on the machine's own `/dev/kvm`, or, where `VELLUM_ENGINE` asks for it, on its `/dev/mshv`. Without one every check says so.

use std::sync::{Arc, LazyLock};

use vellum_backend::Hypervisor;
use vellum_backend::kvm::{Kvm, OpenError};
use vellum_backend::mshv::{self, Mshv};
use vellum_conformance::{Quirk, Subject, on_kvm, over_mshv};

/// The environment variable that names the engine, as for the sandbox's tests.
const ENGINE_VARIABLE: &str = "VELLUM_ENGINE";

static SUBJECT: LazyLock<Subject> =
    LazyLock::new(|| match std::env::var(ENGINE_VARIABLE).as_deref() {
        Ok("mshv") => open_mshv(),
        _ => open_kvm(),
    });

fn subject() -> &'static Subject {
    &SUBJECT
}

fn open_kvm() -> Subject {
    match Kvm::open() {
        Ok(kvm) => on_kvm(subject_of(kvm)).but(
            Quirk::FetchIsEmulated,
            "KVM emulates an instruction that it cannot fetch, and fails; it tells ring 3 itself",
        ),
        Err(error @ (OpenError::Absent | OpenError::Permission)) => {
            Subject::absent("kvm", error.to_string())
        }
        Err(error) => panic!("{error:?}"),
    }
}

fn open_mshv() -> Subject {
    match Mshv::open() {
        Ok(mshv) => over_mshv(subject_of(mshv)).but(
            Quirk::ViolationsMayLoop,
            "Linux until 7.0 enters a guest again that writes to read-only memory",
        ),
        Err(error @ (mshv::OpenError::Absent | mshv::OpenError::Permission)) => {
            Subject::absent("mshv", error.to_string())
        }
        Err(error) => panic!("{error:?}"),
    }
}

fn subject_of(engine: impl Hypervisor + 'static) -> Subject {
    Subject::new(Arc::new(engine)).expect("a cpu model")
}

vellum_conformance::conformance_tests!(crate::subject);

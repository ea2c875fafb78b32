//! The suite on the machine's own `/dev/kvm`. Without one every check says so.

use std::sync::{Arc, LazyLock};

use vellum_backend::kvm::{Kvm, OpenError};
use vellum_conformance::{Quirk, Subject, on_kvm};

static SUBJECT: LazyLock<Subject> = LazyLock::new(open);

fn subject() -> &'static Subject {
    &SUBJECT
}

fn open() -> Subject {
    let kvm = match Kvm::open() {
        Ok(kvm) => kvm,
        Err(error @ (OpenError::Absent | OpenError::Permission)) => {
            return Subject::absent("kvm", error.to_string());
        }
        Err(error) => panic!("{error:?}"),
    };
    let subject = Subject::new(Arc::new(kvm)).expect("a cpu model");
    on_kvm(subject).but(
        Quirk::FetchIsEmulated,
        "KVM emulates an instruction that it cannot fetch, and fails; it tells ring 3 itself",
    )
}

vellum_conformance::conformance_tests!(crate::subject);

//! The suite of all engines over the MSHV backend, on the double of its device. The double runs its guests on the machine's own `/dev/kvm`, so
//! what that KVM cannot do is not here either.

use std::sync::{Arc, LazyLock};

use vellum_backend::Hypervisor;
use vellum_backend::mshv::Mshv;
use vellum_conformance::{Subject, on_kvm};

static SUBJECT: LazyLock<Subject> = LazyLock::new(open);

fn subject() -> &'static Subject {
    &SUBJECT
}

fn open() -> Subject {
    vellum_mshv_double::link();
    match Mshv::open() {
        Ok(mshv) => {
            let engine: Arc<dyn Hypervisor> = Arc::new(mshv);
            on_kvm(
                Subject::new(engine)
                    .expect("a cpu model")
                    .named("mshv-double"),
            )
        }
        Err(error) => Subject::absent("mshv-double", error.to_string()),
    }
}

vellum_conformance::conformance_tests!(crate::subject);

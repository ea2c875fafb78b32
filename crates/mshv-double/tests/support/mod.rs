//! The MSHV backend on the double, as an engine of the suite that every engine must pass.

use std::sync::Arc;

use vellum_backend::Hypervisor;
use vellum_backend::mshv::Mshv;
use vellum_conformance::{Subject, on_kvm, over_mshv};

/// The engine under a name, or why there is none. The double runs its guests on the machine's own `/dev/kvm`, so what that KVM cannot do is not
/// here either.
pub(crate) fn subject(name: &str) -> Subject {
    vellum_mshv_double::link();
    match Mshv::open() {
        Ok(mshv) => {
            let engine: Arc<dyn Hypervisor> = Arc::new(mshv);
            let subject = Subject::new(engine).expect("a cpu model").named(name);
            on_kvm(over_mshv(subject))
        }
        Err(error) => Subject::absent(name, error.to_string()),
    }
}

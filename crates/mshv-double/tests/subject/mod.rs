//! The MSHV backend on the double, as an engine of the suite that every engine must pass.

use std::sync::Arc;

use vellum_conformance::{Subject, on_kvm, over_mshv};

use crate::double;

/// The engine under a name, or why there is none. The double runs its guests on the machine's own `/dev/kvm`, so what that KVM cannot do is not
/// here either.
pub(crate) fn subject(name: &str) -> Subject {
    match double::open() {
        Ok(mshv) => {
            let subject = Subject::new(Arc::new(mshv)).expect("a cpu model");
            on_kvm(over_mshv(subject.named(name)))
        }
        Err(reason) => Subject::absent(name, reason),
    }
}

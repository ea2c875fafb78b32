//! The suite on the machine's own `/dev/kvm`. Without one every test says so and is skipped visibly.

use std::io::Write as _;
use std::sync::{Arc, LazyLock};

use vellum_backend::kvm::{Kvm, OpenError};
use vellum_backend::{Mmu, RingZero};
use vellum_conformance::{Quirk, Subject};

static SUBJECT: LazyLock<Option<Subject>> = LazyLock::new(open);

fn subject() -> Option<&'static Subject> {
    SUBJECT.as_ref()
}

fn open() -> Option<Subject> {
    let kvm = match Kvm::open() {
        Ok(kvm) => kvm,
        Err(error @ (OpenError::Absent | OpenError::Permission)) => {
            let _ = writeln!(std::io::stderr(), "SKIPPED on kvm: {error}");
            return None;
        }
        Err(error) => panic!("{error:?}"),
    };
    let capabilities = kvm.capabilities().clone();
    let mut subject = Subject::new(Arc::new(kvm)).expect("a cpu model");
    subject = subject.but(
        Quirk::FetchIsEmulated,
        "KVM emulates an instruction that it cannot fetch, and fails",
    );
    if capabilities.mmu == Mmu::Shadow {
        subject = subject.but(
            Quirk::DirtyMayIncludeReads,
            "a shadow MMU counts a page as written when it makes it writable, at whatever access",
        );
    }
    if capabilities.ring_zero == RingZero::Emulated {
        subject = on_pvm(subject);
    }
    Some(subject)
}

/// In what a KVM without hardware virtualization differs: it runs ring 3 as a process of the host's, and emulates ring 0.
fn on_pvm(subject: Subject) -> Subject {
    const CPUID: &str = "this host's KVM answers cpuid by itself, whatever the VM was given";
    const BREAKPOINTS: &str = "PVM does not load the guest's breakpoints";
    const INT_N: &str = "PVM raises #UD for int n of ring 3";
    subject
        .but(
            Quirk::IoplIgnored,
            "PVM decides on ports by the bitmap alone",
        )
        .but(
            Quirk::RingThreeSeesTheHost,
            "PVM runs ring 3 on the host's own segments and system flags",
        )
        .but(Quirk::NotHere("cpuid::flat_mode_sees_the_model"), CPUID)
        .but(Quirk::NotHere("cpuid::ring_zero_sees_the_model"), CPUID)
        .but(Quirk::NotHere("cpuid::ring_three_sees_the_model"), CPUID)
        .but(
            Quirk::NotHere("debug::an_execution_breakpoint_is_hit"),
            BREAKPOINTS,
        )
        .but(
            Quirk::NotHere("debug::a_data_breakpoint_is_hit"),
            BREAKPOINTS,
        )
        .but(
            Quirk::NotHere("debug::a_restored_guest_hits_no_breakpoint_of_another"),
            BREAKPOINTS,
        )
        .but(
            Quirk::NotHere("exceptions::a_closed_gate_refuses_ring_three"),
            INT_N,
        )
        .but(
            Quirk::NotHere("exceptions::a_software_interrupt_of_ring_three"),
            INT_N,
        )
}

vellum_conformance::conformance_tests!(crate::subject);

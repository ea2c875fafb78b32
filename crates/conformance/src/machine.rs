//! What the KVM of this machine does otherwise: a matter of the processor below it, so of every engine that runs its guests on it.

use std::arch::x86_64::__cpuid;

use vellum_backend::RingZero;

use crate::check::Need;
use crate::subject::{Quirk, Subject};

/// The same engine, with the known differences of this machine's KVM, on which it runs its guests.
#[must_use]
pub fn on_kvm(subject: Subject) -> Subject {
    let ring_zero = subject.ring_zero();
    let mut subject = subject.but(
        Quirk::DirtyMayIncludeReads,
        "KVM counts a page as written when it makes it writable, at whatever access",
    );
    if ring_zero == Some(RingZero::Emulated) {
        subject = on_pvm(subject);
    }
    if is_emulated_processor() {
        subject = on_tcg(subject);
    }
    subject
}

/// The same engine, with what the MSHV backend lacks on every machine.
#[must_use]
pub fn over_mshv(subject: Subject) -> Subject {
    subject
        .but(
            Quirk::Lacks(Need::MsrFilter),
            "MSHV cannot deny model-specific registers",
        )
        .but(
            Quirk::Lacks(Need::DirtyRing),
            "MSHV has no ring of first writes",
        )
}

/// In what a KVM without hardware virtualization differs: it runs ring 3 as a process of the host's, and emulates ring 0.
fn on_pvm(subject: Subject) -> Subject {
    const CPUID: &str = "this host's KVM answers cpuid by itself, whatever the VM was given";
    const BREAKPOINTS: &str = "PVM does not load the guest's breakpoints";
    const INT_N: &str = "PVM raises #UD for int n of ring 3";
    let not_here = [
        ("cpuid::flat_mode_sees_the_model", CPUID),
        ("cpuid::ring_zero_sees_the_model", CPUID),
        ("cpuid::ring_three_sees_the_model", CPUID),
        ("debug::an_execution_breakpoint_is_hit", BREAKPOINTS),
        ("debug::a_data_breakpoint_is_hit", BREAKPOINTS),
        (
            "debug::a_restored_guest_hits_no_breakpoint_of_another",
            BREAKPOINTS,
        ),
        ("exceptions::a_closed_gate_refuses_ring_three", INT_N),
        ("exceptions::a_software_interrupt_of_ring_three", INT_N),
    ];
    not_here
        .into_iter()
        .fold(subject, |subject, (check, reason)| {
            subject.but(Quirk::NotHere(check), reason)
        })
        .but(
            Quirk::IoplIgnored,
            "PVM decides on ports by the bitmap alone",
        )
        .but(
            Quirk::RingThreeSeesTheHost,
            "PVM runs ring 3 on the host's own segments and system flags",
        )
}

/// In what the processor that QEMU emulates is wrong.
fn on_tcg(subject: Subject) -> Subject {
    const BUSY_TSS: &str = "QEMU aborts when it takes a stack from a busy 32-bit TSS";
    const BREAKPOINTS: &str = "QEMU does not load the guest's breakpoints";
    const GATES: &str = "QEMU computes error codes of 64-bit gates wrongly";
    let not_here = [
        (
            "exceptions::an_undefined_instruction_in_flat_mode_ring_three",
            BUSY_TSS,
        ),
        ("halts::ring_three_may_not_halt_in_flat_mode", BUSY_TSS),
        ("debug::an_execution_breakpoint_is_hit", BREAKPOINTS),
        ("debug::a_data_breakpoint_is_hit", BREAKPOINTS),
        (
            "debug::a_restored_guest_hits_no_breakpoint_of_another",
            BREAKPOINTS,
        ),
        ("exceptions::a_closed_gate_refuses_ring_three", GATES),
        (
            "exceptions::a_fault_without_a_handler_is_a_double_fault",
            GATES,
        ),
        (
            "exceptions::a_stack_that_is_not_canonical",
            "QEMU raises #GP for #SS",
        ),
        (
            "vectors::an_unmasked_exception_is_raised",
            "QEMU raises no exceptions of SSE",
        ),
        (
            "vectors::ring_zero_writes_xcr0",
            "QEMU loses XCR0 between two runs",
        ),
    ];
    not_here
        .into_iter()
        .fold(subject, |subject, (check, reason)| {
            subject.but(Quirk::NotHere(check), reason)
        })
        .but(
            Quirk::BitmapIgnored,
            "QEMU takes no I/O bitmap from a busy TSS",
        )
}

/// Whether this machine's processor is QEMU's TCG, which says so in the hypervisor leaf.
fn is_emulated_processor() -> bool {
    let leaf = __cpuid(0x4000_0000);
    let name: Vec<u8> = [leaf.ebx, leaf.ecx, leaf.edx]
        .iter()
        .flat_map(|register| register.to_le_bytes())
        .collect();
    name == b"TCGTCGTCGTCG"
}

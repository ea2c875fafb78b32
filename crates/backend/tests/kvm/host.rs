//! What this host offers.

use vellum_backend::kvm::Kvm;
use vellum_backend::{Mmu, RingZero};

use crate::support::kvm;

#[test]
fn the_probe_agrees_with_itself() {
    let Some(kvm) = kvm() else { return };
    let again = Kvm::open().expect("opens twice");
    assert_eq!(kvm.capabilities(), again.capabilities());
    let capabilities = kvm.capabilities();
    if capabilities.ring_zero == RingZero::Emulated {
        assert_eq!(
            capabilities.mmu,
            Mmu::Shadow,
            "no software hypervisor walks nested tables"
        );
    }
    if capabilities.ring_zero == RingZero::Native {
        assert!(
            capabilities.two_level_paging,
            "a processor knows every format of page tables"
        );
    }
}

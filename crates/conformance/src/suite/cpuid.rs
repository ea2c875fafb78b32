//! What `cpuid` shows.

use crate::failure::{Result, ensure, ensure_eq};
use crate::guest::guest;
use crate::rig::{Mode, Rig};
use crate::subject::Subject;

guest!(ASK, 64, "cpuid", "out 0xe0, eax");
guest!(ASK32, 32, "cpuid", "out 0xe0, eax");

/// Bits that change with the vCPU's state: OSXSAVE in ECX of leaf 1 and the APIC's presence in EDX, and the local APIC's number in EBX
/// (Intel SDM volume 2, `CPUID`).
const LEAF1_ECX_DYNAMIC: u32 = 1 << 27;
const LEAF1_EDX_DYNAMIC: u32 = 1 << 9;
const LEAF1_EBX_DYNAMIC: u32 = 0xFF00_0000;

fn shows_the_model(subject: &Subject, mode: Mode) -> Result {
    let guest = if mode.is_long() { ASK } else { ASK32 };
    let mut rig = Rig::new(subject, mode, &guest)?;
    for leaf in subject.model().leaves.clone() {
        // EBX of leaf 0Dh is the size of what XCR0 enables, and subleaf 1 depends on more.
        if leaf.leaf == 0xD {
            continue;
        }
        rig.start_with(|state| {
            state.general.rax = leaf.leaf.into();
            state.general.rcx = leaf.subleaf.unwrap_or(0).into();
        })?;
        rig.result()?;
        let general = rig.settled()?.general;
        let [mut ebx_mask, mut ecx_mask, mut edx_mask] = [u32::MAX; 3];
        if leaf.leaf == 1 {
            ebx_mask = !LEAF1_EBX_DYNAMIC;
            ecx_mask = !LEAF1_ECX_DYNAMIC;
            edx_mask = !LEAF1_EDX_DYNAMIC;
        }
        let register = |value: u64, mask: u32| value & u64::from(mask);
        ensure_eq!(
            [
                general.rax,
                register(general.rbx, ebx_mask),
                register(general.rcx, ecx_mask),
                register(general.rdx, edx_mask),
            ],
            [
                u64::from(leaf.eax),
                u64::from(leaf.ebx & ebx_mask),
                u64::from(leaf.ecx & ecx_mask),
                u64::from(leaf.edx & edx_mask),
            ],
            "leaf {:#x}.{:?}",
            leaf.leaf,
            leaf.subleaf
        );
    }
    Ok(())
}

pub(crate) fn ring_zero_sees_the_model(subject: &Subject) -> Result {
    shows_the_model(subject, Mode::Kernel)
}

pub(crate) fn flat_mode_sees_the_model(subject: &Subject) -> Result {
    shows_the_model(subject, Mode::Flat)
}

pub(crate) fn ring_three_sees_the_model(subject: &Subject) -> Result {
    shows_the_model(subject, Mode::User)
}

/// OSXSAVE shows what the guest's CR4 says.
pub(crate) fn osxsave_follows_cr4(subject: &Subject) -> Result {
    use vellum_backend::state::cr4;
    let mut rig = Rig::new(subject, Mode::Kernel, &ASK)?;
    for osxsave in [cr4::OSXSAVE, 0] {
        rig.start_with(|state| {
            state.general.rax = 1;
            state.special.cr4 = state.special.cr4 & !cr4::OSXSAVE | osxsave;
        })?;
        rig.result()?;
        let ecx = rig.settled()?.general.rcx;
        ensure_eq!(
            ecx & u64::from(LEAF1_ECX_DYNAMIC) != 0,
            osxsave != 0,
            "OSXSAVE"
        );
    }
    Ok(())
}

/// The model promises nothing whose state would not be saved, and tells of the hypervisor.
pub(crate) fn the_model_is_what_a_snapshot_can_hold(subject: &Subject) -> Result {
    let model = subject.model();
    let leaf = |number| model.leaves.iter().find(|leaf| leaf.leaf == number);
    let first = leaf(1).ok_or_else(|| crate::failure::Failure::new("no leaf 1"))?;
    ensure!(first.ecx & 1 << 31 != 0, "no hypervisor bit: {first:x?}");
    // VMX and x2APIC; SVM in leaf 8000_0001.
    ensure!(first.ecx & (1 << 5 | 1 << 21) == 0, "{first:x?}");
    let extended = leaf(0x8000_0001);
    ensure!(
        extended.is_none_or(|leaf| leaf.ecx & 1 << 2 == 0),
        "{extended:x?}"
    );
    ensure!(model.xcr0.0 & !7 == 0, "xcr0 {:#x}", model.xcr0.0);
    Ok(())
}

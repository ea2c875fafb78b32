//! vCPU state that is written, read, kept across runs, and left behind by nobody.

mod random;

use std::cell::RefCell;
use std::fmt::Debug;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use vellum_backend::state::{SegmentType, XsaveArea, cr0, cr4, efer};
use vellum_backend::{StateGroup, VcpuState, VmError, msr};

use self::random::{effective, group_difference};
use crate::failure::{Failure, Result, ensure, ensure_eq};
use crate::guest::guest;
use crate::rig::{CODE, DATA, Mode, Rig};
use crate::subject::Subject;

/// Holds for `cases` values of a strategy. The values are the same each time.
pub(crate) fn checked<T: Debug>(
    cases: u32,
    strategy: &impl Strategy<Value = T>,
    check: impl FnMut(T) -> Result,
) -> Result {
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let check = RefCell::new(check);
    TestRunner::new_with_rng(config, rng)
        .run(strategy, |value| {
            (check.borrow_mut())(value).map_err(|failure| TestCaseError::fail(failure.to_string()))
        })
        .map_err(|error| Failure::new(error.to_string()))
}

guest!(OUT, 64, "out 0x21, al", "out 0x21, al");
guest!(OUT32, 32, "out 0x21, al", "out 0x21, al");

/// The groups in which two states differ as the guest sees them. Whether a component in its initial configuration is marked as such in a
/// save area is the processor's choice, and may change from one reading to the next.
fn changed_groups(read: &VcpuState, wanted: &VcpuState) -> Vec<StateGroup> {
    StateGroup::ALL
        .into_iter()
        .filter(|group| group_difference(*group, read, wanted).is_some())
        .collect()
}

/// Every group of a state reads back as it was written, and what was read back is a fixed point.
fn round_trips(subject: &Subject, mode: Mode) -> Result {
    let mut rig = Rig::new(subject, mode, &OUT)?;
    let strategy = random::states(rig.boot_state(), subject.model().xcr0);
    checked(48, &strategy, |wanted| {
        rig.start(&wanted)?;
        let read = rig.settled()?;
        for group in StateGroup::ALL {
            if let Some(difference) = group_difference(group, &read, &wanted) {
                return Err(Failure::new(difference));
            }
        }
        rig.start(&read)?;
        let again = rig.settled()?;
        let moved = changed_groups(&again, &read);
        ensure_eq!(
            moved,
            [],
            "groups that changed when what was read was written"
        );
        Ok(())
    })
}

pub(crate) fn a_random_state_round_trips_in_real_mode(subject: &Subject) -> Result {
    round_trips(subject, Mode::Real)
}
pub(crate) fn a_random_state_round_trips_in_flat_mode(subject: &Subject) -> Result {
    round_trips(subject, Mode::Flat)
}
pub(crate) fn a_random_state_round_trips_in_paged_mode(subject: &Subject) -> Result {
    round_trips(subject, Mode::Paged)
}
pub(crate) fn a_random_state_round_trips_in_long_mode(subject: &Subject) -> Result {
    round_trips(subject, Mode::Kernel)
}
pub(crate) fn a_random_state_round_trips_in_long_mode_ring_three(subject: &Subject) -> Result {
    round_trips(subject, Mode::User)
}

/// A run that executes one output changes the instruction pointer and nothing else.
fn survives_a_run(subject: &Subject, mode: Mode) -> Result {
    let guest = if mode.is_long() { OUT } else { OUT32 };
    let mut rig = Rig::new(subject, mode, &guest)?;
    let strategy = random::runnable_states(rig.boot_state(), subject.model().xcr0);
    checked(32, &strategy, |wanted| {
        rig.start(&wanted)?;
        let before = rig.settled()?;
        let exit = rig.run()?;
        ensure!(
            matches!(exit, vellum_backend::Exit::IoOut { port: 0x21, .. }),
            "{exit:?}"
        );
        let mut after = rig.settled()?;
        ensure_eq!(after.general.rip, CODE + 2, "instruction pointer");
        after.general.rip = before.general.rip;
        for group in StateGroup::ALL {
            if let Some(difference) = group_difference(group, &after, &before) {
                return Err(Failure::new(difference).within("after the run"));
            }
        }
        Ok(())
    })
}

pub(crate) fn a_random_state_survives_a_run_in_flat_mode(subject: &Subject) -> Result {
    survives_a_run(subject, Mode::Flat)
}
pub(crate) fn a_random_state_survives_a_run_in_long_mode(subject: &Subject) -> Result {
    survives_a_run(subject, Mode::Kernel)
}
pub(crate) fn a_random_state_survives_a_run_in_long_mode_ring_three(subject: &Subject) -> Result {
    survives_a_run(subject, Mode::User)
}

/// Writing one group leaves the others alone.
pub(crate) fn groups_are_independent(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &OUT)?;
    let one = rig.settled()?;
    let strategy = random::states(rig.boot_state(), subject.model().xcr0);
    checked(16, &strategy, |other| {
        for group in StateGroup::ALL {
            // Components that XCR0 does not enable are another matter.
            if matches!(group, StateGroup::Xcr0 | StateGroup::Events) {
                continue;
            }
            rig.start(&one)?;
            other.restore_groups(rig.vm.as_mut(), [group])?;
            let read = rig.settled()?;
            for changed in StateGroup::ALL {
                let expected = if changed == group { &other } else { &one };
                if let Some(difference) = group_difference(changed, &read, expected) {
                    return Err(Failure::new(difference).within(format!("writing {group:?}")));
                }
            }
        }
        Ok(())
    })
}

/// A boot state wipes out whatever another state held.
pub(crate) fn a_boot_state_leaves_nothing_behind(subject: &Subject) -> Result {
    for mode in [Mode::Flat, Mode::Kernel, Mode::User] {
        let mut rig = Rig::new(subject, mode, &OUT)?;
        let fresh = rig.settled()?;
        let boot = rig.boot_state();
        let strategy = random::states(boot.clone(), subject.model().xcr0);
        checked(8, &strategy, |dirty| {
            rig.start(&dirty)?;
            rig.start(&boot)?;
            let read = rig.settled()?;
            let left = changed_groups(&read, &fresh);
            ensure_eq!(left, [], "groups that kept something in {mode:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// What was written is read back before any run, and the last writer wins.
pub(crate) fn the_last_write_counts(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &OUT)?;
    let mut state = rig.boot_state();
    for value in 1..=3 {
        state.general.r15 = value;
        state.special.cr2 = value << 12;
        rig.vm.set_state(StateGroup::General, &state)?;
        rig.vm.set_state(StateGroup::Special, &state)?;
        let mut read = VcpuState::default();
        read.save_groups(rig.vm.as_mut(), [StateGroup::General, StateGroup::Special])?;
        ensure_eq!(
            (read.general.r15, read.special.cr2),
            (value, value << 12),
            "r15 and cr2 before a run"
        );
    }
    rig.run()?;
    let after = rig.settled()?;
    ensure_eq!(
        (after.general.r15, after.special.cr2),
        (3, 3 << 12),
        "r15 and cr2 after a run"
    );
    Ok(())
}

guest!(
    STATE_COUNT,
    64,
    "2:",
    "out 0xe0, eax",
    "add eax, ebx",
    "movd xmm0, eax",
    "mov [0x10000], eax",
    "jmp 2b",
);

/// A state that one VM saved goes on in another one, as if nothing had happened.
pub(crate) fn a_saved_state_goes_on_in_another_vm(subject: &Subject) -> Result {
    let mut first = Rig::new(subject, Mode::User, &STATE_COUNT)?;
    first.start_with(|state| state.general.rbx = 3)?;
    for expected in [0, 3, 6] {
        let got = first.result()?;
        ensure_eq!(got, expected, "in the first vm");
    }
    let saved = first.settled()?;
    let mut second = Rig::new(subject, Mode::User, &STATE_COUNT)?;
    for _ in 0..2 {
        second.start(&saved)?;
        for expected in [9, 12] {
            let got = second.result()?;
            ensure_eq!(got, expected, "in the second vm");
        }
    }
    let got = first.result()?;
    ensure_eq!(got, 9, "the first vm goes on as well");
    Ok(())
}

/// An output before a snapshot is not repeated after it.
pub(crate) fn a_restored_guest_repeats_nothing(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &STATE_COUNT)?;
    rig.start_with(|state| state.general.rbx = 1)?;
    rig.result()?;
    let saved = rig.settled()?;
    for _ in 0..3 {
        let got = rig.result()?;
        ensure_eq!(got, 1, "after the snapshot");
        rig.result()?;
        rig.start(&saved)?;
    }
    Ok(())
}

guest!(
    SPOIL,
    64,
    // whatever ring 3 may change
    "mov eax, 0x1B",
    "mov ds, eax",
    "xor eax, eax",
    "mov es, eax",
    "mov fs, eax",
    "mov gs, eax",
    "movq xmm7, rsp",
    "fld1",
    "mov dword ptr [0x10000], 0x1FC0",
    "ldmxcsr [0x10000]",
    "std",
    "mov r15, -1",
    "mov rbp, rsp",
    "push rax",
    "out 0xe0, eax",
    "mov eax, [0x200000]",
);

/// What ring 3 can change lies in the groups that say so.
pub(crate) fn ring_three_changes_no_other_groups(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &SPOIL)?;
    let before = rig.settled()?;
    rig.result()?;
    // A page fault, whose handler would change more: its exit is not waited for.
    let spoilt = rig.settled()?;
    let changed = changed_groups(&spoilt, &before);
    for group in &changed {
        ensure!(
            StateGroup::REACHABLE_FROM_RING_THREE.contains(group),
            "ring 3 changed {group:?}"
        );
    }
    before.restore_groups(rig.vm.as_mut(), StateGroup::REACHABLE_FROM_RING_THREE)?;
    let read = rig.settled()?;
    let left = changed_groups(&read, &before);
    ensure_eq!(left, [], "groups that a restore of those left changed");
    Ok(())
}

/// Special registers that Hyper-V would refuse are refused by every engine, and change nothing.
pub(crate) fn what_hyper_v_refuses_is_refused(subject: &Subject) -> Result {
    type Change = fn(&mut VcpuState);
    let changes: [(&str, Change); 14] = [
        ("ET", |s| s.special.cr0 &= !cr0::ET),
        ("NW without CD", |s| s.special.cr0 |= cr0::NW),
        ("PG without PE", |s| s.special.cr0 &= !cr0::PE),
        ("cr0 bit 32", |s| s.special.cr0 |= 1 << 32),
        ("VMXE", |s| s.special.cr4 |= cr4::VMXE),
        ("cr4 bit 32", |s| s.special.cr4 |= 1 << 32),
        ("efer bit 1", |s| s.special.efer |= 2),
        ("LMA without LME", |s| s.special.efer &= !efer::LME),
        ("cr3 bit 60", |s| s.special.cr3 |= 1 << 60),
        ("no PAE", |s| s.special.cr4 &= !cr4::PAE),
        ("no TR", |s| {
            s.special.tr.attributes = SegmentType::default();
        }),
        ("data in CS", |s| {
            s.special.cs.attributes = s.special.ds.attributes;
        }),
        ("fs base", |s| s.special.fs.base = 1 << 48),
        ("gdtr base", |s| s.special.gdtr.base = 1 << 63),
    ];
    let mut rig = Rig::new(subject, Mode::User, &OUT)?;
    let before = rig.settled()?;
    for (name, change) in changes {
        let mut state = rig.boot_state();
        change(&mut state);
        let result = rig.vm.set_state(StateGroup::Special, &state);
        ensure!(
            matches!(result, Err(VmError::InvalidState(_))),
            "{name}: {result:?}"
        );
        let after = rig.settled()?;
        let changed = changed_groups(&after, &before);
        ensure_eq!(changed, [], "groups after {name} was refused");
    }
    rig.expect_usable()
}

/// States that no rule of Vellum's forbids but no processor takes end in an error or an exit. The VM takes a good state afterwards.
pub(crate) fn states_that_a_processor_refuses_are_survived(subject: &Subject) -> Result {
    type Change = fn(&mut VcpuState);
    let changes: [(&str, Change); 14] = [
        ("SS absent", |s| {
            s.special.ss.attributes = SegmentType::default();
        }),
        ("rip not canonical", |s| s.general.rip = 1 << 62),
        ("virtual-8086 mode", |s| s.general.rflags |= 1 << 17),
        ("reserved flags", |s| s.general.rflags |= 1 << 63 | 1 << 3),
        ("flag 1 clear", |s| s.general.rflags = 0),
        ("gdtr limit", |s| s.special.gdtr.limit = 0),
        ("tr limit", |s| s.special.tr.limit = 0),
        ("cr3 in no memory", |s| s.special.cr3 = 0x7F_FFFF_F000),
        ("XCR0 without x87", |s| s.xcr0.0 = 6),
        ("XCR0 of nothing", |s| s.xcr0.0 = 1 << 60 | 1),
        ("dr7 upper half", |s| s.debug.dr7 = 1 << 40),
        ("mxcsr", |s| s.xsave = with_u32(&s.xsave, 24, 0xFFFF_0000)),
        ("xstate_bv", |s| s.xsave = with_u32(&s.xsave, 516, 1 << 30)),
        ("lstar", |s| {
            s.msrs.set(msr::IA32_LSTAR, 1 << 62);
        }),
    ];
    for mode in [Mode::User, Mode::Flat] {
        let guest = if mode.is_long() { OUT } else { OUT32 };
        for (name, change) in changes {
            let mut rig = Rig::new(subject, mode, &guest)?;
            let mut state = rig.boot_state();
            change(&mut state);
            // Refused now, refused by the run, or run somehow. What counts is that it ends, be it by an interruption.
            if rig.start(&state).is_ok() {
                let _ = rig.run_briefly();
            }
            rig.load(&guest)?;
            rig.expect_usable()
                .map_err(|failure| failure.within(format!("{name} in {mode:?}")))?;
        }
    }
    Ok(())
}

fn with_u32(area: &XsaveArea, offset: usize, value: u32) -> XsaveArea {
    let mut bytes = *area.as_bytes();
    bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    XsaveArea::from_bytes(bytes)
}

/// Settling twice, before the first run, after a restore: it completes what is undone and does nothing else.
pub(crate) fn settling_is_idempotent(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &STATE_COUNT)?;
    for _ in 0..3 {
        rig.vm.settle()?;
    }
    rig.expect_rip(0)?;
    rig.result()?;
    let once = rig.settled()?;
    for _ in 0..3 {
        rig.vm.settle()?;
    }
    let again = rig.settled()?;
    ensure_eq!(
        changed_groups(&again, &once).len(),
        0,
        "groups that settling changed"
    );
    ensure_eq!(again.general.rip, CODE + 2, "instruction pointer");
    Ok(())
}

guest!(SHADOW, 64, "mov rax, [rbx]", "out 0xe0, eax");

/// An exception that was raised but not delivered is part of the state: it is delivered first thing after a restore.
pub(crate) fn a_pending_exception_is_delivered(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &SHADOW)?;
    for (vector, error_code) in [(6, None), (13, Some(0x18)), (14, Some(7))] {
        rig.start_with(|state| {
            state.general.rbx = DATA;
            state.events.exception = Some((vector, error_code));
        })?;
        let exception = rig.exception()?;
        ensure_eq!(
            (exception.vector, exception.error_code, exception.rip),
            (vector, error_code.map(u64::from), CODE),
            "the exception"
        );
    }
    // And gone afterwards.
    rig.start_with(|state| state.general.rbx = DATA)?;
    rig.result()?;
    Ok(())
}

/// The vector state that the guest gets at boot is the one of a reset.
pub(crate) fn vector_state_is_clean_at_boot(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &OUT)?;
    let read = rig.settled()?;
    ensure_eq!(
        effective(&read.xsave),
        effective(&XsaveArea::reset()),
        "vector state"
    );
    Ok(())
}

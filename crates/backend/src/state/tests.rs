//! The list of state groups, against a VM that only remembers.

use std::sync::Arc;

use vellum_layout::{Gpa, GpaRange};

use super::*;
use crate::memory::Hva;
use crate::msr;
use crate::vm::{Capabilities, Exit, Interrupter, Mmu, Protection, RingZero};

/// What was done to a [`RecordingVm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Settled,
    Read(StateGroup),
    Written(StateGroup),
}

/// A VM that holds a state, keeps a record, and refuses one group if told to.
struct RecordingVm {
    state: VcpuState,
    record: Vec<Step>,
    refused: Option<StateGroup>,
    capabilities: Capabilities,
}

impl RecordingVm {
    fn new(state: VcpuState) -> Self {
        Self {
            state,
            record: Vec::new(),
            refused: None,
            capabilities: Capabilities {
                mmu: Mmu::Nested,
                ring_zero: RingZero::Native,
                sync_regs: false,
                dirty_ring_pages: 0,
                read_only_memory: false,
                msr_filter: false,
                msr_reset: false,
                host_discard: false,
                two_level_paging: false,
                instruction_counts: false,
            },
        }
    }

    fn access(&mut self, step: Step, group: StateGroup) -> Result<(), VmError> {
        self.record.push(step);
        if self.refused == Some(group) {
            return Err(VmError::NoPendingInput);
        }
        Ok(())
    }

    fn written(&self) -> Vec<StateGroup> {
        let group_of = |step: &Step| match step {
            Step::Written(group) => Some(*group),
            Step::Settled | Step::Read(_) => None,
        };
        self.record.iter().filter_map(group_of).collect()
    }
}

fn copy(group: StateGroup, from: &VcpuState, to: &mut VcpuState) {
    match group {
        StateGroup::General => to.general = from.general,
        StateGroup::Special => to.special = from.special,
        StateGroup::Xsave => to.xsave = from.xsave.clone(),
        StateGroup::Xcr0 => to.xcr0 = from.xcr0,
        StateGroup::Debug => to.debug = from.debug,
        StateGroup::Msrs => to.msrs = from.msrs,
        StateGroup::Events => to.events = from.events,
    }
}

#[expect(unsafe_code, reason = "the trait has an unsafe method")]
impl Vm for RecordingVm {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    unsafe fn map(&mut self, _: GpaRange, _: Hva, _: Protection) -> Result<(), VmError> {
        unreachable!("no test maps memory")
    }

    fn unmap(&mut self, _: GpaRange) -> Result<(), VmError> {
        unreachable!("no test maps memory")
    }

    fn run(&mut self) -> Result<Exit, VmError> {
        unreachable!("no test runs a guest")
    }

    fn complete_io_in(&mut self, _: u32) -> Result<(), VmError> {
        unreachable!("no test runs a guest")
    }

    fn settle(&mut self) -> Result<(), VmError> {
        self.record.push(Step::Settled);
        Ok(())
    }

    fn get_state(&mut self, group: StateGroup, state: &mut VcpuState) -> Result<(), VmError> {
        self.access(Step::Read(group), group)?;
        copy(group, &self.state, state);
        Ok(())
    }

    fn set_state(&mut self, group: StateGroup, state: &VcpuState) -> Result<(), VmError> {
        self.access(Step::Written(group), group)?;
        copy(group, state, &mut self.state);
        Ok(())
    }

    fn interrupter(&self) -> Arc<dyn Interrupter> {
        unreachable!("no test interrupts")
    }

    fn rearm_dirty(&mut self) -> Result<(), VmError> {
        unreachable!("not part of saving and restoring")
    }

    fn take_dirty(&mut self, _: &mut dyn FnMut(Gpa)) -> Result<(), VmError> {
        unreachable!("no test writes memory")
    }

    fn publish_tables(&mut self) -> Result<(), VmError> {
        unreachable!("no test has page tables")
    }

    fn publish_remap(&mut self, _: GpaRange) -> Result<(), VmError> {
        unreachable!("no test has page tables")
    }
}

/// The default state with one change in `group`.
fn changed_in(group: StateGroup) -> VcpuState {
    let mut state = VcpuState::default();
    match group {
        StateGroup::General => state.general.r15 = 1,
        StateGroup::Special => state.special.cr2 = 0x1000,
        StateGroup::Xsave => {
            let mut bytes = *state.xsave.as_bytes();
            bytes[XSAVE_LEN_BYTES - 1] = 1;
            state.xsave = XsaveArea::from_bytes(bytes);
        }
        StateGroup::Xcr0 => state.xcr0 = Xcr0(7),
        StateGroup::Debug => state.debug.dr[3] = 1,
        StateGroup::Msrs => assert!(state.msrs.set(msr::IA32_KERNEL_GS_BASE, 1)),
        StateGroup::Events => state.events.nmi_masked = true,
    }
    state
}

fn changed_everywhere() -> VcpuState {
    let mut state = VcpuState::default();
    for group in StateGroup::ALL {
        copy(group, &changed_in(group), &mut state);
    }
    state
}

#[test]
fn every_group_is_listed_once() {
    for group in StateGroup::ALL {
        let times = StateGroup::ALL
            .iter()
            .filter(|other| **other == group)
            .count();
        assert_eq!(times, 1, "{group:?}");
    }
    let fields = changed_everywhere();
    assert_eq!(
        fields.differences(&VcpuState::default()).count(),
        StateGroup::ALL.len(),
        "each group has a field of its own"
    );
}

#[test]
fn a_save_settles_first_and_reads_every_group() {
    let mut vm = RecordingVm::new(changed_everywhere());
    assert_eq!(
        VcpuState::save(&mut vm).expect("saved"),
        changed_everywhere()
    );
    let expected: Vec<Step> = std::iter::once(Step::Settled)
        .chain(StateGroup::ALL.map(Step::Read))
        .collect();
    assert_eq!(vm.record, expected);
}

#[test]
fn a_restore_settles_first_and_writes_every_group_in_order() {
    let mut vm = RecordingVm::new(VcpuState::default());
    changed_everywhere().restore(&mut vm).expect("restored");
    assert_eq!(vm.state, changed_everywhere());
    let expected: Vec<Step> = std::iter::once(Step::Settled)
        .chain(StateGroup::ALL.map(Step::Written))
        .collect();
    assert_eq!(vm.record, expected);
}

#[test]
fn special_registers_and_xcr0_are_written_before_what_depends_on_them() {
    let place = |wanted| StateGroup::ALL.iter().position(|group| *group == wanted);
    assert_eq!(place(StateGroup::Special), Some(0));
    assert!(place(StateGroup::Xcr0) < place(StateGroup::Xsave));
}

#[test]
fn a_difference_is_found_in_its_group_and_no_other() {
    for group in StateGroup::ALL {
        let (changed, default) = (changed_in(group), VcpuState::default());
        assert_eq!(changed.differences(&default).collect::<Vec<_>>(), [group]);
        assert_eq!(default.differences(&changed).collect::<Vec<_>>(), [group]);
        assert_eq!(changed.differences(&changed.clone()).count(), 0);
    }
}

#[test]
fn a_partial_restore_writes_its_groups_and_no_other() {
    for first in StateGroup::ALL {
        for second in StateGroup::ALL {
            let mut vm = RecordingVm::new(VcpuState::default());
            changed_everywhere()
                .restore_groups(&mut vm, [first, second])
                .expect("restored");
            assert_eq!(vm.written(), [first, second]);
            let differences: Vec<_> = vm.state.differences(&VcpuState::default()).collect();
            assert!(
                differences
                    .iter()
                    .all(|group| [first, second].contains(group))
            );
            assert!(differences.contains(&first) && differences.contains(&second));
        }
    }
}

#[test]
fn a_partial_save_reads_its_groups_and_no_other() {
    for group in StateGroup::ALL {
        let mut vm = RecordingVm::new(changed_everywhere());
        let mut saved = VcpuState::default();
        saved.save_groups(&mut vm, [group]).expect("saved");
        assert_eq!(saved, changed_in(group));
        assert_eq!(vm.record, [Step::Read(group)]);
    }
}

#[test]
fn what_ring_three_reaches_is_restored_in_the_order_of_all_groups() {
    let reachable = StateGroup::REACHABLE_FROM_RING_THREE;
    let in_order: Vec<_> = StateGroup::ALL
        .into_iter()
        .filter(|group| reachable.contains(group))
        .collect();
    assert_eq!(reachable.as_slice(), in_order);
}

#[test]
fn a_refused_group_ends_save_and_restore() {
    for (index, group) in StateGroup::ALL.into_iter().enumerate() {
        let mut vm = RecordingVm::new(VcpuState::default());
        vm.refused = Some(group);
        assert!(VcpuState::save(&mut vm).is_err(), "{group:?}");
        assert_eq!(vm.record.len(), 1 + index + 1, "{group:?}");
        assert!(changed_everywhere().restore(&mut vm).is_err(), "{group:?}");
        assert_eq!(vm.written(), StateGroup::ALL[..=index], "{group:?}");
    }
}

#[test]
fn registers_default_to_zero_or_their_fixed_values() {
    let state = VcpuState::default();
    assert_eq!(state.general.rflags, rflags::FIXED);
    assert_eq!(state.special.cr0, cr0::ET);
    assert_eq!(state.special.tr.attributes, SegmentType::TSS_BUSY);
    assert_eq!((state.debug.dr6, state.debug.dr7), (0xFFFF_0FF0, 0x400));
    assert_eq!(state.xcr0, Xcr0(1));
    assert!(state.msrs.iter().all(|msr| msr.value == 0));
}

#[test]
fn the_reset_vector_state_is_that_of_fninit() {
    let area = XsaveArea::reset();
    let bytes = area.as_bytes();
    assert_eq!(bytes[..2], 0x037F_u16.to_le_bytes());
    assert_eq!(bytes[24..28], 0x1F80_u32.to_le_bytes());
    assert_eq!(area.xstate_bv(), 3);
    let elsewhere = bytes[2..24]
        .iter()
        .chain(&bytes[28..512])
        .chain(&bytes[520..]);
    assert!(
        elsewhere.copied().all(|byte| byte == 0),
        "XCOMP_BV too: the standard format"
    );
}

#[test]
fn msrs_are_the_declared_ones_in_their_order() {
    let mut msrs = Msrs::default();
    let indices: Vec<u32> = msrs.iter().map(|msr| msr.index).collect();
    assert_eq!(indices, msr::DECLARED);
    assert!(msrs.set(msr::IA32_LSTAR, 0x1234));
    assert_eq!(msrs.get(msr::IA32_LSTAR), Some(0x1234));
    for undeclared in [0x10, 0x1B, msr::IA32_EFER] {
        assert!(!msrs.set(undeclared, 1), "{undeclared:#x}");
        assert_eq!(msrs.get(undeclared), None, "{undeclared:#x}");
    }
    assert_eq!(msrs.iter().filter(|msr| msr.value != 0).count(), 1);
}

#[test]
fn attributes_decode_as_the_manual_lays_them_out() {
    let code = SegmentType::CODE64.with_dpl(3);
    assert_eq!((code.type_(), code.dpl(), code.bits()), (0xB, 3, 0xA0FB));
    assert!(
        code.is_code_or_data() && code.is_present() && code.is_long() && code.is_page_granular()
    );
    assert!(!code.is_default_32());
    let tss = SegmentType::TSS_BUSY;
    assert_eq!((tss.type_(), tss.dpl()), (0xB, 0));
    assert!(tss.is_present() && !tss.is_code_or_data() && !tss.is_page_granular());
    assert!(SegmentType::CODE32.is_default_32() && !SegmentType::CODE32.is_long());
    assert_eq!(
        code.with_dpl(4),
        SegmentType::CODE64,
        "two bits are all it has"
    );
    assert!(!SegmentType::ABSENT.is_present());
}

#[test]
fn what_the_processor_says_of_itself_is_no_state() {
    let reset = XsaveArea::reset();
    let mut bytes = *reset.as_bytes();
    bytes[28..32].copy_from_slice(&0xFFFF_u32.to_le_bytes());
    assert_eq!(XsaveArea::from_bytes(bytes), reset);
    // MXCSR, in front of it, is.
    bytes[24] ^= 1;
    assert_ne!(XsaveArea::from_bytes(bytes), reset);
}

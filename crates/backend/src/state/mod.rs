//! vCPU state as plain data.
//!
//! [`StateGroup::ALL`] is the one list that drives save, restore, reset and compare, so that they cannot drift apart: a group
//! that is added to it is saved, restored and compared everywhere, and the compiler names each place that must know it.

mod registers;

use crate::vm::{Vm, VmError};

pub use registers::{
    DebugRegs, DescriptorTable, Gprs, Msr, Msrs, PendingEvents, Segment, SegmentType, SpecialRegs,
    XSAVE_LEN_BYTES, XsaveArea, cr0, cr4, efer, rflags,
};

/// A part of the vCPU state that is read and written at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StateGroup {
    /// General-purpose registers, RIP, RFLAGS.
    General,
    /// Segments, descriptor tables, control registers, EFER.
    Special,
    /// x87, SSE and AVX registers.
    Xsave,
    /// XCR0.
    Xcr0,
    /// DR0 to DR3, DR6, DR7.
    Debug,
    /// The model-specific registers that [`crate::msr::DECLARED`] names.
    Msrs,
    /// Pending exceptions, interrupt shadow, NMI blocking.
    Events,
}

impl StateGroup {
    /// The groups that ring-3 code can change by itself: it may load general and vector registers and null or flat segment
    /// selectors, and a page fault changes CR2. (FSGSBASE is off, so are the instructions that reach anything else.)
    pub const REACHABLE_FROM_RING_THREE: [Self; 3] = [Self::Special, Self::Xsave, Self::General];

    /// Every group, in the order in which a restore writes them: control registers come before what depends on them, and
    /// XCR0 comes before the components that it enables.
    pub const ALL: [Self; 7] = [
        Self::Special,
        Self::Xcr0,
        Self::Xsave,
        Self::Debug,
        Self::Msrs,
        Self::Events,
        Self::General,
    ];
}

/// The whole state of a vCPU. `Default` is the state in which every register is zero or at its fixed value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VcpuState {
    /// Group [`StateGroup::General`].
    pub general: Gprs,
    /// Group [`StateGroup::Special`].
    pub special: SpecialRegs,
    /// Group [`StateGroup::Xsave`].
    pub xsave: XsaveArea,
    /// Group [`StateGroup::Xcr0`].
    pub xcr0: Xcr0,
    /// Group [`StateGroup::Debug`].
    pub debug: DebugRegs,
    /// Group [`StateGroup::Msrs`].
    pub msrs: Msrs,
    /// Group [`StateGroup::Events`].
    pub events: PendingEvents,
}

impl VcpuState {
    /// Reads every group from `vm`.
    ///
    /// # Errors
    /// The first error of [`Vm::get_state`].
    pub fn save(vm: &mut dyn Vm) -> Result<Self, VmError> {
        vm.settle()?;
        let mut state = Self::default();
        state.save_groups(vm, StateGroup::ALL)?;
        Ok(state)
    }

    /// Reads some groups from `vm` into this state. The vCPU must be [settled](Vm::settle).
    ///
    /// # Errors
    /// The first error of [`Vm::get_state`].
    pub fn save_groups(
        &mut self,
        vm: &mut dyn Vm,
        groups: impl IntoIterator<Item = StateGroup>,
    ) -> Result<(), VmError> {
        groups
            .into_iter()
            .try_for_each(|group| vm.get_state(group, self))
    }

    /// Writes every group to `vm`, which is settled before: what the last exit left half done would otherwise be completed
    /// on top of the new state.
    ///
    /// # Errors
    /// The first error of [`Vm::settle`] and [`Vm::set_state`]; the vCPU is then in no defined state.
    pub fn restore(&self, vm: &mut dyn Vm) -> Result<(), VmError> {
        vm.settle()?;
        self.restore_groups(vm, StateGroup::ALL)
    }

    /// Writes some groups to `vm`, in the order given; [`StateGroup::ALL`] has the right one. The vCPU must be
    /// [settled](Vm::settle), unless its last exit was an `out` and the new state does not begin at that very instruction.
    ///
    /// # Errors
    /// As [`restore`](Self::restore).
    pub fn restore_groups(
        &self,
        vm: &mut dyn Vm,
        groups: impl IntoIterator<Item = StateGroup>,
    ) -> Result<(), VmError> {
        groups
            .into_iter()
            .try_for_each(|group| vm.set_state(group, self))
    }

    /// The groups in which two states differ.
    pub fn differences<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = StateGroup> + 'a {
        StateGroup::ALL
            .into_iter()
            .filter(|&group| !self.equal_in(group, other))
    }

    fn equal_in(&self, group: StateGroup, other: &Self) -> bool {
        match group {
            StateGroup::General => self.general == other.general,
            StateGroup::Special => self.special == other.special,
            StateGroup::Xsave => self.xsave == other.xsave,
            StateGroup::Xcr0 => self.xcr0 == other.xcr0,
            StateGroup::Debug => self.debug == other.debug,
            StateGroup::Msrs => self.msrs == other.msrs,
            StateGroup::Events => self.events == other.events,
        }
    }
}

/// Extended control register 0 (Intel SDM volume 3, section 2.6). Bit 0 is always 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xcr0(pub u64);

impl Xcr0 {
    /// x87 state; hard-wired to 1.
    pub const X87: u64 = 1 << 0;
    /// SSE state: XMM0 to XMM15.
    pub const SSE: u64 = 1 << 1;
    /// AVX state: upper halves of YMM0 to YMM15.
    pub const AVX: u64 = 1 << 2;
    /// The value after a reset.
    pub const RESET: Self = Self(Self::X87);
}

impl Default for Xcr0 {
    fn default() -> Self {
        Self::RESET
    }
}

#[cfg(test)]
mod tests;

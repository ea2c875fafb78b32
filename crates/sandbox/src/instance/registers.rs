//! The state of the vCPU: loading, putting back, saving.

use vellum_backend::state::{VcpuState, cr0, cr4};
use vellum_backend::{Capabilities, RingZero, StateGroup, VmError};

use super::{Instance, Leaving};
use crate::error::Failure;
use crate::machine::ResumePage;
use crate::memory::Parts;

/// CR3.PWT: caching of the root table, which no modern memory type makes use of (Intel SDM volume 3, section 4.9.2).
const CR3_PWT: u64 = 1 << 3;

impl Instance {
    /// Makes the vCPU hold the state of the snapshot that is loaded, where by now it holds `self.state` but for what `leaving`
    /// says.
    pub(super) fn load_state(&mut self, leaving: Leaving) -> Result<(), Failure> {
        let known = self.choose_state();
        self.write_resume_page()?;
        self.give_state(&known, leaving)
    }

    /// Takes the state of the base snapshot for the one that the vCPU is to hold, as it is around this sandbox. Returns what that was before.
    pub(super) fn choose_state(&mut self) -> VcpuState {
        let mut next = self.base.state.clone();
        if let Parts::User(user) = &self.geometry.parts {
            next.special.cr3 = user.tables.start().as_u64();
            next.special.cr4 = next.special.cr4 & !cr4::SUPERVISOR_PROTECTION | self.protection;
            self.resume = Some(ResumePage::new(&next, user.resume));
        }
        let known = std::mem::replace(&mut self.state, next);
        if !self.is_kernel() {
            self.renew_root();
        }
        known
    }

    /// Makes the vCPU hold `self.state`, where by now it holds what is `known` but for what `leaving` says.
    pub(super) fn give_state(
        &mut self,
        known: &VcpuState,
        leaving: Leaving,
    ) -> Result<(), Failure> {
        if leaving == Leaving::Cleanly && !self.is_kernel() {
            let out_of_reach =
                |group: &StateGroup| !StateGroup::REACHABLE_FROM_RING_THREE.contains(group);
            let differing = self.state.differences(known).filter(out_of_reach);
            self.state.restore_groups(self.vm.0.as_mut(), differing)?;
        }
        self.restore_registers(leaving)
    }

    /// Gives the vCPU `self.state`.
    ///
    /// Ring 3 reaches only general and vector registers and segments: the shared registers page and the resume page put them
    /// back without a system call. After any other exit, and for a kernel, every group is written.
    pub(super) fn restore_registers(&mut self, leaving: Leaving) -> Result<(), Failure> {
        self.has_run = false;
        if leaving == Leaving::Uncleanly || self.is_kernel() {
            return self.write_all_groups();
        }
        let vm = self.vm.0.as_mut();
        let page = self
            .resume
            .as_ref()
            .filter(|_| can_resume_in_ring_three(vm.capabilities(), &self.state));
        let Some(page) = page else {
            return Ok(self
                .state
                .restore_groups(vm, StateGroup::REACHABLE_FROM_RING_THREE)?);
        };
        vm.set_state(StateGroup::Special, &self.state)?;
        let general = std::mem::replace(&mut self.state.general, *page.entry());
        let result = vm.set_state(StateGroup::General, &self.state);
        self.state.general = general;
        Ok(result?)
    }

    fn write_all_groups(&mut self) -> Result<(), Failure> {
        let has_paging = self.state.special.cr0 & cr0::PG != 0;
        let is_kernel = self.is_kernel();
        let vm = self.vm.0.as_mut();
        if is_kernel && has_paging {
            // A kernel gets back exactly the CR3 of its snapshot, which is the one that it has now as a rule. Loading another one
            // first makes the processor forget the translations of the run that ended.
            self.state.special.cr3 ^= CR3_PWT;
            let other = self.state.restore_groups(vm, [StateGroup::Special]);
            self.state.special.cr3 ^= CR3_PWT;
            other?;
            vm.settle()?;
        }
        Ok(self.state.restore(vm)?)
    }

    /// Another value of CR3 than the one that the guest last ran with makes the processor forget translations; bit 3 has no
    /// meaning for its walk. A value that was only staged never reached it.
    pub(super) fn renew_root(&mut self) {
        let root = self.state.special.cr3 & !CR3_PWT;
        self.state.special.cr3 = root | (self.loaded_root ^ CR3_PWT) & CR3_PWT;
    }

    /// Completes what the last exit left half done; what is staged reaches the vCPU.
    pub(super) fn settle(&mut self) -> Result<(), VmError> {
        self.vm.0.settle()?;
        self.loaded_root = self.state.special.cr3;
        Ok(())
    }

    /// Makes the processor forget the translations of a user guest that waits, before the guest runs again: by loading another value of
    /// CR3 that leads to the same root.
    pub(super) fn forget_translations(&mut self) -> Result<(), VmError> {
        // What is staged reaches the vCPU now, so that the next value is another one than it has.
        self.settle()?;
        let mut live = VcpuState::default();
        self.vm.0.get_state(StateGroup::Special, &mut live)?;
        live.special.cr3 ^= CR3_PWT;
        self.vm.0.set_state(StateGroup::Special, &live)?;
        self.state.special.cr3 = live.special.cr3;
        // A restore that follows at once stages yet another value: this one must have reached the vCPU before.
        self.settle()
    }

    /// The state of the vCPU of a guest that waits: what it can have changed is read, the rest is known.
    pub(crate) fn save_state(&mut self) -> Result<VcpuState, VmError> {
        let mut state = self.state.clone();
        if !self.has_run {
            // The vCPU may still stand before the resume page, which is no part of the guest.
            return Ok(state);
        }
        if self.is_kernel() {
            return VcpuState::save(self.vm.0.as_mut());
        }
        self.settle()?;
        let vm = self.vm.0.as_mut();
        state.save_groups(vm, StateGroup::REACHABLE_FROM_RING_THREE)?;
        Ok(state)
    }
}

/// `xrstor` works in ring 3 where CR4.OSXSAVE is set, or where ring 3 runs under the host's own CR4.
fn can_resume_in_ring_three(capabilities: &Capabilities, state: &VcpuState) -> bool {
    state.special.cr4 & cr4::OSXSAVE != 0 || capabilities.ring_zero == RingZero::Emulated
}

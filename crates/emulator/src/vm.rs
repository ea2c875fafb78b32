//! The [`Vm`] of the emulator.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vellum_backend::{
    Capabilities, Exit, Hva, Interrupter, Meter, Protection, StateGroup, Tracking, VcpuState, Vm,
    VmConfig, VmError,
};
use vellum_layout::{Gpa, GpaRange};

use crate::lacking::Unsupported;
use crate::machine::Machine;
use crate::memory::Backing;

/// A micro-VM whose vCPU is emulated.
#[derive(Debug)]
pub struct EmulatedVm {
    machine: Machine,
    capabilities: Capabilities,
    tracking: Tracking,
    /// Instructions that each run may execute.
    fuel: Option<u64>,
    /// The count of instructions at which any run ends.
    limit: Option<u64>,
}

impl EmulatedVm {
    pub(crate) fn new(config: &VmConfig, capabilities: &Capabilities) -> Self {
        Self {
            machine: Machine::new(config.model.clone()),
            capabilities: capabilities.clone(),
            tracking: config.tracking,
            fuel: None,
            limit: None,
        }
    }

    /// Ends each later [`run`](Vm::run) with [`Exit::OutOfFuel`] once it has executed `instructions`; `None` for no limit. The same guest
    /// with the same inputs stops at the same instruction each time.
    ///
    /// A pause of a repeated string instruction counts as one instruction.
    pub fn set_fuel(&mut self, instructions: Option<u64>) {
        self.fuel = instructions;
    }

    /// Instructions that the guest has executed: its time-stamp counter.
    pub fn retired_instructions(&self) -> u64 {
        self.machine.cpu.retired
    }

    /// Starts to note which blocks run, or forgets them: coverage for those who fuzz a guest.
    pub fn trace_blocks(&mut self) {
        self.machine.trace = Some(HashSet::new());
    }

    /// First addresses of the blocks that ran since [`trace_blocks`](Self::trace_blocks), in order.
    pub fn traced_blocks(&self) -> Vec<u64> {
        let mut blocks: Vec<u64> = self.machine.trace.iter().flatten().copied().collect();
        blocks.sort_unstable();
        blocks
    }

    fn add_slot(
        &mut self,
        gpa: GpaRange,
        host: Hva,
        protection: Protection,
        backing: Backing,
    ) -> Result<(), VmError> {
        let protection = match (protection, self.tracking) {
            (Protection::TrackedWrite, Tracking::None) => Protection::Write,
            (protection, _) => protection,
        };
        self.machine
            .cpu
            .physical
            .map(gpa, host, protection, backing)?;
        self.machine.cpu.tlb.flush();
        Ok(())
    }

    /// What the guest tried that is not emulated, each kind once.
    pub fn unsupported(&self) -> &[Unsupported] {
        self.machine.cpu.lacking.records()
    }
}

#[expect(unsafe_code, reason = "the trait has an unsafe method")]
impl Vm for EmulatedVm {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    unsafe fn map(
        &mut self,
        gpa: GpaRange,
        host: Hva,
        protection: Protection,
    ) -> Result<(), VmError> {
        self.add_slot(gpa, host, protection, Backing::Lasting)
    }

    unsafe fn map_file(
        &mut self,
        gpa: GpaRange,
        host: Hva,
        protection: Protection,
    ) -> Result<(), VmError> {
        self.add_slot(gpa, host, protection, Backing::File)
    }

    fn unmap(&mut self, gpa: GpaRange) -> Result<(), VmError> {
        self.machine.cpu.physical.unmap(gpa)?;
        self.machine.cpu.tlb.flush();
        Ok(())
    }

    fn run(&mut self) -> Result<Exit, VmError> {
        if self.machine.cpu.input.is_some() {
            return Err(VmError::InputPending);
        }
        let this_run = self.fuel.map(|fuel| self.executed().saturating_add(fuel));
        self.machine.fuel_until = this_run.into_iter().chain(self.limit).min();
        Ok(self.machine.run())
    }

    fn complete_io_in(&mut self, data: u32) -> Result<(), VmError> {
        if self.machine.cpu.complete_input(data) {
            Ok(())
        } else {
            Err(VmError::NoPendingInput)
        }
    }

    /// Every exit leaves a complete state, but for an `in` without its value.
    fn settle(&mut self) -> Result<(), VmError> {
        self.machine.cpu.complete_input(0);
        Ok(())
    }

    fn get_state(&mut self, group: StateGroup, state: &mut VcpuState) -> Result<(), VmError> {
        self.machine.cpu.get_group(group, state);
        Ok(())
    }

    fn set_state(&mut self, group: StateGroup, state: &VcpuState) -> Result<(), VmError> {
        self.machine.cpu.set_group(group, state)
    }

    fn interrupter(&self) -> Arc<dyn Interrupter> {
        Arc::new(Flag(self.machine.interrupted.clone()))
    }

    fn take_dirty(&mut self, page: &mut dyn FnMut(Gpa)) -> Result<(), VmError> {
        let cpu = &mut self.machine.cpu;
        let pages = cpu.physical.take_dirty();
        if !pages.is_empty() {
            cpu.tlb.flush_writes();
        }
        pages.into_iter().for_each(page);
        Ok(())
    }

    /// Taking pages re-arms them.
    fn rearm_dirty(&mut self) -> Result<(), VmError> {
        Ok(())
    }

    fn publish_tables(&mut self) -> Result<(), VmError> {
        self.machine.cpu.tlb.flush();
        Ok(())
    }

    fn publish_remap(&mut self, targets: GpaRange) -> Result<(), VmError> {
        if !self.machine.cpu.physical.is_writable(targets) {
            return Err(VmError::NotMapped { range: targets });
        }
        self.machine.cpu.tlb.flush();
        Ok(())
    }

    fn meter(&mut self) -> Option<&mut dyn Meter> {
        Some(self)
    }
}

impl Meter for EmulatedVm {
    fn executed(&self) -> u64 {
        self.retired_instructions()
    }

    fn limit(&mut self, instructions: Option<u64>) {
        self.limit = instructions.map(|more| self.executed().saturating_add(more));
    }

    fn trace_blocks(&mut self) {
        EmulatedVm::trace_blocks(self);
    }

    fn traced_blocks(&self) -> Vec<u64> {
        EmulatedVm::traced_blocks(self)
    }
}

/// A flag that the vCPU looks at before each block.
#[derive(Debug)]
struct Flag(Arc<AtomicBool>);

impl Interrupter for Flag {
    fn enter(&self) {}

    fn leave(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    fn interrupt(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

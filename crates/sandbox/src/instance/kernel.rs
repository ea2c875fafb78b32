//! Kernel guests: the tables that they are entered on, and what a restore undoes.

use vellum_backend::Mmu;
use vellum_layout::{
    PAGE_SIZE, SCRATCH_TOP_ALLOCATOR_OFFSET, SCRATCH_TOP_SNAPSHOT_PT_GPA_BASE_OFFSET,
};

use super::physical::Contents;
use super::{CowState, Instance};
use crate::error::Failure;
use crate::machine;
use crate::memory::Parts;
use crate::snapshot::SnapshotData;

impl Instance {
    /// Maps the pages of a snapshot at their guest-physical addresses.
    pub(super) fn load_kernel(&mut self, snapshot: &SnapshotData) -> Result<(), Failure> {
        if let CowState::Kernel(physical) = &mut self.cow {
            let contents = Contents::of(snapshot)?;
            physical.load(self.vm.0.as_mut(), &mut self.memory, contents)?;
        }
        self.input_used = 0;
        self.publish()
    }

    /// Undoes everything that the kernel wrote.
    pub(super) fn restore_kernel(&mut self) -> Result<(), Failure> {
        self.vm.0.settle()?;
        if let CowState::Kernel(physical) = &mut self.cow {
            let contents = Contents::of(&self.base)?;
            physical.restore(self.vm.0.as_mut(), &mut self.memory, contents)?;
        }
        self.input_used = 0;
        self.publish()
    }

    /// The host has written over pages of which it does not know whether they are page tables. A kernel that was entered without
    /// paging may have turned it on, in whatever format the hypervisor knows.
    fn publish(&mut self) -> Result<(), Failure> {
        let vm = self.vm.0.as_mut();
        match vm.capabilities().mmu {
            Mmu::Shadow => Ok(vm.publish_tables()?),
            Mmu::Nested => Ok(()),
        }
    }

    /// Builds the tables of a kernel that has not run yet, and tells it which frames are free. From then on both are the kernel's:
    /// its first snapshot has them like everything else that was written.
    pub(super) fn boot_kernel(&mut self) -> Result<(), Failure> {
        let (Parts::Kernel(kernel), CowState::Kernel(physical), 0) =
            (&self.geometry.parts, &mut self.cow, self.base.generation)
        else {
            return Ok(());
        };
        let scratch = &self.memory.scratch;
        let top = scratch.len_bytes();
        let next_frame = kernel.free_frames.start().as_u64();
        scratch.write_u64(top - SCRATCH_TOP_ALLOCATOR_OFFSET, next_frame)?;
        if let Some(paging) = &kernel.paging {
            let used = machine::build_kernel(&self.memory, paging)?;
            physical.mark(paging.tables.start(), used * PAGE_SIZE);
            let root = paging.tables.start().as_u64();
            scratch.write_u64(top - SCRATCH_TOP_SNAPSHOT_PT_GPA_BASE_OFFSET, root)?;
        }
        let bookkeeping = self.geometry.plan.bookkeeping();
        physical.mark(bookkeeping.start(), bookkeeping.len_bytes());
        Ok(())
    }
}

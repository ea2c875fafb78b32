//! One micro-VM with its memories: what a sandbox runs, and what a restore puts back.

mod dirty;
mod guest_side;
mod host_side;
mod reach;

use std::sync::Arc;

use vellum_abi::fault::FaultRecord;
use vellum_abi::peb::{FLAG_TOUCH_BEFORE_FILL, Peb};
use vellum_backend::memory::OutOfBounds;
use vellum_backend::state::{VcpuState, cr4};
use vellum_backend::{Capabilities, Exit, Protection, RingZero, StateGroup, Vm, VmError};
use vellum_layout::{
    FAULT_RECORD_OFFSET, GpaRange, Gva, SCRATCH_TOP_SIZE_OFFSET,
    SCRATCH_TOP_SNAPSHOT_GENERATION_OFFSET,
};
use zerocopy::IntoBytes;

use crate::engine::{CowMode, Engine};
use crate::error::Failure;
use crate::machine::{self, ResumePage, SharedTables, monitor};
use crate::memory::{
    Contents, FixedFrame, Geometry, GuestMemory, Layers, PAGE_LEN_BYTES, Placement,
};
use crate::snapshot::SnapshotData;

use guest_side::GuestSide;
use host_side::HostSide;

pub(crate) use reach::ReachError;

/// How the vCPU stands towards the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// It left by an idle exit of ring 3: only what ring 3 can reach has changed, unless the guest had broken its monitor before.
    Cleanly,
    /// It left in any other way, or not at all.
    Uncleanly,
}

/// A VM, its memories, and the snapshot that it goes back to.
#[derive(Debug)]
pub(crate) struct Instance {
    // Dropped in this order: the VM must not outlive the memory that it maps.
    vm: DebugVm,
    memory: GuestMemory,
    geometry: Arc<Geometry>,
    base: Arc<SnapshotData>,
    cow: CowState,
    tables_used: u64,
    /// How a user guest gets its vector registers back; a kernel gets them by system call.
    resume: Option<ResumePage>,
    state: VcpuState,
    /// Whether the guest was entered since `state` was last given to the vCPU.
    has_run: bool,
    /// Bytes at the start of the input buffer that the host wrote since they were last zero.
    input_used: u64,
}

/// What each engine of copy-on-write keeps.
#[derive(Debug)]
enum CowState {
    Guest(GuestSide),
    Host(HostSide),
}

struct DebugVm(Box<dyn Vm>);

impl std::fmt::Debug for DebugVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vm")
    }
}

impl Instance {
    /// A new VM in the state of `snapshot`.
    pub(crate) fn new(engine: &Engine, snapshot: &Arc<SnapshotData>) -> Result<Self, Failure> {
        let kind = snapshot.image.kind();
        let cow = engine.cow_mode_for(kind);
        let geometry = Geometry::for_guest(
            kind,
            snapshot.sizes,
            cow,
            snapshot.space.areas(),
            snapshot.layers.pages(),
        )?;
        let memory = GuestMemory::new(&geometry).map_err(Failure::Memory)?;
        let mut vm = engine.create_vm(cow)?;
        map_slots(vm.as_mut(), &memory, &geometry)?;
        let cow = match geometry.cow {
            CowMode::GuestSide => CowState::Guest(GuestSide::default()),
            CowMode::HostSide => CowState::Host(HostSide::new(&geometry)),
        };
        let mut instance = Self {
            vm: DebugVm(vm),
            memory,
            cow,
            tables_used: 0,
            resume: None,
            // A new vCPU is in its reset state, which is what the default says of every group that ring 3 cannot reach.
            state: VcpuState::default(),
            has_run: false,
            input_used: 0,
            geometry: Arc::new(geometry),
            base: snapshot.clone(),
        };
        instance.write_fixed_frames()?;
        instance.load_over(snapshot, &Layers::default())?;
        instance.load_state(Leaving::Cleanly)?;
        Ok(instance)
    }

    /// Whether [`load`](Self::load) can bring this VM to the state of `snapshot`.
    pub(crate) fn can_load(&self, snapshot: &SnapshotData) -> bool {
        snapshot.sizes == self.base.sizes
            && snapshot.image.is_same(&self.base.image)
            && self.geometry.holds_layers_of(snapshot.layers.pages())
    }

    /// Brings the VM to the state of another snapshot of the same shape: maps its layers, rebuilds the page tables.
    ///
    /// After an error the VM is in no defined state.
    pub(crate) fn load(
        &mut self,
        snapshot: &Arc<SnapshotData>,
        leaving: Leaving,
    ) -> Result<(), Failure> {
        self.vm.0.settle()?;
        if leaving == Leaving::Uncleanly {
            // Should the guest have broken its monitor, it may have changed what only the host writes.
            self.write_fixed_frames()?;
        }
        let present = self.base.layers.clone();
        self.load_over(snapshot, &present)?;
        self.load_state(leaving)
    }

    fn load_over(&mut self, snapshot: &Arc<SnapshotData>, present: &Layers) -> Result<(), Failure> {
        if let CowState::Host(host) = &mut self.cow {
            host.forget(self.vm.0.as_mut(), &self.memory, &self.geometry)?;
        }
        match self.geometry.placement {
            Placement::Stacked { .. } => self.memory.stack_layers(&snapshot.layers, present),
            Placement::InPlace => self.memory.place_layers(&snapshot.layers, &snapshot.space),
        }
        .map_err(Failure::Memory)?;
        if let Some(user) = self.geometry.user.clone() {
            self.rebuild_tables(snapshot, user.tables)?;
        } else {
            self.wipe_scratch()?;
        }
        if let CowState::Guest(guest) = &mut self.cow {
            guest.start(&self.memory, &self.geometry, snapshot, self.tables_used)?;
        }
        self.write_bookkeeping(snapshot.generation)?;
        self.write_seed()?;
        self.wipe_buffers()?;
        self.base = snapshot.clone();
        Ok(())
    }

    /// Makes the vCPU hold the state of the snapshot that is loaded, where by now it holds `self.state` but for what `leaving`
    /// says.
    fn load_state(&mut self, leaving: Leaving) -> Result<(), Failure> {
        let leaving = self.really(leaving);
        let mut next = self.base.state.clone();
        if let Some(user) = &self.geometry.user {
            // Always another value of CR3 than before, so that the processor forgets what it knew of the old tables.
            next.special.cr3 =
                user.tables.start().as_u64() | (self.state.special.cr3 ^ CR3_PWT) & CR3_PWT;
            self.resume = Some(ResumePage::new(&next, user.resume));
        }
        let known = std::mem::replace(&mut self.state, next);
        self.write_resume_page()?;
        if leaving == Leaving::Cleanly {
            let out_of_reach =
                |group: &StateGroup| !StateGroup::REACHABLE_FROM_RING_THREE.contains(group);
            let differing = self.state.differences(&known).filter(out_of_reach);
            self.state.restore_groups(self.vm.0.as_mut(), differing)?;
        }
        self.restore_registers(leaving)
    }

    /// What an idle exit says about a guest: a kernel can have changed everything.
    fn really(&self, leaving: Leaving) -> Leaving {
        if self.geometry.user.is_some() {
            leaving
        } else {
            Leaving::Uncleanly
        }
    }

    fn write_resume_page(&self) -> Result<(), Failure> {
        match &self.resume {
            Some(page) => self.write_frame(FixedFrame::Resume, page.bytes()),
            None => Ok(()),
        }
    }

    /// Goes back to the state of the snapshot that was last loaded, at the cost of what changed since.
    ///
    /// Only after a clean exit: after any other, [`load`](Self::load) the same snapshot again.
    pub(crate) fn restore(&mut self) -> Result<(), Failure> {
        let leaving = self.really(Leaving::Cleanly);
        if leaving == Leaving::Uncleanly {
            self.vm.0.settle()?;
        }
        match &mut self.cow {
            CowState::Host(host) => {
                let contents = Contents::new(&self.geometry, &self.base.layers, &self.base.space);
                host.restore(self.vm.0.as_mut(), &self.memory, &self.geometry, &contents)?;
            }
            CowState::Guest(guest) => {
                guest.restore(self.vm.0.as_mut(), &self.memory, &self.geometry)?;
                // Another value of CR3 than the one that it last ran with makes the processor forget translations; bit 3 has no
                // meaning for its walk. A value that was only staged never reached it.
                if self.has_run {
                    self.state.special.cr3 ^= CR3_PWT;
                }
            }
        }
        if self.geometry.user.is_some() {
            self.wipe_buffers()?;
            self.write_seed()?;
        } else {
            self.wipe_scratch()?;
            self.write_bookkeeping(self.base.generation)?;
        }
        self.restore_registers(leaving)
    }

    /// Ring 3 reaches only general and vector registers and segments: the shared registers page and the resume page put them
    /// back without a system call. After any other exit every group is written.
    fn restore_registers(&mut self, leaving: Leaving) -> Result<(), Failure> {
        self.has_run = false;
        let vm = self.vm.0.as_mut();
        if leaving == Leaving::Uncleanly {
            return Ok(self.state.restore(vm)?);
        }
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

    /// The state of the idle vCPU: what ring 3 can have changed is read, the rest is known.
    pub(crate) fn save_state(&mut self) -> Result<VcpuState, VmError> {
        let mut state = self.state.clone();
        if !self.has_run {
            // The vCPU may still stand before the resume page, which is no part of the guest.
            return Ok(state);
        }
        let vm = self.vm.0.as_mut();
        if self.geometry.user.is_none() {
            return VcpuState::save(vm);
        }
        vm.settle()?;
        state.save_groups(vm, StateGroup::REACHABLE_FROM_RING_THREE)?;
        Ok(state)
    }

    /// Enters the guest until its next exit.
    pub(crate) fn run(&mut self) -> Result<Exit, VmError> {
        self.has_run = true;
        self.vm.0.run()
    }

    pub(crate) fn vm(&mut self) -> &mut dyn Vm {
        self.vm.0.as_mut()
    }

    pub(crate) fn base(&self) -> &Arc<SnapshotData> {
        &self.base
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Writes a message at the start of the input buffer.
    pub(crate) fn write_input(&mut self, message: &[u8]) -> Result<(), OutOfBounds> {
        self.input_used = self.input_used.max(message.len() as u64);
        self.memory
            .write(self.geometry.plan.input().start(), message)
    }

    /// Copies bytes from the start of the output buffer.
    pub(crate) fn read_output(&self, into: &mut [u8]) -> Result<(), OutOfBounds> {
        let offset = self.memory.scratch_offset(self.geometry.plan.output());
        self.memory.scratch.read(offset, into)
    }

    /// Copies bytes from the bookkeeping page, `offset` below its end.
    pub(crate) fn read_bookkeeping(&self, offset: u64, into: &mut [u8]) -> Result<(), OutOfBounds> {
        self.memory
            .scratch
            .read(self.memory.scratch.len_bytes().saturating_sub(offset), into)
    }

    /// The port in DX, for an access that names none itself; after an exit that ends the call.
    pub(crate) fn port_register(&mut self) -> u16 {
        let mut state = VcpuState::default();
        match self.vm.0.get_state(StateGroup::General, &mut state) {
            Ok(()) => (state.general.rdx & 0xFFFF) as u16,
            Err(_) => 0,
        }
    }

    fn rebuild_tables(&mut self, snapshot: &SnapshotData, tables: GpaRange) -> Result<(), Failure> {
        if self.tables_used == 0 {
            return self.first_tables(snapshot, tables);
        }
        let start = self.memory.scratch_offset(tables);
        self.memory
            .scratch
            .overlay_zeroed(start, tables.len_bytes())
            .map_err(Failure::Memory)?;
        self.tables_used = machine::build(&self.memory, &self.geometry, &snapshot.space)?;
        Ok(self.vm.0.publish_tables()?)
    }

    /// The tables of a new VM: the snapshot's, or new ones that become the snapshot's.
    fn first_tables(&mut self, snapshot: &SnapshotData, tables: GpaRange) -> Result<(), Failure> {
        if let Some(shared) = snapshot
            .tables
            .get()
            .filter(|shared| shared.fit(&self.geometry))
        {
            self.tables_used = shared
                .map_into(&mut self.memory, tables)
                .map_err(Failure::Memory)?;
            return Ok(());
        }
        self.tables_used = machine::build(&self.memory, &self.geometry, &snapshot.space)?;
        // The state before boot is used once; a snapshot that another engine's sandbox came first to keeps that one's.
        if snapshot.generation > 0 && snapshot.tables.get().is_none() {
            let shared =
                SharedTables::copy_of(&self.memory, &self.geometry, tables, self.tables_used)
                    .map_err(Failure::Memory)?;
            // Lost to another thread: equal or of another geometry, either is right to keep.
            let _ = snapshot.tables.set(shared);
        }
        Ok(())
    }

    fn write_fixed_frames(&mut self) -> Result<(), Failure> {
        if self.geometry.user.is_none() {
            return Ok(());
        }
        let code = monitor::code();
        if code.len() as u64 > monitor::MAX_CODE_LEN_BYTES {
            return Err(Failure::Memory(std::io::ErrorKind::FileTooLarge.into()));
        }
        self.write_frame(FixedFrame::Monitor, code)?;
        self.write_frame(FixedFrame::Machine, &machine::machine_page())?;
        self.write_peb()
    }

    fn write_peb(&self) -> Result<(), Failure> {
        let peb = peb(&self.geometry);
        self.write_frame(FixedFrame::Peb, peb.as_bytes())?;
        self.write_seed()
    }

    /// A new seed for the guest's random numbers: two clones of a snapshot must not draw the same.
    fn write_seed(&self) -> Result<(), Failure> {
        let peb = self.geometry.fixed_frame(FixedFrame::Peb)?;
        let offset = self.memory.scratch_offset(peb) + std::mem::offset_of!(Peb, seed) as u64;
        Ok(self.memory.scratch.write_u64(offset, crate::seed::next())?)
    }

    fn write_frame(&self, frame: FixedFrame, bytes: &[u8]) -> Result<(), Failure> {
        let range = self.geometry.fixed_frame(frame)?;
        Ok(self.memory.write(range.start(), bytes)?)
    }

    fn write_bookkeeping(&self, generation: u64) -> Result<(), Failure> {
        let scratch = &self.memory.scratch;
        let top = scratch.len_bytes();
        scratch.write_u64(top - SCRATCH_TOP_SIZE_OFFSET, top)?;
        scratch.write_u64(top - SCRATCH_TOP_SNAPSHOT_GENERATION_OFFSET, generation)?;
        // Where ring 3 may use ports by IOPL it can use the monitor's, too: a record that the monitor did not write is then
        // known by its reason.
        let reason = std::mem::offset_of!(FaultRecord, reason) as u64;
        scratch.write_u64(top - FAULT_RECORD_OFFSET + reason, REASON_NONE)?;
        Ok(())
    }

    /// Takes everything from scratch that a kernel, which can write all of it, may have left there.
    fn wipe_scratch(&mut self) -> Result<(), Failure> {
        let scratch = &self.memory.scratch;
        if scratch.len_bytes() > MAX_ZEROED_SCRATCH_LEN_BYTES {
            scratch
                .discard(0..scratch.len_bytes())
                .map_err(Failure::Memory)?;
        } else {
            scratch.zero(0, scratch.len_bytes())?;
        }
        self.input_used = 0;
        self.write_peb()
    }

    /// Takes from the guest's sight what earlier calls left in the buffers.
    fn wipe_buffers(&mut self) -> Result<(), Failure> {
        let plan = &self.geometry.plan;
        let scratch = &self.memory.scratch;
        scratch.zero(self.memory.scratch_offset(plan.input()), self.input_used)?;
        scratch.zero(
            self.memory.scratch_offset(plan.output()),
            plan.output().len_bytes(),
        )?;
        self.input_used = 0;
        Ok(())
    }

    /// The pages that differ from the base snapshot, sorted by address, each with a copy of its content on request.
    pub(crate) fn changed_pages(&mut self) -> Result<Vec<(Gva, ChangedPage)>, Failure> {
        match &mut self.cow {
            CowState::Host(host) => {
                host.changed(self.vm.0.as_mut(), &self.memory, &self.geometry, &self.base)
            }
            CowState::Guest(_) => guest_side::changed(&self.memory, &self.geometry, &self.base),
        }
    }

    /// Copies the content of a changed page.
    pub(crate) fn read_changed(
        &self,
        page: ChangedPage,
        into: &mut [u8; PAGE_LEN_BYTES],
    ) -> Result<(), OutOfBounds> {
        match page {
            ChangedPage::Image(offset) => self.memory.image.read(offset, into),
            ChangedPage::Scratch(offset) => self.memory.scratch.read(offset, into),
        }
    }
}

/// Where the content of a changed page lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangedPage {
    /// At this offset of the image.
    Image(u64),
    /// At this offset of scratch.
    Scratch(u64),
}

/// A kernel's scratch up to this size is written over at a restore; a larger one is given back to the host kernel.
const MAX_ZEROED_SCRATCH_LEN_BYTES: u64 = 1 << 20;

/// The reason of a fault record that nobody wrote.
const REASON_NONE: u64 = u64::MAX;

/// CR3.PWT: caching of the root table, which no modern memory type makes use of (Intel SDM volume 3, section 4.9.2).
const CR3_PWT: u64 = 1 << 3;

/// `xrstor` works in ring 3 where CR4.OSXSAVE is set, or where ring 3 runs under the host's own CR4.
fn can_resume_in_ring_three(capabilities: &Capabilities, state: &VcpuState) -> bool {
    state.special.cr4 & cr4::OSXSAVE != 0 || capabilities.ring_zero == RingZero::Emulated
}

#[expect(unsafe_code, reason = "lends the sandbox's memories to its VM")]
fn map_slots(vm: &mut dyn Vm, memory: &GuestMemory, geometry: &Geometry) -> Result<(), Failure> {
    let image = match geometry.cow {
        CowMode::GuestSide => Protection::ReadOnly,
        CowMode::HostSide => Protection::TrackedWrite,
    };
    // SAFETY: `Instance` owns VM and memories and drops the VM first; no reference into the memories is ever formed
    // (`HostMemory`).
    unsafe {
        vm.map(geometry.plan.image(), memory.image.hva(), image)?;
        vm.map(
            geometry.plan.scratch(),
            memory.scratch.hva(),
            Protection::Write,
        )?;
    }
    Ok(())
}

fn peb(geometry: &Geometry) -> Peb {
    Peb {
        input_ptr: geometry.view.input.start().as_u64(),
        input_len_bytes: geometry.view.input.len_bytes(),
        output_ptr: geometry.view.output.start().as_u64(),
        output_len_bytes: geometry.view.output.len_bytes(),
        heap_ptr: geometry.view.heap.start().as_u64(),
        heap_len_bytes: geometry.view.heap.len_bytes(),
        stack_top: geometry.view.stack.end().as_u64(),
        stack_len_bytes: geometry.view.stack.len_bytes(),
        log_level: vellum_abi::log::Level::Trace as u32,
        flags: match geometry.cow {
            CowMode::GuestSide => FLAG_TOUCH_BEFORE_FILL,
            CowMode::HostSide => 0,
        },
        ..Peb::empty()
    }
}

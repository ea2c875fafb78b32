//! One micro-VM with its memories: what a sandbox runs, and what a restore puts back.

mod dirty;
mod guest_side;
mod host_side;
mod kernel;
mod mappings;
mod messages;
mod physical;
mod reach;
mod registers;
mod shown;
mod told;
mod user;

use std::sync::Arc;

use vellum_backend::memory::OutOfBounds;
use vellum_backend::state::VcpuState;
use vellum_backend::{Exit, Paused, Protection, SealedWriter, StateGroup, Vm, VmError};
use vellum_layout::{Gpa, Gva};

use crate::engine::{CowMode, Engine};
use crate::error::Failure;
use crate::machine::ResumePage;
use crate::memory::{Geometry, GuestMemory, Layers, PAGE_LEN_BYTES, Parts, SpaceError};
use crate::polling::{Polling, PollingVm};
use crate::snapshot::SnapshotData;

use guest_side::{GuestSide, Undo};
use host_side::HostSide;
use mappings::Mappings;
use physical::Physical;

pub(crate) use host_side::Restored;
pub(crate) use reach::ReachError;

/// How the vCPU stands towards the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// It left by a port of ring 3 that promises to be resumed: only what ring 3 can reach has changed, unless the guest had broken
    /// its monitor before.
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
    /// Offsets in scratch: of the input buffer, of the output buffer, of the outbox.
    input_offset: u64,
    output_offset: u64,
    outbox_offset: u64,
    mappings: Mappings,
    geometry: Arc<Geometry>,
    base: Arc<SnapshotData>,
    cow: CowState,
    /// How a user guest gets its vector registers back; a kernel gets them by system call.
    resume: Option<ResumePage>,
    state: VcpuState,
    /// Bits of CR4 for supervisor protection that this engine's processor has. They belong to the machine around a user guest, not to its
    /// snapshots.
    protection: u64,
    /// Whether the guest was entered since `state` was last given to the vCPU.
    has_run: bool,
    /// The CR3 that the vCPU was last entered with.
    loaded_root: u64,
    /// Bytes at the start of the input buffer that the host wrote since they were last zero.
    input_used: u64,
    /// The generation that the guest is told. The original keeps its own when a snapshot is taken of it; a copy has the snapshot's.
    generation: u64,
    /// Whether the hypervisor itself has failed, in running the guest or in changing what it sees. What it would do next is anybody's
    /// guess: a restore takes another VM.
    has_failed: bool,
    /// Whether the guest runs on a thread of its own, and may do so while the host looks at its messages.
    is_polled: bool,
}

/// What each way of undoing a guest's writes keeps.
#[derive(Debug)]
enum CowState {
    /// A user guest whose monitor copies pages.
    Guest(GuestSide),
    /// A user guest whose pages the host kernel copies.
    Host(HostSide),
    /// A guest that brings its own kernel.
    Kernel(Physical),
}

struct DebugVm(Box<dyn Vm>);

impl std::fmt::Debug for DebugVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vm")
    }
}

impl Instance {
    /// A VM in the state of `snapshot`: one that another sandbox has left with the engine, or a new one.
    pub(crate) fn obtain(engine: &Engine, snapshot: &Arc<SnapshotData>) -> Result<Self, Failure> {
        if let Some(mut idle) = engine.take_idle(snapshot)
            && idle.renew(snapshot).is_ok()
        {
            return Ok(idle);
        }
        Self::new(engine, snapshot)
    }

    /// Makes an idle VM, which stands on its base, one of `snapshot`.
    fn renew(&mut self, snapshot: &Arc<SnapshotData>) -> Result<(), Failure> {
        if !Arc::ptr_eq(snapshot, &self.base) {
            return self.load(snapshot, Leaving::Cleanly);
        }
        self.generation = snapshot.generation;
        self.tell_guest()
    }

    /// A new VM in the state of `snapshot`.
    pub(crate) fn new(engine: &Engine, snapshot: &Arc<SnapshotData>) -> Result<Self, Failure> {
        let geometry = snapshot.geometry(engine)?;
        let vm = engine.create_vm(&geometry, snapshot.config.irqchip)?;
        let template = snapshot.template_for(&geometry);
        let memory = match geometry.parts {
            Parts::User(_) => GuestMemory::of_layers(&geometry, &snapshot.layers, template),
            Parts::Kernel(_) => GuestMemory::zeroed(&geometry),
        }
        .map_err(Failure::Memory)?;
        let cow = match (&geometry.parts, geometry.cow) {
            (Parts::Kernel(_), _) => CowState::Kernel(Physical::new(&geometry)),
            (Parts::User(_), CowMode::GuestSide) => CowState::Guest(GuestSide::new(&geometry)?),
            (Parts::User(_), CowMode::HostSide) => CowState::Host(HostSide::new(&geometry)),
        };
        let mut instance = Self {
            vm: DebugVm(vm),
            input_offset: memory.scratch_offset(geometry.plan.input()),
            output_offset: memory.scratch_offset(geometry.plan.output()),
            outbox_offset: memory.scratch_offset(geometry.outbox()?),
            memory,
            mappings: Mappings::default(),
            cow,
            resume: None,
            // A new vCPU is in its reset state, which is what the default says of every group that ring 3 cannot reach.
            state: VcpuState::default(),
            protection: engine.model().cr4_features,
            has_run: false,
            loaded_root: 0,
            input_used: 0,
            generation: snapshot.generation,
            has_failed: false,
            is_polled: false,
            geometry,
            base: snapshot.clone(),
        };
        let at_reset = instance.choose_state();
        match &instance.cow {
            CowState::Kernel(_) => instance.load_kernel(snapshot)?,
            CowState::Guest(_) | CowState::Host(_) => instance.load_new_user(snapshot, template)?,
        }
        instance.tell_guest()?;
        instance.write_suspended_input()?;
        instance.boot_kernel()?;
        // When everything is in its place: pinned memory stays as it is mapped, and of any other the kernel would tell the VM each change.
        map_slots(instance.vm.0.as_mut(), &instance.memory, &instance.geometry)?;
        instance.give_state(&at_reset, Leaving::Cleanly)?;
        Ok(instance)
    }

    /// The same sandbox, whose guest runs on a thread of its own and need not leave it to be served. Only for user guests: what a kernel
    /// does with its tables while the host looks is its own affair.
    #[expect(unsafe_code, reason = "shares words of the outbox with the guest")]
    pub(crate) fn into_polled(mut self, polling: Polling) -> Result<Self, Failure> {
        if self.is_kernel() || self.is_polled {
            return Ok(self);
        }
        let outbox = self
            .memory
            .scratch
            .hva()
            .checked_add(self.outbox_offset)
            .ok_or(SpaceError::Overflow)?;
        // SAFETY: the outbox lies in scratch, which this value owns, drops behind its VM and never unmaps or protects before; what
        // is mapped anew there is writable as well. No reference into it is ever formed.
        let polled = unsafe { PollingVm::new(self.vm.0, outbox, polling) };
        self.vm = DebugVm(Box::new(polled.map_err(Failure::Memory)?));
        self.is_polled = true;
        Ok(self)
    }

    /// Makes the guest stand still, and says where.
    pub(crate) fn pause(&mut self) -> Result<Paused, Failure> {
        if !self.is_polled {
            return Ok(Paused::AtExit);
        }
        Ok(self.vm.0.pause()?)
    }

    /// Whether this VM must not run its guest any more.
    pub(crate) const fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// Whether [`load`](Self::load) can bring this VM to the state of `snapshot`.
    pub(crate) fn can_load(&self, snapshot: &SnapshotData) -> bool {
        !self.has_failed
            && snapshot.config == self.base.config
            && snapshot.image.is_same(&self.base.image)
            && snapshot.is_for(&self.geometry)
    }

    /// Brings the VM to the state of another snapshot of the same shape: maps its layers, rebuilds the page tables.
    ///
    /// After an error the VM is in no defined state.
    pub(crate) fn load(
        &mut self,
        snapshot: &Arc<SnapshotData>,
        leaving: Leaving,
    ) -> Result<(), Failure> {
        if self.is_kernel() && Arc::ptr_eq(snapshot, &self.base) {
            // Whatever a kernel did, everything that it can have written is put back.
            return self.restore().map(|_| ());
        }
        self.generation = snapshot.generation;
        self.move_to(snapshot, leaving)
    }

    /// Goes on as the original of a snapshot that was just taken of this VM, so that the next one holds only what changes from now.
    ///
    /// After an error the VM is in no defined state.
    pub(crate) fn adopt(&mut self, snapshot: &Arc<SnapshotData>) -> Result<(), Failure> {
        if !self.goes_on_in_place() {
            return self.move_to(snapshot, Leaving::Cleanly);
        }
        match &mut self.cow {
            CowState::Kernel(physical) => {
                physical.adopt(self.vm.0.as_mut())?;
                self.state = snapshot.state.clone();
                self.base = snapshot.clone();
                Ok(())
            }
            CowState::Guest(_) | CowState::Host(_) => self.adopt_in_place(snapshot),
        }
    }

    /// Whether [`adopt`](Self::adopt) has room in this VM.
    pub(crate) fn can_adopt(&self, snapshot: &SnapshotData) -> bool {
        self.goes_on_in_place() || self.can_load(snapshot)
    }

    /// Whether a snapshot leaves pages and tables as they are.
    fn goes_on_in_place(&self) -> bool {
        match (&self.cow, self.geometry.user()) {
            (CowState::Guest(guest), Ok(user)) => user.has_frames_for_all && !guest.is_full(),
            _ => true,
        }
    }

    fn move_to(&mut self, snapshot: &Arc<SnapshotData>, leaving: Leaving) -> Result<(), Failure> {
        self.settle()?;
        if leaving == Leaving::Uncleanly {
            // Should the guest have broken its monitor, it may have changed what only the host writes.
            self.write_fixed_frames()?;
            self.tell_bookkeeping()?;
        }
        let present = self.shown_snapshot().layers.clone();
        self.remap_around(|instance| instance.load_memory(snapshot, &present))?;
        self.load_state(leaving)
    }

    /// Lets `change` map other host memory where the VM's memories lie. Where memory is pinned the VM would keep the old pages, so it gives
    /// them up before, and gets the new ones.
    fn remap_around(
        &mut self,
        change: impl FnOnce(&mut Self) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let vm = self.vm.0.as_mut();
        if vm.capabilities().host_discard {
            return change(self);
        }
        // What was written is not known any more once a range is gone.
        match &mut self.cow {
            CowState::Host(host) => host.collect(vm, &self.geometry)?,
            CowState::Kernel(physical) => physical.collect(vm)?,
            CowState::Guest(_) => {}
        }
        // Until both ranges are there again this VM must not run.
        self.has_failed = true;
        vm.unmap(self.geometry.plan.image())?;
        vm.unmap(self.geometry.plan.scratch())?;
        change(self)?;
        map_slots(self.vm.0.as_mut(), &self.memory, &self.geometry)?;
        self.has_failed = false;
        Ok(())
    }

    /// The snapshot whose layers lie in the image slot.
    fn shown_snapshot(&self) -> &Arc<SnapshotData> {
        match &self.cow {
            CowState::Host(host) => host.shown.snapshot(&self.base),
            CowState::Guest(guest) => guest.shown.snapshot(&self.base),
            CowState::Kernel(_) => &self.base,
        }
    }

    /// Brings the memories to the contents of a snapshot.
    fn load_memory(
        &mut self,
        snapshot: &Arc<SnapshotData>,
        present: &Layers,
    ) -> Result<(), Failure> {
        match &self.cow {
            CowState::Kernel(_) => self.load_kernel(snapshot)?,
            CowState::Guest(_) | CowState::Host(_) => self.load_user(snapshot, present)?,
        }
        self.base = snapshot.clone();
        self.tell_guest()?;
        self.write_suspended_input()
    }

    /// Goes back to the state of the snapshot that was last loaded, at the cost of what changed since.
    ///
    /// Only after a clean exit. After any other, and where this does not come to an end, [`load`](Self::load) the same snapshot again.
    pub(crate) fn restore(&mut self) -> Result<Restored, Failure> {
        self.generation = self.base.generation;
        match &self.cow {
            CowState::Kernel(_) => self.restore_kernel()?,
            CowState::Guest(_) | CowState::Host(_) => {
                if self.restore_user()? == Restored::NotYet {
                    return Ok(Restored::NotYet);
                }
            }
        }
        self.tell_guest()?;
        self.write_suspended_input()?;
        self.restore_registers(Leaving::Cleanly)?;
        Ok(Restored::Completely)
    }

    /// Gives a guest whose snapshot was taken in the middle of a call back what it was called with.
    fn write_suspended_input(&mut self) -> Result<(), Failure> {
        let base = self.base.clone();
        match &base.suspended {
            Some(suspended) => Ok(self.write_input(&suspended.input)?),
            None => Ok(()),
        }
    }

    /// Enters the guest until its next exit.
    #[inline]
    pub(crate) fn run(&mut self) -> Result<Exit, VmError> {
        self.has_run = true;
        self.loaded_root = self.state.special.cr3;
        let exit = self.vm.0.run();
        if exit.is_err() {
            self.has_failed = true;
        }
        exit
    }

    fn is_kernel(&self) -> bool {
        matches!(self.geometry.parts, Parts::Kernel(_))
    }

    pub(crate) fn vm(&mut self) -> &mut dyn Vm {
        self.vm.0.as_mut()
    }

    /// What the guest is told about which copy it is.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Tells the guest that it is the copy that it was before it was moved to this VM.
    pub(crate) fn stay(&mut self, generation: u64) -> Result<(), Failure> {
        self.generation = generation;
        self.tell_guest()
    }

    #[inline]
    pub(crate) fn base(&self) -> &Arc<SnapshotData> {
        &self.base
    }

    pub(crate) fn geometry(&self) -> &Arc<Geometry> {
        &self.geometry
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

    /// Takes from the guest's sight what earlier calls left in the buffers and in the outbox. The guest may have written anywhere in
    /// those that are its own.
    pub(crate) fn wipe_buffers(&mut self) -> Result<(), Failure> {
        let plan = &self.geometry.plan;
        if let CowState::Kernel(physical) = &mut self.cow {
            physical.mark(plan.input().start(), self.input_used);
            physical.mark(plan.output().start(), plan.output().len_bytes());
        }
        let output = plan.output();
        (self.memory.scratch).zero(self.output_offset, output.len_bytes())?;
        self.wipe_input()
    }

    /// The guest may not write to the input buffer, so what the host wrote is all that is there.
    fn wipe_input(&mut self) -> Result<(), Failure> {
        self.memory
            .scratch
            .zero(self.input_offset, self.input_used)?;
        self.input_used = 0;
        Ok(())
    }

    /// The pages of a user guest that differ from the base snapshot, sorted by address.
    pub(crate) fn changed_user_pages(&mut self) -> Result<Vec<(Gva, ChangedPage)>, Failure> {
        let vm = self.vm.0.as_mut();
        match &mut self.cow {
            CowState::Host(host) => host.changed(vm, &self.memory, &self.geometry, &self.base),
            CowState::Guest(guest) => guest.changed(Undo {
                memory: &self.memory,
                geometry: &self.geometry,
                base: &self.base,
            }),
            CowState::Kernel(_) => Ok(Vec::new()),
        }
    }

    /// The pages of a kernel guest that differ from the base snapshot, sorted by address.
    pub(crate) fn changed_kernel_pages(&mut self) -> Result<Vec<(Gpa, ChangedPage)>, Failure> {
        let contents = physical::Contents::of(&self.base)?;
        match &mut self.cow {
            CowState::Kernel(physical) => {
                physical.changed(self.vm.0.as_mut(), &self.memory, contents)
            }
            CowState::Guest(_) | CowState::Host(_) => Ok(Vec::new()),
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

impl Instance {
    /// Copies a changed page to an offset of a memory that is being made.
    pub(crate) fn copy_changed<'s>(
        &'s self,
        page: ChangedPage,
        into: &mut SealedWriter<'s>,
        at: u64,
    ) -> std::io::Result<()> {
        let (memory, offset) = match page {
            ChangedPage::Image(offset) => (&self.memory.image, offset),
            ChangedPage::Scratch(offset) => (&self.memory.scratch, offset),
        };
        into.copy_from(at, memory, offset, PAGE_LEN_BYTES as u64)
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

#[expect(unsafe_code, reason = "lends the sandbox's memories to its VM")]
fn map_slots(vm: &mut dyn Vm, memory: &GuestMemory, geometry: &Geometry) -> Result<(), Failure> {
    let image = match geometry.cow {
        CowMode::GuestSide => Protection::ReadOnly,
        CowMode::HostSide => Protection::TrackedWrite,
    };
    let scratch = match geometry.parts {
        Parts::User(_) => Protection::Write,
        Parts::Kernel(_) => Protection::TrackedWrite,
    };
    // SAFETY: `Instance` owns VM and memories and drops the VM first; no reference into the memories is ever formed
    // (`HostMemory`).
    unsafe {
        vm.map(geometry.plan.image(), memory.image.hva(), image)?;
        vm.map(geometry.plan.scratch(), memory.scratch.hva(), scratch)?;
    }
    Ok(())
}

//! A hypervisor behind a wrapper that looks at the whole vCPU: as it stands after a restore, and as it stands when the guest first leaves.
//!
//! The crate shows nobody the registers of a guest. A hypervisor of the test's own sees them all.
#![expect(unsafe_code, reason = "one method of the trait is unsafe")]

use std::sync::{Arc, Mutex};

use vellum_backend::cpuid::{CpuModel, CpuProfile};
use vellum_backend::kvm::Kvm;
use vellum_backend::mshv::Mshv;
use vellum_backend::{
    Capabilities, Exit, Hva, Hypervisor, Interrupter, Protection, StateGroup, VcpuState, Vm,
    VmConfig, VmError,
};
use vellum_emulator::Emulator;
use vellum_layout::{Gpa, GpaRange};

/// The two looks of a call.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Before the guest is entered. A user guest still stands before the code that gives it its vector registers back.
    pub(crate) before: VcpuState,
    /// At its first exit, once that is settled.
    pub(crate) after: VcpuState,
    pub(crate) exit: Exit,
}

/// What the wrapper has seen of the VM that ran last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch(Arc<Mutex<Look>>);

#[derive(Debug, Default)]
enum Look {
    #[default]
    Away,
    /// The next entry is looked at.
    Next,
    Before(Box<VcpuState>),
    Seen(Box<Seen>),
}

impl Watch {
    /// The hypervisor of this name, which is there, watched.
    pub(crate) fn open(&self, name: &str) -> Arc<dyn Hypervisor> {
        let inner: Arc<dyn Hypervisor> = match name {
            "kvm" => Arc::new(Kvm::open().expect("it is there")),
            "mshv" => Arc::new(Mshv::open().expect("it is there")),
            "emulator" => Arc::new(Emulator::new()),
            other => panic!("no engine {other} is known here"),
        };
        Arc::new(Watched {
            inner,
            watch: self.clone(),
        })
    }

    /// Looks at the next entry of any VM, and at the exit after it.
    pub(crate) fn look(&self) {
        *self.0.lock().expect("nobody panics here") = Look::Next;
    }

    /// What was seen since.
    pub(crate) fn take(&self) -> Option<Seen> {
        match std::mem::take(&mut *self.0.lock().expect("nobody panics here")) {
            Look::Seen(seen) => Some(*seen),
            Look::Away | Look::Next | Look::Before(_) => None,
        }
    }

    fn before(&self, vm: &mut dyn Vm) -> Result<(), VmError> {
        let mut look = self.0.lock().expect("nobody panics here");
        if let Look::Next = *look {
            *look = Look::Before(Box::new(VcpuState::save(vm)?));
        }
        Ok(())
    }

    fn after(&self, vm: &mut dyn Vm, exit: Exit) -> Result<(), VmError> {
        let mut look = self.0.lock().expect("nobody panics here");
        if let (Look::Before(before), false) = (&*look, exit == Exit::Interrupted) {
            *look = Look::Seen(Box::new(Seen {
                before: (**before).clone(),
                after: VcpuState::save(vm)?,
                exit,
            }));
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Watched {
    inner: Arc<dyn Hypervisor>,
    watch: Watch,
}

impl Hypervisor for Watched {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn cpu_model(&self, profile: CpuProfile) -> Result<CpuModel, VmError> {
        self.inner.cpu_model(profile)
    }

    fn create_vm(&self, config: &VmConfig) -> Result<Box<dyn Vm>, VmError> {
        Ok(Box::new(WatchedVm {
            inner: self.inner.create_vm(config)?,
            watch: self.watch.clone(),
        }))
    }
}

struct WatchedVm {
    inner: Box<dyn Vm>,
    watch: Watch,
}

impl Vm for WatchedVm {
    fn run(&mut self) -> Result<Exit, VmError> {
        self.watch.before(self.inner.as_mut())?;
        let exit = self.inner.run()?;
        self.watch.after(self.inner.as_mut(), exit)?;
        Ok(exit)
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    unsafe fn map(
        &mut self,
        gpa: GpaRange,
        host: Hva,
        protection: Protection,
    ) -> Result<(), VmError> {
        // SAFETY: the caller's promise is for the VM that this one is.
        unsafe { self.inner.map(gpa, host, protection) }
    }

    unsafe fn map_file(
        &mut self,
        gpa: GpaRange,
        host: Hva,
        protection: Protection,
    ) -> Result<(), VmError> {
        // SAFETY: the caller's promise is for the VM that this one is.
        unsafe { self.inner.map_file(gpa, host, protection) }
    }

    fn unmap(&mut self, gpa: GpaRange) -> Result<(), VmError> {
        self.inner.unmap(gpa)
    }

    fn complete_io_in(&mut self, data: u32) -> Result<(), VmError> {
        self.inner.complete_io_in(data)
    }

    fn settle(&mut self) -> Result<(), VmError> {
        self.inner.settle()
    }

    fn get_state(&mut self, group: StateGroup, state: &mut VcpuState) -> Result<(), VmError> {
        self.inner.get_state(group, state)
    }

    fn set_state(&mut self, group: StateGroup, state: &VcpuState) -> Result<(), VmError> {
        self.inner.set_state(group, state)
    }

    fn interrupter(&self) -> Arc<dyn Interrupter> {
        self.inner.interrupter()
    }

    fn take_dirty(&mut self, page: &mut dyn FnMut(Gpa)) -> Result<(), VmError> {
        self.inner.take_dirty(page)
    }

    fn rearm_dirty(&mut self) -> Result<(), VmError> {
        self.inner.rearm_dirty()
    }

    fn publish_tables(&mut self) -> Result<(), VmError> {
        self.inner.publish_tables()
    }

    fn publish_remap(&mut self, targets: GpaRange) -> Result<(), VmError> {
        self.inner.publish_remap(targets)
    }
}

//! The MSHV backend: Linux as the root partition of Microsoft's hypervisor.
//!
//! **Evidence.** No machine with such a root partition has run this code yet. It is written to the documented interface (the kernel's
//! `include/uapi/linux/mshv.h` and driver, the Hypervisor Top-Level Functional Specification), its pure parts are unit-tested, and all of it
//! runs every day against a test double of `/dev/mshv` that enforces the rules of that interface as they are read here.
//!
//! What differs from KVM, and is hidden here: memory is pinned when it is mapped ([`Capabilities::host_discard`] is false), a port access is
//! not stepped over, registers travel by hypercall or through a shared page, nothing makes the next entry return at once, and writing CR3
//! from outside flushes no translation.

mod cpuid;
mod hypercall;
mod interrupt;
mod message;
mod msrs;
mod page;
mod registers;
mod vm;
mod xsave;

use std::io;
use std::sync::Arc;

use crate::cpuid::{CpuModel, CpuProfile, CpuidLeaf};
use crate::derived::Derived;
use crate::hypervisor::{Hypervisor, VmConfig};
use crate::probe;
use crate::refusal::Refusal;
use crate::vm::{Capabilities, Mmu, RingZero, Vm, VmError};

use registers::Register;

pub use vm::MshvVm;

/// An open `/dev/mshv` whose capabilities are known. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Mshv {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    device: mshv_ioctls::Mshv,
    capabilities: Capabilities,
    machine: Machine,
    /// The leaves to be registered for a model.
    overrides: Derived<Vec<CpuidLeaf>>,
}

/// What a fresh virtual processor of this machine says about all of them.
#[derive(Debug, Default)]
struct Machine {
    /// What `cpuid` could show.
    offered: Vec<CpuidLeaf>,
    /// Registers that go back to these values with group Msrs.
    resettable: Vec<Register>,
}

impl Mshv {
    /// Opens `/dev/mshv` and probes it, by looking at a fresh virtual processor and by running a guest of a few instructions.
    ///
    /// # Errors
    /// [`OpenError`], which says what to do.
    pub fn open() -> Result<Self, OpenError> {
        let device = mshv_ioctls::Mshv::new().map_err(|error| Refusal::of(error.errno()))?;
        let machine = vm::inspect(&device).map_err(OpenError::Probe)?;
        let unprobed = Self {
            inner: Arc::new(Inner {
                device,
                capabilities: assumed_capabilities(),
                machine,
                overrides: Derived::default(),
            }),
        };
        let probed = probe::run(&unprobed).map_err(OpenError::Probe)?;
        let capabilities = probed.correct(&assumed_capabilities());
        let Ok(inner) = Arc::try_unwrap(unprobed.inner) else {
            return Err(OpenError::Io(io::ErrorKind::ResourceBusy.into()));
        };
        Ok(Self {
            inner: Arc::new(Inner {
                capabilities,
                ..inner
            }),
        })
    }

    /// What was probed.
    pub fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    /// What `profile` shows on this processor.
    ///
    /// # Errors
    /// [`VmError::Profile`] when the hypervisor offers less.
    pub fn cpu_model(&self, profile: CpuProfile) -> Result<CpuModel, VmError> {
        crate::cpuid::model(profile, &self.inner.machine.offered).map_err(|missing| {
            VmError::Profile {
                profile: profile.name(),
                missing: missing.0,
            }
        })
    }

    /// Makes a VM with one vCPU.
    ///
    /// # Errors
    /// [`VmError::Hypervisor`], also for interrupt controllers, of which this backend has none; everything made so far is released.
    pub fn create_vm(&self, config: &VmConfig) -> Result<MshvVm, VmError> {
        let inner = &self.inner;
        let offered = &inner.machine.offered;
        let leaves = inner.overrides.of(&config.model, |model| {
            Ok::<_, VmError>(cpuid::overrides(model, offered))
        })?;
        let mut vm = MshvVm::create(&inner.device, &inner.machine, config)?;
        vm.show(&leaves)?;
        vm.set_capabilities(&inner.capabilities);
        Ok(vm)
    }
}

impl Hypervisor for Mshv {
    fn name(&self) -> &'static str {
        "mshv"
    }

    fn capabilities(&self) -> &Capabilities {
        self.capabilities()
    }

    fn cpu_model(&self, profile: CpuProfile) -> Result<CpuModel, VmError> {
        self.cpu_model(profile)
    }

    fn create_vm(&self, config: &VmConfig) -> Result<Box<dyn Vm>, VmError> {
        Ok(Box::new(self.create_vm(config)?))
    }
}

/// What the interface says of every machine. The first three are then probed.
fn assumed_capabilities() -> Capabilities {
    Capabilities {
        mmu: Mmu::Nested,
        ring_zero: RingZero::Native,
        two_level_paging: true,
        instruction_counts: false,
        sync_regs: true,
        dirty_ring_pages: 0,
        read_only_memory: true,
        msr_filter: false,
        msr_reset: true,
        host_discard: false,
    }
}

/// Why `/dev/mshv` cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no `/dev/mshv`.
    #[error(
        "/dev/mshv does not exist; it needs linux as the root partition of microsoft's hypervisor, with module mshv_root loaded"
    )]
    Absent,
    /// `/dev/mshv` may not be opened.
    #[error(
        "/dev/mshv may not be opened by this user; run `sudo chmod 666 /dev/mshv` or give the user a group that may"
    )]
    Permission,
    /// Opening failed for another reason.
    #[error("cannot open /dev/mshv")]
    Io(#[source] io::Error),
    /// A partition could not be made, or the probing guest did not run.
    #[error("/dev/mshv opens but does not run a guest")]
    Probe(#[source] VmError),
}

impl From<Refusal> for OpenError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Absent => Self::Absent,
            Refusal::Permission => Self::Permission,
            Refusal::Other(error) => Self::Io(error),
        }
    }
}

#[cfg(test)]
mod tests;

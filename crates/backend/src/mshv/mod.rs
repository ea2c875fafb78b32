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
use std::sync::{Arc, Mutex, PoisonError};

use crate::cpuid::{CpuModel, CpuProfile, CpuidLeaf};
use crate::hypervisor::{Hypervisor, VmConfig};
use crate::probe;
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
    overrides: Overrides,
}

/// What a fresh virtual processor of this machine says about all of them.
#[derive(Debug, Default)]
struct Machine {
    /// What `cpuid` could show.
    offered: Vec<CpuidLeaf>,
    /// Registers that go back to these values with group Msrs.
    resettable: Vec<Register>,
}

/// The leaves to be registered for the model of the last VM: the VMs of an engine share one.
#[derive(Debug, Default)]
struct Overrides(Mutex<Option<CachedOverrides>>);

type CachedOverrides = (Arc<CpuModel>, Arc<[CpuidLeaf]>);

impl Overrides {
    fn of(&self, model: &Arc<CpuModel>, offered: &[CpuidLeaf]) -> Arc<[CpuidLeaf]> {
        // Whoever panicked while it held the lock left a whole value or none.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, leaves)) = last.as_ref()
            && Arc::ptr_eq(known, model)
        {
            return leaves.clone();
        }
        let leaves: Arc<[CpuidLeaf]> = cpuid::overrides(model, offered).into();
        *last = Some((model.clone(), leaves.clone()));
        leaves
    }
}

impl Mshv {
    /// Opens `/dev/mshv` and probes it, by looking at a fresh virtual processor and by running a guest of a few instructions.
    ///
    /// # Errors
    /// [`OpenError`], which says what to do.
    pub fn open() -> Result<Self, OpenError> {
        let device =
            mshv_ioctls::Mshv::new().map_err(|error| OpenError::from_errno(error.errno()))?;
        let machine = vm::inspect(&device).map_err(OpenError::Probe)?;
        let unprobed = Self {
            inner: Arc::new(Inner {
                device,
                capabilities: assumed_capabilities(),
                machine,
                overrides: Overrides::default(),
            }),
        };
        let probed = probe::run(&unprobed).map_err(OpenError::Probe)?;
        let capabilities = Capabilities {
            mmu: probed.mmu,
            ring_zero: probed.ring_zero,
            two_level_paging: probed.two_level_paging,
            ..assumed_capabilities()
        };
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
        let leaves = inner.overrides.of(&config.model, &inner.machine.offered);
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

impl OpenError {
    fn from_errno(errno: i32) -> Self {
        match errno {
            libc::ENOENT | libc::ENXIO | libc::ENODEV => Self::Absent,
            libc::EACCES | libc::EPERM => Self::Permission,
            other => Self::Io(io::Error::from_raw_os_error(other)),
        }
    }
}

#[cfg(test)]
mod tests;

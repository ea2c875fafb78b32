//! The KVM backend.
//!
//! One file descriptor of `/dev/kvm` serves the whole process; [`Kvm::create_vm`] makes VMs from it. What this host's KVM can
//! do is probed once, by asking and by running a guest of a few instructions ([`Kvm::capabilities`]).

mod dirty;
mod interrupt;
mod registers;
mod shadow;
mod vcpu;
mod vm;

use std::io;
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_CAP_DIRTY_LOG_RING, KVM_CAP_SYNC_REGS, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::Cap;

use crate::cpuid::{self, CpuModel, CpuProfile, CpuidLeaf};
use crate::derived::Derived;
use crate::hypervisor::{Hypervisor, VmConfig};
use crate::probe;
use crate::refusal::Refusal;
use crate::vm::{Capabilities, Mmu, RingZero, Vm, VmError};

pub use vm::KvmVm;

/// The only API version that Linux has ever shipped (Linux `Documentation/virt/kvm/api.rst`, section 4.1).
const API_VERSION: i32 = 12;

/// Pages that a dirty ring can name before it must be reset.
const DIRTY_RING_PAGES: u32 = 4096;

/// Bytes of one entry of a dirty ring.
const DIRTY_RING_ENTRY_LEN_BYTES: u32 = 16;

/// An open `/dev/kvm` whose capabilities are known. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Kvm {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    device: kvm_ioctls::Kvm,
    capabilities: Capabilities,
    encoded: Derived<CpuId>,
    /// Only kept.
    _standby: Option<Standby>,
}

/// A vCPU that never runs.
///
/// Linux changes its own code when the first vCPU without a local APIC comes into being and when the last one goes
/// (`kvm_has_noapic_vcpu` in `arch/x86/kvm/lapic.c`), which takes longer than all the rest of making a VM. With this one there is neither.
#[derive(Debug)]
struct Standby {
    // Dropped in this order.
    _vcpu: kvm_ioctls::VcpuFd,
    _vm: kvm_ioctls::VmFd,
}

impl Standby {
    /// Nothing depends on it, so failing is no error.
    fn new(device: &kvm_ioctls::Kvm) -> Option<Self> {
        let vm = device.create_vm().ok()?;
        let vcpu = vm.create_vcpu(0).ok()?;
        Some(Self {
            _vcpu: vcpu,
            _vm: vm,
        })
    }
}

/// A model in KVM's own form.
fn encode(model: &CpuModel) -> Result<CpuId, VmError> {
    let entries: Vec<kvm_cpuid_entry2> = model.leaves.iter().map(leaf_to_kvm).collect();
    CpuId::from_entries(&entries)
        .map_err(|_| VmError::hypervisor("building the cpuid table", io::ErrorKind::InvalidInput))
}

impl Kvm {
    /// Opens `/dev/kvm` and probes it, by running a guest of a few instructions.
    ///
    /// # Errors
    /// [`OpenError`], which says what to do.
    pub fn open() -> Result<Self, OpenError> {
        let device = kvm_ioctls::Kvm::new().map_err(|error| Refusal::of(error.errno()))?;
        let version = device.get_api_version();
        if version != API_VERSION {
            return Err(OpenError::ApiVersion { version });
        }
        for (capability, name) in REQUIRED {
            if !device.check_extension(capability) {
                return Err(OpenError::MissingCapability { name });
            }
        }
        let asked = asked_capabilities(&device);
        let unprobed = Self {
            inner: Arc::new(Inner {
                device,
                capabilities: asked,
                encoded: Derived::default(),
                _standby: None,
            }),
        };
        let probed = probe::run(&unprobed).map_err(OpenError::Probe)?;
        let capabilities = probed.correct(unprobed.capabilities());
        let device = Arc::into_inner(unprobed.inner)
            .ok_or(OpenError::MissingCapability { name: "probe" })?
            .device;
        let standby = Standby::new(&device);
        Ok(Self {
            inner: Arc::new(Inner {
                device,
                capabilities,
                encoded: Derived::default(),
                _standby: standby,
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
    /// [`VmError::Profile`] when the processor lacks a feature of it; [`VmError::Hypervisor`].
    pub fn cpu_model(&self, profile: CpuProfile) -> Result<CpuModel, VmError> {
        let supported = self
            .inner
            .device
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| VmError::hypervisor("KVM_GET_SUPPORTED_CPUID", error))?;
        let supported: Vec<CpuidLeaf> = supported.as_slice().iter().map(leaf_from_kvm).collect();
        cpuid::model(profile, &supported).map_err(|missing| VmError::Profile {
            profile: profile.name(),
            missing: missing.0,
        })
    }

    /// Makes a VM with one vCPU.
    ///
    /// # Errors
    /// [`VmError::Hypervisor`]; everything made so far is released.
    pub fn create_vm(&self, config: &VmConfig) -> Result<KvmVm, VmError> {
        let cpuid = self.inner.encoded.of(&config.model, encode)?;
        KvmVm::create(&self.inner.device, &self.inner.capabilities, &cpuid, config)
    }
}

impl Hypervisor for Kvm {
    fn name(&self) -> &'static str {
        "kvm"
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

/// Why `/dev/kvm` cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no `/dev/kvm`.
    #[error(
        "/dev/kvm does not exist; load the kvm_intel or kvm_amd module, enable virtualization in the firmware, \
         or enable nested virtualization for this virtual machine"
    )]
    Absent,
    /// `/dev/kvm` may not be opened.
    #[error(
        "/dev/kvm may not be opened by this user; add the user to group kvm or run `sudo chmod 666 /dev/kvm`"
    )]
    Permission,
    /// Opening failed for another reason.
    #[error("cannot open /dev/kvm")]
    Io(#[source] io::Error),
    /// An unknown API version.
    #[error("/dev/kvm speaks api version {version}, not {API_VERSION}")]
    ApiVersion {
        /// The version.
        version: i32,
    },
    /// The kernel lacks something that Vellum needs.
    #[error("this kernel's kvm lacks {name}; use linux 5.11 or newer")]
    MissingCapability {
        /// What is missing.
        name: &'static str,
    },
    /// The probing guest did not run.
    #[error("/dev/kvm opens but does not run a guest")]
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

/// Capabilities without which no VM is made.
const REQUIRED: [(Cap, &str); 4] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
];

fn asked_capabilities(device: &kvm_ioctls::Kvm) -> Capabilities {
    let all_sync = kvm_bindings::KVM_SYNC_X86_REGS | kvm_bindings::KVM_SYNC_X86_SREGS;
    let sync = device.check_extension_raw(KVM_CAP_SYNC_REGS.into());
    let ring_len_bytes = device.check_extension_raw(KVM_CAP_DIRTY_LOG_RING.into());
    let ring_pages = u32::try_from(ring_len_bytes).unwrap_or(0) / DIRTY_RING_ENTRY_LEN_BYTES;
    Capabilities {
        mmu: Mmu::Nested,
        ring_zero: RingZero::Native,
        sync_regs: u32::try_from(sync).is_ok_and(|sync| sync & all_sync == all_sync),
        dirty_ring_pages: ring_pages.min(DIRTY_RING_PAGES),
        read_only_memory: device.check_extension(Cap::ReadonlyMem),
        msr_filter: device.check_extension(Cap::X86MsrFilter),
        msr_reset: false,
        host_discard: true,
        two_level_paging: true,
        instruction_counts: false,
    }
}

fn leaf_from_kvm(entry: &kvm_cpuid_entry2) -> CpuidLeaf {
    let indexed = entry.flags & kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
    CpuidLeaf {
        leaf: entry.function,
        subleaf: indexed.then_some(entry.index),
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    }
}

fn leaf_to_kvm(leaf: &CpuidLeaf) -> kvm_cpuid_entry2 {
    let flags = leaf
        .subleaf
        .map_or(0, |_| kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
    kvm_cpuid_entry2 {
        function: leaf.leaf,
        index: leaf.subleaf.unwrap_or(0),
        flags,
        eax: leaf.eax,
        ebx: leaf.ebx,
        ecx: leaf.ecx,
        edx: leaf.edx,
        ..kvm_cpuid_entry2::default()
    }
}

#[cfg(test)]
mod tests;

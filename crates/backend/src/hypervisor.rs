//! What makes VMs: the trait of hypervisors, and what is chosen about a VM before it exists.

use std::fmt;
use std::sync::Arc;

use vellum_layout::{Gpa, GpaRange, Hole, IO_APIC_PAGE, LOCAL_APIC_PAGE, PAGE_SIZE};

use crate::cpuid::{CpuModel, CpuProfile};
use crate::vm::{Capabilities, Vm, VmError};

/// A hypervisor that is open and probed, and makes VMs. One serves the whole process.
pub trait Hypervisor: Send + Sync + fmt::Debug {
    /// Its name, in lower case: `kvm`, `mshv`, `emulator`.
    fn name(&self) -> &'static str;

    /// What it can do on this machine, as probed.
    fn capabilities(&self) -> &Capabilities;

    /// What `profile` shows on this processor.
    ///
    /// # Errors
    /// [`VmError::Profile`] when the processor lacks a feature of it; [`VmError::Hypervisor`].
    fn cpu_model(&self, profile: CpuProfile) -> Result<CpuModel, VmError>;

    /// Makes a VM with one vCPU.
    ///
    /// # Errors
    /// [`VmError::Hypervisor`]; everything made so far is released.
    fn create_vm(&self, config: &VmConfig) -> Result<Box<dyn Vm>, VmError>;
}

/// What is chosen about a VM before it exists. Cheap to clone: VMs of one engine share the model, and a backend may keep its own
/// encoding of it.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// What the vCPU's `cpuid` shows.
    pub model: Arc<CpuModel>,
    /// Whether and how written pages are reported.
    pub tracking: Tracking,
    /// Whether there are interrupt controllers.
    pub irqchip: Irqchip,
}

impl VmConfig {
    /// A VM whose vCPU shows `model`, without interrupt controllers.
    pub fn new(model: impl Into<Arc<CpuModel>>, tracking: Tracking) -> Self {
        Self {
            model: model.into(),
            tracking,
            irqchip: Irqchip::None,
        }
    }

    /// The same VM with or without interrupt controllers. The default is none.
    #[must_use]
    pub fn with_irqchip(mut self, irqchip: Irqchip) -> Self {
        self.irqchip = irqchip;
        self
    }
}

/// Whether and how a VM reports which pages of [`crate::Protection::TrackedWrite`] ranges were written.
///
/// A hypervisor that knows one way of tracking uses it for both; what [`crate::Vm::take_dirty`] promises holds in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// In a ring of shared memory: no system call, and a page is reported once. The ring has no room for code that the hypervisor
    /// emulates ([`crate::RingZero::Emulated`]), because KVM reports each emulated store again; when it is overrun, running fails.
    FirstWrites,
    /// In a bitmap for each range, which costs a system call to read. A page that is written again is reported again.
    Bitmap,
    /// Not at all.
    None,
}

/// Whether a VM has interrupt controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Irqchip {
    /// None: `hlt` leaves the guest.
    None,
    /// Those of the hypervisor: two PICs, an I/O APIC and the local APIC. `hlt` waits inside for an interrupt. The guest's memory must
    /// then keep clear of [`IRQCHIP_HOLES`]. A hypervisor without them refuses to make such a VM.
    InKernel,
}

/// What memory must keep clear of when there are interrupt controllers, on any hypervisor.
pub const IRQCHIP_HOLES: [Hole; 3] = [LOCAL_APIC_PAGE, IO_APIC_PAGE, KVM_TSS_PAGES];

/// Three pages that KVM takes for itself on Intel processors when it has interrupt controllers, below the firmware's usual place
/// (Linux `Documentation/virt/kvm/api.rst`, section 4.33).
pub const KVM_TSS_PAGES: Hole = Hole {
    name: "kvm tss pages",
    range: GpaRange::literal(Gpa::literal(0xFFFB_D000), 3 * PAGE_SIZE),
};

//! The engine: the chosen hypervisor, the CPU profile, and what they imply.

use std::fmt;
use std::sync::Arc;

use vellum_backend::cpuid::{CpuModel, CpuProfile};
use vellum_backend::kvm::{Irqchip, Kvm, Tracking, VmConfig};
use vellum_backend::{Capabilities, Mmu, RingZero, Vm};
use vellum_layout::{GuestKind, Translation};

use crate::error::{Error, Failure};
use crate::memory::{Geometry, Parts};

/// A hypervisor that is ready to make sandboxes. Cheap to clone; one per process is enough.
///
/// ```no_run
/// let engine = vellum_sandbox::Engine::new()?;
/// println!("{engine}");
/// # Ok::<(), vellum_sandbox::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    kvm: Kvm,
    model: CpuModel,
    cow: CowMode,
    /// For user guests whose monitor copies pages.
    untracked: VmConfig,
    /// For user guests whose pages the host kernel copies.
    tracked: VmConfig,
    /// For guests that bring their own kernel.
    kernel: VmConfig,
}

/// Who copies a page when a guest writes to it for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CowMode {
    /// The monitor inside the guest: the image is mapped read-only and shared by every sandbox of a snapshot. The best choice
    /// where the processor walks the guest's page tables and runs ring 0 itself.
    GuestSide,
    /// The host kernel: the image is a private mapping. The choice where ring 0 is emulated or page tables are shadowed,
    /// because no guest instruction and no table edit is needed.
    HostSide,
}

impl fmt::Display for CowMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GuestSide => "guest-side",
            Self::HostSide => "host-side",
        })
    }
}

impl CowMode {
    /// The mode that suits a hypervisor.
    pub fn suited_to(capabilities: &Capabilities) -> Self {
        match (
            capabilities.mmu,
            capabilities.ring_zero,
            capabilities.read_only_memory,
        ) {
            (Mmu::Nested, RingZero::Native, true) => Self::GuestSide,
            _ => Self::HostSide,
        }
    }
}

/// Choices to be made before an [`Engine`] exists.
#[derive(Clone, Copy, Debug, Default)]
pub struct EngineBuilder {
    profile: CpuProfile,
    cow: Option<CowMode>,
}

impl EngineBuilder {
    /// Which features a guest's CPU has. The default is the best named level that this machine offers.
    #[must_use]
    pub const fn cpu_profile(mut self, profile: CpuProfile) -> Self {
        self.profile = profile;
        self
    }

    /// Who copies pages, instead of what suits the hypervisor.
    #[must_use]
    pub const fn cow_mode(mut self, cow: CowMode) -> Self {
        self.cow = Some(cow);
        self
    }

    /// Opens and probes the hypervisor, by running a guest of a few instructions: about a millisecond.
    ///
    /// # Errors
    /// [`ErrorKind::NoHypervisor`](crate::ErrorKind::NoHypervisor), which says what is missing and what to do.
    pub fn build(self) -> Result<Engine, Error> {
        let kvm = Kvm::open().map_err(Failure::NoHypervisor)?;
        let model = kvm.cpu_model(self.profile).map_err(Failure::Hypervisor)?;
        let cow = self
            .cow
            .unwrap_or_else(|| CowMode::suited_to(kvm.capabilities()));
        let config = |tracking| VmConfig::new(&model, tracking).map_err(Failure::Hypervisor);
        let kernel_tracking = match (kvm.capabilities().ring_zero, kvm.capabilities().mmu) {
            (RingZero::Native, Mmu::Nested) => Tracking::FirstWrites,
            // The ring has no room for emulated stores: all of an emulated ring 0, those to page tables that are shadowed.
            (RingZero::Emulated, _) | (_, Mmu::Shadow) => Tracking::Bitmap,
        };
        Ok(Engine {
            inner: Arc::new(Inner {
                untracked: config(Tracking::None)?,
                tracked: config(Tracking::FirstWrites)?,
                kernel: config(kernel_tracking)?,
                kvm,
                model,
                cow,
            }),
        })
    }
}

impl Engine {
    /// The hypervisor of this machine, with everything chosen to suit it.
    ///
    /// # Errors
    /// As [`EngineBuilder::build`].
    pub fn new() -> Result<Self, Error> {
        Self::builder().build()
    }

    /// An engine with choices of the caller.
    pub fn builder() -> EngineBuilder {
        EngineBuilder::default()
    }

    /// Who copies the pages of guests with paging. For those without it is always the host.
    pub fn cow_mode(&self) -> CowMode {
        self.inner.cow
    }

    /// The CPU profile that guests see; never [`CpuProfile::Best`].
    pub fn cpu_profile(&self) -> CpuProfile {
        self.inner.model.profile
    }

    /// What the hypervisor can do.
    pub fn capabilities(&self) -> &Capabilities {
        self.inner.kvm.capabilities()
    }

    pub(crate) fn model(&self) -> &CpuModel {
        &self.inner.model
    }

    /// Who copies the pages of a guest: one without paging leaves it to the host.
    pub(crate) fn cow_mode_for(&self, kind: GuestKind) -> CowMode {
        match kind.translation() {
            Translation::Identity => CowMode::HostSide,
            Translation::TwoLevel | Translation::FourLevel => self.inner.cow,
        }
    }

    pub(crate) fn create_vm(
        &self,
        geometry: &Geometry,
        irqchip: Irqchip,
    ) -> Result<Box<dyn Vm>, Failure> {
        let two_level = geometry.plan.kind().translation() == Translation::TwoLevel;
        if two_level && !self.capabilities().two_level_paging {
            return Err(Failure::TwoLevelPaging);
        }
        if matches!(geometry.parts, Parts::Kernel(_)) && !self.capabilities().msr_filter {
            return Err(Failure::MsrFilter);
        }
        let config = match (&geometry.parts, geometry.cow) {
            (Parts::User(_), CowMode::GuestSide) => &self.inner.untracked,
            (Parts::User(_), CowMode::HostSide) => &self.inner.tracked,
            (Parts::Kernel(_), _) => &self.inner.kernel,
        };
        let vm = self
            .inner
            .kvm
            .create_vm(&config.clone().with_irqchip(irqchip))
            .map_err(Failure::Hypervisor)?;
        Ok(Box::new(vm))
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let capabilities = self.capabilities();
        let mmu = match capabilities.mmu {
            Mmu::Nested => "nested paging",
            Mmu::Shadow => "shadow paging",
        };
        let ring_zero = match capabilities.ring_zero {
            RingZero::Native => "native ring 0",
            RingZero::Emulated => "emulated ring 0",
        };
        let (cow, profile) = (self.cow_mode(), self.cpu_profile().name());
        write!(
            f,
            "kvm ({mmu}, {ring_zero}), {cow} copy-on-write, cpu {profile}"
        )
    }
}

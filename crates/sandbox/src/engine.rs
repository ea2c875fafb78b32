//! The engine: the chosen hypervisor, the CPU profile, and what they imply.

mod idle;
mod kind;

use std::fmt;
use std::sync::Arc;

use vellum_backend::cpuid::{CpuModel, CpuProfile};
use vellum_backend::{Capabilities, Hypervisor, Irqchip, Mmu, RingZero, Tracking, Vm, VmConfig};
use vellum_layout::{GuestKind, Translation};

use crate::error::{Error, Failure};
use crate::instance::Instance;
use crate::memory::{Geometry, Parts};
use crate::snapshot::SnapshotData;

use idle::IdleVms;
pub use kind::EngineKind;
pub(crate) use kind::NoEngine;

/// A hypervisor, or the emulator, that is ready to make sandboxes. Cheap to clone; one per process is enough.
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
    hypervisor: Arc<dyn Hypervisor>,
    model: Arc<CpuModel>,
    cow: CowMode,
    /// For user guests whose monitor copies pages.
    untracked: VmConfig,
    /// For user guests whose pages the host kernel copies.
    tracked: VmConfig,
    /// For guests that bring their own kernel.
    kernel: VmConfig,
    idle: IdleVms,
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
            // Where memory is pinned, a read-only mapping of an image is a private copy as well, and there is nothing to share.
            capabilities.host_discard,
            // Where guests are interpreted the monitor is as well, and its part of a call depends on which pages were copied before: without it every
            // call of a function costs the same instructions.
            capabilities.instruction_counts,
        ) {
            (Mmu::Nested, RingZero::Native, true, true, false) => Self::GuestSide,
            _ => Self::HostSide,
        }
    }
}

/// Choices to be made before an [`Engine`] exists.
#[derive(Clone, Debug, Default)]
pub struct EngineBuilder {
    profile: CpuProfile,
    cow: Option<CowMode>,
    choice: Choice,
    idle_vms: Option<usize>,
}

/// Which hypervisor to use.
#[derive(Clone, Debug, Default)]
enum Choice {
    /// The first of [`EngineKind::ALL`] that works here.
    #[default]
    First,
    /// The first of [`EngineKind::HARDWARE`] that works here.
    Hardware,
    /// One of them and no other.
    Kind(EngineKind),
    /// One that the caller opened.
    Open(Arc<dyn Hypervisor>),
    /// The environment names one that nobody knows.
    Unknown(String),
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

    /// This hypervisor or none, instead of the first that works.
    #[must_use]
    pub fn kind(mut self, kind: EngineKind) -> Self {
        self.choice = Choice::Kind(kind);
        self
    }

    /// The hypervisor that the environment variable [`EngineKind::VARIABLE`] names, or what was chosen before when it is not set. For tests and
    /// tools: without this, the environment can forbid the last resort, and nothing else.
    #[must_use]
    pub fn chosen_by_environment(mut self) -> Self {
        if let Ok(name) = std::env::var(EngineKind::VARIABLE) {
            self.choice = EngineKind::from_name(&name).map_or(Choice::Unknown(name), Choice::Kind);
        }
        self
    }

    /// A hypervisor that runs guests on the processor, never the emulator, whatever was chosen before: what production wants, where a
    /// machine without one is a mistake to be told about and not to be slow on.
    ///
    /// Without it the emulator is the last resort where no hypervisor works, with one line on standard error and a warning of `tracing` that say
    /// so, unless the environment forbids it ([`EngineKind::REQUIRE_HARDWARE_VARIABLE`]).
    #[must_use]
    pub fn require_hardware(mut self) -> Self {
        self.choice = Choice::Hardware;
        self
    }

    /// A hypervisor that the caller opened, perhaps one of its own.
    #[must_use]
    pub fn hypervisor(mut self, hypervisor: Arc<dyn Hypervisor>) -> Self {
        self.choice = Choice::Open(hypervisor);
        self
    }

    /// How many VMs of sandboxes that were [recycled](crate::Sandbox::recycle) the engine keeps for the next ones; 16 if not said. Each keeps
    /// its snapshot alive, and what memory its guest has touched, at most 16 MiB.
    #[must_use]
    pub const fn idle_vms(mut self, most: usize) -> Self {
        self.idle_vms = Some(most);
        self
    }

    /// Opens and probes the hypervisor, by running a guest of a few instructions: about a millisecond.
    ///
    /// # Errors
    /// [`ErrorKind::NoHypervisor`](crate::ErrorKind::NoHypervisor), which says what was tried, what is missing and what to do.
    pub fn build(self) -> Result<Engine, Error> {
        let hypervisor = match self.choice {
            Choice::First => kind::open_first(kind::permitted()),
            Choice::Hardware => kind::open_first(&EngineKind::HARDWARE),
            Choice::Kind(kind) => kind::open_first(&[kind]),
            Choice::Open(hypervisor) => Ok(hypervisor),
            Choice::Unknown(name) => Err(NoEngine::unknown(name)),
        }
        .map_err(Failure::NoHypervisor)?;
        let capabilities = hypervisor.capabilities();
        let model = hypervisor
            .cpu_model(self.profile)
            .map_err(Failure::Hypervisor)?;
        let model = Arc::new(model);
        let cow = self.cow.unwrap_or_else(|| CowMode::suited_to(capabilities));
        let config = |tracking| VmConfig::new(model.clone(), tracking);
        let kernel_tracking = match (capabilities.ring_zero, capabilities.mmu) {
            (RingZero::Native, Mmu::Nested) => Tracking::FirstWrites,
            // The ring has no room for emulated stores: all of an emulated ring 0, those to page tables that are shadowed.
            (RingZero::Emulated, _) | (_, Mmu::Shadow) => Tracking::Bitmap,
        };
        Ok(Engine {
            inner: Arc::new(Inner {
                untracked: config(Tracking::None),
                tracked: config(Tracking::FirstWrites),
                kernel: config(kernel_tracking),
                hypervisor,
                model,
                cow,
                idle: IdleVms::new(self.idle_vms.unwrap_or(idle::DEFAULT_IDLE_VMS)),
            }),
        })
    }
}

impl Engine {
    /// The hypervisor of this machine, or the emulator where there is none, with everything chosen to suit it.
    ///
    /// It never ends at the emulator unseen: see [`EngineBuilder::require_hardware`] for the line that says so, and for how to forbid it.
    ///
    /// # Errors
    /// As [`EngineBuilder::build`].
    pub fn new() -> Result<Self, Error> {
        Self::builder().build()
    }

    /// As [`new`](Self::new), but never the emulator.
    ///
    /// # Errors
    /// As [`EngineBuilder::build`].
    pub fn require_hardware() -> Result<Self, Error> {
        Self::builder().require_hardware().build()
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

    /// The hypervisor's name, such as `kvm`.
    pub fn name(&self) -> &'static str {
        self.inner.hypervisor.name()
    }

    /// Which of the hypervisors that Vellum knows it is, by name; `None` for one that the caller brought.
    pub fn kind(&self) -> Option<EngineKind> {
        EngineKind::from_name(self.name())
    }

    /// What the hypervisor can do.
    pub fn capabilities(&self) -> &Capabilities {
        self.inner.hypervisor.capabilities()
    }

    /// How many VMs of [recycled](crate::Sandbox::recycle) sandboxes wait for the next ones.
    pub fn idle_vms(&self) -> usize {
        self.inner.idle.len()
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

    /// Keeps the VM of a sandbox that has ended.
    pub(crate) fn keep_idle(&self, instance: Instance) {
        self.inner.idle.keep(instance);
    }

    /// A VM that stands on `snapshot`, or can be brought there.
    pub(crate) fn take_idle(&self, snapshot: &Arc<SnapshotData>) -> Option<Instance> {
        self.inner.idle.take(snapshot)
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
        let Capabilities {
            msr_filter,
            msr_reset,
            ..
        } = *self.capabilities();
        if matches!(geometry.parts, Parts::Kernel(_)) && !(msr_filter || msr_reset) {
            return Err(Failure::MsrFilter);
        }
        let config = match (&geometry.parts, geometry.cow) {
            (Parts::User(_), CowMode::GuestSide) => &self.inner.untracked,
            (Parts::User(_), CowMode::HostSide) => &self.inner.tracked,
            (Parts::Kernel(_), _) => &self.inner.kernel,
        };
        self.inner
            .hypervisor
            .create_vm(&config.clone().with_irqchip(irqchip))
            .map_err(Failure::Hypervisor)
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
        let name = self.name();
        let (cow, profile) = (self.cow_mode(), self.cpu_profile().name());
        write!(
            f,
            "{name} ({mmu}, {ring_zero}), {cow} copy-on-write, cpu {profile}"
        )
    }
}

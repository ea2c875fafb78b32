//! The engine that a suite runs on, and in what it is known to differ.

use std::fmt;
use std::sync::Arc;

use vellum_backend::cpuid::{CpuModel, CpuProfile};
use vellum_backend::{Capabilities, Hypervisor, RingZero, Tracking, Vm, VmConfig, VmError};

use crate::check::Need;

/// An engine, and every way in which it is known to differ from what the suite would else demand. Each has a reason, which the
/// report prints.
#[derive(Clone)]
pub struct Subject {
    name: String,
    engine: Result<Engine, String>,
    differences: Vec<Difference>,
}

#[derive(Clone)]
struct Engine {
    hypervisor: Arc<dyn Hypervisor>,
    model: Arc<CpuModel>,
}

/// One known difference of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// In what it differs.
    pub quirk: Quirk,
    /// Why.
    pub reason: &'static str,
}

/// What an engine may be known to do otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quirk {
    /// A check cannot run, by name. A name that ends in `::` stands for all checks of a module.
    NotHere(&'static str),
    /// An instruction fetch from absent memory is an [`EmulationFailure`](vellum_backend::Exit::EmulationFailure), or an undefined
    /// instruction in the guest, not a memory fault.
    FetchIsEmulated,
    /// A page that the guest only read may be reported as written.
    DirtyMayIncludeReads,
    /// Ring 3 needs IOPL 3 even where the I/O bitmap of the task-state segment allows a port.
    BitmapIgnored,
    /// Ring 3 needs the I/O bitmap of the task-state segment even with IOPL 3.
    IoplIgnored,
    /// A guest that writes to read-only memory may not leave by itself, but only when it is interrupted.
    ViolationsMayLoop,
    /// The engine lacks what checks may need, by its nature and not by the machine's.
    Lacks(Need),
    /// Ring 3 reads the host's values from its segment registers and from the system flags, instead of its own.
    RingThreeSeesTheHost,
}

impl Subject {
    /// An engine without known differences.
    ///
    /// # Errors
    /// As [`Hypervisor::cpu_model`].
    pub fn new(hypervisor: Arc<dyn Hypervisor>) -> Result<Self, VmError> {
        let model = hypervisor.cpu_model(CpuProfile::Best)?;
        Ok(Self {
            name: hypervisor.name().to_owned(),
            engine: Ok(Engine {
                hypervisor,
                model: Arc::new(model),
            }),
            differences: Vec::new(),
        })
    }

    /// An engine that this machine does not have: every check is reported as not run, for this reason.
    pub fn absent(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            engine: Err(reason.into()),
            differences: Vec::new(),
        }
    }

    /// The same engine under another name in the report: one hypervisor may be there twice, on two machines.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The same engine, with a known difference.
    #[must_use]
    pub fn but(mut self, quirk: Quirk, reason: &'static str) -> Self {
        self.differences.push(Difference { quirk, reason });
        self
    }

    /// Its name in reports.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its known differences.
    pub fn differences(&self) -> &[Difference] {
        &self.differences
    }

    pub(crate) fn has(&self, quirk: Quirk) -> bool {
        self.differences.iter().any(|known| known.quirk == quirk)
    }

    /// How its ring 0 runs, if it is there.
    pub(crate) fn ring_zero(&self) -> Option<RingZero> {
        let engine = self.engine.as_ref().ok()?;
        Some(engine.hypervisor.capabilities().ring_zero)
    }

    /// What it can do. Only checks ask, and none runs on an engine that is absent.
    pub(crate) fn capabilities(&self) -> &Capabilities {
        self.engine().hypervisor.capabilities()
    }

    /// What its vCPUs show.
    pub(crate) fn model(&self) -> &CpuModel {
        &self.engine().model
    }

    /// Makes a VM without interrupt controllers.
    pub(crate) fn create_vm(&self, tracking: Tracking) -> Result<Box<dyn Vm>, VmError> {
        let engine = self.engine();
        let config = VmConfig::new(engine.model.clone(), tracking);
        engine.hypervisor.create_vm(&config)
    }

    fn engine(&self) -> &Engine {
        self.engine
            .as_ref()
            .expect("`why_not` is asked before a check runs")
    }

    /// Why a check cannot run on this engine, if it cannot.
    pub(crate) fn why_not(&self, check: &str, needs: &[Need]) -> Option<String> {
        if let Err(reason) = &self.engine {
            return Some(reason.clone());
        }
        let known = self.differences.iter().find_map(|known| match known.quirk {
            Quirk::NotHere(name) => {
                let named = check == name || (name.ends_with("::") && check.starts_with(name));
                named.then(|| known.reason.to_owned())
            }
            _ => None,
        });
        known.or_else(|| needs.iter().find_map(|need| self.lacks(*need)))
    }

    fn lacks(&self, need: Need) -> Option<String> {
        let capabilities = self.capabilities();
        let (met, reason) = match need {
            Need::NativeRingZero => (
                capabilities.ring_zero == RingZero::Native,
                "ring 0 is emulated on this host, which lacks the instructions",
            ),
            Need::TwoLevelPaging => (
                capabilities.two_level_paging,
                "this host's hypervisor refuses 2-level paging",
            ),
            Need::ReadOnlyMemory => (
                capabilities.read_only_memory,
                "this hypervisor has no read-only memory",
            ),
            Need::MsrFilter => (
                capabilities.msr_filter,
                "this hypervisor cannot deny model-specific registers",
            ),
            Need::DirtyRing => (
                capabilities.dirty_ring_pages > 0,
                "this hypervisor has no ring of first writes",
            ),
            Need::Xsave => (
                self.model().xcr0 != vellum_backend::state::Xcr0::RESET,
                "the cpu profile of this host offers no XSAVE",
            ),
        };
        let declared = self
            .differences
            .iter()
            .find(|known| known.quirk == Quirk::Lacks(need));
        let reason = declared.map_or(reason, |known| known.reason);
        (!met).then(|| reason.to_owned())
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject")
            .field("name", &self.name)
            .field("absent", &self.engine.as_ref().err())
            .field("differences", &self.differences)
            .finish_non_exhaustive()
    }
}

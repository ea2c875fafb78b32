//! The hypervisors that Vellum knows, and how one of them is chosen.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use vellum_backend::Hypervisor;
use vellum_backend::kvm::Kvm;
use vellum_backend::mshv::Mshv;

/// A hypervisor that Vellum knows by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EngineKind {
    /// Linux KVM, `/dev/kvm`.
    Kvm,
    /// Microsoft's hypervisor under Linux, `/dev/mshv`. It has been run against a test double only, not on a machine of its kind.
    Mshv,
}

impl EngineKind {
    /// Every kind, in the order in which they are tried.
    pub const ALL: [Self; 2] = [Self::Kvm, Self::Mshv];

    /// Its name, as in [`Hypervisor::name`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Mshv => "mshv",
        }
    }

    fn open(self) -> Result<Arc<dyn Hypervisor>, Box<dyn Error + Send + Sync>> {
        match self {
            Self::Kvm => Ok(Arc::new(Kvm::open()?)),
            Self::Mshv => Ok(Arc::new(Mshv::open()?)),
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why none of the hypervisors that were tried can be used.
#[derive(Debug)]
pub(crate) struct NoEngine {
    attempts: Vec<(EngineKind, Box<dyn Error + Send + Sync>)>,
}

impl fmt::Display for NoEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (kind, error)) in self.attempts.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{kind}: {error}")?;
            let mut cause = error.source();
            while let Some(error) = cause {
                write!(f, ": {error}")?;
                cause = error.source();
            }
        }
        Ok(())
    }
}

impl Error for NoEngine {}

/// Opens the first of `kinds` that works.
pub(super) fn open_first(kinds: &[EngineKind]) -> Result<Arc<dyn Hypervisor>, NoEngine> {
    let mut attempts = Vec::new();
    for &kind in kinds {
        match kind.open() {
            Ok(hypervisor) => return Ok(hypervisor),
            Err(error) => attempts.push((kind, error)),
        }
    }
    Err(NoEngine { attempts })
}

//! The hypervisors that Vellum knows, and how one of them is chosen.

use std::error::Error;
use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Write as _};
use std::sync::{Arc, Once};

use vellum_backend::Hypervisor;
use vellum_backend::kvm::Kvm;
use vellum_backend::mshv::Mshv;
use vellum_emulator::Emulator;

/// A hypervisor that Vellum knows by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EngineKind {
    /// Linux KVM, `/dev/kvm`.
    Kvm,
    /// Microsoft's hypervisor under Linux, `/dev/mshv`. It has been run against a test double only, not on a machine of its kind.
    Mshv,
    /// An interpreter in this process, which needs nothing of the machine and is far slower than its processor.
    Emulator,
}

impl EngineKind {
    /// The environment variable that [`EngineBuilder::chosen_by_environment`](crate::EngineBuilder::chosen_by_environment) asks.
    pub const VARIABLE: &str = "VELLUM_ENGINE";

    /// The environment variable by which whoever runs a program forbids the emulator as the last resort, in all of the program: set to anything
    /// but the empty string and `0`. Whoever asks for the emulator by name still gets it.
    pub const REQUIRE_HARDWARE_VARIABLE: &str = "VELLUM_REQUIRE_HARDWARE";

    /// Every kind, in the order in which they are tried.
    pub const ALL: [Self; 3] = [Self::Kvm, Self::Mshv, Self::Emulator];

    /// Those that run guests on the processor.
    pub const HARDWARE: [Self; 2] = [Self::Kvm, Self::Mshv];

    /// Its name, as in [`Hypervisor::name`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Mshv => "mshv",
            Self::Emulator => "emulator",
        }
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    fn open(self) -> Result<Arc<dyn Hypervisor>, Box<dyn Error + Send + Sync>> {
        match self {
            Self::Kvm => Ok(Arc::new(Kvm::open()?)),
            Self::Mshv => Ok(Arc::new(Mshv::open()?)),
            Self::Emulator => Ok(Arc::new(Emulator::new())),
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
    attempts: Vec<(String, Box<dyn Error + Send + Sync>)>,
}

impl NoEngine {
    /// Nobody knows an engine of this name.
    pub(super) fn unknown(name: String) -> Self {
        let known = EngineKind::ALL.map(EngineKind::name).join(", ");
        let error = format!(
            "no such engine; set {} to one of {known}",
            EngineKind::VARIABLE
        );
        Self {
            attempts: vec![(name, error.into())],
        }
    }
}

impl fmt::Display for NoEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, error)) in self.attempts.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{name}: {error}")?;
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

/// What may be tried where nobody insists on anything.
pub(super) fn permitted() -> &'static [EngineKind] {
    permitted_with(std::env::var_os(EngineKind::REQUIRE_HARDWARE_VARIABLE).as_deref())
}

fn permitted_with(variable: Option<&OsStr>) -> &'static [EngineKind] {
    match variable {
        Some(value) if !value.is_empty() && value != "0" => &EngineKind::HARDWARE,
        _ => &EngineKind::ALL,
    }
}

/// Opens the first of `kinds` that works, and says so if that is the emulator for want of a hypervisor: once in a process.
pub(super) fn open_first(kinds: &[EngineKind]) -> Result<Arc<dyn Hypervisor>, NoEngine> {
    static ANNOUNCED: Once = Once::new();
    let (hypervisor, line) = first(kinds, EngineKind::open)?;
    if let Some(line) = line {
        ANNOUNCED.call_once(|| {
            tracing::warn!("{line}");
            // To standard error as well: most programs that embed this have no subscriber. A closed one is no reason to fail.
            let _ = writeln!(io::stderr(), "{line}");
        });
    }
    Ok(hypervisor)
}

/// The first of `kinds` that `open` opens, and the line about a choice that nobody should make unawares.
fn first<T>(
    kinds: &[EngineKind],
    open: impl Fn(EngineKind) -> Result<T, Box<dyn Error + Send + Sync>>,
) -> Result<(T, Option<String>), NoEngine> {
    let mut attempts = Vec::new();
    for &kind in kinds {
        match open(kind) {
            Ok(opened) if kind == EngineKind::Emulator && !attempts.is_empty() => {
                let reason = NoEngine { attempts };
                let line = format!(
                    "no hypervisor: {reason}; using the emulator, about {SLOWER} times slower"
                );
                return Ok((opened, Some(line)));
            }
            Ok(opened) => return Ok((opened, None)),
            Err(error) => attempts.push((kind.name().to_owned(), error)),
        }
    }
    Err(NoEngine { attempts })
}

/// How many times slower than a processor the emulator runs a loop, roughly: 131 million instructions of integers in a second, where the same loop
/// compiled is 59 times as fast.
const SLOWER: u32 = 50;

#[cfg(test)]
mod tests;

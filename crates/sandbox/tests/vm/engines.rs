//! Engines in each mode of copy-on-write, and what is said about tests that ran and that could not. All test programs of this crate share it.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::{self, Write as _};

use vellum_sandbox::{CowMode, Engine, EngineKind, ErrorKind};

/// The environment variable that names the file for lines about what ran.
const REPORT_VARIABLE: &str = "VELLUM_TEST_REPORT";

/// What a test came to: a test that returns nothing has run, another one says why it could not.
pub(crate) trait Verdict {
    /// An error is the reason for a skip.
    fn verdict(self) -> Result<(), &'static str>;
}

impl Verdict for () {
    fn verdict(self) -> Result<(), &'static str> {
        Ok(())
    }
}

impl Verdict for Result<(), &'static str> {
    fn verdict(self) -> Result<(), &'static str> {
        self
    }
}

/// The engine that the environment names, or the machine's, in one mode; or why there is none.
pub(crate) fn open(cow: CowMode) -> Result<Engine, String> {
    let builder = Engine::builder().chosen_by_environment().cow_mode(cow);
    match builder.build() {
        Ok(engine) if cow == CowMode::GuestSide && !engine.capabilities().read_only_memory => {
            Err("this hypervisor has no read-only memory".into())
        }
        Ok(engine) => Ok(engine),
        Err(error) if error.kind() == ErrorKind::NoHypervisor => Err(format!("{error:?}")),
        Err(error) => panic!("{error:?}"),
    }
}

/// Says what became of one test of a suite in one mode, in the file that collects it. A skip is said on standard error, too.
pub(crate) fn report(
    suite: impl Display,
    cow: CowMode,
    engine: Option<&Engine>,
    verdict: Result<(), &str>,
) {
    let outcome = match verdict {
        Ok(()) => "tests=1".to_owned(),
        Err(reason) => {
            // Written directly, because the harness hides what a passing test prints.
            let _ = writeln!(
                io::stderr(),
                "SKIPPED {suite}, {cow} copy-on-write: {reason}"
            );
            format!("skipped={reason}")
        }
    };
    let Some(path) = std::env::var_os(REPORT_VARIABLE) else {
        return;
    };
    let line = format!(
        "engine={} cow={cow} suite={suite} {outcome}\n",
        label(engine)
    );
    let mut options = OpenOptions::new();
    let file = options.create(true).append(true).open(path);
    // One write, so that lines of parallel tests do not mix.
    file.expect("the report file can be opened")
        .write_all(line.as_bytes())
        .expect("the report file can be written");
}

/// What the report calls the engine: a hypervisor may be one in name only, and one that is absent is the one that was asked for.
fn label(engine: Option<&Engine>) -> String {
    std::env::var("VELLUM_TEST_ENGINE_LABEL")
        .ok()
        .or_else(|| engine.map(|engine| engine.name().to_owned()))
        .or_else(|| std::env::var(EngineKind::VARIABLE).ok())
        .unwrap_or_else(|| EngineKind::Kvm.name().to_owned())
}

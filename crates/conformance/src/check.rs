//! A check: what it needs, and its verdict on an engine.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::failure::Failure;
use crate::subject::Subject;

/// One thing that every engine must do.
#[derive(Clone, Copy)]
pub struct Check {
    /// Module and statement: `ports::every_width_of_output_in_real_mode`.
    pub name: &'static str,
    /// What it needs of an engine to be runnable at all.
    pub needs: &'static [Need],
    pub(crate) run: fn(&Subject) -> Result<(), Failure>,
}

/// What a check may need. An engine that lacks it says why, and the check is reported as not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Ring 0 runs on the processor, with all its instructions.
    NativeRingZero,
    /// 2-level paging.
    TwoLevelPaging,
    /// Memory that guest writes fault on.
    ReadOnlyMemory,
    /// Model-specific registers are denied by default.
    MsrFilter,
    /// First writes are reported in a ring.
    DirtyRing,
    /// The CPU profile offers XSAVE.
    Xsave,
}

/// What came of a check.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It held.
    Passed,
    /// It did not.
    Failed(Failure),
    /// It cannot run on this engine, for this reason.
    NotHere(String),
}

impl Check {
    /// Runs the check, if the engine has what it needs. A panic of the engine is a failure.
    pub fn on(&self, subject: &Subject) -> Outcome {
        if let Some(reason) = subject.why_not(self.name, self.needs) {
            return Outcome::NotHere(reason);
        }
        match catch_unwind(AssertUnwindSafe(|| (self.run)(subject))) {
            Ok(Ok(())) => Outcome::Passed,
            Ok(Err(failure)) => Outcome::Failed(failure),
            Err(_) => Outcome::Failed(Failure::new("panicked; the message is on standard error")),
        }
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check")
            .field("name", &self.name)
            .field("needs", &self.needs)
            .finish_non_exhaustive()
    }
}

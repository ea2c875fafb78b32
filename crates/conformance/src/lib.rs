//! What a hypervisor backend of Vellum is, as a suite of small guests.
//!
//! A backend implements [`Hypervisor`](vellum_backend::Hypervisor) and [`Vm`](vellum_backend::Vm). Their documentation says what they
//! promise; the [checks] of this crate hold them to it, with guests of a few instructions in 16-bit, 32-bit and 64-bit code, in
//! ring 0 and ring 3. Every engine runs all of them. In what an engine is known to differ is said once, in its [`Subject`], with
//! the reason, and the [report](Report) prints it: no check is skipped in silence.
//!
//! ```
//! use std::sync::Arc;
//! use vellum_conformance::{Quirk, Subject};
//!
//! # fn run(hypervisor: Arc<dyn vellum_backend::Hypervisor>) -> Result<(), vellum_backend::VmError> {
//! let subject = Subject::new(hypervisor)?
//!     .but(Quirk::FetchIsEmulated, "it emulates every fetch from absent memory");
//! let report = vellum_conformance::report(&subject);
//! println!("{report}");
//! assert!(report.has_passed());
//! # Ok(())
//! # }
//! ```
//!
//! A crate with an engine makes tests of them: [`conformance_tests!`].

mod check;
mod failure;
mod guest;
mod machine;
mod report;
mod rig;
mod subject;
mod suite;
mod table;

pub use check::{Check, Need, Outcome};
pub use failure::Failure;
pub use guest::Guest;
pub use machine::{on_kvm, over_mshv};
pub use report::{Report, report, test};
pub use subject::{Difference, Quirk, Subject};
pub use table::checks;

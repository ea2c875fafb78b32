//! What the double insists on beyond what is sure to be refused by every machine.
//!
//! By default it takes every rule at its word. The crate `mshv-ioctls` itself does not satisfy all of them (it leaves the upper half of 64-bit
//! register values uninitialised, and its tests run guests without extended state), so its own tests run leniently.

use std::sync::OnceLock;

/// The environment variable that makes the double lenient, whatever its value.
pub const LENIENT_VARIABLE: &str = "VELLUM_MSHV_DOUBLE_LENIENT";

/// Whether every rule is enforced.
pub(crate) fn is_strict() -> bool {
    static IS_STRICT: OnceLock<bool> = OnceLock::new();
    *IS_STRICT.get_or_init(|| std::env::var_os(LENIENT_VARIABLE).is_none())
}

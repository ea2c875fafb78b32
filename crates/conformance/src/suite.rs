//! The checks, by what they are about.

pub(crate) mod boots;
pub(crate) mod cancel;
pub(crate) mod cpuid;
pub(crate) mod debug;
pub(crate) mod dirty;
pub(crate) mod exceptions;
pub(crate) mod faults;
pub(crate) mod halts;
pub(crate) mod hostile;
pub(crate) mod mapping;
pub(crate) mod msrs;
pub(crate) mod ports;
pub(crate) mod state;
pub(crate) mod strings;
pub(crate) mod tables;
pub(crate) mod vectors;

/// Defines one check for each mode from a function of the mode and a guest.
macro_rules! in_modes {
    ($check:ident: $($name:ident = $mode:ident $guest:ident),+ $(,)?) => {
        $(pub(crate) fn $name(subject: &$crate::subject::Subject) -> $crate::failure::Result {
            $check(subject, $crate::rig::Mode::$mode, &$guest)
        })+
    };
}

use in_modes;

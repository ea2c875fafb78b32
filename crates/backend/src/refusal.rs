//! Why the device of a hypervisor does not open, as far as all hypervisors have the same reasons.

use std::io;

/// What an errno of opening says.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// There is no device, or no hypervisor behind it.
    Absent,
    /// This user may not open it.
    Permission,
    /// Anything else.
    Other(io::Error),
}

impl Refusal {
    pub(crate) fn of(errno: i32) -> Self {
        match errno {
            libc::ENOENT | libc::ENXIO | libc::ENODEV => Self::Absent,
            libc::EACCES | libc::EPERM => Self::Permission,
            other => Self::Other(io::Error::from_raw_os_error(other)),
        }
    }
}

#[cfg(test)]
mod tests;

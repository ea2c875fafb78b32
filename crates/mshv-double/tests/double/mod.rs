//! The double, opened by the backend.

use vellum_backend::mshv::{Mshv, OpenError};

/// The engine, or why this machine has none. That the device is there and does not run the backend's own guest is neither: it fails the test.
pub(crate) fn open() -> Result<Mshv, String> {
    vellum_mshv_double::link();
    match Mshv::open() {
        Ok(mshv) => Ok(mshv),
        Err(error @ (OpenError::Absent | OpenError::Permission)) => {
            Err(format!("{error}; the double needs /dev/kvm"))
        }
        Err(error) => panic!("{error:?}"),
    }
}

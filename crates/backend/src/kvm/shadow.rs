//! Page tables that the hypervisor shadows: how it is told that the host has edited them.
#![expect(
    unsafe_code,
    reason = "changes the protection of memory that guests use"
)]

use std::io;
use std::ptr;

use rustix::mm::MprotectFlags;

use crate::memory::Hva;

/// Makes the hypervisor forget what it derived from this memory: the protection of its pages is taken away and given back.
///
/// The caller lends the memory to a guest as writable and holds no reference into it.
pub(super) fn forget_derived(hva: Hva, len_bytes: u64) -> io::Result<()> {
    let invalid = |_| io::ErrorKind::InvalidInput;
    let len_bytes = usize::try_from(len_bytes).map_err(invalid)?;
    let address = usize::try_from(hva.as_u64()).map_err(invalid)?;
    for flags in [
        MprotectFlags::READ,
        MprotectFlags::READ | MprotectFlags::WRITE,
    ] {
        // SAFETY: no reference into the range exists, by this function's contract, and it is writable again after the second step.
        unsafe {
            rustix::mm::mprotect(ptr::with_exposed_provenance_mut(address), len_bytes, flags)
        }?;
    }
    Ok(())
}

//! A host file that is lent to a guest.

use std::fs::File;
use std::io;

use super::mapping::{Content, PRIVATE};
use super::{HostMemory, Hva};

/// A private mapping of a file: the guest reads the file, and a page that it writes becomes a copy of its own. The file never changes.
///
/// The host itself cannot read or write it, by design. Somebody may truncate the file at any time, and an access of the host's own to a
/// page that the file no longer has would kill the process (`SIGBUS`). An access of the guest ends in [`Exit::MemoryLost`].
///
/// [`Exit::MemoryLost`]: crate::Exit::MemoryLost
#[derive(Debug)]
pub struct FileMemory {
    memory: HostMemory,
}

impl FileMemory {
    /// Maps the first `len_bytes` of a file, rounded up to whole pages. What lies behind the end of the file in its last page reads as
    /// zeroes.
    ///
    /// # Errors
    /// What `mmap` says; `InvalidInput` for a length of 0 or past the address space.
    pub fn map(file: &File, len_bytes: u64) -> io::Result<Self> {
        let len_bytes = len_bytes
            .checked_next_multiple_of(vellum_layout::PAGE_SIZE)
            .ok_or(io::ErrorKind::InvalidInput)?;
        // Writable also where the guest may only read, because Hyper-V pins only writable memory; what would be written is private.
        let memory = HostMemory::fresh(len_bytes, Content::File(file, 0), PRIVATE)?;
        Ok(Self { memory })
    }

    /// Length in bytes, a multiple of the page size.
    pub const fn len_bytes(&self) -> u64 {
        self.memory.len_bytes()
    }

    /// The host address of the first byte, for [`Vm::map`](crate::Vm::map).
    pub fn hva(&self) -> Hva {
        self.memory.hva()
    }

    /// Drops every private copy: the memory shows the file again.
    ///
    /// # Errors
    /// What `madvise` says.
    pub fn discard_copies(&self) -> io::Result<()> {
        self.memory.discard(0..self.len_bytes())
    }
}

#[cfg(test)]
mod tests;

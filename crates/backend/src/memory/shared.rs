//! Memory that the host and guests use at the same time.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::MapFlags;

use super::mapping::Content;
use super::{HostMemory, Hva, OutOfBounds};

const WORD_LEN: usize = size_of::<u64>();
const WORD_LEN_BYTES: u64 = WORD_LEN as u64;

/// Zeroed memory that lives as long as its last owner, and that any thread of the host may access while guests do.
///
/// Every access of the host is made of atomic ones to aligned words of eight bytes, so that no race is undefined. A copy of several words
/// as a whole is not atomic: who needs to know that the other side is done uses [`load`](Self::load) and [`store`](Self::store), as with
/// any shared memory.
#[derive(Debug)]
pub struct SharedMemory {
    memory: HostMemory,
    len_bytes: u64,
}

impl SharedMemory {
    /// Memory of `len_bytes`, in whole pages; the kernel allocates a page when it is first touched.
    ///
    /// # Errors
    /// What `mmap` says; `InvalidInput` for a length of 0 or past the address space.
    pub fn zeroed(len_bytes: u64) -> io::Result<Self> {
        let mapped_len_bytes = len_bytes
            .checked_next_multiple_of(vellum_layout::PAGE_SIZE)
            .ok_or(io::ErrorKind::InvalidInput)?;
        // Shared, so that it stays one memory should the process fork.
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        let memory = HostMemory::fresh(mapped_len_bytes, Content::Zeroes, flags)?;
        Ok(Self { memory, len_bytes })
    }

    /// Length in bytes, as asked for.
    pub const fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The host address of the first byte, for [`Vm::map`](crate::Vm::map). The memory behind it is one of whole pages.
    pub fn hva(&self) -> Hva {
        self.memory.hva()
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// [`OutOfBounds`].
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), OutOfBounds> {
        self.check(offset, into.len() as u64)?;
        let (mut word, mut skip) = split(offset);
        let mut rest = into;
        while !rest.is_empty() {
            let bytes = self.word(word)?.load(Ordering::Relaxed).to_ne_bytes();
            let part = &bytes[skip..bytes.len().min(skip + rest.len())];
            let (now, later) = rest.split_at_mut(part.len());
            now.copy_from_slice(part);
            (word, skip, rest) = (word + WORD_LEN_BYTES, 0, later);
        }
        Ok(())
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing was written.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), OutOfBounds> {
        self.check(offset, from.len() as u64)?;
        let (mut at, mut skip) = split(offset);
        let mut rest = from;
        while !rest.is_empty() {
            let word = self.word(at)?;
            let len = rest.len().min(WORD_LEN - skip);
            let (now, later) = rest.split_at(len);
            match <[u8; WORD_LEN]>::try_from(now) {
                Ok(whole) => word.store(u64::from_ne_bytes(whole), Ordering::Relaxed),
                Err(_) => write_part(word, skip, now),
            }
            (at, skip, rest) = (at + WORD_LEN_BYTES, 0, later);
        }
        Ok(())
    }

    /// Reads a little-endian number in one access. What the other side wrote before it [stored](Self::store) the number is seen by reads
    /// that follow.
    ///
    /// # Errors
    /// [`OutOfBounds`], also when `offset` is not a multiple of 8.
    pub fn load(&self, offset: u64) -> Result<u64, OutOfBounds> {
        self.check(offset, WORD_LEN_BYTES)?;
        Ok(u64::from_le(self.word(offset)?.load(Ordering::Acquire)))
    }

    /// Writes a little-endian number in one access, behind everything that was written before.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn store(&self, offset: u64, value: u64) -> Result<(), OutOfBounds> {
        self.check(offset, WORD_LEN_BYTES)?;
        self.word(offset)?.store(value.to_le(), Ordering::Release);
        Ok(())
    }

    /// The word at an offset, which is aligned; it may reach behind the end of the memory that was asked for, but not of its last page.
    fn word(&self, offset: u64) -> Result<&AtomicU64, OutOfBounds> {
        let word = self.memory.aligned::<u64>(offset)?;
        // SAFETY: in bounds and aligned, and mapped as long as `self` is borrowed. The host makes no access to this memory that is not an
        // atomic one of this width; a guest is no part of this program.
        Ok(unsafe { AtomicU64::from_ptr(word) })
    }

    fn check(&self, offset: u64, len_bytes: u64) -> Result<(), OutOfBounds> {
        let end = offset.checked_add(len_bytes);
        if end.is_none_or(|end| end > self.len_bytes) {
            return Err(OutOfBounds {
                offset,
                len_bytes,
                memory_len_bytes: self.len_bytes,
            });
        }
        Ok(())
    }
}

/// The aligned word that holds the byte at `offset`, and the bytes before it in that word.
fn split(offset: u64) -> (u64, usize) {
    let skip = offset % WORD_LEN_BYTES;
    (offset - skip, skip as usize)
}

/// Writes some bytes of a word, and keeps what others write to its other bytes meanwhile.
fn write_part(word: &AtomicU64, skip: usize, bytes: &[u8]) {
    let with_bytes = |old: u64| {
        let mut whole = old.to_ne_bytes();
        for (byte, new) in whole.iter_mut().skip(skip).zip(bytes) {
            *byte = *new;
        }
        u64::from_ne_bytes(whole)
    };
    let mut old = word.load(Ordering::Relaxed);
    while let Err(now) =
        word.compare_exchange_weak(old, with_bytes(old), Ordering::Relaxed, Ordering::Relaxed)
    {
        old = now;
    }
}

#[cfg(test)]
mod tests;

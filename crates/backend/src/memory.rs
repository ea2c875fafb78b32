//! Host memory that is lent to a guest.
//!
//! No reference into such memory ever exists: it is copied in and out through raw pointers, with checked bounds, while the
//! vCPU of the same thread is stopped. What the guest wrote is thus read once, into memory of the host's own, and validated
//! there.
#![expect(
    unsafe_code,
    reason = "maps, copies and unmaps memory that guests write"
)]

mod file;
mod mapping;
mod sealed;
mod shared;

use std::fmt;
use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};

use rustix::mm::Advice;

pub use file::FileMemory;
pub use mapping::Piece;
pub use sealed::{SealedMemory, SealedWriter};
pub use shared::SharedMemory;

/// A host-virtual address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Hva(u64);

impl Hva {
    /// The address as a number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Whether it is the first address of a page.
    pub const fn is_page_aligned(self) -> bool {
        self.0.is_multiple_of(vellum_layout::PAGE_SIZE)
    }

    /// The address `bytes` further on.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }
}

impl fmt::Debug for Hva {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hva({:#x})", self.0)
    }
}

impl fmt::LowerHex for Hva {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

/// An access outside of a [`HostMemory`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{len_bytes} bytes at offset {offset:#x} lie outside of a memory of {memory_len_bytes} bytes"
)]
pub struct OutOfBounds {
    /// Offset of the access.
    pub offset: u64,
    /// Its length.
    pub len_bytes: u64,
    /// Length of the memory.
    pub memory_len_bytes: u64,
}

impl From<OutOfBounds> for io::Error {
    fn from(error: OutOfBounds) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}

/// A range of host address space, filled with mappings, that a guest may see.
#[derive(Debug)]
pub struct HostMemory {
    base: NonNull<u8>,
    len_bytes: usize,
    pages: PageBacking,
}

/// What the kernel may back a memory with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageBacking {
    /// Huge pages, where it thinks that they are worth it.
    Any,
    /// Small pages only.
    Small,
}

// SAFETY: the mapping is plain memory without thread affinity, owned by this value alone.
unsafe impl Send for HostMemory {}
// SAFETY: through a shared reference the memory is only reached by the copies below, on raw pointers. Concurrent copies that
// overlap would be a race of plain bytes; owners keep a memory that is written behind `&mut` of the sandbox.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// Gives the memory of `range` back to the kernel: it reads as what was mapped there, zeroes or a sealed memory.
    ///
    /// # Errors
    /// What `madvise` says; `InvalidInput` as [`overlay`](Self::overlay).
    pub fn discard(&self, range: Range<u64>) -> io::Result<()> {
        let len_bytes = range.end.saturating_sub(range.start);
        if len_bytes == 0 {
            return Ok(());
        }
        let target = self.pages(range.start, len_bytes)?;
        let len_bytes = usize::try_from(len_bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the pages belong to this mapping and nobody holds a reference into them.
        unsafe { rustix::mm::madvise(target.cast(), len_bytes, Advice::LinuxDontNeed) }?;
        Ok(())
    }

    /// Length in bytes.
    #[inline]
    pub const fn len_bytes(&self) -> u64 {
        self.len_bytes as u64
    }

    /// The host address of the first byte.
    pub fn hva(&self) -> Hva {
        Hva(self.base.as_ptr().addr() as u64)
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// [`OutOfBounds`].
    #[inline]
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), OutOfBounds> {
        let from = self.at(offset, into.len() as u64)?;
        // SAFETY: `at` checked that `into.len()` bytes from `from` lie in the mapping; `into` is a separate Rust object.
        unsafe { ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    /// Copies bytes out behind the end of `into`, without zeroing the space first.
    ///
    /// # Errors
    /// [`OutOfBounds`].
    pub fn append_to(
        &self,
        offset: u64,
        len_bytes: usize,
        into: &mut Vec<u8>,
    ) -> Result<(), OutOfBounds> {
        let from = self.at(offset, len_bytes as u64)?;
        into.reserve(len_bytes);
        let old_len = into.len();
        // SAFETY: `at` checked the source; `reserve` made room for `len_bytes` behind the old length, and they are
        // initialised by the copy before the length covers them.
        unsafe {
            ptr::copy_nonoverlapping(from, into.as_mut_ptr().add(old_len), len_bytes);
            into.set_len(old_len + len_bytes);
        }
        Ok(())
    }

    /// Copies bytes out of memory that the guest may write at this moment: each word is read once, in one access.
    ///
    /// # Errors
    /// [`OutOfBounds`], also when `offset` is not a multiple of 8, or the last word reaches past the end.
    #[inline]
    pub fn read_words(&self, offset: u64, into: &mut [u8]) -> Result<(), OutOfBounds> {
        let from = self.words(offset, into.len())?;
        let (whole, rest) = into.as_chunks_mut();
        // SAFETY: `words` checked as many words as begin in `into`; volatile, because a guest may have other ideas about this memory.
        let word = |index| unsafe { from.add(index).read_volatile() }.to_ne_bytes();
        for (index, part) in whole.iter_mut().enumerate() {
            *part = word(index);
        }
        if !rest.is_empty() {
            rest.copy_from_slice(&word(whole.len())[..rest.len()]);
        }
        Ok(())
    }

    /// Copies bytes into memory that the guest may read or write at this moment, a word at a time. The last word is filled up with
    /// zeroes.
    ///
    /// # Errors
    /// As [`read_words`](Self::read_words).
    #[inline]
    pub fn write_words(&self, offset: u64, from: &[u8]) -> Result<(), OutOfBounds> {
        let into = self.words(offset, from.len())?;
        let (whole, rest) = from.as_chunks();
        // SAFETY: as in `read_words`, the other way round. The mapping is writable wherever the guest's memory is.
        let write =
            |index, word| unsafe { into.add(index).write_volatile(u64::from_ne_bytes(word)) };
        for (index, part) in whole.iter().enumerate() {
            write(index, *part);
        }
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            write(whole.len(), word);
        }
        Ok(())
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// [`OutOfBounds`].
    #[inline]
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), OutOfBounds> {
        let into = self.at(offset, from.len() as u64)?;
        // SAFETY: as in `read`, the other way round. The mapping is writable wherever the guest's memory is.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), into, from.len()) };
        Ok(())
    }

    /// Writes zeroes.
    ///
    /// # Errors
    /// [`OutOfBounds`].
    pub fn zero(&self, offset: u64, len_bytes: u64) -> Result<(), OutOfBounds> {
        let into = self.at(offset, len_bytes)?;
        // SAFETY: `at` checked the bounds; the length fits because the mapping's does.
        unsafe { ptr::write_bytes(into, 0, usize::try_from(len_bytes).unwrap_or(0)) };
        Ok(())
    }

    /// Reads a little-endian number, in one access.
    ///
    /// # Errors
    /// [`OutOfBounds`], also when `offset` is not a multiple of 8.
    #[inline]
    pub fn read_u64(&self, offset: u64) -> Result<u64, OutOfBounds> {
        let from = self.aligned::<u64>(offset)?;
        // SAFETY: in bounds and aligned; volatile, because a guest may have other ideas about this memory.
        Ok(u64::from_le(unsafe { from.read_volatile() }))
    }

    /// Writes a little-endian number, in one access.
    ///
    /// # Errors
    /// As [`read_u64`](Self::read_u64).
    #[inline]
    pub fn write_u64(&self, offset: u64, value: u64) -> Result<(), OutOfBounds> {
        let into = self.aligned::<u64>(offset)?;
        // SAFETY: as in `read_u64`.
        unsafe { into.write_volatile(value.to_le()) };
        Ok(())
    }

    /// Reads a little-endian 32-bit number, in one access.
    ///
    /// # Errors
    /// [`OutOfBounds`], also when `offset` is not a multiple of 4.
    pub fn read_u32(&self, offset: u64) -> Result<u32, OutOfBounds> {
        let from = self.aligned::<u32>(offset)?;
        // SAFETY: in bounds and aligned; volatile, because a guest may have other ideas about this memory.
        Ok(u32::from_le(unsafe { from.read_volatile() }))
    }

    /// Writes a little-endian 32-bit number, in one access.
    ///
    /// # Errors
    /// As [`read_u32`](Self::read_u32).
    pub fn write_u32(&self, offset: u64, value: u32) -> Result<(), OutOfBounds> {
        let into = self.aligned::<u32>(offset)?;
        // SAFETY: as in `read_u32`.
        unsafe { into.write_volatile(value.to_le()) };
        Ok(())
    }

    /// Writes `count` numbers: `first`, `first + stride`, ... (as page-table entries of a contiguous run are).
    ///
    /// # Errors
    /// [`OutOfBounds`].
    pub fn fill_u64(
        &self,
        offset: u64,
        first: u64,
        stride: u64,
        count: usize,
    ) -> Result<(), OutOfBounds> {
        if count == 0 {
            return self.at(offset, 0).map(|_| ());
        }
        self.at(offset, (count as u64).saturating_mul(8))?;
        let into = self.aligned::<u64>(offset)?;
        let mut value = first;
        for index in 0..count {
            // SAFETY: `at` checked `count` numbers from `offset`. Plain stores, so that the loop vectorises.
            unsafe { into.add(index).write(value.to_le()) };
            value = value.wrapping_add(stride);
        }
        Ok(())
    }

    /// Copies between two memories.
    ///
    /// # Errors
    /// [`OutOfBounds`].
    pub fn copy_from(
        &self,
        offset: u64,
        source: &Self,
        source_offset: u64,
        len_bytes: u64,
    ) -> Result<(), OutOfBounds> {
        let into = self.at(offset, len_bytes)?;
        let from = source.at(source_offset, len_bytes)?;
        // SAFETY: both ranges were checked; `copy` allows that they overlap, should both memories be the same.
        unsafe { ptr::copy(from, into, usize::try_from(len_bytes).unwrap_or(0)) };
        Ok(())
    }

    /// Whether `len_bytes` of both memories are equal.
    ///
    /// # Errors
    /// [`OutOfBounds`].
    pub fn equals(
        &self,
        offset: u64,
        other: &Self,
        other_offset: u64,
        len_bytes: u64,
    ) -> Result<bool, OutOfBounds> {
        let left = self.at(offset, len_bytes)?;
        let right = other.at(other_offset, len_bytes)?;
        // SAFETY: both ranges were checked.
        Ok(unsafe {
            libc::memcmp(
                left.cast(),
                right.cast(),
                usize::try_from(len_bytes).unwrap_or(0),
            )
        } == 0)
    }

    /// A pointer to a number of type `T` that is in bounds and aligned.
    #[inline]
    fn aligned<T>(&self, offset: u64) -> Result<*mut T, OutOfBounds> {
        self.aligned_range(offset, size_of::<T>() as u64)
    }

    /// A pointer to `len_bytes` that are in bounds, aligned for numbers of type `T`.
    #[inline]
    fn aligned_range<T>(&self, offset: u64, len_bytes: u64) -> Result<*mut T, OutOfBounds> {
        let address = self.at(offset, len_bytes)?.cast::<T>();
        if address.is_aligned() {
            Ok(address)
        } else {
            Err(self.out_of_bounds(offset, len_bytes))
        }
    }

    /// A pointer to the words that hold `len` bytes, in bounds to the last one and aligned.
    #[inline]
    fn words(&self, offset: u64, len: usize) -> Result<*mut u64, OutOfBounds> {
        // No slice is so long that this overflows.
        self.aligned_range(offset, len.next_multiple_of(8) as u64)
    }

    #[inline]
    fn at(&self, offset: u64, len_bytes: u64) -> Result<*mut u8, OutOfBounds> {
        // In this order, because the length is often known when the program is compiled.
        let last = self.len_bytes().checked_sub(len_bytes);
        if last.is_none_or(|last| offset > last) {
            return Err(self.out_of_bounds(offset, len_bytes));
        }
        let offset = usize::try_from(offset).map_err(|_| self.out_of_bounds(0, 0))?;
        // SAFETY: `offset` is at most the length of the mapping.
        Ok(unsafe { self.base.as_ptr().add(offset) })
    }

    fn pages(&self, offset: u64, len_bytes: u64) -> io::Result<*mut u8> {
        // The kernel rounds a length up, and would change bytes behind the range.
        let whole_pages = offset.is_multiple_of(vellum_layout::PAGE_SIZE)
            && len_bytes.is_multiple_of(vellum_layout::PAGE_SIZE);
        if !whole_pages || len_bytes == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.at(offset, len_bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
    }

    #[cold]
    fn out_of_bounds(&self, offset: u64, len_bytes: u64) -> OutOfBounds {
        OutOfBounds {
            offset,
            len_bytes,
            memory_len_bytes: self.len_bytes(),
        }
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping and nothing refers into it any more; a VM that maps it is dropped before, by
        // the contract of `Vm::map`. A failure would leak the range, which is harmless.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len_bytes) };
    }
}

#[cfg(test)]
mod tests;

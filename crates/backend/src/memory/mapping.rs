//! How the kernel is asked for host memory, and what it shows while nobody has written to it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::{HostMemory, PageBacking, SealedMemory};

/// Private to this process, and only backed by memory where it is touched.
pub(super) const PRIVATE: MapFlags = MapFlags::PRIVATE.union(MapFlags::NORESERVE);

/// What a mapping shows while nobody has written to it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content<'a> {
    Zeroes,
    /// A file, from this offset on.
    File(&'a File, u64),
}

/// Part of a memory that is made of several.
#[derive(Clone, Debug)]
pub enum Piece<'a> {
    /// This many bytes that are zero.
    Zeroes(u64),
    /// These bytes of a sealed memory. A page is shared with everyone who maps it until it is first written.
    Sealed(&'a SealedMemory, Range<u64>),
}

impl Piece<'_> {
    fn len_bytes(&self) -> u64 {
        match self {
            Self::Zeroes(len_bytes) => *len_bytes,
            Self::Sealed(_, part) => part.end.saturating_sub(part.start),
        }
    }

    const fn is_sealed(&self) -> bool {
        matches!(self, Self::Sealed(..))
    }
}

impl HostMemory {
    /// Zeroed private memory, allocated by the kernel on first touch.
    ///
    /// # Errors
    /// What `mmap` says; `InvalidInput` for a length of 0 or past the address space.
    pub fn zeroed(len_bytes: u64) -> io::Result<Self> {
        Self::fresh(len_bytes, Content::Zeroes, PRIVATE)
    }

    /// A memory of pieces, one behind the other, of which the kernel backs none with huge pages (see
    /// [`keep_pages_small`](Self::keep_pages_small)).
    ///
    /// A piece that is mapped over part of another mapping costs two to three times what it costs where nothing is, because the kernel
    /// takes the other one apart first (counted on Linux 6.1: 15,000 to 20,000 instructions against 6,200). So zeroes find a place for all
    /// of it, give up what is not to be zero, and the pieces are mapped there from the last to the first. Should something else get
    /// there before, they are mapped over zeroes.
    ///
    /// # Errors
    /// What `mmap` says; `InvalidInput` when a piece is not one of whole pages, when a part lies outside of its memory, or when the lengths
    /// are 0 or past the address space in all.
    pub fn of_pieces(pieces: &[Piece<'_>]) -> io::Result<Self> {
        let mut len_bytes = 0_u64;
        for piece in pieces {
            check_part(piece)?;
            let sum = len_bytes.checked_add(piece.len_bytes());
            len_bytes = sum.ok_or(io::ErrorKind::InvalidInput)?;
        }
        let mut memory = Self::small_zeroes(len_bytes)?;
        let last_sealed = pieces.iter().rposition(Piece::is_sealed);
        let rest = &pieces[..last_sealed.map_or(0, |index| index + 1)];
        let rest_len_bytes = rest.iter().map(Piece::len_bytes).sum();
        // Nothing to be gained where all is zero, or where the end is not.
        let Ok(upper) = memory.split_off(rest_len_bytes) else {
            return memory.overlaid(pieces);
        };
        drop(memory);
        upper
            .below_it(rest)
            .or_else(|_| Self::small_zeroes(len_bytes)?.overlaid(pieces))
    }

    fn small_zeroes(len_bytes: u64) -> io::Result<Self> {
        let mut memory = Self::zeroed(len_bytes)?;
        memory.keep_pages_small()?;
        Ok(memory)
    }

    /// Maps the sealed ones of the pieces over zeroes.
    fn overlaid(mut self, pieces: &[Piece<'_>]) -> io::Result<Self> {
        let mut offset = 0;
        for piece in pieces {
            if let Piece::Sealed(source, part) = piece {
                self.overlay_part(offset, source, part.clone())?;
            }
            offset += piece.len_bytes();
        }
        Ok(self)
    }

    /// Maps pieces below this memory, from the last to the first. It is an error that something is in the way.
    fn below_it(self, pieces: &[Piece<'_>]) -> io::Result<Self> {
        let mut memory = self;
        let mut zeroes = 0;
        for piece in pieces.iter().rev() {
            match piece {
                Piece::Zeroes(len_bytes) => zeroes += len_bytes,
                Piece::Sealed(source, part) => {
                    memory = memory.extend_with_zeroes(std::mem::take(&mut zeroes))?;
                    let content = Content::File(&source.file, part.start);
                    memory = memory.extend_below(piece.len_bytes(), content)?;
                }
            }
        }
        memory.extend_with_zeroes(zeroes)
    }

    /// Zeroes that lie together are one mapping.
    fn extend_with_zeroes(self, len_bytes: u64) -> io::Result<Self> {
        if len_bytes == 0 {
            return Ok(self);
        }
        let memory = self.extend_below(len_bytes, Content::Zeroes)?;
        // The length of a mapping fits.
        let len = usize::try_from(len_bytes).unwrap_or(0);
        advise_small_pages(memory.base.as_ptr(), len)?;
        Ok(memory)
    }

    fn extend_below(self, len_bytes: u64, content: Content<'_>) -> io::Result<Self> {
        let len = usize::try_from(len_bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        let address = self.base.addr().get().checked_sub(len);
        let at = (self.base.as_ptr()).with_addr(address.ok_or(io::ErrorKind::OutOfMemory)?);
        // SAFETY: with this flag a range that is not free is refused, so no existing memory is touched.
        let base = unsafe { map(at, len, content, PRIVATE | MapFlags::FIXED_NOREPLACE) }?;
        let lower = Self::own(base, len);
        if lower.base.as_ptr() != at {
            // A kernel before 4.17 takes the address as a mere wish.
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Ok(lower.join(self))
    }

    /// One memory of two that touch.
    fn join(self, upper: Self) -> Self {
        let len_bytes = self.len_bytes + upper.len_bytes;
        let base = self.base;
        // The ranges stay mapped: they belong to the result.
        std::mem::forget((self, upper));
        Self {
            base,
            len_bytes,
            pages: PageBacking::Small,
        }
    }

    /// Divides the memory: what lies at `offset` and behind it becomes another one.
    ///
    /// # Errors
    /// `InvalidInput` when `offset` is not one of a whole page, or when one of the parts would be empty.
    pub fn split_off(&mut self, offset: u64) -> io::Result<Self> {
        let len_bytes = self.len_bytes().saturating_sub(offset);
        let base = self.pages(offset, len_bytes)?;
        if offset == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let base = NonNull::new(base).ok_or(io::ErrorKind::InvalidInput)?;
        let len = usize::try_from(len_bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.len_bytes -= len;
        Ok(Self {
            base,
            len_bytes: len,
            pages: self.pages,
        })
    }

    /// Maps `source`, whole, over the pages at `offset`. A page is shared with everyone who maps it until it is first written;
    /// then this memory has a copy of its own.
    ///
    /// # Errors
    /// What `mmap` says; `InvalidInput` when `offset` or the length is not one of whole pages, or when the pages lie
    /// outside of this memory.
    pub fn overlay(&mut self, offset: u64, source: &SealedMemory) -> io::Result<()> {
        self.overlay_part(offset, source, 0..source.len_bytes())
    }

    /// Maps the bytes `part` of `source` over the pages at `offset`.
    ///
    /// # Errors
    /// As [`overlay`](Self::overlay); `InvalidInput` also when the part is not one of whole pages of the source.
    pub fn overlay_part(
        &mut self,
        offset: u64,
        source: &SealedMemory,
        part: Range<u64>,
    ) -> io::Result<()> {
        let content = Content::File(&source.file, part.start);
        let piece = Piece::Sealed(source, part);
        check_part(&piece)?;
        self.replace(offset, piece.len_bytes(), content)
    }

    /// Maps fresh zeroed private memory over `len_bytes` at `offset`.
    ///
    /// # Errors
    /// As [`overlay`](Self::overlay).
    pub fn overlay_zeroed(&mut self, offset: u64, len_bytes: u64) -> io::Result<()> {
        self.replace(offset, len_bytes, Content::Zeroes)?;
        match self.pages {
            PageBacking::Any => Ok(()),
            PageBacking::Small => {
                let target = self.pages(offset, len_bytes)?;
                // The length of a part of a mapping fits.
                advise_small_pages(target, usize::try_from(len_bytes).unwrap_or(0))
            }
        }
    }

    /// Maps pieces over the pages at `offset`, one behind the other.
    ///
    /// # Errors
    /// As [`overlay_part`](Self::overlay_part). The pieces before the one that is refused are mapped.
    pub fn overlay_pieces(&mut self, offset: u64, pieces: &[Piece<'_>]) -> io::Result<()> {
        let mut offset = offset;
        for piece in pieces {
            match piece {
                Piece::Zeroes(len_bytes) => self.overlay_zeroed(offset, *len_bytes)?,
                Piece::Sealed(source, part) => self.overlay_part(offset, source, part.clone())?,
            }
            offset = offset.saturating_add(piece.len_bytes());
        }
        Ok(())
    }

    fn replace(&mut self, offset: u64, len_bytes: u64, content: Content<'_>) -> io::Result<()> {
        let target = self.pages(offset, len_bytes)?;
        let len = usize::try_from(len_bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: `target` lies inside this mapping, which this value owns and to which no reference exists, so replacing its
        // pages is seen by nobody but the guest, whose owner asked for it.
        unsafe { map(target, len, content, PRIVATE | MapFlags::FIXED) }.map(drop)
    }

    /// Keeps the kernel from backing this memory with huge pages: for memory of which a guest touches a page here and there, where each
    /// touch would take, and clear, 2 MiB.
    ///
    /// # Errors
    /// What `madvise` says, but not that this kernel has no huge pages.
    pub fn keep_pages_small(&mut self) -> io::Result<()> {
        self.pages = PageBacking::Small;
        advise_small_pages(self.base.as_ptr(), self.len_bytes)
    }

    /// A mapping at an address of the kernel's choice.
    pub(super) fn fresh(len_bytes: u64, content: Content<'_>, flags: MapFlags) -> io::Result<Self> {
        let len = usize::try_from(len_bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: it touches no existing memory.
        let base = unsafe { map(ptr::null_mut(), len, content, flags) }?;
        Ok(Self::own(base, len))
    }

    const fn own(base: NonNull<u8>, len_bytes: usize) -> Self {
        Self {
            base,
            len_bytes,
            pages: PageBacking::Any,
        }
    }
}

/// Checks that a piece is of whole pages, and part of its memory.
fn check_part(piece: &Piece<'_>) -> io::Result<()> {
    let whole_pages = |bytes: u64| bytes.is_multiple_of(vellum_layout::PAGE_SIZE);
    let is_right = match piece {
        Piece::Zeroes(len_bytes) => whole_pages(*len_bytes),
        Piece::Sealed(source, part) => {
            whole_pages(part.start)
                && whole_pages(piece.len_bytes())
                && part.start <= part.end
                && part.end <= source.len_bytes()
        }
    };
    if is_right {
        Ok(())
    } else {
        Err(io::ErrorKind::InvalidInput.into())
    }
}

/// Maps memory that can always be written: no copy by the host can fault, and Hyper-V pins only writable memory.
///
/// # Safety
/// Where `flags` say that what lies at `at` is replaced, that must be a range of the caller's own to which nobody holds a reference.
unsafe fn map(
    at: *mut u8,
    len_bytes: usize,
    content: Content<'_>,
    flags: MapFlags,
) -> io::Result<NonNull<u8>> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let at = at.cast();
    let base = match content {
        // SAFETY: by this function's own contract.
        Content::Zeroes => unsafe { rustix::mm::mmap_anonymous(at, len_bytes, protection, flags) },
        // SAFETY: as above.
        Content::File(file, offset) => unsafe {
            rustix::mm::mmap(at, len_bytes, protection, flags, file, offset)
        },
    }?;
    NonNull::new(base.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

/// A kernel without huge pages knows no such advice, and needs none.
fn advise_small_pages(start: *mut u8, len_bytes: usize) -> io::Result<()> {
    // SAFETY: the advice changes no content; the caller owns the range.
    match unsafe { rustix::mm::madvise(start.cast(), len_bytes, Advice::LinuxNoHugepage) } {
        Err(rustix::io::Errno::INVAL) => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests;

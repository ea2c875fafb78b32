//! Memory that is written once and mapped by many.
#![expect(
    unsafe_code,
    reason = "has the kernel copy from memory that guests write"
)]

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags};

use super::mapping::{Content, PRIVATE};
use super::{HostMemory, OutOfBounds};

/// Immutable memory that many sandboxes map: a sealed memfd, or a file that nobody changes.
#[derive(Debug)]
pub struct SealedMemory {
    pub(super) file: File,
    len_bytes: u64,
}

impl SealedMemory {
    /// A memory of `len_bytes`, filled by `fill` and then sealed for ever. What is not written is zero, and takes no memory.
    ///
    /// # Errors
    /// What the system says, or what `fill` returns.
    pub fn create<'s>(
        name: &str,
        len_bytes: u64,
        fill: impl FnOnce(&mut SealedWriter<'s>) -> io::Result<()>,
    ) -> io::Result<Self> {
        let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let file = File::from(fd);
        file.set_len(len_bytes)?;
        let mut writer = SealedWriter::new(file, len_bytes);
        fill(&mut writer)?;
        let file = writer.finish()?;
        // There is no writable mapping, so forbidding new ones (Linux 5.1) forbids all. `F_SEAL_WRITE` would first search all pages for
        // users that it does not know, and wait for every processor's page lists, which costs as much as all the rest.
        rustix::fs::fcntl_add_seals(
            &file,
            SealFlags::FUTURE_WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
        )?;
        Ok(Self { file, len_bytes })
    }

    /// A file whose owner promises not to change it. It is opened already, so that its name can go.
    ///
    /// Nothing enforces the promise: what is written to the file later may or may not be seen by guests, and a page that it no longer
    /// has ends the process (`SIGBUS`) when the host touches it.
    ///
    /// # Errors
    /// What `fstat` says; `UnexpectedEof` when the file is shorter than `len_bytes`.
    pub fn of_unchanging_file(file: File, len_bytes: u64) -> io::Result<Self> {
        if file.metadata()?.len() < len_bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self { file, len_bytes })
    }

    /// Length in bytes.
    pub const fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Copies bytes out by a system call: pages that were never written come into being for nobody, and a file that has become
    /// shorter is an error.
    ///
    /// # Errors
    /// What `pread` says; `UnexpectedEof` past the end.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }

    /// The memory, mapped. Writing to the mapping changes a private copy.
    ///
    /// # Errors
    /// What `mmap` says.
    pub fn map(&self) -> io::Result<HostMemory> {
        HostMemory::fresh(self.len_bytes, Content::File(&self.file, 0), PRIVATE)
    }
}

/// Writes a [`SealedMemory`] that is being made.
///
/// By system calls: a page that is written whole need not be zeroed, mapped and unmapped first, which together is more work than the
/// page itself (counted on Linux 6.1: 3,800 instructions a page against 8,700).
#[derive(Debug)]
pub struct SealedWriter<'s> {
    file: File,
    len_bytes: u64,
    /// Where the next part of the batch goes.
    end: u64,
    /// Where the batch begins.
    start: u64,
    /// Parts of other memories that are to be copied one behind the other.
    batch: Vec<libc::iovec>,
    sources: PhantomData<&'s HostMemory>,
}

/// Parts of a batch, of at most 1024 (Linux `include/uapi/linux/uio.h`, `UIO_MAXIOV`).
const MAX_PARTS: usize = 256;

impl<'s> SealedWriter<'s> {
    const fn new(file: File, len_bytes: u64) -> Self {
        Self {
            file,
            len_bytes,
            end: 0,
            start: 0,
            batch: Vec::new(),
            sources: PhantomData,
        }
    }

    /// Writes bytes at an offset.
    ///
    /// # Errors
    /// `InvalidInput` past the end of the memory; what `pwrite` says.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check(offset, bytes.len() as u64)?;
        self.file.write_all_at(bytes, offset)
    }

    /// Copies bytes of another memory to an offset; at the latest when all is written. What is copied twice to one place is there in either
    /// version.
    ///
    /// # Errors
    /// `InvalidInput` past the end of one of the memories; what `pwritev` says.
    pub fn copy_from(
        &mut self,
        offset: u64,
        source: &'s HostMemory,
        source_offset: u64,
        len_bytes: u64,
    ) -> io::Result<()> {
        self.check(offset, len_bytes)?;
        let from = source.at(source_offset, len_bytes)?;
        if len_bytes == 0 {
            return Ok(());
        }
        // The length of a mapping fits.
        let len = usize::try_from(len_bytes).unwrap_or(0);
        if offset != self.end || self.batch.len() == MAX_PARTS {
            self.flush()?;
            self.start = offset;
        }
        self.end = offset + len_bytes;
        match self.batch.last_mut() {
            Some(last) if last.iov_base.addr() + last.iov_len == from.addr() => last.iov_len += len,
            _ => self.batch.push(libc::iovec {
                iov_base: from.cast(),
                iov_len: len,
            }),
        }
        Ok(())
    }

    fn check(&self, offset: u64, len_bytes: u64) -> Result<(), OutOfBounds> {
        let end = offset.checked_add(len_bytes);
        if end.is_some_and(|end| end <= self.len_bytes) {
            return Ok(());
        }
        Err(OutOfBounds {
            offset,
            len_bytes,
            memory_len_bytes: self.len_bytes,
        })
    }

    fn finish(mut self) -> io::Result<File> {
        self.flush()?;
        Ok(self.file)
    }

    /// Writes the batch. The kernel may take a part of it at a time.
    fn flush(&mut self) -> io::Result<()> {
        let mut offset = self.start;
        let mut done = 0;
        while let Some(left) = self.batch.get_mut(done..).filter(|left| !left.is_empty()) {
            let count = libc::c_int::try_from(left.len()).unwrap_or(libc::c_int::MAX);
            let at = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
            // SAFETY: each part was checked to lie in a memory that outlives this value; no reference is formed, the kernel copies.
            let written = unsafe { libc::pwritev(self.file.as_raw_fd(), left.as_ptr(), count, at) };
            let Ok(mut written) = usize::try_from(written) else {
                match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => continue,
                    error => return Err(error),
                }
            };
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset += written as u64;
            for part in left {
                let taken = part.iov_len.min(written);
                part.iov_base = part.iov_base.wrapping_byte_add(taken);
                part.iov_len -= taken;
                written -= taken;
                done += usize::from(part.iov_len == 0);
            }
        }
        self.batch.clear();
        Ok(())
    }
}

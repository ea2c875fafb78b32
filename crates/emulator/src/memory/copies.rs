//! Copies of pages of files that others may shorten at any time.
//!
//! A page that a file no longer has ends a process that touches it (`SIGBUS`). The kernel's own way to a process's memory says an error
//! instead. The guest therefore works on copies, which are made when it first touches a page, live as long as one run of the vCPU, and
//! are written back at its end. Nobody sees the difference: such memory is the guest's alone, and the host never touches it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use vellum_backend::{HostMemory, Hva};

use super::{Host, PAGE_LEN_BYTES};

/// Pages that a VM copies at most: 8 MiB.
const MAX_PAGES: u64 = 2048;
/// Pages that are left when all copies are given up before the next block: more than the instructions of a block can touch.
const RESERVE_PAGES: u64 = 1024;

/// The bytes of one page.
type PageBytes = [u8; PAGE_LEN_BYTES as usize];

#[derive(Debug)]
pub(super) struct Copies {
    /// This process's memory, as the kernel reads and writes it.
    process: File,
    /// Where copies lie, one behind the other.
    memory: HostMemory,
    /// By the address of the original.
    pages: HashMap<u64, Copy>,
}

#[derive(Clone, Copy, Debug)]
struct Copy {
    /// Where it begins in the memory of copies.
    offset: u64,
    gpa: u64,
    written: bool,
}

/// Whether the guest is about to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Read,
    Write,
}

impl Copies {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            process: OpenOptions::new()
                .read(true)
                .write(true)
                .open("/proc/self/mem")?,
            memory: HostMemory::zeroed(MAX_PAGES * PAGE_LEN_BYTES)?,
            pages: HashMap::new(),
        })
    }

    /// The copy of the page at `original`, which the guest finds at `gpa`. `None` when the page is gone.
    pub(super) fn page(&mut self, original: Hva, gpa: u64, wanted: Use) -> Option<Host> {
        let original = original.as_u64();
        let next = self.pages.len() as u64 * PAGE_LEN_BYTES;
        let written = wanted == Use::Write;
        let offset = if let Some(known) = self.pages.get_mut(&original) {
            known.written |= written;
            known.offset
        } else {
            let mut bytes: PageBytes = [0; PAGE_LEN_BYTES as usize];
            self.process.read_exact_at(&mut bytes, original).ok()?;
            self.memory.write(next, &bytes).ok()?;
            let copy = Copy {
                offset: next,
                gpa,
                written,
            };
            self.pages.insert(original, copy);
            next
        };
        Some(Host::page(self.memory.hva(), offset))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    pub(super) fn is_nearly_full(&self) -> bool {
        self.pages.len() as u64 > MAX_PAGES - RESERVE_PAGES
    }

    /// Writes back what was written and gives up all copies. The guest-physical address of a page that is gone by now is the error.
    pub(super) fn give_up(&mut self) -> Result<(), u64> {
        let mut lost = Ok(());
        for (original, copy) in self.pages.drain().filter(|(_, copy)| copy.written) {
            let mut bytes: PageBytes = [0; PAGE_LEN_BYTES as usize];
            let done = self.memory.read(copy.offset, &mut bytes).is_ok()
                && self.process.write_all_at(&bytes, original).is_ok();
            if !done {
                lost = Err(copy.gpa);
            }
        }
        lost
    }
}

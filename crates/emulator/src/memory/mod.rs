//! Guest-physical memory: slots of lent host memory, what was written in them, and which pages hold decoded code.

mod access;
mod copies;
mod host;
mod paging;
mod tlb;

use std::collections::HashSet;

use vellum_backend::{Hva, Protection, VmError};
use vellum_layout::{Gpa, GpaRange};

pub(crate) use host::{Cell, Host};
pub(crate) use paging::{Intent, NOT_CANONICAL, Paging, is_canonical, next_page};
pub(crate) use tlb::{Tlb, User, watch};

use copies::{Copies, Use};

pub(crate) const PAGE_LEN_BYTES: u64 = vellum_layout::PAGE_SIZE;

/// A range of guest-physical memory.
#[derive(Debug)]
pub(crate) struct Slot {
    gpa: GpaRange,
    host: Hva,
    protection: Protection,
    backing: Backing,
    /// One bit for each page that was written since the pages were last taken.
    written: Vec<u64>,
}

impl Slot {
    /// The host memory of the page at `offset`.
    fn page(&self, offset: u64) -> Host {
        Host::page(self.host, offset)
    }
}

/// What lent memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Memory that stays.
    Lasting,
    /// A file that others may shorten.
    File,
}

/// A page of guest-physical memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PhysicalPage {
    pub(crate) host: Host,
}

/// All slots of a VM.
#[derive(Debug, Default)]
pub(crate) struct Physical {
    /// In the order of their addresses.
    slots: Vec<Slot>,
    /// Pages that were written for the first time, until somebody takes them.
    dirty: Vec<Gpa>,
    /// Host pages from which code was decoded and that were not written since.
    code: HashSet<u64>,
    /// Changes whenever decoded code may differ from what memory holds.
    generation: u64,
    /// Once a file is mapped.
    copies: Option<Copies>,
    /// The page of a file that turned out to be gone.
    lost: Option<u64>,
}

impl Physical {
    /// Adds a slot.
    pub(crate) fn map(
        &mut self,
        gpa: GpaRange,
        host: Hva,
        protection: Protection,
        backing: Backing,
    ) -> Result<(), VmError> {
        if !host.is_page_aligned() {
            return Err(VmError::Unaligned { host });
        }
        if let Some(other) = self.slots.iter().find(|slot| slot.gpa.overlaps(&gpa)) {
            return Err(VmError::Overlap {
                wanted: gpa,
                mapped: other.gpa,
            });
        }
        if backing == Backing::File && self.copies.is_none() {
            let copies = Copies::new().map_err(|source| VmError::Hypervisor {
                operation: "making room for copies of pages of a file",
                source,
            })?;
            self.copies = Some(copies);
        }
        let words = match protection {
            Protection::TrackedWrite => usize::try_from(gpa.pages().div_ceil(64)).unwrap_or(0),
            Protection::ReadOnly | Protection::Write => 0,
        };
        let index = self
            .slots
            .partition_point(|slot| slot.gpa.start() < gpa.start());
        let slot = Slot {
            gpa,
            host,
            protection,
            backing,
            written: vec![0; words],
        };
        self.slots.insert(index, slot);
        self.forget_code();
        Ok(())
    }

    /// Removes a slot.
    pub(crate) fn unmap(&mut self, gpa: GpaRange) -> Result<(), VmError> {
        let index = self
            .slots
            .iter()
            .position(|slot| slot.gpa == gpa)
            .ok_or(VmError::NotMapped { range: gpa })?;
        self.slots.remove(index);
        self.dirty.retain(|page| !gpa.contains(*page));
        self.forget_code();
        Ok(())
    }

    /// Whether the range lies in one slot that the guest may write.
    pub(crate) fn is_writable(&self, range: GpaRange) -> bool {
        self.slots
            .iter()
            .any(|slot| slot.gpa.contains_range(&range) && slot.protection != Protection::ReadOnly)
    }

    pub(crate) fn is_mapped(&self, gpa: u64) -> bool {
        self.slot_of(gpa).is_some()
    }

    /// Which slot holds an address.
    fn slot_of(&self, gpa: u64) -> Option<usize> {
        let index = self
            .slots
            .partition_point(|slot| slot.gpa.last().as_u64() < gpa);
        let slot = self.slots.get(index)?;
        (slot.gpa.start().as_u64() <= gpa).then_some(index)
    }

    /// The page at an address, to be read.
    pub(crate) fn readable(&mut self, gpa: u64) -> Option<PhysicalPage> {
        let index = self.slot_of(gpa)?;
        let host = self.page_of(index, gpa, Use::Read)?;
        Some(PhysicalPage { host })
    }

    /// A page of a slot, or its copy.
    fn page_of(&mut self, index: usize, gpa: u64, wanted: Use) -> Option<Host> {
        let slot = &self.slots[index];
        let offset = gpa - slot.gpa.start().as_u64();
        match (slot.backing, &mut self.copies) {
            (Backing::Lasting, _) => Some(slot.page(offset)),
            (Backing::File, None) => None,
            (Backing::File, Some(copies)) => {
                let in_page = offset & !(PAGE_LEN_BYTES - 1);
                let original = slot.host.checked_add(in_page)?;
                let page = copies.page(original, gpa, wanted);
                self.lost = page.is_none().then_some(gpa);
                page
            }
        }
    }

    /// The address of an access to a file's page that is gone, if that is why the last one failed.
    pub(crate) fn take_lost(&mut self) -> Option<u64> {
        self.lost.take()
    }

    /// The page at an address, which is about to be written: it counts as such from now on, and code in it is decoded anew.
    pub(crate) fn writable(&mut self, gpa: u64) -> Option<Host> {
        let index = self.slot_of(gpa)?;
        if self.slots[index].protection == Protection::ReadOnly {
            return None;
        }
        let host = self.page_of(index, gpa, Use::Write)?;
        let slot = &mut self.slots[index];
        if slot.protection == Protection::TrackedWrite {
            let page = (gpa - slot.gpa.start().as_u64()) / PAGE_LEN_BYTES;
            let word = &mut slot.written[(page / 64) as usize];
            if *word & 1 << (page % 64) == 0 {
                *word |= 1 << (page % 64);
                let at = slot.gpa.at(page * PAGE_LEN_BYTES);
                self.dirty.extend(at);
            }
        }
        if self.code.remove(&host.page_number()) {
            self.generation += 1;
        }
        Some(host)
    }

    /// Whether copies of pages of files must be given up before the guest goes on.
    #[inline]
    pub(crate) fn is_short_of_copies(&self) -> bool {
        self.copies.as_ref().is_some_and(Copies::is_nearly_full)
    }

    /// Whether the guest works on copies.
    #[inline]
    pub(crate) fn has_copies(&self) -> bool {
        self.copies.as_ref().is_some_and(|it| !it.is_empty())
    }

    /// Puts copies of pages of files back where they belong; host addresses that led to them are void. The address of a page that is
    /// gone by now is the error.
    pub(crate) fn give_up_copies(&mut self) -> Result<(), u64> {
        self.forget_code();
        self.copies.as_mut().map_or(Ok(()), Copies::give_up)
    }

    /// Takes the pages that were written since the last time. Each is reported again when it is next written: nobody may then be able to
    /// write without asking.
    pub(crate) fn take_dirty(&mut self) -> Vec<Gpa> {
        let pages = std::mem::take(&mut self.dirty);
        for page in &pages {
            let Some(index) = self.slot_of(page.as_u64()) else {
                continue;
            };
            let slot = &mut self.slots[index];
            let number = (page.as_u64() - slot.gpa.start().as_u64()) / PAGE_LEN_BYTES;
            if let Some(word) = slot.written.get_mut((number / 64) as usize) {
                *word &= !(1 << (number % 64));
            }
        }
        pages
    }

    /// Notes that code was decoded from a page; whether it is new as such. Who can write the page without asking must not be able to
    /// any more.
    pub(crate) fn note_code(&mut self, page: Host) -> bool {
        self.code.insert(page.page_number())
    }

    /// Decoded code counts as possibly old.
    pub(crate) fn forget_code(&mut self) {
        self.generation += 1;
        self.code.clear();
    }

    /// Decoded code of an earlier generation must be compared with memory.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }
}

//! The software TLB: where a linear page lies in host memory, and what may be done there without asking again.

use super::{Host, PAGE_LEN_BYTES, Physical};

/// Entries for each of the two privileges.
const ENTRIES: usize = 256;
/// Set in the tag of an entry that is in use; addresses of pages have the low bits clear.
const VALID: u64 = 1;

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// The linear page that may be read, or 0.
    read: u64,
    /// The linear page that may be written.
    write: u64,
    /// The linear page that may be executed.
    execute: u64,
    /// From linear addresses of the page to host addresses.
    distance: u64,
}

/// What an entry allows beside reading.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Allowed {
    Read,
    Write,
    Execute,
}

/// Translations of one vCPU, those of ring 3 apart from the others.
#[derive(Debug)]
pub(crate) struct Tlb {
    entries: Box<[Entry; 2 * ENTRIES]>,
    /// Index of the first entry of the current privilege.
    first: usize,
    /// Whether there is anything to flush.
    used: bool,
}

impl Default for Tlb {
    fn default() -> Self {
        Self {
            entries: Box::new([Entry::default(); 2 * ENTRIES]),
            first: 0,
            used: false,
        }
    }
}

#[inline]
fn tag(linear: u64) -> u64 {
    linear & !(PAGE_LEN_BYTES - 1) | VALID
}

impl Tlb {
    /// Uses the translations of ring 3, or of the others.
    pub(crate) fn select(&mut self, user: User) {
        self.first = match user {
            User::Yes => ENTRIES,
            User::No => 0,
        };
    }

    #[inline]
    fn index(&self, linear: u64) -> usize {
        let set = (linear / PAGE_LEN_BYTES) as usize & (ENTRIES - 1);
        (set | self.first) & (2 * ENTRIES - 1)
    }

    #[inline]
    pub(crate) fn read(&self, linear: u64) -> Option<Host> {
        let entry = &self.entries[self.index(linear)];
        (entry.read == tag(linear)).then(|| Host::displaced(entry.distance, linear))
    }

    #[inline]
    pub(crate) fn write(&self, linear: u64) -> Option<Host> {
        let entry = &self.entries[self.index(linear)];
        (entry.write == tag(linear)).then(|| Host::displaced(entry.distance, linear))
    }

    #[inline]
    pub(crate) fn execute(&self, linear: u64) -> Option<Host> {
        let entry = &self.entries[self.index(linear)];
        (entry.execute == tag(linear)).then(|| Host::displaced(entry.distance, linear))
    }

    /// Adds a right to a page. What the entry held for another page goes.
    pub(crate) fn insert(&mut self, linear: u64, page: Host, allowed: Allowed) {
        let distance = page.distance_from(linear & !(PAGE_LEN_BYTES - 1));
        let index = self.index(linear);
        let entry = &mut self.entries[index];
        let tag = tag(linear);
        let same =
            entry.distance == distance && [entry.read, entry.write, entry.execute].contains(&tag);
        if !same {
            *entry = Entry {
                distance,
                ..Entry::default()
            };
        }
        match allowed {
            Allowed::Read => entry.read = tag,
            Allowed::Write => (entry.read, entry.write) = (tag, tag),
            Allowed::Execute => entry.execute = tag,
        }
        self.used = true;
    }

    pub(crate) fn flush(&mut self) {
        if self.used {
            self.entries.fill(Entry::default());
            self.used = false;
        }
    }

    /// Drops one linear page, of both privileges.
    pub(crate) fn flush_page(&mut self, linear: u64) {
        let set = (linear / PAGE_LEN_BYTES) as usize & (ENTRIES - 1);
        self.entries[set] = Entry::default();
        self.entries[set | ENTRIES] = Entry::default();
    }

    /// Drops the right to write.
    pub(crate) fn flush_writes(&mut self) {
        for entry in self.entries.iter_mut() {
            entry.write = 0;
        }
    }

    /// Drops the right to write a page that holds code, wherever it is mapped.
    pub(crate) fn protect(&mut self, page: Host) {
        for entry in self.entries.iter_mut().filter(|entry| entry.write != 0) {
            let host = Host::displaced(entry.distance, entry.write & !VALID);
            if host.page_number() == page.page_number() {
                entry.write = 0;
            }
        }
    }
}

/// Whether an access counts as one of ring 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    Yes,
    No,
}

/// Notes that code was decoded from a page: from now on writes to it are noticed.
pub(crate) fn watch(tlb: &mut Tlb, physical: &mut Physical, page: Host) {
    if physical.note_code(page) {
        tlb.protect(page);
    }
}

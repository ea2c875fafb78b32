//! Appending to the outbox.

#![expect(
    unsafe_code,
    reason = "the outbox is memory shared with the host, known by address"
)]

use vellum_abi::outbox::{OutboxHeader, RECORD_ALIGN, RECORDS_OFFSET, RecordKind, RecordWriter};
use vellum_abi::peb::{FLAG_OUTBOX_DROPS, Peb};
use vellum_abi::port::Port;

use crate::gate::Way;
use crate::link::{address, pointer};

/// The outbox of this guest. It holds an address, not a reference, because the host empties it during exits.
#[derive(Clone, Copy)]
pub(crate) struct Outbox {
    header: *mut OutboxHeader,
    records: *mut u8,
    room_bytes: usize,
    drops: bool,
}

/// What came of writing a body into the room that there was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// It has this many bytes.
    Whole(usize),
    /// It has this many bytes, and would have more.
    Cut(usize),
    /// There is no room for it.
    TooLong,
}

/// What is to be done with a record for which there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhenFull {
    /// Leave, to have room made.
    Drain,
    /// Drop and count it where the host prefers that; else leave.
    MayDrop,
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Appended {
    /// It is in the outbox.
    Yes,
    /// It was dropped.
    Dropped,
    /// It does not even fit an empty outbox.
    TooLong,
}

impl Outbox {
    /// The outbox that `peb` names.
    ///
    /// # Safety
    /// It is mapped, readable and writable as long as the value is used, and nobody but the host, during an exit, changes it
    /// otherwise.
    pub(crate) unsafe fn new(peb: &Peb) -> Self {
        let len_bytes = usize::try_from(peb.outbox_len_bytes).unwrap_or(0);
        let room_bytes = len_bytes.saturating_sub(RECORDS_OFFSET);
        Self {
            header: pointer(peb.outbox_ptr),
            records: address(peb.outbox_ptr).wrapping_add(RECORDS_OFFSET),
            room_bytes: room_bytes - room_bytes % RECORD_ALIGN,
            drops: peb.flags & FLAG_OUTBOX_DROPS != 0,
        }
    }

    /// Adds a record whose body `write` writes. Where there is too little room it may be called a second time, with more.
    #[inline]
    pub(crate) fn append(
        &self,
        way: Way<'_>,
        kind: RecordKind,
        when_full: WhenFull,
        mut write: impl FnMut(&mut [u8]) -> Body,
    ) -> Appended {
        match self.try_append(kind, &mut write) {
            Some(appended) => appended,
            None if self.drops && when_full == WhenFull::MayDrop => self.count_dropped(),
            None => {
                way.exit(Port::Drain, 0);
                // A host that has not emptied the outbox leaves no room: the record is lost with it.
                self.try_append(kind, &mut write)
                    .unwrap_or(Appended::Dropped)
            }
        }
    }

    /// Adds a record; `None` where an emptier outbox would have room for (more of) it.
    #[inline]
    fn try_append(
        &self,
        kind: RecordKind,
        write: &mut impl FnMut(&mut [u8]) -> Body,
    ) -> Option<Appended> {
        let end = self.end();
        let room_bytes = self.room_bytes.checked_sub(end)?;
        // SAFETY: the records lie in the outbox, which `new` required to be mapped and writable; those behind the end are the
        // guest's alone. It is the only reference: the one kind of closure that runs code of the guest's author is kept from
        // coming here again by `logging`.
        let room = unsafe { core::slice::from_raw_parts_mut(self.records.add(end), room_bytes) };
        let mut record = RecordWriter::new(room)?;
        let len_bytes = match write(record.body()) {
            Body::Whole(len_bytes) => len_bytes,
            Body::Cut(len_bytes) if end == 0 => len_bytes,
            Body::TooLong if end == 0 => return Some(Appended::TooLong),
            Body::Cut(_) | Body::TooLong => return None,
        };
        let taken_bytes = record.finish(kind, len_bytes);
        if self.end() != end {
            // The guest left while it formatted the record, and the host has emptied the outbox below it.
            return Some(Appended::Dropped);
        }
        self.set_end(end + taken_bytes);
        Some(Appended::Yes)
    }

    #[cold]
    fn count_dropped(&self) -> Appended {
        // SAFETY: the header is mapped, writable and aligned; volatile, because the host writes it, too.
        unsafe {
            let dropped = &raw mut (*self.header).dropped;
            dropped.write_volatile(dropped.read_volatile().wrapping_add(1));
        }
        Appended::Dropped
    }

    fn end(&self) -> usize {
        // SAFETY: the header is mapped, readable and aligned; volatile, because the host writes it, too.
        unsafe { (&raw const (*self.header).end_bytes).read_volatile() as usize }
    }

    fn set_end(&self, end: usize) {
        // What the end covers is written before: the compiler's order is the processor's here (Intel SDM volume 3, section 9.2.2).
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::Release);
        // SAFETY: as in `end`. An outbox is shorter than 4 GiB.
        unsafe {
            (&raw mut (*self.header).end_bytes)
                .write_volatile(u32::try_from(end).unwrap_or(u32::MAX));
        }
    }
}

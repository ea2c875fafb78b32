//! Scratch as a kernel sees it: arithmetic between its guest-physical addresses and pointers.

#![expect(
    unsafe_code,
    reason = "reads and writes the bookkeeping words at the top of scratch"
)]

use vellum_abi::peb::Peb;
use vellum_layout::{
    EXCEPTION_STACK_OFFSET, GUARD_LEN_BYTES, GUARD_OFFSET, Gpa, PAGE_SIZE,
    SCRATCH_TOP_ALLOCATOR_OFFSET, SCRATCH_TOP_LEN_BYTES,
};

use crate::link::pointer;

/// Where scratch lies: `len_bytes` bytes from guest-physical address `gpa`, mapped at `start`.
///
/// Its end may be the end of the address space, so only offsets smaller than the length are ever added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    start: u64,
    len_bytes: u64,
    gpa: u64,
}

impl Window {
    /// The scratch that a PEB names; `None` when it names none, or one that cannot be.
    pub(crate) fn of(peb: &Peb) -> Option<Self> {
        let window = Self {
            start: peb.scratch_ptr,
            len_bytes: peb.scratch_len_bytes,
            gpa: peb.scratch_gpa,
        };
        let last_offset = window.len_bytes.checked_sub(1)?;
        let is_aligned = [window.start, window.len_bytes, window.gpa]
            .into_iter()
            .all(|number| number.is_multiple_of(PAGE_SIZE));
        let last = window.start.checked_add(last_offset)?;
        let is_sound = is_aligned
            && window.len_bytes > SCRATCH_TOP_LEN_BYTES
            && window.start > 0
            && usize::try_from(last).is_ok()
            && window.gpa.checked_add(window.len_bytes).is_some();
        is_sound.then_some(window)
    }

    /// The address of `len_bytes` bytes at `gpa`; `None` unless all of them are mapped memory of scratch.
    pub(crate) fn address_of(&self, gpa: Gpa, len_bytes: u64) -> Option<u64> {
        let offset = gpa.as_u64().checked_sub(self.gpa)?;
        let end = offset.checked_add(len_bytes)?;
        let guard = self.len_bytes - GUARD_OFFSET;
        let is_guarded = offset < guard + GUARD_LEN_BYTES && end > guard;
        (end <= self.len_bytes && !is_guarded).then(|| self.start + offset)
    }

    /// The address of the bookkeeping word at this offset from the end.
    const fn word(&self, offset_from_end: u64) -> u64 {
        self.start + (self.len_bytes - offset_from_end)
    }

    /// The initial stack pointer of the exception stack.
    pub(crate) const fn exception_stack_top(&self) -> u64 {
        self.word(EXCEPTION_STACK_OFFSET)
    }

    /// The frame at `next`, if it is a free one.
    fn free_frame(&self, next: u64) -> Option<Gpa> {
        let frames_end = self.gpa + (self.len_bytes - SCRATCH_TOP_LEN_BYTES);
        let is_free = next.is_multiple_of(PAGE_SIZE) && next >= self.gpa && next < frames_end;
        is_free.then(|| Gpa::new(next).ok()).flatten()
    }

    /// Takes the next free frame, which nobody has written to yet.
    pub(crate) fn take_frame(&self) -> Option<Gpa> {
        let word = pointer::<u64>(self.word(SCRATCH_TOP_ALLOCATOR_OFFSET));
        // SAFETY: a window is made of a PEB whose host maps all of scratch but the guard page; the bookkeeping words lie
        // above it and are aligned to 8. There is one thread. Volatile, because the host changes the word as well.
        let next = unsafe { word.read_volatile() };
        let frame = self.free_frame(next)?;
        // SAFETY: as above.
        unsafe { word.write_volatile(next + PAGE_SIZE) };
        Some(frame)
    }

    /// Where a frame is mapped.
    pub(crate) fn frame_ptr<T>(&self, frame: Gpa) -> Option<*mut T> {
        self.address_of(frame, PAGE_SIZE).map(pointer)
    }
}

#[cfg(test)]
mod tests;

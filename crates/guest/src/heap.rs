//! The guest's heap.

#![expect(unsafe_code, reason = "implements a global allocator")]

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;

use talc::locking::AssumeUnlockable;
use talc::{OomHandler, Span, Talc, Talck};

use crate::link::address;
use crate::runtime::Single;

/// The heap that the PEB named and the allocator has not claimed yet.
static UNCLAIMED: Single<Cell<Option<(u64, usize)>>> = Single::new(Cell::new(None));

/// Global allocator over the heap that the PEB names.
///
/// The heap is claimed at the first allocation and its pages are touched as they are used, so a guest that allocates
/// nothing dirties nothing, whatever the heap's size.
pub struct Heap(Talck<AssumeUnlockable, ClaimHeap>);

/// Gives the allocator the unclaimed heap when it runs out, which at the first allocation it does.
struct ClaimHeap;

impl Heap {
    /// A heap without memory.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "the one use is a static, which needs a const function"
    )]
    pub const fn new() -> Self {
        Self(Talc::new(ClaimHeap).lock())
    }
}

/// Names the heap. Nothing in it is touched yet.
///
/// # Safety
/// The range is mapped on demand, readable and writable, and used by nobody else. One thread only.
pub(crate) unsafe fn set_region(start: u64, len_bytes: u64) {
    if let Ok(len_bytes) = usize::try_from(len_bytes)
        && len_bytes > 0
    {
        UNCLAIMED.get().set(Some((start, len_bytes)));
    }
}

impl OomHandler for ClaimHeap {
    fn handle_oom(talc: &mut Talc<Self>, _: Layout) -> Result<(), ()> {
        let (start, len_bytes) = UNCLAIMED.get().take().ok_or(())?;
        let base = address(start);
        // SAFETY: `set_region` required the range to be usable memory that is nobody else's; `take` lets it be
        // claimed once.
        unsafe { talc.claim(Span::from_base_size(base, len_bytes)).map(drop) }
    }
}

// SAFETY: `Talck` upholds the contract of `GlobalAlloc` as long as no two threads are inside it, and a guest has one.
// The lock is a dummy for that reason. A failed allocation returns null; `alloc` then panics with the size.
unsafe impl GlobalAlloc for Heap {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: forwarded unchanged; the caller upholds the same contract.
        unsafe { self.0.alloc(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: forwarded unchanged; the caller upholds the same contract.
        unsafe { self.0.dealloc(ptr, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_len_bytes: usize) -> *mut u8 {
        // SAFETY: forwarded unchanged; the caller upholds the same contract.
        unsafe { self.0.realloc(ptr, layout, new_len_bytes) }
    }
}

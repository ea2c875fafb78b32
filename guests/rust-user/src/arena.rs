//! A block of heap whose pages are dirtied on demand, for tests and benchmarks of snapshots.

use core::alloc::Layout;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use vellum_guest::{GuestError, guest_function};

use crate::faults::{length, read};

const PAGE_LEN_BYTES: usize = 4096;

static ARENA: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static ARENA_LEN_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Makes the arena `len_bytes` long, rounded up to pages, writes its number plus one into each page, and returns the
/// length. An arena that was there before is freed.
#[guest_function]
fn reserve(len_bytes: u64) -> u64 {
    let pages = length(len_bytes).div_ceil(PAGE_LEN_BYTES).max(1);
    allocate_pages(pages);
    write_pages(pages, 1);
    (pages * PAGE_LEN_BYTES) as u64
}

/// Writes one word into each of the first `count` pages of the arena, which is made if it is too short. Returns
/// `count`.
#[guest_function]
fn touch_pages(count: u64) -> u64 {
    let pages = length(count);
    if ARENA_LEN_BYTES.load(Ordering::Relaxed) / PAGE_LEN_BYTES < pages {
        allocate_pages(pages);
    }
    write_pages(pages, 0x5EED);
    count
}

/// Writes page number plus `value` into each of the first `count` pages of the arena: with another value each time, no page is as it was
/// before. Returns `count`.
#[guest_function]
fn stamp_pages(count: u64, value: u64) -> Result<u64, GuestError> {
    let pages = length(count);
    if ARENA_LEN_BYTES.load(Ordering::Relaxed) / PAGE_LEN_BYTES < pages {
        return Err(GuestError::new("the arena is too short"));
    }
    write_pages(pages, value);
    Ok(count)
}

/// The word at this offset of the arena.
#[guest_function]
fn read_arena(offset: u64) -> Result<u64, GuestError> {
    let offset = length(offset);
    let len_bytes = ARENA_LEN_BYTES.load(Ordering::Relaxed);
    if offset.checked_add(8).is_none_or(|end| end > len_bytes) {
        return Err(GuestError::new("offset outside the arena"));
    }
    let arena = ARENA.load(Ordering::Relaxed);
    // With a plain instruction, because the compiler takes memory that it has not seen written for undefined. Here it
    // is zero until it is touched.
    Ok(read(arena.addr() as u64 + offset as u64))
}

/// Replaces the arena by one of `pages` pages that are not touched yet.
fn allocate_pages(pages: usize) {
    let old_len_bytes = ARENA_LEN_BYTES.swap(0, Ordering::Relaxed);
    if old_len_bytes > 0 {
        let old = ARENA.swap(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: pointer and layout are those of the allocation below.
        unsafe { alloc::alloc::dealloc(old, layout(old_len_bytes)) };
    }
    let layout = layout(pages.saturating_mul(PAGE_LEN_BYTES));
    // SAFETY: the layout has a size of at least a page.
    let arena = unsafe { alloc::alloc::alloc(layout) };
    if arena.is_null() {
        alloc::alloc::handle_alloc_error(layout);
    }
    ARENA.store(arena, Ordering::Relaxed);
    ARENA_LEN_BYTES.store(layout.size(), Ordering::Relaxed);
}

/// Writes page number plus `first` into the first word of each of the first `pages` pages.
fn write_pages(pages: usize, first: u64) {
    let arena = ARENA.load(Ordering::Relaxed);
    for page in 0..pages {
        #[expect(
            clippy::cast_ptr_alignment,
            reason = "every page of the arena is aligned to a page"
        )]
        let word = arena.wrapping_add(page * PAGE_LEN_BYTES).cast::<u64>();
        // SAFETY: callers have made the arena at least `pages` pages long. Volatile, so that every page is written.
        unsafe { word.write_volatile(page as u64 + first) };
    }
}

fn layout(len_bytes: usize) -> Layout {
    Layout::from_size_align(len_bytes, PAGE_LEN_BYTES)
        .unwrap_or_else(|_| panic!("allocation of {len_bytes} bytes failed"))
}

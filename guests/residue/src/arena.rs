//! Pages of the heap that programs write to.

use core::alloc::Layout;
use core::sync::atomic::{AtomicPtr, Ordering};

/// Bytes of a page.
pub const PAGE_LEN_BYTES: usize = 4096;

/// Whole pages, which are allocated at the first use and exist, perhaps, only when they are touched.
#[derive(Debug)]
pub struct Arena<const PAGES: usize>(AtomicPtr<u8>);

impl<const PAGES: usize> Arena<PAGES> {
    /// An arena that was not used yet.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it belongs into a static")]
    pub const fn new() -> Self {
        Self(AtomicPtr::new(core::ptr::null_mut()))
    }

    /// The address of the first page; 0 before the first use.
    pub fn address(&self) -> usize {
        self.0.load(Ordering::Relaxed).expose_provenance()
    }

    /// The address of a page, whose number counts modulo the pages that there are.
    pub fn page(&self, number: usize) -> usize {
        self.start() + number % PAGES * PAGE_LEN_BYTES
    }

    fn start(&self) -> usize {
        let made = self.address();
        if made != 0 {
            return made;
        }
        let Ok(layout) = Layout::from_size_align(PAGES * PAGE_LEN_BYTES, PAGE_LEN_BYTES) else {
            unreachable!("a few pages have a layout");
        };
        // SAFETY: the layout has a size.
        let start = unsafe { alloc::alloc::alloc(layout) };
        if start.is_null() {
            alloc::alloc::handle_alloc_error(layout);
        }
        self.0.store(start, Ordering::Relaxed);
        start.expose_provenance()
    }
}

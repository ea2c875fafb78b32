//! Page tables and frames as they lie in the memory of the running kernel.

#![expect(unsafe_code, reason = "reads and writes live page tables")]

use vellum_layout::Gpa;
use vellum_vmem::{EntryWidth, FrameSource, StoreError, TableStore};

use super::window::Window;
use crate::link::pointer;

/// The live page tables of this kernel: those that lie in scratch.
#[derive(Clone, Copy, Debug)]
pub struct Tables(Window);

/// The free frames of scratch, as tables.
#[derive(Clone, Copy, Debug)]
pub struct Frames(Window);

impl Tables {
    /// # Safety
    /// As for [`super::tables`]; the window is that of this kernel.
    pub(super) const unsafe fn new(window: Window) -> Self {
        Self(window)
    }

    fn locate(&self, at: Gpa, width: EntryWidth) -> Result<u64, StoreError> {
        let len_bytes = width.bytes();
        self.0
            .address_of(at, len_bytes)
            .filter(|_| at.as_u64().is_multiple_of(len_bytes))
            .ok_or(StoreError::Unbacked { at })
    }
}

impl TableStore for Tables {
    #[inline]
    fn read_entry(&self, at: Gpa, width: EntryWidth) -> Result<u64, StoreError> {
        let entry = self.locate(at, width)?;
        // SAFETY: `locate` gives an aligned address of mapped memory of scratch. Volatile, because the processor writes entries
        // as well.
        Ok(unsafe {
            match width {
                EntryWidth::Bytes4 => pointer::<u32>(entry).read_volatile().into(),
                EntryWidth::Bytes8 => pointer::<u64>(entry).read_volatile(),
            }
        })
    }

    #[inline]
    fn write_entry(&mut self, at: Gpa, width: EntryWidth, raw: u64) -> Result<(), StoreError> {
        let entry = self.locate(at, width)?;
        // SAFETY: as above; that it is an entry which may be changed is the promise of whoever made this store.
        unsafe {
            match width {
                #[expect(clippy::cast_possible_truncation, reason = "the entry has 4 bytes")]
                EntryWidth::Bytes4 => pointer::<u32>(entry).write_volatile(raw as u32),
                EntryWidth::Bytes8 => pointer::<u64>(entry).write_volatile(raw),
            }
        }
        Ok(())
    }
}

impl Frames {
    pub(super) const fn new(window: Window) -> Self {
        Self(window)
    }
}

impl FrameSource for Frames {
    fn allocate_table(&mut self) -> Option<Gpa> {
        self.0.take_frame()
    }
}

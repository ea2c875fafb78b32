//! The state of a kernel's exception handling, in a frame of scratch.
//!
//! It lies in scratch and not in a static because scratch is never copied on write: the handler may change it at any
//! time without a fault of its own. The frame begins with the interrupt table, so whoever handles an exception finds the
//! state at the address in IDTR, even before any static could be written.

#![expect(
    unsafe_code,
    reason = "makes tables that the processor reads, and state that exceptions reach"
)]

use core::cell::Cell;

use vellum_abi::peb::Peb;
use vellum_abi::port::ABORT_BAD_PEB;
use vellum_layout::{Gpa, Gva, PAGE_SIZE};

use super::fault::{PageFault, Pages, Refusal, Server, Territory};
use super::live::{Frames, Tables};
use super::machine;
use super::window::Window;
use crate::panic;
use crate::runtime::Single;

/// What one frame of scratch holds.
#[repr(C)]
pub(crate) struct Supervisor {
    /// GDT, IDT and TSS; the IDT first.
    tables: machine::DescriptorTables,
    window: Window,
    territory: Territory,
    page_faults: Cell<u64>,
}

const _: () = assert!(size_of::<Supervisor>() as u64 <= PAGE_SIZE);

/// The supervisor of this kernel, once its tables are loaded.
static CURRENT: Single<Cell<Option<&'static Supervisor>>> = Single::new(Cell::new(None));

/// Makes descriptor tables and loads them; afterwards page faults are served. Writes to no static before that, because the first
/// write to one may be such a fault.
///
/// # Safety
/// `peb` is what the host passed at entry of a kernel with paging, and nothing has run before. Ring 0, one thread.
pub(crate) unsafe fn start(peb: *const Peb) {
    // SAFETY: the host maps the PEB, readable, at the address it passes; its copy is checked before use.
    let block = unsafe { peb.read_volatile() };
    let window = block.check().ok().and_then(|()| Window::of(&block));
    let frame = window.and_then(|window| window.take_frame());
    let place = window
        .zip(frame)
        .and_then(|(window, frame)| window.frame_ptr::<Supervisor>(frame));
    let (Some(window), Some(place)) = (window, place) else {
        panic::give_up(ABORT_BAD_PEB);
    };
    let supervisor = Supervisor {
        tables: machine::DescriptorTables::new(place.addr(), window.exception_stack_top()),
        window,
        territory: Territory {
            home: machine::root(),
            heap: (block.heap_ptr, block.heap_len_bytes),
            heap_attrs: machine::DATA_ATTRS,
            format: machine::FORMAT,
        },
        page_faults: Cell::new(0),
    };
    // SAFETY: a fresh frame, which is mapped, aligned to a page, large enough and nobody else's.
    let supervisor: &'static Supervisor = unsafe {
        place.write(supervisor);
        &*place
    };
    // SAFETY: the tables were made for the place where they lie, and stay there for ever.
    unsafe { supervisor.tables.load() };
    CURRENT.get().set(Some(supervisor));
}

/// The supervisor of this kernel.
pub(super) fn current() -> &'static Supervisor {
    CURRENT
        .get()
        .get()
        .expect("not inside a vellum kernel with paging")
}

/// The supervisor that the exception in progress was delivered by.
///
/// # Safety
/// Called while an exception is handled that came through tables that [`start`] has loaded.
pub(super) unsafe fn of_exception() -> &'static Supervisor {
    let place = core::ptr::with_exposed_provenance::<Supervisor>(machine::interrupt_table());
    // SAFETY: the caller promises that the interrupt table is the one that `start` made, with which the state begins.
    unsafe { &*place }
}

impl Supervisor {
    /// Serves a page fault and counts it.
    pub(super) fn serve(&self, fault: PageFault) -> Result<(), Refusal> {
        let mut server = Server {
            territory: &self.territory,
            root: machine::root(),
            tables: self.tables(),
            frames: self.frames(),
            pages: LivePages(self.window),
        };
        server.serve(fault)?;
        self.page_faults.set(self.page_faults.get() + 1);
        Ok(())
    }

    pub(super) const fn window(&self) -> Window {
        self.window
    }

    pub(super) const fn page_faults(&self) -> u64 {
        self.page_faults.get()
    }

    pub(super) const fn home_root(&self) -> Gpa {
        self.territory.home
    }

    pub(super) const fn tables(&self) -> Tables {
        // SAFETY: this module reads, and writes what serves a fault; `super::tables` hands its own caller's promise on.
        unsafe { Tables::new(self.window) }
    }

    pub(super) const fn frames(&self) -> Frames {
        Frames::new(self.window)
    }
}

/// The pages of the running kernel.
struct LivePages(Window);

impl Pages for LivePages {
    fn copy(&mut self, from: Gva, to: Gpa) {
        let from = crate::link::address(from.as_u64());
        if let Some(to) = self.0.frame_ptr(to) {
            // SAFETY: the page is present and can be read, for its translation was just seen; the frame is mapped, fresh, and
            // so no part of the page. Code that borrows the page is stopped at the faulting instruction.
            unsafe { machine::copy_page(from, to) };
        }
    }

    fn invalidate(&mut self, page: Gva) {
        machine::invalidate(page);
    }
}

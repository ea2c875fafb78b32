//! The two message buffers and the way out.

#![expect(
    unsafe_code,
    reason = "the buffers are memory shared with the host, known by address"
)]

use vellum_abi::fill::FillRequest;
use vellum_abi::outbox::RecordKind;
use vellum_abi::peb::{FLAG_TOUCH_BEFORE_FILL, Peb};
use vellum_abi::port::Port;
use zerocopy::IntoBytes;

use crate::gate::{Gate, PortGate, Way};
use crate::line::Line;
use crate::outbox::{Appended, Body, Outbox, WhenFull};

/// Bytes of the smallest page.
const PAGE_LEN_BYTES: usize = 4096;

/// The message buffers of this guest and the gate to its host.
///
/// It holds addresses, not references: the host writes the input buffer during an exit, so a reference to a buffer may
/// live only between two exits. The methods lend the buffers for the time of a closure, which gets no link.
#[derive(Clone, Copy)]
pub struct Link<'g> {
    input: *const u8,
    input_len_bytes: usize,
    output: *mut u8,
    output_len_bytes: usize,
    outbox: Outbox,
    line: Line,
    touch_before_fill: bool,
    way: Way<'g>,
}

impl<'g> Link<'g> {
    /// A link over the buffers that `peb` names.
    ///
    /// # Safety
    /// The buffers and the outbox are mapped, initialised and disjoint for `'g`, the input buffer readable, the others
    /// readable and writable, and nobody but the host behind `gate`, during an exit, changes them otherwise.
    pub unsafe fn new(peb: &Peb, gate: &'g dyn Gate) -> Self {
        // Vellum's buffers are far smaller than any address space, so these conversions keep the value.
        let len = |len_bytes: u64| usize::try_from(len_bytes).unwrap_or(0);
        Self {
            input: address(peb.input_ptr).cast_const(),
            input_len_bytes: len(peb.input_len_bytes),
            output: address(peb.output_ptr),
            output_len_bytes: len(peb.output_len_bytes),
            // SAFETY: the caller promises for the outbox what it promises for the output buffer.
            outbox: unsafe { Outbox::new(peb) },
            // SAFETY: the same.
            line: unsafe { Line::new(peb) },
            touch_before_fill: peb.flags & FLAG_TOUCH_BEFORE_FILL != 0,
            way: Way::Gate(gate),
        }
    }

    /// The link of a real guest, which leaves by port I/O.
    ///
    /// # Safety
    /// As for [`new`](Self::new).
    pub(crate) unsafe fn of_guest(peb: &Peb) -> Self {
        Self {
            way: Way::Ports,
            // SAFETY: the caller promises it.
            ..unsafe { Self::new(peb, &PortGate) }
        }
    }

    /// Does what leaving through `port` does; where the host polls, without leaving.
    #[inline]
    pub fn wait(&self, port: Port, eax: u32) {
        self.line.exit(self.way, port, eax);
    }

    /// Leaves through `port`.
    #[inline]
    pub fn exit(&self, port: Port, eax: u32) {
        self.way.exit(port, eax);
    }

    /// Adds a record to the outbox; see [`Outbox::append`].
    #[inline]
    pub(crate) fn append(
        &self,
        kind: RecordKind,
        when_full: WhenFull,
        write: impl FnMut(&mut [u8]) -> Body,
    ) -> Appended {
        self.outbox.append(self.way, kind, when_full, write)
    }

    /// The input buffer. The lifetime is the caller's choice; see [`crate::dispatch`] for who keeps it short.
    ///
    /// # Safety
    /// The reference is not used after the next exit that lets the host write a message.
    #[inline]
    pub(crate) unsafe fn input<'a>(&self) -> &'a [u8] {
        // SAFETY: `new` required the buffer to be readable and initialised; that it does not change while the
        // reference is used is this function's own precondition.
        unsafe { core::slice::from_raw_parts(self.input, self.input_len_bytes) }
    }

    /// Lends the output buffer to `write`, which must not leave the guest.
    #[inline]
    pub fn with_output<T>(&self, write: impl FnOnce(&mut [u8]) -> T) -> T {
        // SAFETY: `new` required the buffer to be writable and initialised. It is the only reference: this crate
        // forms one only here, and no closure given to this function calls back into it.
        write(unsafe { core::slice::from_raw_parts_mut(self.output, self.output_len_bytes) })
    }

    /// Has the host copy the external value of slot `slot` to `destination`.
    ///
    /// Where the host asks for it, every page of the destination is touched first: the host writes only to pages that are
    /// private to this guest already, and where the monitor copies pages that takes a write of the guest's own.
    ///
    /// # Safety
    /// `destination` is valid for writes of `len_bytes` bytes and no reference to them exists. That the bytes are
    /// initialised afterwards rests on the host, which a guest has no choice but to trust.
    pub(crate) unsafe fn fill(&self, slot: u32, destination: *mut u8, len_bytes: usize) {
        let pages = if self.touch_before_fill { len_bytes } else { 0 };
        let touched = (0..pages)
            .step_by(PAGE_LEN_BYTES)
            .chain(pages.checked_sub(1));
        for offset in touched {
            // SAFETY: the caller allows writes to these bytes.
            unsafe { destination.add(offset).write_volatile(0) };
        }
        let request = FillRequest::new(
            slot,
            destination.expose_provenance() as u64,
            len_bytes as u64,
        );
        self.with_output(|output| {
            output[..FillRequest::LEN_BYTES].copy_from_slice(request.as_bytes());
        });
        self.exit(Port::Fill, 0);
    }
}

/// The pointer to bytes at an address that the host gave.
pub(crate) fn address(address: u64) -> *mut u8 {
    pointer(address)
}

/// The pointer with an address that the host gave.
pub(crate) fn pointer<T>(address: u64) -> *mut T {
    // A guest's own addresses fit its own pointers.
    core::ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap_or(0))
}

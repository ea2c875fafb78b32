//! Decoding of KVM exits: a pure function over what `KVM_RUN` left in the page that it shares (Linux
//! `Documentation/virt/kvm/api.rst`, section 5).
#![expect(
    unsafe_code,
    reason = "the page holds a union whose member the exit reason names"
)]

use kvm_bindings::{
    KVM_EXIT_DIRTY_RING_FULL, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_OUT, KVM_EXIT_MEMORY_FAULT, KVM_EXIT_MMIO,
    KVM_EXIT_SHUTDOWN, kvm_run,
};

use crate::vm::{Access, Exit, IoWidth};

/// An exit, or work for the backend alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    /// For the caller.
    Exit(Exit),
    /// The dirty ring must be collected and reset before the guest can go on.
    DirtyRingFull,
}

/// An `out` of a doubleword, which is how a guest of Vellum's leaves; `None` for anything else, and for [`decode_io`] to decode.
#[inline]
pub(super) fn decode_out(run: &kvm_run, item_at: impl FnOnce(u64) -> u32) -> Option<Exit> {
    if run.exit_reason != KVM_EXIT_IO {
        return None;
    }
    // SAFETY: this is the member that an exit of this reason sets, and any bytes are sound ones of it.
    let io = unsafe { run.__bindgen_anon_1.io };
    let is_plain = u32::from(io.direction) == KVM_EXIT_IO_OUT && io.size == 4 && io.count == 1;
    is_plain.then(|| Exit::IoOut {
        port: io.port,
        width: IoWidth::Dword,
        data: item_at(io.data_offset),
    })
}

/// A port access. One item of 1, 2 or 4 bytes may be a plain instruction; anything else is a string instruction of several items. Of one that
/// moves one item at a time nothing is left to see: `outs` appears as an `out` each time.
///
/// `None` for an exit of another kind. `item_at` reads four bytes that many bytes behind the start of the page, where the value of an
/// `out` lies.
#[inline]
pub(super) fn decode_io(run: &kvm_run, item_at: impl FnOnce(u64) -> u32) -> Option<Exit> {
    if run.exit_reason != KVM_EXIT_IO {
        return None;
    }
    // SAFETY: this is the member that an exit of this reason sets, and any bytes are sound ones of it.
    let io = unsafe { run.__bindgen_anon_1.io };
    let port = io.port;
    let width = match io.size {
        1 => IoWidth::Byte,
        2 => IoWidth::Word,
        4 => IoWidth::Dword,
        _ => return Some(Exit::IoString { port }),
    };
    if io.count != 1 {
        return Some(Exit::IoString { port });
    }
    if u32::from(io.direction) != KVM_EXIT_IO_OUT {
        return Some(Exit::IoIn { port, width });
    }
    let data = item_at(io.data_offset)
        & match width {
            IoWidth::Byte => 0xFF,
            IoWidth::Word => 0xFFFF,
            IoWidth::Dword => u32::MAX,
        };
    Some(Exit::IoOut { port, width, data })
}

/// Reads four bytes of the area that `run` is the start of, so many bytes behind it.
#[inline]
pub(super) fn item_of(run: &kvm_run) -> impl FnOnce(u64) -> u32 {
    let page = std::ptr::from_ref(run).cast::<u8>();
    move |offset| {
        let offset = usize::try_from(offset).unwrap_or(0);
        // SAFETY: the kernel placed the items of a port access at this offset of the mapped area, at the start of a page.
        unsafe { page.byte_add(offset).cast::<u32>().read_unaligned() }
    }
}

/// Any other exit, none of which a guest causes often. `is_mapped` tells whether guest-physical memory exists at an address.
#[cold]
pub(super) fn decode(run: &kvm_run, is_mapped: impl FnOnce(u64) -> bool) -> Decoded {
    let union = &run.__bindgen_anon_1;
    Decoded::Exit(match run.exit_reason {
        KVM_EXIT_MMIO => {
            // SAFETY: as for a port access, with the member of this reason.
            let mmio = unsafe { union.mmio };
            Exit::MemoryFault {
                gpa: mmio.phys_addr,
                access: match mmio.is_write {
                    0 => Access::Read,
                    _ => Access::Write,
                },
                mapped: is_mapped(mmio.phys_addr),
            }
        }
        KVM_EXIT_MEMORY_FAULT => {
            // SAFETY: as above.
            let gpa = unsafe { union.memory_fault.gpa };
            Exit::MemoryLost { gpa: Some(gpa) }
        }
        KVM_EXIT_HLT => Exit::Halt,
        KVM_EXIT_SHUTDOWN => Exit::TripleFault,
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: as above.
            let reason = unsafe { union.fail_entry.hardware_entry_failure_reason };
            Exit::InvalidState { reason }
        }
        KVM_EXIT_INTERNAL_ERROR => Exit::EmulationFailure,
        KVM_EXIT_INTR => Exit::Interrupted,
        KVM_EXIT_DIRTY_RING_FULL => return Decoded::DirtyRingFull,
        reason => Exit::Unhandled { reason },
    })
}

#[cfg(test)]
mod tests;

//! Decoding of KVM exits: a pure function over what `KVM_RUN` returned.

use kvm_bindings::{KVM_EXIT_DIRTY_RING_FULL, KVM_EXIT_UNKNOWN};
use kvm_ioctls::VcpuExit;

use crate::vm::{Access, Exit, IoWidth};

/// An exit, or work for the backend alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    /// For the caller.
    Exit(Exit),
    /// The dirty ring must be collected and reset before the guest can go on.
    DirtyRingFull,
}

/// Translates an exit. `is_mapped` tells whether guest-physical memory exists at an address.
pub(super) fn decode(exit: &VcpuExit<'_>, is_mapped: impl Fn(u64) -> bool) -> Decoded {
    let memory_fault = |gpa, access| Exit::MemoryFault {
        gpa,
        access,
        mapped: is_mapped(gpa),
    };
    Decoded::Exit(match exit {
        VcpuExit::IoOut(port, data) => decode_out(*port, data),
        VcpuExit::IoIn(port, data) => {
            IoWidth::from_len_bytes(data.len()).map_or(Exit::IoString { port: *port }, |width| {
                Exit::IoIn { port: *port, width }
            })
        }
        VcpuExit::MmioRead(gpa, _) => memory_fault(*gpa, Access::Read),
        VcpuExit::MemoryFault { gpa, .. } => Exit::MemoryLost { gpa: Some(*gpa) },
        VcpuExit::MmioWrite(gpa, _) => memory_fault(*gpa, Access::Write),
        VcpuExit::Hlt => Exit::Halt,
        VcpuExit::Shutdown => Exit::TripleFault,
        VcpuExit::FailEntry(reason, _) => Exit::InvalidState { reason: *reason },
        VcpuExit::InternalError => Exit::EmulationFailure,
        VcpuExit::Intr => Exit::Interrupted,
        VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL) => return Decoded::DirtyRingFull,
        VcpuExit::Unsupported(reason) => Exit::Unhandled { reason: *reason },
        _ => Exit::Unhandled {
            reason: KVM_EXIT_UNKNOWN,
        },
    })
}

/// Tells several items of a string instruction from one wide item, which look alike in an exit's bytes.
///
/// Of a string instruction that moves one item at a time nothing is left to see: `outs` appears as an `out` each time.
pub(super) fn with_item_count(exit: Exit, items: u32) -> Exit {
    match exit {
        Exit::IoOut { port, .. } | Exit::IoIn { port, .. } if items != 1 => Exit::IoString { port },
        other => other,
    }
}

/// An access of 1, 2 or 4 bytes may be a plain `out`; anything else is a string instruction of several items.
fn decode_out(port: u16, data: &[u8]) -> Exit {
    let Some(width) = IoWidth::from_len_bytes(data.len()) else {
        return Exit::IoString { port };
    };
    let mut value = [0; 4];
    value[..data.len()].copy_from_slice(data);
    Exit::IoOut {
        port,
        width,
        data: u32::from_le_bytes(value),
    }
}

#[cfg(test)]
mod tests;

//! The way out to the host.

#![expect(unsafe_code, reason = "leaving the guest is one machine instruction")]

use core::arch::asm;

use vellum_abi::port::Port;

/// Leaves to the host and comes back. Guests use [`PortGate`]; tests put a host of their own in its place.
pub trait Gate {
    /// Leaves through `port` with `eax`. When this returns, the host has done what the port stands for.
    fn exit(&self, port: Port, eax: u32);
}

/// How a link leaves. A real guest knows its gate when it is compiled, so that leaving is one instruction.
#[derive(Clone, Copy)]
pub(crate) enum Way<'g> {
    Ports,
    Gate(&'g dyn Gate),
}

impl Way<'_> {
    #[inline]
    pub(crate) fn exit(self, port: Port, eax: u32) {
        match self {
            Self::Ports => PortGate.exit(port, eax),
            Self::Gate(gate) => gate.exit(port, eax),
        }
    }
}

/// The gate of a real guest: port I/O.
#[derive(Clone, Copy, Debug)]
pub struct PortGate;

impl Gate for PortGate {
    #[inline]
    fn exit(&self, port: Port, eax: u32) {
        match port {
            Port::Idle => out::<{ Port::Idle as u8 }>(eax),
            Port::HostCall => out::<{ Port::HostCall as u8 }>(eax),
            Port::Drain => out::<{ Port::Drain as u8 }>(eax),
            Port::Panic => out::<{ Port::Panic as u8 }>(eax),
            Port::Abort => out::<{ Port::Abort as u8 }>(eax),
            Port::Fill => out::<{ Port::Fill as u8 }>(eax),
            Port::Fault => out::<{ Port::Fault as u8 }>(eax),
            Port::Checkpoint => out::<{ Port::Checkpoint as u8 }>(eax),
        }
    }
}

/// `out PORT, eax` with the port as an immediate, the cheapest exit that carries a value.
#[inline]
fn out<const PORT: u8>(eax: u32) {
    // SAFETY: `out` touches no register but the ones it reads, and no flags. What the host changes in memory
    // meanwhile lies in the input buffer, in the outbox or in the destination of a fill request; the asm block is not `nomem`, so
    // the compiler assumes such changes, and this crate holds no reference to those bytes across an exit. In a
    // process of an operating system the instruction raises #GP and the process ends, which is safe.
    unsafe {
        asm!("out {port}, eax", port = const PORT, in("eax") eax, options(nostack, preserves_flags));
    };
}

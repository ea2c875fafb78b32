//! The I/O ports through which a guest leaves to its host.
//!
//! A guest executes `out imm8, eax`. All numbers fit the 8-bit immediate form of the instruction (Intel SDM
//! volume 2, "OUT"), which needs no register for the port. They lie in 0xE0..=0xE7, above the legacy devices that a
//! hypervisor might emulate in its kernel (PIC 0x20, PIT 0x40, keyboard 0x60, A20 0x92, second PIC 0xA0).

use thiserror::Error;

/// A port of the ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Port {
    /// The guest waits for a call. EAX is [`IDLE_READY`] or [`IDLE_REPLY`].
    Idle = 0xE0,
    /// A host call lies in the output buffer; on resumption the reply lies in the input buffer. EAX is 0.
    HostCall = 0xE1,
    /// The guest waits for its [outbox](crate::outbox) to be emptied, and for nothing else. EAX is 0.
    Drain = 0xE2,
    /// A panic record lies in the output buffer. EAX is 0. The guest expects not to be resumed.
    Panic = 0xE3,
    /// The guest gives up; EAX is a code of its choice. It expects not to be resumed.
    Abort = 0xE4,
    /// A [`FillRequest`](crate::fill::FillRequest) lies in the output buffer. EAX is 0.
    Fill = 0xE5,
    /// The guest asks its host for a snapshot of this moment; EAX is a tag of its choice that the host gets with the snapshot.
    /// The guest goes on behind the instruction, now and in every sandbox that is restored to the snapshot; the PEB's
    /// [`generation`](crate::peb::Peb::generation) tells which it is.
    Checkpoint = 0xE6,
    /// The monitor has written a [`FaultRecord`](crate::fault::FaultRecord). Guest functions in ring 3 may not use it; it is
    /// the last one, because the bits that allow the others in a task's I/O bitmap reach over three ports more.
    Fault = 0xE7,
}

/// EAX at [`Port::Idle`]: the guest is initialised and there is no reply.
pub const IDLE_READY: u32 = 0;
/// EAX at [`Port::Idle`]: a reply lies in the output buffer.
pub const IDLE_REPLY: u32 = 1;

/// First of the abort codes that the guest library uses itself; a guest's own codes lie below.
pub const ABORT_FIRST_RESERVED: u32 = 0xFFFF_FF00;
/// EAX at [`Port::Abort`]: the guest cannot start from the PEB it was given.
pub const ABORT_BAD_PEB: u32 = 0xFFFF_FF01;
/// EAX at [`Port::Abort`]: the guest panicked before it knew its output buffer.
pub const ABORT_PANIC_BEFORE_START: u32 = 0xFFFF_FF02;
/// EAX at [`Port::Abort`]: the guest panicked while it reported a panic, or was resumed after one.
pub const ABORT_NESTED_PANIC: u32 = 0xFFFF_FF03;

/// Every port of the ABI, in ascending order.
pub const ALL: [Port; 8] = [
    Port::Idle,
    Port::HostCall,
    Port::Drain,
    Port::Panic,
    Port::Abort,
    Port::Fill,
    Port::Checkpoint,
    Port::Fault,
];

/// The ports that ring-3 guest code may use; all but [`Port::Fault`], which is the monitor's.
pub const USER: [Port; 7] = [
    Port::Idle,
    Port::HostCall,
    Port::Drain,
    Port::Panic,
    Port::Abort,
    Port::Fill,
    Port::Checkpoint,
];

/// A port number that the ABI does not name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("port {0:#x} is not part of the abi")]
pub struct UnknownPort(pub u16);

impl Port {
    /// The port's number.
    #[must_use]
    #[inline]
    pub const fn number(self) -> u16 {
        self as u16
    }
}

impl TryFrom<u16> for Port {
    type Error = UnknownPort;

    #[inline]
    fn try_from(number: u16) -> Result<Self, UnknownPort> {
        Ok(match number {
            0xE0 => Self::Idle,
            0xE1 => Self::HostCall,
            0xE2 => Self::Drain,
            0xE3 => Self::Panic,
            0xE4 => Self::Abort,
            0xE5 => Self::Fill,
            0xE6 => Self::Checkpoint,
            0xE7 => Self::Fault,
            other => return Err(UnknownPort(other)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_a_port_of_the_list_or_refused() {
        for number in 0..=u16::MAX {
            let listed = ALL.into_iter().find(|port| port.number() == number);
            assert_eq!(Port::try_from(number), listed.ok_or(UnknownPort(number)));
        }
    }

    #[test]
    fn ring_3_may_use_every_port_but_the_fault_port() {
        let mut expected = ALL.into_iter().filter(|port| *port != Port::Fault);
        assert!(USER.into_iter().eq(expected.by_ref()));
    }
}

//! The line: how a guest waits for its host without leaving, where the host polls.
//!
//! Three words at [`LINE_OFFSET`] of the [outbox](crate::outbox) stand in for an `out` to [`Port::Idle`](crate::port::Port::Idle) or
//! [`Port::HostCall`](crate::port::Port::HostCall). They are zero, which is [`State::Off`], unless the host polls.
//!
//! | from | by | to | meaning |
//! |---|---|---|---|
//! | `Open` | guest | `Posted` | port and EAX are written, the guest waits |
//! | `Posted` | host | `Taken` | the host has seen it |
//! | `Taken` | host | `Open` | the guest goes on, as behind an `out` |
//! | `Posted`, `Taken` | guest | `Left` | it has waited long enough: it executes the `out` that it had posted, and then goes on |
//! | `Taken` | host | `Leave` | the guest is to execute that `out` now |
//! | `Open` | host | `Off` | nobody polls any more: the next time the guest executes its `out` at once |
//! | any | host | `Open`, `Off` | while the guest waits in an `out` |
//!
//! A guest that waits goes on when it finds `Open` or `Off`: behind its answer the host may give up polling before the guest looks.
//!
//! Each change is one atomic exchange, so that of two sides that want to change a state one does.

/// Offset of the line in the outbox; a cache line of its own.
pub const LINE_OFFSET: usize = 64;
/// Offset of the state, a [`State`].
pub const STATE_OFFSET: usize = LINE_OFFSET;
/// Offset of the number of the port.
pub const PORT_OFFSET: usize = LINE_OFFSET + 4;
/// Offset of the value of EAX.
pub const EAX_OFFSET: usize = LINE_OFFSET + 8;
/// How often a guest looks before it leaves: some tens of microseconds.
pub const GUEST_SPINS: u32 = 4000;

/// What the line is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum State {
    /// The host does not poll.
    Off = 0,
    /// The host polls; the guest runs.
    Open = 1,
    /// The guest waits, and the host has not seen it.
    Posted = 2,
    /// The guest waits, and the host has seen it.
    Taken = 3,
    /// The guest is to leave.
    Leave = 4,
    /// The guest is about to leave, or has left.
    Left = 5,
}

const _: () = {
    assert!(LINE_OFFSET >= crate::outbox::OutboxHeader::LEN_BYTES);
    assert!(EAX_OFFSET + 4 <= crate::outbox::RECORDS_OFFSET);
};

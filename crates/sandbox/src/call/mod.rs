//! Calls: how a request enters the guest, and what the host does until the reply is there.

mod control;
mod deadline;
mod ending;
#[cfg(test)]
mod fake_interrupter;
mod hosting;
mod incoming;
mod messages;
mod options;
mod outbox;
mod reading;
mod session;

pub(crate) use options::NO_OPTIONS;
pub use options::{CallOptions, CancelToken};
pub use outbox::OutboxCounts;
pub use reading::ReplyBytes;
pub(crate) use session::{Phase, Session};

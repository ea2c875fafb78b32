//! One call from its request to its reply: the loop that serves the guest's exits.

use vellum_abi::port::{IDLE_READY, IDLE_REPLY, Port};
use vellum_abi::value::{ValueRef, ValueType};
use vellum_backend::{Exit, IoWidth};

use super::control::{Control, StopReason};
use super::ending::end_of;
use super::hosting::Offered;
use super::messages::{Buffers, Request};
use super::outbox::Outbox;
use crate::capture::capture;
use crate::checkpoint::Checkpoints;
use crate::error::Failure;
use crate::host::Resolved;
use crate::instance::Instance;
use crate::logging::LogSink;
use crate::snapshot::Suspended;
use crate::value::Value;

/// Where the guest stopped to wait for the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// After its initialisation.
    Ready,
    /// With a reply in the output buffer.
    Reply,
}

/// A call in progress.
pub(crate) struct Session<'a> {
    pub(crate) instance: &'a mut Instance,
    pub(crate) host: &'a Resolved,
    pub(crate) control: &'a Control,
    pub(crate) buffers: &'a mut Buffers,
    pub(crate) outbox: &'a mut Outbox,
    pub(crate) checkpoints: &'a mut Checkpoints,
    pub(crate) log: LogSink,
    pub(crate) phase: Phase,
}

/// What the guest is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its initialisation: it may not call the host yet.
    Booting,
    /// A call of the exported function with this index.
    Calling { function: u32 },
}

impl Session<'_> {
    /// Sends the request that was [encoded](Buffers::encode_call) and runs the guest until its reply.
    #[inline]
    pub(crate) fn call(
        &mut self,
        request: Request,
        values: &[ValueRef<'_>],
        returns: ValueType,
    ) -> Result<Value, Failure> {
        match self.send(request, values)? {
            Stop::Reply => self.reply(request.function, returns),
            Stop::Ready => Err(Failure::Protocol("the guest idles without a reply")),
        }
    }

    /// Sends a request and runs the guest until it waits.
    #[inline]
    pub(super) fn send(
        &mut self,
        request: Request,
        values: &[ValueRef<'_>],
    ) -> Result<Stop, Failure> {
        self.instance
            .write_input(&self.buffers.input[..request.len_bytes])?;
        self.run(Offered::Arguments(values))
    }

    /// Runs a guest that has just booted until it is ready.
    pub(crate) fn boot(&mut self) -> Result<(), Failure> {
        match self.run(Offered::Arguments(&[]))? {
            Stop::Ready => Ok(()),
            Stop::Reply => Err(Failure::Protocol("the guest replied before it was called")),
        }
    }

    /// Goes on with the call that a snapshot was taken in, until its reply.
    pub(crate) fn resume(&mut self, function: u32, returns: ValueType) -> Result<Value, Failure> {
        match self.run(Offered::Arguments(&[]))? {
            Stop::Reply => self.reply(function, returns),
            Stop::Ready => Err(Failure::Protocol("the guest idles without a reply")),
        }
    }

    /// Runs the guest until it waits, and takes what it has said meanwhile, also when it ends badly.
    #[inline]
    fn run(&mut self, offered: Offered<'_>) -> Result<Stop, Failure> {
        match self.serve(offered) {
            Ok(stop) => Ok(stop),
            Err(failure) => {
                // What ended the guest counts more than what else is wrong with it.
                let _ = self.drain();
                Err(failure)
            }
        }
    }

    /// Serves exits until the guest waits. What is rare has functions of its own, so that the usual way through this one is short.
    #[inline]
    fn serve(&mut self, mut offered: Offered<'_>) -> Result<Stop, Failure> {
        loop {
            let (port, data) = match self.instance.run() {
                Ok(Exit::IoOut {
                    port,
                    width: IoWidth::Dword,
                    data,
                }) => (port, data),
                other => {
                    self.serve_other_exit(other)?;
                    continue;
                }
            };
            match Port::try_from(port) {
                Ok(Port::Idle) => {
                    self.drain()?;
                    return idle(data);
                }
                Ok(Port::HostCall) => {
                    self.drain()?;
                    offered = self.serve_host_call()?;
                }
                Ok(port) => self.serve_rare_port(port, data, &offered)?,
                Err(_) => return Err(Failure::ForbiddenPort { port }),
            }
        }
    }

    /// Goes on after an exit that is no message of the guest's, if it can go on.
    #[cold]
    fn serve_other_exit(&mut self, exit: Result<Exit, Failure>) -> Result<(), Failure> {
        let exit = exit?;
        self.instance.check_mapped_files(&exit)?;
        match exit {
            Exit::Interrupted => self.check_stopped(),
            other => Err(end_of(other)),
        }
    }

    /// Serves any port but the two of calls.
    #[inline(never)]
    fn serve_rare_port(
        &mut self,
        port: Port,
        data: u32,
        offered: &Offered<'_>,
    ) -> Result<(), Failure> {
        if !is_end(port) {
            self.drain()?;
        }
        match port {
            // Two that are served elsewhere, and one for which the work is done.
            Port::Idle | Port::HostCall | Port::Drain => Ok(()),
            Port::Fill => self.fill(offered),
            Port::Panic => Err(self.panicked()),
            Port::Abort => Err(Failure::Abort { code: data }),
            Port::Fault => Err(self.faulted()),
            Port::Checkpoint => self.checkpoint(data),
        }
    }

    /// Takes the snapshot that the guest asks for, if its embedder wants any.
    fn checkpoint(&mut self, tag: u32) -> Result<(), Failure> {
        if self.checkpoints.is_declined() {
            return Ok(());
        }
        let suspended = Suspended {
            phase: self.phase,
            input: self.instance.input()?,
        };
        match capture(self.instance, Some(suspended)) {
            Ok(data) => self.checkpoints.keep(tag, data),
            // The guest asked for help, not for trouble: it goes on without.
            Err(error) => {
                let error = crate::error::Error::from(error);
                tracing::warn!(target: "vellum::guest", ?error, "a snapshot that the guest asked for could not be taken");
            }
        }
        Ok(())
    }

    fn check_stopped(&self) -> Result<(), Failure> {
        match self.control.reason() {
            Some(StopReason::Cancelled) => Err(Failure::Cancelled),
            Some(StopReason::DeadlineExceeded) => Err(Failure::DeadlineExceeded),
            // A signal that is not ours.
            None => Ok(()),
        }
    }
}

/// Whether the guest does not go on behind an access to the port.
const fn is_end(port: Port) -> bool {
    matches!(port, Port::Panic | Port::Abort | Port::Fault)
}

fn idle(data: u32) -> Result<Stop, Failure> {
    match data {
        IDLE_READY => Ok(Stop::Ready),
        IDLE_REPLY => Ok(Stop::Reply),
        _ => Err(Failure::Protocol("the guest idles with an unknown status")),
    }
}

#[cfg(test)]
mod tests;

//! One call from its request to its reply: the loop that serves the guest's exits.

use std::sync::Arc;

use vellum_abi::message::{MessageKind, Slot};
use vellum_abi::port::{IDLE_READY, IDLE_REPLY, Port};
use vellum_abi::value::{ValueRef, ValueType};
use vellum_backend::{Exit, IoWidth, VmError};

use super::OutboxCounts;
use super::control::{Control, StopReason};
use super::ending::end_of;
use super::hosting::Offered;
use super::messages::{Buffers, Request};
use super::outbox::Outbox;
use crate::capture::capture;
use crate::checkpoint::Checkpoints;
use crate::error::{Error, Failure};
use crate::host::Resolved;
use crate::instance::Instance;
use crate::logging::LogSink;
use crate::memory::Sizes;
use crate::polling::Polling;
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

/// The exit that ends nearly every call.
const REPLIED: Exit = Exit::IoOut {
    port: Port::Idle.number(),
    width: IoWidth::Dword,
    data: IDLE_REPLY,
};

/// A guest, and everything that calls of it need.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) instance: Instance,
    pub(crate) control: Arc<Control>,
    pub(crate) checkpoints: Checkpoints,
    pub(super) host: Resolved,
    pub(super) buffers: Buffers,
    pub(super) outbox: Outbox,
    /// The log of the call in progress, once there is something in it.
    pub(super) log: Option<LogSink>,
    pub(super) phase: Phase,
}

/// What the guest is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its initialisation: it may not call the host yet.
    Booting,
    /// A call of the exported function with this index.
    Calling { function: u32 },
}

impl Session {
    #[inline]
    pub(crate) fn new(mut instance: Instance, host: Resolved, sizes: &Sizes) -> Self {
        Self {
            control: Control::new(instance.vm().interrupter()),
            instance,
            checkpoints: Checkpoints::default(),
            host,
            buffers: Buffers::new(sizes.input_len_bytes, sizes.output_len_bytes),
            outbox: Outbox::default(),
            log: None,
            phase: Phase::Booting,
        }
    }

    /// Goes on with another VM.
    pub(crate) fn set_instance(&mut self, mut instance: Instance) {
        self.control = Control::new(instance.vm().interrupter());
        self.instance = instance;
    }

    /// Runs the guest on a thread of its own from now on.
    pub(crate) fn into_polled(mut self, polling: Polling) -> Result<Self, Failure> {
        self.instance = self.instance.into_polled(polling)?;
        self.control = Control::new(self.instance.vm().interrupter());
        Ok(self)
    }

    /// What the guest has said through its outbox.
    pub(crate) const fn outbox_counts(&self) -> OutboxCounts {
        self.outbox.counts
    }

    /// From here on the guest does something else.
    #[inline]
    pub(crate) const fn begin(&mut self, phase: Phase) {
        self.phase = phase;
    }

    /// Ends a call, whatever came of it, and reports what its log has lost.
    #[inline]
    pub(crate) fn end(&mut self) {
        if self.log.is_some() {
            self.log = None;
        }
    }

    /// Makes a call whose arguments and result are of fixed size, and returns the bits of the result.
    #[inline]
    pub(crate) fn call_plain(
        &mut self,
        function: u32,
        arguments: &[Slot],
        returns: ValueType,
    ) -> Result<u64, Error> {
        self.instance
            .write_plain_input(MessageKind::Call, function, arguments)
            .map_err(Failure::from)?;
        self.run_to_reply(Offered::Arguments(&[]))?;
        self.plain_reply(function, returns)
    }

    /// Sends the request that was [encoded](Self::encode_call) and runs the guest until its reply.
    pub(crate) fn call(
        &mut self,
        request: Request,
        values: &[ValueRef<'_>],
        returns: ValueType,
    ) -> Result<Value, Error> {
        self.send(request, values)?;
        Ok(self.reply(request.function, returns)?)
    }

    /// Sends a request and runs the guest until its reply.
    pub(super) fn send(&mut self, request: Request, values: &[ValueRef<'_>]) -> Result<(), Error> {
        let message = &self.buffers.input[..request.len_bytes];
        self.instance.write_input(message).map_err(Failure::from)?;
        self.run_to_reply(Offered::Arguments(values))
    }

    /// Runs a guest that has just booted until it is ready.
    pub(crate) fn boot(&mut self) -> Result<(), Error> {
        match self.run(Offered::Arguments(&[]))? {
            Stop::Ready => Ok(()),
            Stop::Reply => Err(Failure::Protocol("the guest replied before it was called").into()),
        }
    }

    /// Goes on with the call that a snapshot was taken in, until its reply.
    pub(crate) fn resume(&mut self, function: u32, returns: ValueType) -> Result<Value, Error> {
        self.run_to_reply(Offered::Arguments(&[]))?;
        Ok(self.reply(function, returns)?)
    }

    /// Runs a guest that was called until its reply.
    #[inline]
    fn run_to_reply(&mut self, offered: Offered<'_>) -> Result<(), Error> {
        match self.run(offered)? {
            Stop::Reply => Ok(()),
            Stop::Ready => Err(Failure::Protocol("the guest idles without a reply").into()),
        }
    }

    /// Runs the guest until it waits. As a rule its first exit is its reply, and it has said nothing else.
    #[inline]
    fn run(&mut self, offered: Offered<'_>) -> Result<Stop, Error> {
        let exit = self.instance.run();
        if matches!(exit, Ok(REPLIED)) && self.instance.is_outbox_empty() {
            return Ok(Stop::Reply);
        }
        self.run_on(exit, offered)
    }

    /// Serves an exit and what follows until the guest waits, and takes what it has said meanwhile, also when it ends badly.
    #[inline(never)]
    fn run_on(&mut self, exit: Result<Exit, VmError>, offered: Offered<'_>) -> Result<Stop, Error> {
        self.serve(exit, offered).map_err(|failure| {
            // What ended the guest counts more than what else is wrong with it.
            let _ = self.drain();
            failure.into()
        })
    }

    /// Serves exits until the guest waits. What is rare has functions of its own, so that the usual way through this one is short.
    #[inline]
    fn serve(
        &mut self,
        mut exit: Result<Exit, VmError>,
        mut offered: Offered<'_>,
    ) -> Result<Stop, Failure> {
        loop {
            match exit {
                Ok(Exit::IoOut {
                    port,
                    width: IoWidth::Dword,
                    data,
                }) => match Port::try_from(port) {
                    Ok(Port::HostCall) => {
                        self.drain()?;
                        offered = self.serve_host_call()?;
                    }
                    Ok(Port::Idle) => {
                        self.drain()?;
                        return idle(data);
                    }
                    Ok(port) => self.serve_rare_port(port, data, &offered)?,
                    Err(_) => return Err(Failure::ForbiddenPort { port }),
                },
                other => self.serve_other_exit(other)?,
            }
            exit = self.instance.run();
        }
    }

    /// Goes on after an exit that is no message of the guest's, if it can go on.
    #[cold]
    fn serve_other_exit(&mut self, exit: Result<Exit, VmError>) -> Result<(), Failure> {
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
        match capture(&mut self.instance, Some(suspended)) {
            Ok(data) => self.checkpoints.keep(tag, data),
            // The guest asked for help, not for trouble: it goes on without.
            Err(error) => {
                let error = Error::from(error);
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

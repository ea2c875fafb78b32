//! One call from its request to its reply: the loop that serves the guest's exits.

use vellum_abi::fault::{FaultReason, FaultRecord};
use vellum_abi::fill::FillRequest;
use vellum_abi::log::{HEADER_LEN_BYTES, PanicRecord};
use vellum_abi::message::{
    Argument, ErrorCode, Limits, Message, MessageHeader, MessageKind, MessageWriter, Outcome, Slot,
    WriteError, plain_bits, plain_slots, write_error, write_plain,
};
use vellum_abi::port::{IDLE_READY, IDLE_REPLY, Port};
use vellum_abi::value::{ValueRef, ValueType};
use vellum_backend::{Exit, IoWidth};
use vellum_layout::FAULT_RECORD_OFFSET;
use zerocopy::FromBytes;

use super::control::{Control, StopReason};
use super::incoming::{FromMessage, check_call, own};
use super::outbox::Outbox;
use crate::capture::capture;
use crate::checkpoint::Checkpoints;
use crate::error::Failure;
use crate::fault::{Fault, Privileged, classify};
use crate::host::{Answer, Resolved};
use crate::instance::Instance;
use crate::logging::LogSink;
use crate::snapshot::Suspended;
use crate::value::Value;

/// Length of the copy that holds most messages whole: a header and the slots of six values.
const SMALL_MESSAGE_LEN_BYTES: usize = MessageHeader::LEN_BYTES + 6 * Slot::LEN_BYTES;
/// Length of a reply with a value of fixed size.
const SCALAR_REPLY_LEN_BYTES: usize = MessageHeader::LEN_BYTES + Slot::LEN_BYTES;

/// Where the guest stopped to wait for the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// After its initialisation.
    Ready,
    /// With a reply in the output buffer.
    Reply,
}

/// Memory that is reused from call to call, so that a call allocates nothing.
#[derive(Debug)]
pub(crate) struct Buffers {
    /// A message to the guest.
    input: Vec<u8>,
    /// A copy of what the guest wrote.
    pub(super) output: Vec<u8>,
}

impl Buffers {
    pub(crate) fn new(input_len_bytes: u64, output_len_bytes: u64) -> Self {
        let zeroed = |len_bytes| vec![0; usize::try_from(len_bytes).unwrap_or(0)];
        Self {
            input: zeroed(input_len_bytes),
            output: zeroed(output_len_bytes),
        }
    }
}

/// A call that lies encoded in [`Buffers`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(super) function: u32,
    len_bytes: usize,
}

impl Buffers {
    /// Encodes a call. The guest has no part in it, so a failure leaves no trace.
    pub(crate) fn encode_call(
        &mut self,
        function: u32,
        values: &[ValueRef<'_>],
    ) -> Result<Request, Failure> {
        let len_bytes = encode(&mut self.input, MessageKind::Call, function, values)?;
        Ok(Request {
            function,
            len_bytes,
        })
    }
}

/// The values that the guest may fetch with a fill request: those of the host's latest message.
enum Offered<'a> {
    Arguments(&'a [ValueRef<'a>]),
    Result(Value),
}

impl Offered<'_> {
    fn get(&self, slot: u32) -> Option<ValueRef<'_>> {
        match self {
            Self::Arguments(values) => values.get(slot as usize).copied(),
            Self::Result(value) => (slot == 0).then(|| value.as_ref()),
        }
    }
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

    /// Copies the message in the output buffer, once. What is looked at afterwards cannot change any more.
    pub(super) fn take_message(&mut self) -> Result<(), Failure> {
        self.take_start()?;
        self.take_rest()
    }

    /// Copies what is most messages whole.
    #[inline]
    fn take_start(&mut self) -> Result<(), Failure> {
        let start = &mut self.buffers.output[..SMALL_MESSAGE_LEN_BYTES];
        Ok(self.instance.read_output(start)?)
    }

    /// Copies a message whose start says that it is longer, anew from its start: what the first copy says beyond the length is not used.
    fn take_rest(&mut self) -> Result<(), Failure> {
        let limits = Limits::for_buffer(self.buffers.output.len());
        let start = &self.buffers.output[..SMALL_MESSAGE_LEN_BYTES];
        let len_bytes = Message::len_of(start, limits).map_err(Failure::Message)?;
        if len_bytes <= SMALL_MESSAGE_LEN_BYTES {
            return Ok(());
        }
        let message = &mut self.buffers.output[..len_bytes];
        Ok(self.instance.read_output(message)?)
    }

    #[inline]
    fn reply(&mut self, function: u32, returns: ValueType) -> Result<Value, Failure> {
        if !returns.is_variable() {
            let mut bytes = [0; SCALAR_REPLY_LEN_BYTES];
            self.instance.read_output(&mut bytes)?;
            let value = plain_slots(&bytes, MessageKind::Reply, function, 1)
                .and_then(|slots| plain_bits(slots, 0, returns))
                .and_then(|bits| ValueRef::from_scalar_bits(returns, bits));
            // Whatever else the guest replied, the parser of all messages reads it.
            if let Some(value) = value {
                return Ok(Value::from_ref(value));
            }
        }
        self.other_reply(function, returns)
    }

    /// A reply with text, bytes or an error, or one that is none.
    #[inline(never)]
    fn other_reply(&mut self, function: u32, returns: ValueType) -> Result<Value, Failure> {
        self.take_message()?;
        let argument = outcome(&self.buffers.output, function, returns)?;
        own(self.instance, argument)
    }

    /// Calls the host function that the guest asks for, and writes the answer.
    #[inline(never)]
    fn serve_host_call<'b>(&mut self) -> Result<Offered<'b>, Failure> {
        self.take_start()?;
        let answered = match self.phase {
            // It may not call the host yet.
            Phase::Booting => None,
            Phase::Calling { .. } => self.host.call_plain(&self.buffers.output),
        };
        match answered {
            Some((function, answer)) => self.answer(function, answer),
            None => self.serve_any_host_call(),
        }
    }

    /// The same for a call with text or bytes, one that must be refused, or one that is none.
    #[inline(never)]
    fn serve_any_host_call<'b>(&mut self) -> Result<Offered<'b>, Failure> {
        self.take_rest()?;
        let message = parse(&self.buffers.output)?;
        if message.kind() != MessageKind::HostCall {
            return Err(Failure::Protocol("a host call that is none"));
        }
        let function = message.function();
        let answer = match check_call(&message, self.host)? {
            Err(refused) => Err(refused),
            Ok(()) if self.phase == Phase::Booting => Err((
                ErrorCode::NotNow,
                "a guest cannot call the host while it initialises".to_owned(),
            )),
            Ok(()) => self
                .host
                .call(function, &FromMessage::new(message, self.instance))?,
        };
        // A stop that came while the host function ran is seen at the next entry: the interruption is still pending.
        self.answer(function, answer)
    }

    #[inline]
    fn answer<'b>(&mut self, function: u32, answer: Answer) -> Result<Offered<'b>, Failure> {
        let buffer = &mut self.buffers.input;
        if let Ok(value) = &answer
            && let Some(len_bytes) =
                write_plain(buffer, MessageKind::HostReply, function, &[value.as_ref()])
        {
            self.instance.write_input(&buffer[..len_bytes])?;
            return Ok(Offered::Arguments(&[]));
        }
        self.answer_any(function, answer)
    }

    /// Answers with text, bytes or an error.
    #[inline(never)]
    fn answer_any<'b>(&mut self, function: u32, answer: Answer) -> Result<Offered<'b>, Failure> {
        let buffer = &mut self.buffers.input;
        let encoded = answer.and_then(|value| {
            match encode(buffer, MessageKind::HostReply, function, &[value.as_ref()]) {
                Ok(len_bytes) => Ok((len_bytes, value)),
                Err(failure) => Err((ErrorCode::TooLarge, failure.to_string())),
            }
        });
        let (len_bytes, offered) = match encoded {
            Ok((len_bytes, value)) => (len_bytes, Offered::Result(value)),
            Err((code, text)) => {
                let len_bytes = write_error(buffer, MessageKind::HostReply, function, code, &text)
                    .map_err(|_| {
                        Failure::Protocol("an error message does not fit the input buffer")
                    })?;
                (len_bytes, Offered::Arguments(&[]))
            }
        };
        self.instance
            .write_input(&self.buffers.input[..len_bytes])?;
        Ok(offered)
    }

    /// Copies a large value to where the guest wants it.
    fn fill(&mut self, offered: &Offered<'_>) -> Result<(), Failure> {
        let mut bytes = [0; FillRequest::LEN_BYTES];
        self.instance.read_output(&mut bytes)?;
        let request = FillRequest::parse(&bytes)
            .map_err(|_| Failure::Protocol("a fill request that is none"))?;
        let value = offered
            .get(request.slot)
            .filter(|value| {
                value.value_type().is_variable()
                    && value.payload().len() as u64 == request.len_bytes
            })
            .ok_or(Failure::Protocol(
                "a fill request for a value that was not offered",
            ))?;
        self.instance
            .write_guest(request.gva, value.payload())
            .map_err(Failure::Reach)
    }

    /// Copies a panic record to the buffer, once; its header says how long it is. Returns its length.
    fn take_panic(&mut self) -> Result<usize, Failure> {
        let header = &mut self.buffers.output[..HEADER_LEN_BYTES];
        self.instance.read_output(header)?;
        let too_long = Failure::Protocol("a panic record that ends past the output buffer");
        let len_bytes = PanicRecord::len_bytes(header).ok();
        let Some((len_bytes, record)) = len_bytes
            .and_then(|len_bytes| usize::try_from(len_bytes).ok())
            .and_then(|len| Some((len, self.buffers.output.get_mut(..len)?)))
        else {
            return Err(too_long);
        };
        self.instance.read_output(record)?;
        Ok(len_bytes)
    }

    fn panicked(&mut self) -> Failure {
        let len_bytes = match self.take_panic() {
            Ok(len_bytes) => len_bytes,
            Err(failure) => return failure,
        };
        match PanicRecord::parse(&self.buffers.output[..len_bytes]) {
            Ok(record) => Failure::Panic {
                message: crate::logging::printable(record.message),
                location: format!(
                    "{}:{}:{}",
                    crate::logging::printable(record.file),
                    record.line,
                    record.column
                ),
            },
            Err(_) => Failure::Protocol("a panic record that is none"),
        }
    }

    /// Reads the monitor's record and names what happened.
    fn faulted(&mut self) -> Failure {
        let mut bytes = [0; FaultRecord::LEN_BYTES];
        if let Err(error) = self
            .instance
            .read_bookkeeping(FAULT_RECORD_OFFSET, &mut bytes)
        {
            return error.into();
        }
        let Ok(record) = FaultRecord::read_from_bytes(&bytes) else {
            return Failure::Protocol("a fault record that is none");
        };
        match record.reason() {
            Some(FaultReason::ScratchExhausted) => Failure::ScratchExhausted {
                address: record.cr2,
            },
            Some(FaultReason::NestedFault) => Failure::Fault(Fault::in_monitor(&record)),
            Some(FaultReason::Exception) => self.exception(&record),
            // The monitor did not write it: ring 3 used the monitor's port.
            None => Failure::ForbiddenPort {
                port: Port::Fault.number(),
            },
        }
    }

    /// An exception of the guest's own. Where port accesses and `hlt` raise #GP they are named as what they are.
    fn exception(&mut self, record: &FaultRecord) -> Failure {
        const GENERAL_PROTECTION: u64 = 13;
        /// Bytes of an instruction that tell what it is, prefixes included.
        const LOOK_AT_BYTES: u64 = 4;
        let Ok(user) = self.instance.geometry().user() else {
            return Failure::Protocol("a kernel reports a fault as if it had a monitor");
        };
        let fault = Fault::from_record(record, user.stack_guard);
        if record.vector != GENERAL_PROTECTION {
            return Failure::Fault(fault);
        }
        let page_left = vellum_layout::PAGE_SIZE - record.rip % vellum_layout::PAGE_SIZE;
        let bytes = self
            .instance
            .read_guest(record.rip, LOOK_AT_BYTES.min(page_left))
            .unwrap_or_default();
        match classify(&bytes) {
            Privileged::Halt => Failure::Halted,
            Privileged::Port(Some(port)) => Failure::ForbiddenPort { port: port.into() },
            Privileged::Port(None) => Failure::ForbiddenPort {
                port: self.instance.port_register(),
            },
            Privileged::Other => Failure::Fault(fault),
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

/// An exit after which the guest cannot go on.
fn end_of(exit: Exit) -> Failure {
    match exit {
        Exit::IoOut { port, .. } | Exit::IoIn { port, .. } | Exit::IoString { port } => {
            Failure::ForbiddenPort { port }
        }
        Exit::Halt => Failure::Halted,
        Exit::MemoryFault {
            gpa,
            access,
            mapped,
        } => {
            let place = if mapped { "protected" } else { "absent" };
            Failure::Crashed(format!(
                "{access:?} access to {place} guest-physical memory at {gpa:#x}"
            ))
        }
        Exit::MemoryLost { gpa } => {
            let place = gpa.map_or(String::new(), |gpa| format!(" at {gpa:#x}"));
            Failure::Crashed(format!(
                "the host has no memory behind guest-physical memory{place}"
            ))
        }
        Exit::TripleFault => Failure::Crashed("triple fault".into()),
        Exit::InvalidState { reason } => {
            Failure::Crashed(format!("invalid state, reason {reason:#x}"))
        }
        Exit::EmulationFailure => {
            Failure::Crashed("the hypervisor cannot carry out an instruction".into())
        }
        // An engine that counts instructions has its own idea of time.
        Exit::OutOfFuel => Failure::DeadlineExceeded,
        Exit::Unhandled { reason } => Failure::Crashed(format!("unexpected exit {reason}")),
        other => Failure::Crashed(format!("unexpected exit {other:?}")),
    }
}

/// What a reply to call `function` says.
pub(super) fn outcome(
    bytes: &[u8],
    function: u32,
    returns: ValueType,
) -> Result<Argument<'_>, Failure> {
    let message = parse(bytes)?;
    if message.kind() != MessageKind::Reply || message.function() != function {
        return Err(Failure::Protocol("the guest replied to another call"));
    }
    match message.outcome().map_err(Failure::Message)? {
        Outcome::Failed { code, text } => Err(Failure::Guest {
            code,
            text: text.to_owned(),
        }),
        Outcome::Value(argument) if argument.value_type() == returns => Ok(argument),
        Outcome::Value(argument) => Err(Failure::ReplyType {
            expected: returns,
            actual: argument.value_type(),
        }),
    }
}

fn parse(bytes: &[u8]) -> Result<Message<'_>, Failure> {
    Message::parse(bytes, Limits::for_buffer(bytes.len())).map_err(Failure::Message)
}

/// Encodes a message.
#[inline]
fn encode(
    buffer: &mut [u8],
    kind: MessageKind,
    function: u32,
    values: &[ValueRef<'_>],
) -> Result<usize, Failure> {
    match write_plain(buffer, kind, function, values) {
        Some(len_bytes) => Ok(len_bytes),
        None => encode_any(buffer, kind, function, values),
    }
}

/// Encodes a message of any values; one that does not fit is announced, to be fetched by a fill request.
#[inline(never)]
fn encode_any(
    buffer: &mut [u8],
    kind: MessageKind,
    function: u32,
    values: &[ValueRef<'_>],
) -> Result<usize, Failure> {
    let refused = |_: WriteError| Failure::Protocol("a message does not fit the input buffer");
    let mut writer = MessageWriter::new(buffer, kind, function, values.len()).map_err(refused)?;
    for value in values {
        match writer.push(*value) {
            Ok(()) => {}
            Err(WriteError::BufferTooSmall { .. }) => {
                writer
                    .push_host_slot(value.value_type(), value.payload().len())
                    .map_err(|_| too_large(value))?;
            }
            Err(_) => return Err(too_large(value)),
        }
    }
    writer.finish().map_err(refused)
}

fn too_large(value: &ValueRef<'_>) -> Failure {
    Failure::ArgumentTooLarge {
        len_bytes: value.payload().len(),
    }
}

#[cfg(test)]
mod tests;

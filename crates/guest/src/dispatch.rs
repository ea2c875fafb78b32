//! Answering calls: from the message in the input buffer to the message in the output buffer.
//!
//! Lifetimes here follow one rule: a reference into the input buffer never outlives the decoding of the arguments.
//! [`Incoming`] carries it, a thunk takes the arguments out (copying text and bytes) and drops it, and only then does
//! the function run, which may call the host and so have the buffer overwritten.

#![expect(
    unsafe_code,
    reason = "arguments larger than the buffer are written by the host"
)]

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use vellum_abi::message::{
    ErrorCode, External, Limits, Message, MessageError, MessageHeader, MessageKind, MessageWriter,
    Slot, WriteError, plain_bits, plain_slots, write_error, write_plain_reply,
};
use vellum_abi::value::{ValueRef, ValueType};
use zerocopy::FromBytes;

use crate::link::Link;
use crate::table::{Export, Thunk};
use crate::value::{GuestValue, Outgoing};

/// What a thunk hands back.
pub type Answer = Result<Outgoing, Failure>;

/// A guest that answers calls over a link, with the functions of a table.
pub struct Session<'g> {
    link: Link<'g>,
    functions: &'g [Export],
    /// The last reply's text or bytes, when they did not fit and the host has yet to copy them.
    kept: Option<Vec<u8>>,
}

/// A call on its way to a function: its arguments, taken one by one. There are as many as the function has parameters.
pub struct Incoming<'a> {
    /// The input buffer, which begins with the call.
    input: &'a [u8],
    /// The call as the parser of all messages sees it, once an argument has needed it.
    message: Option<Message<'a>>,
    fetch: Fetch<'a>,
    next: usize,
}

/// Gets external values from the host.
#[derive(Clone, Copy)]
pub struct Fetch<'g> {
    link: &'g Link<'g>,
}

/// Why a call has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    code: ErrorCode,
    text: String,
}

impl<'g> Session<'g> {
    /// A session that has answered nothing yet.
    #[must_use]
    pub const fn new(link: Link<'g>, functions: &'g [Export]) -> Self {
        Self {
            link,
            functions,
            kept: None,
        }
    }

    /// Answers the call in the input buffer; afterwards the reply lies in the output buffer.
    #[inline]
    pub fn answer(&mut self) {
        // The host has resumed us, so it is done with the last reply.
        if self.kept.is_some() {
            self.kept = None;
        }
        // SAFETY: the reference goes into `Incoming` only, whose users drop it before the next message is asked for.
        let input = unsafe { self.link.input() };
        let (function, answer) = match self.plain_call(input) {
            Some((function, thunk)) => (function, thunk(self.incoming(input, None))),
            None => self.run_any(input),
        };
        match answer {
            Ok(Outgoing::Scalar(slot)) if self.reply_plain(function, slot) => {}
            other => self.reply(function, other),
        }
    }

    /// The function that is called and its thunk, if the call has as many slots as the function has parameters and nothing behind them, which
    /// most have. Whatever the slots turn out not to be, the parser of all messages says what they are.
    #[inline]
    fn plain_call(&self, input: &[u8]) -> Option<(u32, Thunk)> {
        let (header, _) = MessageHeader::read_from_prefix(input).ok()?;
        let export = self.functions.get(header.function as usize)?;
        let count = export.param_count();
        plain_slots(input, MessageKind::Call, header.function, count)?;
        Some((header.function, export.thunk()?))
    }

    #[inline]
    fn incoming<'a>(&'a self, input: &'a [u8], message: Option<Message<'a>>) -> Incoming<'a> {
        Incoming {
            input,
            message,
            fetch: Fetch::new(&self.link),
            next: 0,
        }
    }

    /// Runs a call with text or bytes, or refuses one that is none.
    #[inline(never)]
    fn run_any(&self, input: &[u8]) -> (u32, Answer) {
        let message = match Message::parse(input, Limits::for_buffer(input.len())) {
            Ok(message) => message,
            Err(error) => return (u32::MAX, Err(Failure::malformed(&error))),
        };
        let function = message.function();
        match self.callable(&message) {
            Ok(thunk) => (function, thunk(self.incoming(input, Some(message)))),
            Err(failure) => (function, Err(failure)),
        }
    }

    /// The thunk of the function that a message calls, if it is a call with the right number of arguments.
    fn callable(&self, message: &Message<'_>) -> Result<Thunk, Failure> {
        if message.kind() != MessageKind::Call {
            let text = format!("expected a call, got {:?}", message.kind());
            return Err(Failure::new(ErrorCode::MalformedMessage, text));
        }
        let function = message.function();
        let export = self.functions.get(function as usize);
        let Some((export, thunk)) = export.and_then(|export| Some((export, export.thunk()?)))
        else {
            let count = self.functions.len();
            let text = format!("guest has {count} functions, none has index {function}");
            return Err(Failure::new(ErrorCode::UnknownFunction, text));
        };
        let (count, given) = (export.param_count(), message.slot_count());
        if given != count {
            let text = format!("function has {count} parameters, call has {given}");
            return Err(Failure::new(ErrorCode::ArgumentCount, text));
        }
        Ok(thunk)
    }

    /// Replies with a value of fixed size; `false` where the output buffer has no room even for that.
    #[inline]
    fn reply_plain(&self, function: u32, slot: Slot) -> bool {
        self.link
            .with_output(|output| write_plain_reply(output, function, slot))
    }

    /// Replies with any value, or with a failure.
    #[inline(never)]
    fn reply(&mut self, function: u32, answer: Answer) {
        let value = match answer {
            Ok(value) => value,
            Err(failure) => return self.reply_error(function, &failure),
        };
        let written = self.link.with_output(|output| match &value {
            Outgoing::Scalar(_) => Err(WriteError::BufferTooSmall {
                need_bytes: MessageHeader::LEN_BYTES + Slot::LEN_BYTES,
                have_bytes: output.len(),
            }),
            Outgoing::String(text) => write_reply(output, function, ValueRef::String(text)),
            Outgoing::Bytes(bytes) => write_reply(output, function, ValueRef::Bytes(bytes)),
        });
        match written {
            Ok(Placement::Inline) => {}
            Ok(Placement::External) => self.kept = value.into_payload(),
            Err(error) => {
                let failure = Failure::new(ErrorCode::TooLarge, format!("{error}"));
                self.reply_error(function, &failure);
            }
        }
    }

    #[cold]
    fn reply_error(&self, function: u32, failure: &Failure) {
        let written = self.link.with_output(|output| {
            write_error(
                output,
                MessageKind::Reply,
                function,
                failure.code,
                &failure.text,
            )
        });
        // Every buffer that `Peb::check` admits holds any error.
        written.expect("the output buffer holds an error");
    }
}

/// Where the value of a message went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// Into the message.
    Inline,
    /// Nowhere: the message names its address.
    External,
}

fn write_reply(
    output: &mut [u8],
    function: u32,
    value: ValueRef<'_>,
) -> Result<Placement, WriteError> {
    let mut writer = MessageWriter::new(output, MessageKind::Reply, function, 1)?;
    let placement = push(&mut writer, value)?;
    writer.finish()?;
    Ok(placement)
}

/// Pushes a value inline if there is room, else by address.
#[inline]
pub(crate) fn push(
    writer: &mut MessageWriter<'_>,
    value: ValueRef<'_>,
) -> Result<Placement, WriteError> {
    match writer.push(value) {
        Ok(()) => Ok(Placement::Inline),
        Err(WriteError::BufferTooSmall { .. }) => {
            let payload = value.payload();
            let gva = payload.as_ptr().expose_provenance() as u64;
            writer.push_guest_memory(value.value_type(), gva, payload.len())?;
            Ok(Placement::External)
        }
        Err(error) => Err(error),
    }
}

/// The value in one of the slots of a plain message, if it is one of this type.
#[inline]
pub(crate) fn from_plain<T: GuestValue>(slots: &[u8], index: usize) -> Option<T> {
    T::from_bits(plain_bits(slots, index, T::TYPE)?)
}

/// The value in slot `index` of a message of the host.
pub(crate) fn decode<T: GuestValue>(
    message: &Message<'_>,
    index: usize,
    fetch: Fetch<'_>,
) -> Result<T, Failure> {
    let argument = message
        .argument(index)
        .map_err(|error| Failure::malformed(&error))?;
    T::from_argument(argument, &fetch)
}

impl Incoming<'_> {
    /// Takes the next argument.
    ///
    /// # Errors
    /// It is of another type or malformed, or too large for the heap.
    #[inline]
    pub fn take<T: GuestValue>(&mut self) -> Result<T, Failure> {
        let index = self.next;
        self.next += 1;
        // The slots of any message begin where those of a plain one do.
        let slots = self.input.get(MessageHeader::LEN_BYTES..);
        match slots.and_then(|slots| from_plain(slots, index)) {
            Some(value) => Ok(value),
            None => self.take_any(index),
        }
    }

    /// An argument that is no value of fixed size, or not of this type.
    #[inline(never)]
    fn take_any<T: GuestValue>(&mut self, index: usize) -> Result<T, Failure> {
        let message = match self.message {
            Some(message) => message,
            None => Message::parse(self.input, Limits::for_buffer(self.input.len()))
                .map_err(|error| Failure::malformed(&error))?,
        };
        self.message = Some(message);
        decode(&message, index, self.fetch)
    }

    /// Ends the decoding. From here on the buffer that the arguments came in may be overwritten.
    #[inline]
    pub fn end(self) {}
}

impl<'g> Fetch<'g> {
    pub(crate) const fn new(link: &'g Link<'g>) -> Self {
        Self { link }
    }

    /// Has the host write an external value into fresh memory.
    pub(crate) fn bytes(&self, external: &External) -> Result<Vec<u8>, Failure> {
        let Some(slot) = external.host_slot() else {
            return Err(Failure::new(
                ErrorCode::MalformedMessage,
                "external value is not the host's".into(),
            ));
        };
        let len_bytes = external.len_bytes as usize;
        let mut bytes = Vec::new();
        if bytes.try_reserve_exact(len_bytes).is_err() {
            let text = format!("no room in the guest's heap for a value of {len_bytes} bytes");
            return Err(Failure::new(ErrorCode::TooLarge, text));
        }
        // SAFETY: the vector has room for `len_bytes` bytes, and no reference to its spare capacity exists.
        unsafe { self.link.fill(slot, bytes.as_mut_ptr(), len_bytes) };
        // SAFETY: the capacity is at least `len_bytes`; the host has written that many bytes.
        unsafe { bytes.set_len(len_bytes) };
        Ok(bytes)
    }
}

impl Failure {
    #[cold]
    pub(crate) fn new(code: ErrorCode, text: String) -> Self {
        Self { code, text }
    }

    #[cold]
    pub(crate) fn wrong_type(expected: ValueType, found: ValueType) -> Self {
        Self::new(
            ErrorCode::ArgumentType,
            format!("expected a value of type {expected}, got {found}"),
        )
    }

    #[cold]
    pub(crate) fn malformed(error: &MessageError) -> Self {
        Self::new(ErrorCode::MalformedMessage, format!("{error}"))
    }

    pub(crate) fn into_parts(self) -> (ErrorCode, String) {
        (self.code, self.text)
    }
}

//! Messages as calls use them: written from values, copied from the guest, and read.

use vellum_abi::message::{
    Argument, Limits, Message, MessageHeader, MessageKind, MessageWriter, Outcome, Slot,
    WriteError, plain_bits, plain_slots, write_plain,
};
use vellum_abi::value::{ValueRef, ValueType};

use super::incoming::own;
use super::session::Session;
use crate::error::{Error, Failure};
use crate::value::Value;

/// Length of the copy that holds most messages whole: a header and the slots of six values.
pub(super) const SMALL_MESSAGE_LEN_BYTES: usize = MessageHeader::LEN_BYTES + 6 * Slot::LEN_BYTES;
/// Length of a reply with a value of fixed size.
const PLAIN_REPLY_LEN_BYTES: usize = MessageHeader::LEN_BYTES + Slot::LEN_BYTES;

/// Memory for messages that are not plain. It [comes into being](Self::allocate) with the first of them and is reused from call to call, so
/// that a call allocates nothing and a sandbox that needs none has none.
#[derive(Debug)]
pub(crate) struct Buffers {
    /// A message to the guest.
    pub(super) input: Vec<u8>,
    /// A copy of what the guest wrote.
    pub(super) output: Vec<u8>,
    input_len: usize,
    output_len: usize,
}

impl Buffers {
    pub(crate) fn new(input_len_bytes: u64, output_len_bytes: u64) -> Self {
        let len = |len_bytes| usize::try_from(len_bytes).unwrap_or(0);
        Self {
            input: Vec::new(),
            output: Vec::new(),
            input_len: len(input_len_bytes),
            output_len: len(output_len_bytes),
        }
    }

    /// From here on both have the lengths of the guest's own buffers.
    pub(super) fn allocate(&mut self) {
        self.input.resize(self.input_len, 0);
        self.output.resize(self.output_len, 0);
    }
}

/// A call that lies encoded in [`Buffers`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(super) function: u32,
    pub(super) len_bytes: usize,
}

impl Session {
    /// Encodes a call. The guest has no part in it, so a failure leaves no trace.
    pub(crate) fn encode_call(
        &mut self,
        function: u32,
        values: &[ValueRef<'_>],
    ) -> Result<Request, Failure> {
        self.buffers.allocate();
        let len_bytes = encode(&mut self.buffers.input, MessageKind::Call, function, values)?;
        Ok(Request {
            function,
            len_bytes,
        })
    }

    /// Copies the message in the output buffer, once: what is looked at afterwards cannot change any more. One whose start says that it is
    /// longer is copied anew from its start, and what the first copy says beyond the length is not used.
    pub(super) fn take_message(&mut self) -> Result<(), Failure> {
        self.buffers.allocate();
        let output = &mut self.buffers.output;
        let limits = Limits::for_buffer(output.len());
        let start = &mut output[..SMALL_MESSAGE_LEN_BYTES];
        self.instance.read_output(start)?;
        let len_bytes = Message::len_of(start, limits).map_err(Failure::Message)?;
        if len_bytes > SMALL_MESSAGE_LEN_BYTES {
            self.instance.read_output(&mut output[..len_bytes])?;
        }
        Ok(())
    }

    /// The reply to a call.
    pub(super) fn reply(&mut self, function: u32, returns: ValueType) -> Result<Value, Failure> {
        self.take_message()?;
        let argument = outcome(&self.buffers.output, function, returns)?;
        own(&mut self.instance, argument)
    }

    /// The bits of the reply to a call that returns a value of fixed size.
    #[inline]
    pub(super) fn plain_reply(&mut self, function: u32, returns: ValueType) -> Result<u64, Error> {
        let mut bytes = [0; PLAIN_REPLY_LEN_BYTES];
        self.instance
            .read_output(&mut bytes)
            .map_err(Failure::from)?;
        let bits = plain_slots(&bytes, MessageKind::Reply, function, 1)
            .and_then(|slots| plain_bits(slots, 0, returns))
            .filter(|bits| ValueRef::from_scalar_bits(returns, *bits).is_some());
        match bits {
            Some(bits) => Ok(bits),
            None => self.odd_reply(function, returns),
        }
    }

    /// Whatever else the guest replied: the parser of all messages says what it is, an error as a rule.
    #[cold]
    fn odd_reply(&mut self, function: u32, returns: ValueType) -> Result<u64, Error> {
        let value = self.reply(function, returns)?;
        let bits = value.as_ref().scalar_bits();
        Ok(bits.ok_or(Failure::Protocol("a reply of another type"))?)
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

pub(super) fn parse(bytes: &[u8]) -> Result<Message<'_>, Failure> {
    Message::parse(bytes, Limits::for_buffer(bytes.len())).map_err(Failure::Message)
}

/// Encodes a message.
#[inline]
pub(super) fn encode(
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

//! Messages as calls use them: written from values, copied from the guest, and read.

use vellum_abi::message::{
    Argument, Limits, Message, MessageHeader, MessageKind, MessageWriter, Outcome, Slot,
    WriteError, plain_bits, plain_slots, write_plain,
};
use vellum_abi::value::{ValueRef, ValueType};

use super::incoming::own;
use super::session::Session;
use crate::error::Failure;
use crate::value::Value;

/// Length of the copy that holds most messages whole: a header and the slots of six values.
const SMALL_MESSAGE_LEN_BYTES: usize = MessageHeader::LEN_BYTES + 6 * Slot::LEN_BYTES;
/// Length of a reply with a value of fixed size.
const SCALAR_REPLY_LEN_BYTES: usize = MessageHeader::LEN_BYTES + Slot::LEN_BYTES;

/// Memory that is reused from call to call, so that a call allocates nothing.
#[derive(Debug)]
pub(crate) struct Buffers {
    /// A message to the guest.
    pub(super) input: Vec<u8>,
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
    pub(super) len_bytes: usize,
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

impl Session<'_> {
    /// Copies the message in the output buffer, once. What is looked at afterwards cannot change any more.
    pub(super) fn take_message(&mut self) -> Result<(), Failure> {
        self.take_start()?;
        self.take_rest()
    }

    /// Copies what is most messages whole.
    #[inline]
    pub(super) fn take_start(&mut self) -> Result<(), Failure> {
        let start = &mut self.buffers.output[..SMALL_MESSAGE_LEN_BYTES];
        Ok(self.instance.read_output(start)?)
    }

    /// Copies a message whose start says that it is longer, anew from its start: what the first copy says beyond the length is not used.
    pub(super) fn take_rest(&mut self) -> Result<(), Failure> {
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
    pub(super) fn reply(&mut self, function: u32, returns: ValueType) -> Result<Value, Failure> {
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

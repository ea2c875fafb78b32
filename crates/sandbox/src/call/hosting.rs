//! What the guest asks its host for during a call: host functions, and the bytes of large values.

use vellum_abi::fill::FillRequest;
use vellum_abi::message::{ErrorCode, MessageKind, write_error};
use vellum_abi::value::ValueRef;

use super::incoming::{FromMessage, check_call};
use super::messages::{SMALL_MESSAGE_LEN_BYTES, encode, parse};
use super::session::{Phase, Session};
use crate::error::Failure;
use crate::host::Answer;
use crate::value::Value;

/// The values that the guest may fetch with a fill request: those of the host's latest message.
pub(super) enum Offered<'a> {
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

impl Session {
    /// Calls the host function that the guest asks for, and writes the answer.
    #[inline]
    pub(super) fn serve_host_call<'b>(&mut self) -> Result<Offered<'b>, Failure> {
        let mut message = [0; SMALL_MESSAGE_LEN_BYTES];
        self.instance.read_output(&mut message)?;
        let answered = match self.phase {
            // It may not call the host yet.
            Phase::Booting => None,
            Phase::Calling { .. } => self.host.call_plain(&message),
        };
        match answered {
            Some((function, Ok(result))) => {
                self.instance
                    .write_plain_input(MessageKind::HostReply, function, &[result])?;
                Ok(Offered::Arguments(&[]))
            }
            Some((function, Err(answer))) => self.answer(function, answer),
            None => self.serve_any_host_call(),
        }
    }

    /// The same for a call with text or bytes, one that must be refused, or one that is none. It is copied anew.
    #[inline(never)]
    fn serve_any_host_call<'b>(&mut self) -> Result<Offered<'b>, Failure> {
        self.take_message()?;
        let message = parse(&self.buffers.output)?;
        if message.kind() != MessageKind::HostCall {
            return Err(Failure::Protocol("a host call that is none"));
        }
        let function = message.function();
        let answer = match check_call(&message, &self.host)? {
            Err(refused) => Err(refused),
            Ok(()) if self.phase == Phase::Booting => Err((
                ErrorCode::NotNow,
                "a guest cannot call the host while it initialises".to_owned(),
            )),
            Ok(()) => self
                .host
                .call(function, &FromMessage::new(message, &mut self.instance))?,
        };
        // A stop that came while the host function ran is seen at the next entry: the interruption is still pending.
        self.answer(function, answer)
    }

    /// Writes any answer.
    #[inline(never)]
    fn answer<'b>(&mut self, function: u32, answer: Answer) -> Result<Offered<'b>, Failure> {
        self.buffers.allocate();
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
    pub(super) fn fill(&mut self, offered: &Offered<'_>) -> Result<(), Failure> {
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
}

#[cfg(test)]
mod tests;

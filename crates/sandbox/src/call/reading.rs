//! Reading the bytes that a function returned where they lie, without a copy of all of them.

use std::io;

use vellum_abi::message::{Argument, External, Place};
use vellum_abi::value::{ValueRef, ValueType};

use super::messages::{Request, outcome};
use super::session::Session;
use crate::error::{Error, Failure};
use crate::instance::Instance;

/// Bytes that go to a writer at a time.
const CHUNK_LEN_BYTES: usize = 16 << 10;

/// The bytes that a guest function returned, still in the guest's memory as a rule.
///
/// They are copied out, range by range, and never borrowed: the memory is a guest's. It does not run meanwhile, so two reads of a
/// range give the same bytes.
#[derive(Debug)]
pub struct ReplyBytes<'a> {
    source: Source<'a>,
    len_bytes: u64,
    /// Why a range that the guest named could not be read.
    failure: Option<Failure>,
}

#[derive(Debug)]
enum Source<'a> {
    /// Few bytes, which came with the message.
    Message(&'a [u8]),
    Guest {
        instance: &'a mut Instance,
        address: u64,
    },
}

impl ReplyBytes<'_> {
    /// How many there are.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Copies those from `offset` on.
    ///
    /// # Errors
    /// [`ErrorKind::GuestMemory`](crate::ErrorKind::GuestMemory) for a range that ends behind the last; an error of the guest's when
    /// they are not where it says, which then is what the call ends with, too.
    pub fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        let len = into.len() as u64;
        let end = offset.checked_add(len).filter(|end| *end <= self.len_bytes);
        if end.is_none() {
            return Err(Failure::ReplyRange {
                offset,
                len_bytes: len,
                reply_len_bytes: self.len_bytes,
            }
            .into());
        }
        match &mut self.source {
            Source::Message(bytes) => {
                // Both ends were checked against the length of the slice.
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                if let Some(from) = bytes.get(start..).and_then(|rest| rest.get(..into.len())) {
                    into.copy_from_slice(from);
                }
                Ok(())
            }
            Source::Guest { instance, address } => {
                let result = instance.read_guest_into(*address + offset, into);
                result.map_err(|error| {
                    let text = Error::from(Failure::Reach(error));
                    self.failure = Some(Failure::Protocol("a reply whose bytes cannot be read"));
                    text
                })
            }
        }
    }

    /// Copies all of them to a writer, some at a time, and returns how many there were.
    ///
    /// # Errors
    /// What the writer says, or as [`read`](Self::read), as an [`io::Error`].
    pub fn write_to(&mut self, writer: &mut impl io::Write) -> io::Result<u64> {
        let mut chunk = [0; CHUNK_LEN_BYTES];
        let mut offset = 0;
        while offset < self.len_bytes {
            let left = usize::try_from(self.len_bytes - offset).unwrap_or(usize::MAX);
            let part = &mut chunk[..left.min(CHUNK_LEN_BYTES)];
            self.read(offset, part).map_err(io::Error::other)?;
            writer.write_all(part)?;
            offset += part.len() as u64;
        }
        Ok(offset)
    }
}

impl Session {
    /// Makes a call that returns bytes, and lets `read` look at them where they lie.
    pub(crate) fn call_reading<R>(
        &mut self,
        request: Request,
        values: &[ValueRef<'_>],
        read: impl FnOnce(&mut ReplyBytes<'_>) -> R,
    ) -> Result<R, Error> {
        self.send(request, values)?;
        Ok(self.read_reply(request.function, read)?)
    }

    /// Lets `read` look at the bytes in the reply.
    fn read_reply<R>(
        &mut self,
        function: u32,
        read: impl FnOnce(&mut ReplyBytes<'_>) -> R,
    ) -> Result<R, Failure> {
        self.take_message()?;
        let argument = outcome(&self.buffers.output, function, ValueType::Bytes)?;
        let (source, len_bytes) = match argument {
            Argument::Value(ValueRef::Bytes(bytes)) => (Source::Message(bytes), bytes.len() as u64),
            Argument::External(External {
                len_bytes,
                place: Place::GuestMemory { gva },
                ..
            }) => {
                let (instance, len_bytes) = (&mut self.instance, u64::from(len_bytes));
                instance
                    .check_readable(gva, len_bytes)
                    .map_err(Failure::Reach)?;
                let address = gva;
                (Source::Guest { instance, address }, len_bytes)
            }
            _ => return Err(Failure::Protocol("a reply of bytes that holds none")),
        };
        let mut reply = ReplyBytes {
            source,
            len_bytes,
            failure: None,
        };
        let result = read(&mut reply);
        match reply.failure {
            None => Ok(result),
            Some(failure) => Err(failure),
        }
    }
}

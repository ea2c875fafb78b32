//! What the guest gives to the host: whether it is what was asked for, and values of the host's own made of it.

use std::cell::{Cell, RefCell};

use vellum_abi::message::{Argument, ErrorCode, External, Message, Place};
use vellum_abi::value::ValueType;

use crate::error::Failure;
use crate::host::{Incoming, Resolved};
use crate::instance::Instance;
use crate::value::Value;

/// Whether a host call names a function that has an answer and gives it what it takes. The inner error is for the guest.
pub(super) fn check_call(
    message: &Message<'_>,
    host: &Resolved,
) -> Result<Result<(), (ErrorCode, String)>, Failure> {
    let function = message.function();
    match host.signature(function) {
        Some(signature) if signature.is_one_way() => {
            let text = format!("host function {function} is one-way");
            Ok(Err((ErrorCode::UnknownFunction, text)))
        }
        _ => check_arguments(message, host),
    }
}

/// Whether a host call names a function and gives it what it takes. The inner error is for the guest.
pub(super) fn check_arguments(
    message: &Message<'_>,
    host: &Resolved,
) -> Result<Result<(), (ErrorCode, String)>, Failure> {
    let Some(signature) = host.signature(message.function()) else {
        let text = format!("no host function {}", message.function());
        return Ok(Err((ErrorCode::UnknownFunction, text)));
    };
    let params = signature.params();
    if message.slot_count() != params.len() {
        let text = format!(
            "{} arguments given, {} taken",
            message.slot_count(),
            params.len()
        );
        return Ok(Err((ErrorCode::ArgumentCount, text)));
    }
    for (index, param) in params.iter().enumerate() {
        let given = message
            .argument(index)
            .map_err(Failure::Message)?
            .value_type();
        if given != *param {
            let text = format!("argument {index} is {given}, not {param}");
            return Ok(Err((ErrorCode::ArgumentType, text)));
        }
    }
    Ok(Ok(()))
}

/// The arguments of a host call: from the message, or from guest memory.
pub(super) struct FromMessage<'a> {
    message: Message<'a>,
    /// Bytes that arguments outside of the message may still have. Together they can name no more memory than the guest has, or some of
    /// it would be copied again and again.
    left_bytes: Cell<u64>,
    /// Finding out how a kernel translates its addresses asks the vCPU.
    instance: RefCell<&'a mut Instance>,
}

impl<'a> FromMessage<'a> {
    pub(super) fn new(message: Message<'a>, instance: &'a mut Instance) -> Self {
        Self {
            message,
            left_bytes: Cell::new(instance.memory_len_bytes()),
            instance: RefCell::new(instance),
        }
    }
}

impl Incoming for FromMessage<'_> {
    fn argument(&self, index: usize) -> Result<Value, Failure> {
        let argument = self.message.argument(index).map_err(Failure::Message)?;
        if let Argument::External(external) = &argument {
            let left = self.left_bytes.get().checked_sub(external.len_bytes.into());
            let refused = Failure::Protocol("arguments of more bytes than the guest has memory");
            self.left_bytes.set(left.ok_or(refused)?);
        }
        own(&mut self.instance.borrow_mut(), argument)
    }
}

/// A value of the host's own.
pub(super) fn own(instance: &mut Instance, argument: Argument<'_>) -> Result<Value, Failure> {
    match argument {
        Argument::Value(value) => Ok(Value::from_ref(value)),
        Argument::External(External {
            value_type,
            len_bytes,
            place: Place::GuestMemory { gva },
        }) => {
            let bytes = instance
                .read_guest(gva, len_bytes.into())
                .map_err(Failure::Reach)?;
            match value_type {
                ValueType::String => String::from_utf8(bytes)
                    .map(Value::String)
                    .map_err(|_| Failure::Protocol("a string that is not utf-8")),
                _ => Ok(Value::Bytes(bytes)),
            }
        }
        Argument::External(_) => Err(Failure::Protocol("an external value of the wrong side")),
    }
}

#[cfg(test)]
mod tests;

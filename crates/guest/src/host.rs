//! Calling the host.

#![expect(unsafe_code, reason = "the reply lies in memory shared with the host")]

use alloc::format;
use alloc::string::String;
use core::fmt;

use vellum_abi::message::{
    ErrorCode, Limits, Message, MessageError, MessageKind, MessageWriter, Outcome, WriteError,
    plain_slots, write_plain,
};
use vellum_abi::outbox::RecordKind;
use vellum_abi::port::Port;
use vellum_abi::value::ValueRef;

use crate::dispatch::{Failure, Fetch, decode, from_plain, push};
use crate::link::Link;
use crate::outbox::{Appended, Body, WhenFull};
use crate::table::Import;
use crate::value::GuestValue;
use crate::{logging, runtime};

/// A host function did not return a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostError {
    code: ErrorCode,
    text: String,
}

impl HostError {
    /// What went wrong.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        self.code
    }

    /// The host's words, or this library's when the call never reached a host function.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host call: {}: {}", self.code, self.text)
    }
}

impl core::error::Error for HostError {}

impl From<Failure> for HostError {
    fn from(failure: Failure) -> Self {
        let (code, text) = failure.into_parts();
        Self { code, text }
    }
}

/// Calls the host function that `import` declares. Made by `#[host_functions]`.
///
/// # Errors
/// The host refused or failed, or its reply was not a `T`.
#[inline]
pub fn call_host<T: GuestValue>(
    import: &'static Import,
    arguments: &[ValueRef<'_>],
) -> Result<T, HostError> {
    if logging::is_writing() {
        return Err(not_now("called while a log record is being formatted"));
    }
    let (link, function) = runtime::import_call(import);
    call_host_on(link, function, arguments)
}

/// Calls host function number `function` over `link`.
///
/// # Errors
/// As [`call_host`].
#[inline]
pub fn call_host_on<T: GuestValue>(
    link: &Link<'_>,
    function: u32,
    arguments: &[ValueRef<'_>],
) -> Result<T, HostError> {
    link.with_output(|output| write_call(output, function, arguments))
        .map_err(|error| HostError {
            code: ErrorCode::TooLarge,
            text: format!("{error}"),
        })?;
    link.wait(Port::HostCall, 0);
    // SAFETY: the reference is used in this function only, and the one exit below it, a fill, does not let the host
    // write a message.
    let input = unsafe { link.input() };
    let slots = plain_slots(input, MessageKind::HostReply, function, 1);
    match slots.and_then(|slots| from_plain(slots, 0)) {
        Some(value) => Ok(value),
        None => reply_in(input, link, function),
    }
}

/// What a reply says that is not simply a value of fixed size.
#[inline(never)]
fn reply_in<T: GuestValue>(input: &[u8], link: &Link<'_>, function: u32) -> Result<T, HostError> {
    let message = Message::parse(input, Limits::for_buffer(input.len()))
        .map_err(|error| Failure::malformed(&error))?;
    if message.kind() != MessageKind::HostReply || message.function() != function {
        let text = format!("expected a reply of host function {function}, got another message");
        return Err(HostError {
            code: ErrorCode::MalformedMessage,
            text,
        });
    }
    if message.error().is_none() {
        return Ok(decode(&message, 0, Fetch::new(link))?);
    }
    Err(refusal(&message))
}

/// Calls the host function that `import` declares and goes on: it has no answer. Made by `#[host_functions]`.
///
/// # Errors
/// The arguments do not fit the outbox, or this is no time for a call.
#[inline]
pub fn tell_host(import: &'static Import, arguments: &[ValueRef<'_>]) -> Result<(), HostError> {
    if logging::is_writing() {
        return Err(not_now("called while a log record is being formatted"));
    }
    if !runtime::is_serving() {
        return Err(not_now("a guest cannot call the host while it initialises"));
    }
    let (link, function) = runtime::import_call(import);
    tell_host_on(link, function, arguments)
}

/// Calls host function number `function`, which has no answer, over `link`.
///
/// # Errors
/// As [`tell_host`].
#[inline]
pub fn tell_host_on(
    link: &Link<'_>,
    function: u32,
    arguments: &[ValueRef<'_>],
) -> Result<(), HostError> {
    let appended = link.append(
        RecordKind::OneWay,
        WhenFull::Drain,
        |body| match write_one_way(body, function, arguments) {
            Ok(len_bytes) => Body::Whole(len_bytes),
            Err(_) => Body::TooLong,
        },
    );
    match appended {
        Appended::Yes => Ok(()),
        Appended::Dropped | Appended::TooLong => Err(HostError {
            code: ErrorCode::TooLarge,
            text: "a one-way call does not fit the outbox".into(),
        }),
    }
}

/// Writes a call with all its values in it: when the host reads it, nothing keeps those elsewhere alive.
#[inline]
fn write_one_way(
    body: &mut [u8],
    function: u32,
    arguments: &[ValueRef<'_>],
) -> Result<usize, WriteError> {
    let mut writer = MessageWriter::new(body, MessageKind::OneWay, function, arguments.len())?;
    for argument in arguments {
        writer.push(*argument)?;
    }
    writer.finish()
}

#[cold]
fn not_now(text: &str) -> HostError {
    HostError {
        code: ErrorCode::NotNow,
        text: text.into(),
    }
}

/// The error that a reply carries.
#[cold]
fn refusal(message: &Message<'_>) -> HostError {
    match message.outcome() {
        Ok(Outcome::Failed { code, text }) => HostError {
            code,
            text: text.into(),
        },
        Ok(Outcome::Value(_)) => Failure::malformed(&MessageError::ErrorText).into(),
        Err(error) => Failure::malformed(&error).into(),
    }
}

/// Writes the call. Values that do not fit are named by address; the caller's borrow keeps them alive until the host
/// has answered.
#[inline]
fn write_call(
    output: &mut [u8],
    function: u32,
    arguments: &[ValueRef<'_>],
) -> Result<(), WriteError> {
    if write_plain(output, MessageKind::HostCall, function, arguments).is_some() {
        return Ok(());
    }
    write_any_call(output, function, arguments)
}

/// The same for a call with text or bytes.
#[inline(never)]
fn write_any_call(
    output: &mut [u8],
    function: u32,
    arguments: &[ValueRef<'_>],
) -> Result<(), WriteError> {
    let mut writer = MessageWriter::new(output, MessageKind::HostCall, function, arguments.len())?;
    for argument in arguments {
        push(&mut writer, *argument)?;
    }
    writer.finish()?;
    Ok(())
}

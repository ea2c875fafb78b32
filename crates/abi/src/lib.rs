//! The host-guest contract of Vellum: PEB, ports, messages.
//!
//! A Vellum guest is a static ELF without an operating system. Everything that it and its host say to each
//! other is defined here, once, for both sides:
//!
//! | module | what it defines |
//! |---|---|
//! | [`port`] | the I/O ports through which a guest leaves to its host |
//! | [`peb`] | the block that tells a starting guest where its buffers, heap and stack are |
//! | [`mapping`] | the table of files and host memories that the host has mapped for the guest |
//! | [`message`] | calls, replies and errors in the two buffers: writer, parser |
//! | [`fill`] | how a guest fetches an argument that is larger than the buffer |
//! | [`value`] | the types a call can carry |
//! | [`function`] | the tables of exported and imported functions in the guest's ELF |
//! | [`note`] | the ELF note that marks a file as a Vellum guest |
//! | [`outbox`] | what a guest says without leaving: log records, metrics, one-way host calls |
//! | [`line`](mod@line) | how a guest waits without leaving, where the host polls |
//! | [`log`] | log records and panic records |
//! | [`metric`] | numbers that a guest reports by name |
//! | [`fault`] | the record that the monitor leaves when the guest faults |
//!
//! The structures have the same layout on amd64 and i686: pointers are 64-bit numbers, and what holds 64-bit numbers is
//! aligned to 8 by attribute, because 32-bit code would align them to 4.
//!
//! The crate is `no_std`, allocates nothing and holds no unsafe code. Whatever it parses may come from the
//! other side of the trust boundary: parsers work on a copy, check every field, and answer with a typed error.
//! No input makes them panic.
//!
//! # One call, start to end
//!
//! 1. The guest idles: it has executed `out` to [`Port::Idle`](port::Port::Idle).
//! 2. The host writes a [`Call`](message::MessageKind::Call) at offset 0 of the guest's input buffer and resumes it.
//! 3. The guest decodes the call, runs the function, writes a [`Reply`](message::MessageKind::Reply) at offset 0
//!    of its output buffer and executes `out` to the idle port with EAX = [`port::IDLE_REPLY`].
//! 4. The host copies the reply out of the buffer and parses the copy.
//!
//! In between, the guest may write a [`HostCall`](message::MessageKind::HostCall) to the output buffer and
//! execute `out` to [`Port::HostCall`](port::Port::HostCall); when it is resumed, a
//! [`HostReply`](message::MessageKind::HostReply) lies in its input buffer. What needs no answer it appends to its
//! [outbox], which the host looks at whenever the guest has left.
//!
//! # Example
//!
//! ```
//! use vellum_abi::message::{Argument, Limits, Message, MessageKind, MessageWriter};
//! use vellum_abi::value::ValueRef;
//!
//! let mut buffer = [0; 256];
//! let mut writer = MessageWriter::new(&mut buffer, MessageKind::Call, 7, 2)?;
//! writer.push(ValueRef::I32(-1))?;
//! writer.push(ValueRef::String("hello"))?;
//! let len_bytes = writer.finish()?;
//!
//! let message = Message::parse(&buffer[..len_bytes], Limits::for_buffer(buffer.len()))?;
//! assert_eq!((message.kind(), message.function()), (MessageKind::Call, 7));
//! assert_eq!(message.argument(1)?, Argument::Value(ValueRef::String("hello")));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![no_std]
#![forbid(unsafe_code)]

pub mod fault;
pub mod fill;
pub mod function;
pub mod line;
pub mod log;
pub mod mapping;
pub mod message;
pub mod metric;
pub mod note;
pub mod outbox;
pub mod peb;
pub mod port;
pub mod value;

/// Version of everything in this crate. A guest states it in its ELF note, the host in the PEB; a mismatch is
/// refused by whoever sees it first.
pub const ABI_VERSION: u32 = 2;

// The structures are read and written in the machine's own byte order; x86 is little-endian.
const _: () = assert!(u16::from_ne_bytes([1, 0]) == 1, "the ABI is little-endian");

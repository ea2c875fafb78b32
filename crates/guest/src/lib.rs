//! Guest library of Vellum: entry point, allocator, guest and host functions.
//!
//! A guest is a program without an operating system, alone in a micro-VM. Built for amd64 it runs in ring 3; built for
//! i686 it is a kernel, in ring 0 without paging. With [`kernel_entry!`] in place of [`entry!`] it is a kernel with paging on
//! either; see [`kernel`]. Its host calls the functions that it exports; it can call the functions that the host offers. This
//! is a whole guest:
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//!
//! extern crate alloc;
//!
//! use alloc::{format, string::String};
//! use vellum_guest::{HostError, guest_function, host_functions};
//!
//! vellum_guest::entry!();
//!
//! #[host_functions]
//! extern "host" {
//!     fn host_add(a: i32, b: i32) -> i32;
//! }
//!
//! #[guest_function]
//! fn greet(name: &str) -> String {
//!     format!("Hello, {name}!")
//! }
//!
//! #[guest_function]
//! fn add_on_host(a: i32, b: i32) -> Result<i32, HostError> {
//!     host_add(a, b)
//! }
//! ```
//!
//! # Types
//!
//! Parameters are `bool`, `i32`, `u32`, `i64`, `u64`, `f32`, `f64`, `String`, `&str`, `Vec<u8>`, `&[u8]`, `()`. Functions
//! return one of the owned types, nothing, or a `Result` of it whose error has a `Display`; the error's text reaches the
//! host. Host functions always return a `Result`, because the host may refuse.
//!
//! # Building
//!
//! The stock toolchain builds guests for `x86_64-unknown-linux-gnu`, statically and without start files. These go into
//! the guest workspace's `.cargo/config.toml`, beside `panic = "abort"` in its profiles:
//!
//! ```toml
//! [build]
//! target = "x86_64-unknown-linux-gnu"
//!
//! [target.x86_64-unknown-linux-gnu]
//! rustflags = [
//!     "-Crelocation-model=static", "-Crelro-level=off",
//!     "-Clink-arg=-nostartfiles", "-Clink-arg=-nostdlib", "-Clink-arg=-static",
//!     "-Clink-arg=-Wl,-z,separate-code,-z,max-page-size=4096,-z,nostart-stop-gc,--build-id=none",
//! ]
//! ```
//!
//! A kernel for i686 needs a target without SSE and x87, neither of which it may use before it has set them up: a
//! target specification with `"rustc-abi": "softfloat"`, and `core` and `alloc` built for it (`-Zbuild-std`).
//! `guests/kernel` in Vellum's repository has one.
//!
//! # Cost
//!
//! A call is one exit to the host and back; so is each host call, and each argument larger than the buffer. Log records, [metrics](metric)
//! and one-way host calls go to the outbox and cost none, unless it is full. Arguments of fixed size allocate nothing. Text and bytes are copied once, into the
//! guest's heap, because a host call overwrites the buffer that they arrive in.
//!
//! # Limits
//!
//! A guest has one thread, no interrupts, no unwinding (a panic ends the call and spoils the sandbox until it is
//! restored), no thread-local storage and no clock.

#![no_std]

extern crate alloc;

#[cfg(target_arch = "x86_64")]
#[path = "amd64/mod.rs"]
mod arch;
#[cfg(target_arch = "x86")]
#[path = "i686/mod.rs"]
mod arch;
mod dispatch;
mod entry;
mod gate;
mod heap;
mod host;
pub mod kernel;
mod line;
mod link;
mod logging;
pub mod metric;
mod outbox;
mod panic;
mod routine;
mod runtime;
mod table;
mod text;
mod value;

#[doc(no_inline)]
pub use log;
pub use vellum_abi as abi;
pub use vellum_guest_macros::{guest_function, host_functions};

pub use crate::host::HostError;
pub use crate::runtime::{abort, checkpoint, find_mapping, generation, init_data, mappings, seed};
pub use crate::value::{GuestError, GuestValue, HostArgument, Returned};

/// What the macros expand to, and what tests of the guest library itself use. Not for guests; no promise of stability.
#[doc(hidden)]
pub mod rt {
    pub use crate::dispatch::{Answer, Failure, Incoming, Session};
    pub use crate::gate::{Gate, PortGate};
    pub use crate::heap::Heap;
    pub use crate::host::{call_host, call_host_on, tell_host, tell_host_on};
    pub use crate::link::Link;
    pub use crate::panic::report as report_panic;
    pub use crate::runtime::{idle, peb, peb_address, serve, start, start_kernel};
    pub use crate::table::{Export, Import, Thunk};
    pub use crate::value::Outgoing;
    pub use alloc::string::String;
    pub use alloc::vec::Vec;
    pub use vellum_abi::value::{ValueRef, ValueType};
}

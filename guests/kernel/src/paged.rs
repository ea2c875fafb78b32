//! The Rust kernel of Vellum's tests and benchmarks on page tables that the host has built: in ring 0, with copy-on-write, a heap
//! of zeroes and several address spaces of its own.
//!
//! It is built for both `x86_64-vellum-none.json` and `i686-vellum-none.json` beside this crate's manifest. It also compiles
//! for ordinary amd64, for lints only.

#![no_std]
#![no_main]

extern crate alloc;

mod calls;
mod cpu;
mod descriptors;
mod exceptions;
mod host_state;
mod memory;
mod residue;
mod roots;
mod tables;

vellum_guest::kernel_entry!();

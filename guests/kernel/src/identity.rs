//! The 32-bit Rust kernel of Vellum's tests and benchmarks: flat, in ring 0, without paging until it is asked for some.
//!
//! It is built for `i686-vellum-none.json` beside this crate's manifest. It also compiles for amd64, for lints only: no
//! host would run that.

#![no_std]
#![no_main]

extern crate alloc;

mod calls;
mod cpu;
mod descriptors;
mod host_state;
mod memory;
mod own_descriptors;
mod own_paging;
mod residue;

vellum_guest::entry!();

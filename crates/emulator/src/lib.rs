//! An x86 engine in Rust behind the backend trait of Vellum, for machines without a hypervisor.
//!
//! [`Emulator`] is a [`Hypervisor`](vellum_backend::Hypervisor) that interprets guest code: real mode as far as boot code needs it, 32-bit protected
//! mode with and without 2-level paging, long mode with 4-level paging, all rings, exceptions, and the instructions of x86-64-v2.
//! It works on any host that Rust compiles for, counts instructions instead of time, and runs every guest the same way each
//! time: [`EmulatedVm::set_fuel`] limits a run, [`EmulatedVm::trace_blocks`] says what it covered.
//!
//! Instructions are decoded by `iced-x86` into operations with resolved operands, kept in blocks by the host memory that their
//! code lies in, and decoded anew when that memory was written. An instruction that is not emulated is #UD to the guest
//! and an [`Unsupported`] record to the host, never a wrong result.
//!
//! | module | what it holds |
//! |---|---|
//! | `emulator`, `vm` | the traits of the backend |
//! | `machine`, `blocks`, `decode`, `op` | the loop, the cache of decoded blocks, and what a decoded instruction is |
//! | `cpu`, `state`, `flags` | registers, and their way to and from state groups |
//! | `memory` | slots of lent memory, paging, the software TLB |
//! | `segments`, `deliver` | descriptors, and exceptions through the interrupt table |
//! | `exec` | what each instruction does |
//! | `x87`, `float` | floating point that hosts do not have |
//!
//! Not emulated: PAE paging outside of long mode, task switches, call gates, virtual-8086 mode, interrupt controllers,
//! alignment checks, and breakpoints in debug registers, which hold what is written to them.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "instructions truncate and reinterpret registers"
)]
#![expect(
    clippy::unnecessary_wraps,
    reason = "every handler has one signature, also those that never trap"
)]

mod blocks;
mod cpu;
mod decode;
mod deliver;
mod emulator;
mod exec;
mod flags;
mod float;
mod lacking;
mod machine;
mod memory;
mod op;
mod segments;
mod state;
mod trap;
mod vm;
mod width;
mod x87;

pub use decode::is_emulated;
pub use emulator::Emulator;
pub use lacking::Unsupported;
pub use vm::EmulatedVm;

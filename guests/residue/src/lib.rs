//! Programs of small operations, for tests that compare a guest that was restored with one that is new: what is the same whichever
//! guest runs them.
//!
//! An operation has ten bytes: a letter, a selector and a value. Some change state that outlives a call, some end the call in a
//! way of their own, and one reports everything that the guest can see. The host makes the programs up; what they do to the guest
//! is their own affair.

#![no_std]

extern crate alloc;

mod arena;
mod leaving;

use core::arch::asm;

use alloc::vec::Vec;

use vellum_guest::GuestError;
use vellum_guest::abi::port::Port;

pub use arena::{Arena, PAGE_LEN_BYTES};
pub use leaving::*;

/// One operation of a program.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// What is done.
    pub letter: u8,
    /// To what.
    pub selector: u8,
    /// With what.
    pub value: u64,
}

impl Operation {
    const LEN_BYTES: usize = 10;

    fn of([letter, selector, value @ ..]: [u8; Self::LEN_BYTES]) -> Self {
        Self {
            letter,
            selector,
            value: u64::from_le_bytes(value),
        }
    }
}

/// Runs a program and returns what it has seen, which `execute` appends. That returns `None` for an operation that there is not.
///
/// # Errors
/// There is no such operation.
pub fn run(
    program: &[u8],
    mut execute: impl FnMut(Operation, &mut Vec<u8>) -> Option<()>,
) -> Result<Vec<u8>, GuestError> {
    let mut seen = Vec::new();
    for bytes in program.as_chunks().0 {
        execute(Operation::of(*bytes), &mut seen)
            .ok_or_else(|| GuestError::new("no such operation"))?;
    }
    Ok(seen)
}

/// Leaves through a port of the ABI at which the host expects a message in the output buffer.
pub fn send_nonsense(kind: u8) {
    let port = match kind % 4 {
        0 => Port::HostCall,
        1 => Port::Fill,
        2 => Port::Panic,
        _ => Port::Fault,
    };
    // SAFETY: the host finds fault with the message.
    unsafe {
        asm!("out dx, eax", in("edx") u32::from(port.number()), in("eax") 0, options(nostack));
    };
}

/// Never returns.
pub fn spin() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// Bytes of the area of `fxsave` (Intel SDM volume 1, section 10.5.1).
pub const LEGACY_LEN_BYTES: usize = 512;

/// Changes eight bytes of an image of `fxsave` to what `fxrstor` takes.
pub fn patch_legacy_image(image: &mut [u8; LEGACY_LEN_BYTES], slot: u8, value: u64) {
    /// The slot of MXCSR, of which the upper bits must be zero (Intel SDM volume 1, section 10.2.3).
    const MXCSR_SLOT: u8 = 3;
    let value = if slot == MXCSR_SLOT {
        value & 0xFFFF
    } else {
        value
    };
    let at = usize::from(slot) * 8;
    image[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

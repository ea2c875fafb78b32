//! Exceptions: page faults are served, everything else ends in a report.

#![expect(unsafe_code, reason = "called by exception stubs with addresses")]

use core::fmt;

use vellum_layout::Gva;

use super::fault::{PageFault, Refusal};
use super::machine::Frame;
use super::supervisor;
use super::vector::{DOUBLE_FAULT, PAGE_FAULT};
use crate::panic;

/// Names of the vectors, with the manual's mnemonic; the rest is reserved.
const NAMES: [&str; 22] = [
    "divide error (#DE)",
    "debug exception (#DB)",
    "non-maskable interrupt",
    "breakpoint (#BP)",
    "overflow (#OF)",
    "bound range exceeded (#BR)",
    "invalid opcode (#UD)",
    "device not available (#NM)",
    "double fault (#DF)",
    "coprocessor segment overrun",
    "invalid TSS (#TS)",
    "segment not present (#NP)",
    "stack-segment fault (#SS)",
    "general protection fault (#GP)",
    "page fault (#PF)",
    "reserved exception 15",
    "x87 floating-point error (#MF)",
    "alignment check (#AC)",
    "machine check (#MC)",
    "SIMD floating-point exception (#XM)",
    "virtualization exception (#VE)",
    "control protection exception (#CP)",
];

/// An exception that ends the guest, for people.
#[derive(Clone, Copy, Debug)]
struct Report {
    vector: u32,
    code: u64,
    /// Address of the instruction that raised it, or of the next one for traps.
    instruction: u64,
    /// What CR2 holds.
    address: u64,
    refusal: Refusal,
}

/// Handles the exception that `frame` describes. Returning from here tries its instruction again.
///
/// # Safety
/// Called by the stubs of the tables that [`super::start`] has loaded, with the frame that the processor and the stub have
/// pushed, and CR2 as it was at the exception.
pub(crate) unsafe extern "C" fn vellum_handle_exception(frame: &Frame, address: usize) {
    let address = address as u64;
    let mut refusal = Refusal::NotServed;
    if frame.vector() == PAGE_FAULT {
        let fault = PageFault {
            address: Gva::sign_extend(address),
            code: frame.code(),
        };
        // SAFETY: this is the handler of an exception that came through the tables of `start`.
        match unsafe { supervisor::of_exception() }.serve(fault) {
            Ok(()) => return,
            Err(why) => refusal = why,
        }
    }
    let report = Report {
        vector: frame.vector(),
        code: frame.code(),
        instruction: frame.instruction(),
        address,
        refusal,
    };
    panic::report_exception(report.vector, format_args!("{report}"))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            code, instruction, ..
        } = self;
        match NAMES.get(self.vector as usize) {
            Some(name) => f.write_str(name)?,
            None => write!(f, "reserved exception {}", self.vector)?,
        }
        match self.vector {
            PAGE_FAULT => {
                let fault = PageFault {
                    address: Gva::sign_extend(self.address),
                    code: *code,
                };
                write!(f, " at {:#x}: {}", self.address, fault.access())?;
                if self.refusal != Refusal::NotServed {
                    write!(f, " ({})", self.refusal)?;
                }
                write!(f, "; error code {code:#x}, instruction {instruction:#x}")
            }
            DOUBLE_FAULT => write!(
                f,
                ": the exception before could not be delivered, as after a stack overflow; last page fault at {:#x}, instruction \
                 {instruction:#x}",
                self.address
            ),
            _ => write!(f, ": error code {code:#x}, instruction {instruction:#x}"),
        }
    }
}

#[cfg(test)]
mod tests;

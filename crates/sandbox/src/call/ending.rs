//! How a call ends that does not end with a reply: panics, faults, and exits after which nothing goes on.

use vellum_abi::fault::{FaultReason, FaultRecord};
use vellum_abi::log::{HEADER_LEN_BYTES, PanicRecord};
use vellum_abi::port::Port;
use vellum_backend::Exit;
use vellum_layout::FAULT_RECORD_OFFSET;
use zerocopy::FromBytes;

use super::session::Session;
use crate::error::Failure;
use crate::fault::{Fault, Privileged, classify};

impl Session {
    /// Copies a panic record to the buffer, once; its header says how long it is. Returns its length.
    fn take_panic(&mut self) -> Result<usize, Failure> {
        self.buffers.allocate();
        let header = &mut self.buffers.output[..HEADER_LEN_BYTES];
        self.instance.read_output(header)?;
        let too_long = Failure::Protocol("a panic record that ends past the output buffer");
        let len_bytes = PanicRecord::len_bytes(header).ok();
        let Some((len_bytes, record)) = len_bytes
            .and_then(|len_bytes| usize::try_from(len_bytes).ok())
            .and_then(|len| Some((len, self.buffers.output.get_mut(..len)?)))
        else {
            return Err(too_long);
        };
        self.instance.read_output(record)?;
        Ok(len_bytes)
    }

    pub(super) fn panicked(&mut self) -> Failure {
        let len_bytes = match self.take_panic() {
            Ok(len_bytes) => len_bytes,
            Err(failure) => return failure,
        };
        match PanicRecord::parse(&self.buffers.output[..len_bytes]) {
            Ok(record) => Failure::Panic {
                message: crate::logging::printable(record.message),
                location: format!(
                    "{}:{}:{}",
                    crate::logging::printable(record.file),
                    record.line,
                    record.column
                ),
            },
            Err(_) => Failure::Protocol("a panic record that is none"),
        }
    }

    /// Reads the monitor's record and names what happened.
    pub(super) fn faulted(&mut self) -> Failure {
        let mut bytes = [0; FaultRecord::LEN_BYTES];
        if let Err(error) = self
            .instance
            .read_bookkeeping(FAULT_RECORD_OFFSET, &mut bytes)
        {
            return error.into();
        }
        let Ok(record) = FaultRecord::read_from_bytes(&bytes) else {
            return Failure::Protocol("a fault record that is none");
        };
        match record.reason() {
            Some(FaultReason::ScratchExhausted) => Failure::ScratchExhausted {
                address: record.cr2,
            },
            Some(FaultReason::NestedFault) => Failure::Fault(Fault::in_monitor(&record)),
            Some(FaultReason::Exception) => self.exception(&record),
            // The monitor did not write it: ring 3 used the monitor's port.
            None => Failure::ForbiddenPort {
                port: Port::Fault.number(),
            },
        }
    }

    /// An exception of the guest's own. Where port accesses and `hlt` raise #GP they are named as what they are.
    fn exception(&mut self, record: &FaultRecord) -> Failure {
        const GENERAL_PROTECTION: u64 = 13;
        /// Bytes of an instruction that tell what it is, prefixes included.
        const LOOK_AT_BYTES: u64 = 4;
        let Ok(user) = self.instance.geometry().user() else {
            return Failure::Protocol("a kernel reports a fault as if it had a monitor");
        };
        let fault = Fault::from_record(record, user.stack_guard);
        if record.vector != GENERAL_PROTECTION {
            return Failure::Fault(fault);
        }
        let page_left = vellum_layout::PAGE_SIZE - record.rip % vellum_layout::PAGE_SIZE;
        let bytes = self
            .instance
            .read_guest(record.rip, LOOK_AT_BYTES.min(page_left))
            .unwrap_or_default();
        match classify(&bytes) {
            Privileged::Halt => Failure::Halted,
            Privileged::Port(Some(port)) => Failure::ForbiddenPort { port: port.into() },
            Privileged::Port(None) => Failure::ForbiddenPort {
                port: self.instance.port_register(),
            },
            Privileged::Other => Failure::Fault(fault),
        }
    }
}

/// An exit after which the guest cannot go on.
pub(super) fn end_of(exit: Exit) -> Failure {
    match exit {
        Exit::IoOut { port, .. } | Exit::IoIn { port, .. } | Exit::IoString { port } => {
            Failure::ForbiddenPort { port }
        }
        Exit::Halt => Failure::Halted,
        Exit::MemoryFault {
            gpa,
            access,
            mapped,
        } => {
            let place = if mapped { "protected" } else { "absent" };
            Failure::Crashed(format!(
                "{access:?} access to {place} guest-physical memory at {gpa:#x}"
            ))
        }
        Exit::MemoryLost { gpa } => {
            let place = gpa.map_or(String::new(), |gpa| format!(" at {gpa:#x}"));
            Failure::Crashed(format!(
                "the host has no memory behind guest-physical memory{place}"
            ))
        }
        Exit::TripleFault => Failure::Crashed("triple fault".into()),
        Exit::InvalidState { reason } => {
            Failure::Crashed(format!("invalid state, reason {reason:#x}"))
        }
        Exit::EmulationFailure => {
            Failure::Crashed("the hypervisor cannot carry out an instruction".into())
        }
        // An engine that counts instructions has its own idea of time.
        Exit::OutOfFuel => Failure::DeadlineExceeded,
        Exit::Unhandled { reason } => Failure::Crashed(format!("unexpected exit {reason}")),
        other => Failure::Crashed(format!("unexpected exit {other:?}")),
    }
}

#[cfg(test)]
mod tests;

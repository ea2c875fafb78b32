//! The record that the monitor leaves when the guest faults.
//!
//! The monitor writes it into the bookkeeping page at the top of scratch
//! (`FAULT_RECORD_OFFSET` of `vellum-layout` says where) and executes `out` to
//! [`Port::Fault`](crate::port::Port::Fault).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Why the monitor gave up, and the machine state at that point.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(8))]
pub struct FaultRecord {
    /// Exception vector, 0..=31 (Intel SDM volume 3, table 7-1 "Protected-Mode Exceptions and Interrupts").
    pub vector: u64,
    /// Error code that the CPU pushed, or 0 for vectors that have none.
    pub error_code: u64,
    /// CR2; the faulting address when the vector is 14 (#PF).
    pub cr2: u64,
    /// Instruction pointer from the exception frame.
    pub rip: u64,
    /// Code segment selector from the exception frame.
    pub cs: u64,
    /// RFLAGS from the exception frame.
    pub rflags: u64,
    /// Stack pointer from the exception frame.
    pub rsp: u64,
    /// Stack segment selector from the exception frame.
    pub ss: u64,
    /// One of [`REASON_EXCEPTION`], [`REASON_SCRATCH_EXHAUSTED`], [`REASON_NESTED_FAULT`].
    pub reason: u64,
}

/// The guest raised an exception that the monitor does not handle.
pub const REASON_EXCEPTION: u64 = 0;
/// A write or first touch needed a frame and scratch has none left.
pub const REASON_SCRATCH_EXHAUSTED: u64 = 1;
/// The monitor itself faulted.
pub const REASON_NESTED_FAULT: u64 = 2;

/// Why the monitor gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultReason {
    /// The guest raised an exception that the monitor does not handle.
    Exception,
    /// A write or first touch needed a frame and scratch has none left.
    ScratchExhausted,
    /// The monitor itself faulted.
    NestedFault,
}

impl FaultRecord {
    /// Size of the structure.
    pub const LEN_BYTES: usize = 72;

    /// The reason as an enum, or `None` for a number that the ABI does not define.
    #[must_use]
    pub const fn reason(&self) -> Option<FaultReason> {
        match self.reason {
            REASON_EXCEPTION => Some(FaultReason::Exception),
            REASON_SCRATCH_EXHAUSTED => Some(FaultReason::ScratchExhausted),
            REASON_NESTED_FAULT => Some(FaultReason::NestedFault),
            _ => None,
        }
    }
}

const _: () = {
    assert!(size_of::<FaultRecord>() == FaultRecord::LEN_BYTES && align_of::<FaultRecord>() == 8);
    assert!(core::mem::offset_of!(FaultRecord, cr2) == 16);
    assert!(core::mem::offset_of!(FaultRecord, rip) == 24);
    assert!(core::mem::offset_of!(FaultRecord, ss) == 56);
    assert!(core::mem::offset_of!(FaultRecord, reason) == 64);
    assert!(
        FaultRecord::LEN_BYTES as u64 <= vellum_layout::FAULT_RECORD_MAX_LEN_BYTES,
        "the record fits its place in the bookkeeping page"
    );
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_defined_reasons_have_a_name() {
        let cases = [
            (0, Some(FaultReason::Exception)),
            (1, Some(FaultReason::ScratchExhausted)),
            (2, Some(FaultReason::NestedFault)),
            (3, None),
            (u64::MAX, None),
        ];
        for (reason, expected) in cases {
            assert_eq!(
                FaultRecord {
                    reason,
                    ..FaultRecord::default()
                }
                .reason(),
                expected
            );
        }
    }
}

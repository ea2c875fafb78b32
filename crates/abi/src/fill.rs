//! How a guest fetches an argument that is larger than the buffer.
//!
//! A call or host reply whose string or bytes do not fit into the guest's input buffer carries an *external* slot:
//! its type, its length, and its slot number. The guest allocates memory, writes a [`FillRequest`] at offset 0 of the
//! output buffer and executes `out` to [`Port::Fill`](crate::port::Port::Fill). The host copies the bytes to the
//! address and resumes the guest. A request names a slot of the host's *latest* message, and always asks for the
//! whole value.
//!
//! The host fills pages that are this guest's own and writable. Where the PEB has
//! [`FLAG_TOUCH_BEFORE_FILL`](crate::peb::FLAG_TOUCH_BEFORE_FILL), a page that is still shared with a snapshot, or not there
//! yet, becomes so by the guest's own write: the guest writes to every page of the destination before it asks.

use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Request to copy an external argument into guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct FillRequest {
    /// Number of the external slot in the host's latest message.
    pub slot: u32,
    /// Zero.
    pub reserved: u32,
    /// Guest-virtual address of the destination.
    pub gva: u64,
    /// Length of the destination; must equal the length that the slot announced.
    pub len_bytes: u64,
}

const _: () =
    assert!(size_of::<FillRequest>() == FillRequest::LEN_BYTES && align_of::<FillRequest>() == 8);

/// A fill request that cannot be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FillError {
    /// Fewer bytes than the structure has.
    #[error(
        "fill request has {have_bytes} bytes, needs {}",
        FillRequest::LEN_BYTES
    )]
    TooShort {
        /// Bytes at hand.
        have_bytes: usize,
    },
    /// The reserved field is not zero.
    #[error("fill request has {0:#x} in its reserved field")]
    ReservedNotZero(
        /// What the field held.
        u32,
    ),
}

impl FillRequest {
    /// Size of the structure.
    pub const LEN_BYTES: usize = 24;

    /// A request for `len_bytes` bytes of slot `slot` at guest address `gva`.
    #[must_use]
    pub const fn new(slot: u32, gva: u64, len_bytes: u64) -> Self {
        Self {
            slot,
            reserved: 0,
            gva,
            len_bytes,
        }
    }

    /// Reads a request from a copy of the start of the output buffer.
    ///
    /// # Errors
    /// The bytes are too few, or the reserved field is not zero. Whether the slot exists, the length agrees and the
    /// address may be written is for the host to judge.
    pub fn parse(bytes: &[u8]) -> Result<Self, FillError> {
        let (request, _) = Self::read_from_prefix(bytes).map_err(|_| FillError::TooShort {
            have_bytes: bytes.len(),
        })?;
        if request.reserved != 0 {
            return Err(FillError::ReservedNotZero(request.reserved));
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_its_bytes() {
        let request = FillRequest::new(3, 0x40_0000_1000, 50_000_000);
        assert_eq!(FillRequest::parse(request.as_bytes()), Ok(request));
    }

    #[test]
    fn short_requests_and_reserved_bits_are_refused() {
        let bytes = FillRequest::new(3, 1, 2);
        let short = &bytes.as_bytes()[..23];
        assert_eq!(
            FillRequest::parse(short),
            Err(FillError::TooShort { have_bytes: 23 })
        );
        let reserved = FillRequest {
            reserved: 9,
            ..bytes
        };
        assert_eq!(
            FillRequest::parse(reserved.as_bytes()),
            Err(FillError::ReservedNotZero(9))
        );
    }
}

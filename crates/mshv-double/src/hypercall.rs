//! Hypercalls that the driver passes through: its argument checks, and access to input and output.

use std::ffi::c_int;

use mshv_bindings::{HVCALL_SET_PARTITION_PROPERTY, mshv_root_hvcall};

use crate::bytes;
use crate::status::Failure;

pub(crate) const ROOT_HVCALL: u64 = 0xC020_B807;
/// Input and output have one page each.
const MAX_LEN_BYTES: u16 = 4096;
const PARTITION_ID_LEN_BYTES: u16 = 8;

/// The code of a hypercall, for those who count requests.
pub(crate) fn code_of(number: u64, argument: u64) -> Option<u16> {
    if number != ROOT_HVCALL {
        return None;
    }
    bytes::read::<mshv_root_hvcall>(argument)
        .ok()
        .map(|call| call.code)
}

/// Whether the driver runs a hypercall on a worker and accepts it from the partition's descriptor only.
pub(crate) const fn is_asynchronous(code: u32) -> bool {
    code == HVCALL_SET_PARTITION_PROPERTY
}

/// One hypercall with its input.
pub(crate) struct Call {
    arguments: mshv_root_hvcall,
    input: Vec<u8>,
    repeated: u16,
}

impl Call {
    /// Checks the arguments as the driver does, calls `body` and passes on what it says.
    pub(crate) fn run(
        argument: u64,
        body: impl FnOnce(&mut Self) -> Result<(), Failure>,
    ) -> Result<c_int, Failure> {
        let mut arguments: mshv_root_hvcall = bytes::read(argument)?;
        let is_wrong = arguments.status != 0
            || arguments.rsvd != [0; 6]
            || arguments.in_ptr == 0
            || arguments.in_sz < PARTITION_ID_LEN_BYTES
            || arguments.in_sz > MAX_LEN_BYTES
            || arguments.out_sz > MAX_LEN_BYTES
            || (arguments.out_ptr != 0 && arguments.out_sz == 0);
        if is_wrong {
            return Err(Failure::EINVAL);
        }
        let mut call = Self {
            arguments,
            input: bytes::read_bytes(arguments.in_ptr, arguments.in_sz.into())?,
            repeated: 0,
        };
        let result = body(&mut call);
        arguments.reps = call.repeated;
        if let Err(Failure::Status(status)) = result {
            arguments.status = status.0;
        }
        bytes::write(argument, arguments)?;
        result.map(|()| 0)
    }

    pub(crate) fn code(&self) -> u32 {
        self.arguments.code.into()
    }

    /// How many elements the caller passes.
    pub(crate) fn reps(&self) -> usize {
        self.arguments.reps.into()
    }

    /// Says how many elements were done.
    pub(crate) fn set_done(&mut self, elements: usize) {
        self.repeated = u16::try_from(elements).unwrap_or(u16::MAX);
    }

    /// Bytes of the input; a length that does not cover them is refused.
    pub(crate) fn input(&self, offset: usize, len_bytes: usize) -> Result<&[u8], Failure> {
        let end = offset.checked_add(len_bytes).ok_or(Failure::EINVAL)?;
        self.input.get(offset..end).ok_or(Failure::EINVAL)
    }

    pub(crate) fn input_u32(&self, offset: usize) -> Result<u32, Failure> {
        Ok(bytes::u32_at(self.input(offset, 4)?, 0))
    }

    pub(crate) fn input_u64(&self, offset: usize) -> Result<u64, Failure> {
        Ok(bytes::u64_at(self.input(offset, 8)?, 0))
    }

    /// Writes the output.
    pub(crate) fn output(&mut self, output: &[u8]) -> Result<(), Failure> {
        let fits = output.len() <= usize::from(self.arguments.out_sz);
        if self.arguments.out_ptr == 0 || !fits {
            return Err(Failure::EINVAL);
        }
        bytes::write_bytes(self.arguments.out_ptr, output)
    }
}

//! Calling the driver: what is tried again, and what becomes of errors.

use std::io;

use mshv_bindings::{HvError, hv_register_assoc, hv_register_name, hv_register_value, hv_u128};
use mshv_ioctls::{MshvError, VcpuFd};

use super::registers::Register;
use crate::vm::VmError;

/// How often a call is repeated that was interrupted or that waits for memory to be given to the hypervisor: some drivers answer EAGAIN
/// each time they have done so, and the crate says EINTR when only some registers of a list were accepted.
const MAX_ATTEMPTS: u32 = 1000;

/// Registers that one call may write: a page holds a header of 16 bytes and 32 bytes for each (`HvCallSetVpRegisters`).
const MAX_REGISTERS: usize = 127;

/// Calls until the answer is other than "again".
pub(super) fn retry<T>(
    operation: &'static str,
    mut call: impl FnMut() -> Result<T, MshvError>,
) -> Result<T, VmError> {
    let mut attempts = 1;
    loop {
        match call() {
            Ok(value) => return Ok(value),
            Err(error) if attempts < MAX_ATTEMPTS && is_transient(error) => attempts += 1,
            Err(error) => return Err(failed(operation, error)),
        }
    }
}

fn is_transient(error: MshvError) -> bool {
    match error {
        MshvError::Errno(errno) => matches!(errno.errno(), libc::EINTR | libc::EAGAIN),
        MshvError::Hypercall { .. } => false,
    }
}

/// An error of the crate in words of the trait. A hypercall's status says more than its errno, which is always EIO.
pub(super) fn failed(operation: &'static str, error: MshvError) -> VmError {
    let source = match error {
        MshvError::Errno(errno) => io::Error::from_raw_os_error(errno.errno()),
        MshvError::Hypercall { status, .. } => {
            let kind = match status {
                Some(HvError::InsufficientMemory) => io::ErrorKind::OutOfMemory,
                Some(
                    HvError::InvalidParameter
                    | HvError::InvalidRegisterValue
                    | HvError::InvalidAlignment,
                ) => io::ErrorKind::InvalidInput,
                Some(HvError::AccessDenied) => io::ErrorKind::PermissionDenied,
                _ => io::ErrorKind::Other,
            };
            io::Error::new(kind, error)
        }
    };
    VmError::hypervisor(operation, source)
}

/// Writes registers, as few calls as they need.
pub(super) fn set_registers(
    vcpu: &VcpuFd,
    registers: impl IntoIterator<Item = Register>,
) -> Result<(), VmError> {
    let list: Vec<hv_register_assoc> = registers
        .into_iter()
        .map(|register| hv_register_assoc {
            name: register.name,
            value: to_union(register.value),
            ..hv_register_assoc::default()
        })
        .collect();
    list.chunks(MAX_REGISTERS)
        .try_for_each(|part| retry("HVCALL_SET_VP_REGISTERS", || vcpu.set_reg(part)))
}

/// Reads registers by name, in one call.
pub(super) fn get_registers<const N: usize>(
    vcpu: &VcpuFd,
    names: [hv_register_name; N],
) -> Result<[u128; N], VmError> {
    let mut list = names.map(|name| hv_register_assoc {
        name,
        value: to_union(0),
        ..hv_register_assoc::default()
    });
    retry("HVCALL_GET_VP_REGISTERS", || vcpu.get_reg(&mut list))?;
    Ok(list.map(|register| from_union(register.value)))
}

#[expect(clippy::cast_possible_truncation, reason = "the halves are asked for")]
const fn to_union(value: u128) -> hv_register_value {
    hv_register_value {
        reg128: hv_u128 {
            low_part: value as u64,
            high_part: (value >> 64) as u64,
        },
    }
}

#[expect(unsafe_code, reason = "reads a union")]
fn from_union(value: hv_register_value) -> u128 {
    // SAFETY: this member covers the whole union, whose bytes were zero and then filled by the kernel; any bytes are valid numbers.
    let halves = unsafe { value.reg128 };
    u128::from(halves.low_part) | u128::from(halves.high_part) << 64
}

#[cfg(test)]
mod tests;

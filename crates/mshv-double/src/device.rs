//! `/dev/mshv` itself.

use std::ffi::c_int;
use std::io;

use kvm_ioctls::Kvm;
use mshv_bindings::{
    HVCALL_GET_PARTITION_PROPERTY, HVCALL_GET_PARTITION_PROPERTY_EX,
    hv_partition_property_code_HV_PARTITION_PROPERTY_PHYSICAL_ADDRESS_WIDTH as PHYSICAL_ADDRESS_WIDTH,
    hv_partition_property_code_HV_PARTITION_PROPERTY_PROCESSOR_FEATURES0 as PROCESSOR_FEATURES0,
    hv_partition_property_code_HV_PARTITION_PROPERTY_PROCESSOR_FEATURES1 as PROCESSOR_FEATURES1,
    mshv_create_partition,
};

use crate::bytes;
use crate::hypercall::{Call, ROOT_HVCALL};
use crate::partition::Partition;
use crate::status::{Failure, Status};
use crate::transport::{self, Object};

const CREATE_PARTITION: u64 = 0x4010_B800;
/// Local APIC, x2APIC, super pages, features in the longer structure.
const KNOWN_FLAGS: u64 = 0b1111;
/// The flag that says that the longer structure was passed.
const HAS_FEATURES: u64 = 1 << 3;
/// Offset of the reserved bytes and of the number of feature banks in the longer structure.
const BANK_COUNT: u64 = 0x10;
const MAX_BANKS: u16 = 2;

pub(crate) fn open() -> Result<c_int, Failure> {
    // Without /dev/kvm there is nothing to run guests on: as if the device did not exist.
    Kvm::new().map_err(|_| Failure::Errno(libc::ENOENT))?;
    transport::publish(transport::memfd(0)?, Object::Device)
}

pub(crate) fn request(number: u64, argument: u64) -> Result<c_int, Failure> {
    match number {
        CREATE_PARTITION => create_partition(argument),
        ROOT_HVCALL => Call::run(argument, |call| match call.code() {
            HVCALL_GET_PARTITION_PROPERTY => {
                let value = host_property(call.input_u32(8)?)?;
                call.output(&value.to_le_bytes())
            }
            HVCALL_GET_PARTITION_PROPERTY_EX => Err(Status::ACCESS_DENIED.into()),
            _ => Err(Failure::EINVAL),
        }),
        _ => Err(Failure::Errno(libc::ENOTTY)),
    }
}

fn create_partition(argument: u64) -> Result<c_int, Failure> {
    let arguments: mshv_create_partition = bytes::read(argument)?;
    let is_normal = arguments.pt_isolation == 0;
    if arguments.pt_flags & !KNOWN_FLAGS != 0 || !is_normal {
        return Err(Failure::EINVAL);
    }
    if arguments.pt_flags & HAS_FEATURES != 0 {
        let banks: u16 = bytes::read(argument + BANK_COUNT)?;
        if banks == 0 || banks > MAX_BANKS {
            return Err(Failure::EINVAL);
        }
    }
    let file = transport::memfd(0)?;
    let partition = Partition::new(arguments.pt_flags)?;
    transport::publish(file, Object::Partition(partition))
}

/// Every feature that has a name is there; the real ones do not matter, because nothing is derived from them here.
fn host_property(code: u32) -> Result<u64, Failure> {
    match code {
        PHYSICAL_ADDRESS_WIDTH => Ok(46),
        PROCESSOR_FEATURES0 | PROCESSOR_FEATURES1 => Ok(0),
        _ => Err(Status::UNKNOWN_PROPERTY.into()),
    }
}

/// An error of the system in the driver's words.
pub(crate) fn last_error() -> Failure {
    io::Error::last_os_error().into()
}

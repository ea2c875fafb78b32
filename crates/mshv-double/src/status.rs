//! How a request fails: as the driver says it, or as the hypervisor does.

use mshv_bindings::{
    HV_STATUS_ACCESS_DENIED, HV_STATUS_INSUFFICIENT_MEMORY, HV_STATUS_INVALID_PARAMETER,
    HV_STATUS_INVALID_PARTITION_STATE, HV_STATUS_INVALID_REGISTER_VALUE,
    HV_STATUS_INVALID_VP_INDEX, HV_STATUS_OPERATION_DENIED, HV_STATUS_UNKNOWN_PROPERTY,
};

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The driver refused it.
    Errno(i32),
    /// The hypervisor refused it.
    Status(Status),
}

/// A status of the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) u16);

#[expect(clippy::cast_possible_truncation, reason = "statuses have 16 bits")]
impl Status {
    pub(crate) const INVALID_PARAMETER: Self = Self(HV_STATUS_INVALID_PARAMETER as u16);
    pub(crate) const ACCESS_DENIED: Self = Self(HV_STATUS_ACCESS_DENIED as u16);
    pub(crate) const INVALID_PARTITION_STATE: Self = Self(HV_STATUS_INVALID_PARTITION_STATE as u16);
    pub(crate) const OPERATION_DENIED: Self = Self(HV_STATUS_OPERATION_DENIED as u16);
    pub(crate) const UNKNOWN_PROPERTY: Self = Self(HV_STATUS_UNKNOWN_PROPERTY as u16);
    pub(crate) const INSUFFICIENT_MEMORY: Self = Self(HV_STATUS_INSUFFICIENT_MEMORY as u16);
    pub(crate) const INVALID_VP_INDEX: Self = Self(HV_STATUS_INVALID_VP_INDEX as u16);
    pub(crate) const INVALID_REGISTER_VALUE: Self = Self(HV_STATUS_INVALID_REGISTER_VALUE as u16);

    /// The errno that the driver makes of it (Linux `drivers/hv/hv_common.c`).
    pub(crate) const fn errno(self) -> i32 {
        match self {
            Self::INVALID_PARAMETER | Self::INVALID_VP_INDEX | Self::INVALID_REGISTER_VALUE => {
                libc::EINVAL
            }
            Self::INSUFFICIENT_MEMORY => libc::ENOMEM,
            _ => libc::EIO,
        }
    }
}

impl Failure {
    pub(crate) const EINVAL: Self = Self::Errno(libc::EINVAL);

    pub(crate) const fn errno(self) -> i32 {
        match self {
            Self::Errno(errno) => errno,
            Self::Status(status) => status.errno(),
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<kvm_ioctls::Error> for Failure {
    fn from(error: kvm_ioctls::Error) -> Self {
        Self::Errno(error.errno())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

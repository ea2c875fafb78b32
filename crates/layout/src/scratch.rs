//! Where scratch begins, and pointers that are right under the guest's own translation.

use core::fmt;

use crate::address::{AddressError, Gpa, Gva};
use crate::kind::{GuestKind, Translation};
use crate::page::PAGE_SIZE;
use crate::plan::RegionName;
use crate::{amd64, i686};

/// A pointer as a guest uses it, together with the translation that makes it right.
///
/// Everything that the host publishes to a guest (boot registers, PEB, bookkeeping) goes through
/// this type. A pointer for a guest without paging can be made of a guest-physical address only:
///
/// ```compile_fail,E0308
/// use vellum_layout::{GuestPtr, i686};
/// // The start of a buffer derived from the wrong constant does not compile:
/// let peb = GuestPtr::identity(i686::MAX_GVA_PAGED);
/// ```
///
/// and a pointer for a guest with paging of a guest-virtual one only:
///
/// ```compile_fail,E0308
/// use vellum_layout::{GuestPtr, amd64};
/// let peb = GuestPtr::four_level(amd64::MAX_GPA);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GuestPtr(Pointer);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Pointer {
    Identity(Gpa),
    TwoLevel(Gva),
    FourLevel(Gva),
}

/// Why a fixed or derived address cannot be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A length is zero.
    #[error("length of the {area} is zero; give at least one page (0x1000 bytes)")]
    Empty {
        /// What was to be placed.
        area: &'static str,
    },
    /// A length is not a whole number of pages.
    #[error("length of the {area} is {len_bytes:#x} bytes, which is not a multiple of 0x1000")]
    Unaligned {
        /// What was to be placed.
        area: &'static str,
        /// The refused length.
        len_bytes: u64,
    },
    /// A length does not fit where it belongs.
    #[error("{area} of {len_bytes:#x} bytes does not fit; at most {max_len_bytes:#x} bytes do")]
    TooLarge {
        /// What was to be placed.
        area: &'static str,
        /// The refused length.
        len_bytes: u64,
        /// The largest length that fits.
        max_len_bytes: u64,
    },
    /// A guest-physical address lies above the highest one of its architecture.
    #[error("guest-physical address {gpa} is above the highest one, {max_gpa}")]
    AboveMaxGpa {
        /// The refused address.
        gpa: Gpa,
        /// The highest guest-physical address of the architecture.
        max_gpa: Gpa,
    },
    /// The layout gives a region no address of the guest's own.
    #[error("{region} has no fixed address in {kind} guests")]
    NoGuestAddress {
        /// The region asked for.
        region: RegionName,
        /// The guest kind.
        kind: GuestKind,
    },
    /// An address is not valid for the guest.
    #[error(transparent)]
    Address(#[from] AddressError),
}

/// Where scratch of `len_bytes` begins, as a pointer under `translation`, when no hole is in its
/// way. With holes, ask the plan: [`crate::MemoryPlan::guest_ptr`].
///
/// # Errors
///
/// [`LayoutError`] when the length is zero, not a multiple of [`PAGE_SIZE`], or too large.
pub const fn scratch_base_for_guest(
    translation: Translation,
    len_bytes: u64,
) -> Result<GuestPtr, LayoutError> {
    match translation {
        Translation::Identity => i686::scratch_base_identity(len_bytes),
        Translation::TwoLevel => match i686::scratch_base_gva_paged(len_bytes) {
            Ok(base) => Ok(GuestPtr(Pointer::TwoLevel(base))),
            Err(error) => Err(error),
        },
        Translation::FourLevel => match amd64::scratch_base_gva(len_bytes) {
            Ok(base) => Ok(GuestPtr(Pointer::FourLevel(base))),
            Err(error) => Err(error),
        },
    }
}

impl GuestPtr {
    /// A pointer for a guest without paging.
    ///
    /// # Errors
    ///
    /// [`AddressError::AboveFourGib`] when 32 bits do not hold the address.
    pub const fn identity(gpa: Gpa) -> Result<Self, AddressError> {
        match below_4_gib(gpa.as_u64()) {
            Ok(()) => Ok(Self(Pointer::Identity(gpa))),
            Err(error) => Err(error),
        }
    }

    /// A pointer for a guest with 2-level paging.
    ///
    /// # Errors
    ///
    /// [`AddressError::AboveFourGib`] when 32 bits do not hold the address.
    pub const fn two_level(gva: Gva) -> Result<Self, AddressError> {
        match below_4_gib(gva.as_u64()) {
            Ok(()) => Ok(Self(Pointer::TwoLevel(gva))),
            Err(error) => Err(error),
        }
    }

    /// A pointer for a guest with 4-level paging.
    #[must_use]
    pub const fn four_level(gva: Gva) -> Self {
        Self(Pointer::FourLevel(gva))
    }

    /// The pointer `bytes` further up under the same translation; `None` when there is no such
    /// address in the guest.
    #[must_use]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        let sum = match self.0 {
            Pointer::Identity(gpa) => match gpa.checked_add(bytes) {
                Some(sum) => Self::identity(sum),
                None => return None,
            },
            Pointer::TwoLevel(gva) => match gva.checked_add(bytes) {
                Some(sum) => Self::two_level(sum),
                None => return None,
            },
            Pointer::FourLevel(gva) => match gva.checked_add(bytes) {
                Some(sum) => Ok(Self::four_level(sum)),
                None => return None,
            },
        };
        match sum {
            Ok(sum) => Some(sum),
            Err(_) => None,
        }
    }

    /// The translation under which this pointer is right.
    #[must_use]
    pub const fn translation(self) -> Translation {
        match self.0 {
            Pointer::Identity(_) => Translation::Identity,
            Pointer::TwoLevel(_) => Translation::TwoLevel,
            Pointer::FourLevel(_) => Translation::FourLevel,
        }
    }

    /// The number to put into a register or a structure of the guest.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        match self.0 {
            Pointer::Identity(gpa) => gpa.as_u64(),
            Pointer::TwoLevel(gva) | Pointer::FourLevel(gva) => gva.as_u64(),
        }
    }

    /// The pointer as a guest-virtual address. Without paging that is the physical address, by
    /// the definition of that translation.
    #[must_use]
    pub const fn gva(self) -> Gva {
        match self.0 {
            // At most 32 bits wide, therefore canonical.
            Pointer::Identity(gpa) => Gva::sign_extend(gpa.as_u64()),
            Pointer::TwoLevel(gva) | Pointer::FourLevel(gva) => gva,
        }
    }

    /// The physical address, when the translation alone determines it: without paging.
    #[must_use]
    pub const fn gpa(self) -> Option<Gpa> {
        match self.0 {
            Pointer::Identity(gpa) => Some(gpa),
            Pointer::TwoLevel(_) | Pointer::FourLevel(_) => None,
        }
    }
}

impl fmt::Debug for GuestPtr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestPtr({}, {:#x})", self.translation(), self.as_u64())
    }
}

impl fmt::Display for GuestPtr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.as_u64())
    }
}

/// Checks the length of scratch against the room its architecture has.
pub(crate) const fn check_scratch_len(
    len_bytes: u64,
    max_len_bytes: u64,
) -> Result<(), LayoutError> {
    check_len("scratch", len_bytes, max_len_bytes)
}

/// Checks that a length is not zero, a whole number of pages, and at most `max_len_bytes`.
pub(crate) const fn check_len(
    area: &'static str,
    len_bytes: u64,
    max_len_bytes: u64,
) -> Result<(), LayoutError> {
    if len_bytes == 0 {
        return Err(LayoutError::Empty { area });
    }
    if !len_bytes.is_multiple_of(PAGE_SIZE) {
        return Err(LayoutError::Unaligned { area, len_bytes });
    }
    if len_bytes > max_len_bytes {
        return Err(LayoutError::TooLarge {
            area,
            len_bytes,
            max_len_bytes,
        });
    }
    Ok(())
}

const fn below_4_gib(address: u64) -> Result<(), AddressError> {
    if address >> 32 == 0 {
        Ok(())
    } else {
        Err(AddressError::AboveFourGib { address })
    }
}

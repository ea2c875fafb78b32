//! Guest-physical and guest-virtual addresses as two types.

use core::fmt;

use crate::page::PageSize;

/// A guest-physical address (GPA): what the guest's page tables produce and what memory slots
/// are made of. At most 52 bits wide, the architectural limit of a physical address (Intel SDM
/// Vol. 3A, chapter "Paging", on MAXPHYADDR).
///
/// A [`Gpa`] never turns into a [`Gva`] by itself:
///
/// ```compile_fail,E0308
/// use vellum_layout::{Gpa, Gva};
/// let address: Gva = Gpa::literal(0x1000);
/// ```
///
/// nor do the two compare or subtract:
///
/// ```compile_fail,E0308
/// use vellum_layout::{Gpa, Gva};
/// let distance = Gpa::literal(0x2000).offset_from(Gva::literal(0x1000));
/// ```
///
/// ```compile_fail,E0308
/// use vellum_layout::{Gpa, Gva};
/// let same = Gpa::literal(0x1000) == Gva::literal(0x1000);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Gpa(u64);

/// A guest-virtual address (GVA): what the guest's instructions use. Always canonical for 48-bit
/// linear addresses, that is, bits 63 to 47 are equal (Intel SDM Vol. 1, section 3.3.7.1). The
/// addresses of an i686 guest are those below 4 GiB.
///
/// A [`Gva`] cannot be used where a physical address belongs:
///
/// ```compile_fail,E0308
/// use vellum_layout::{Gpa, GpaRange, Gva};
/// let slot = GpaRange::new(Gva::literal(0x1000), 0x1000);
/// ```
///
/// and there is no bare integer arithmetic on either:
///
/// ```compile_fail,E0369
/// use vellum_layout::Gva;
/// let next = Gva::literal(0x1000) + 0x1000;
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Gva(u64);

/// Why a number is not an address of the asked kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// The number has bits above bit 51 set.
    #[error("guest-physical address {address:#x} is wider than 52 bits")]
    GpaTooWide {
        /// The refused number.
        address: u64,
    },
    /// Bits 63 to 47 of the number are not all equal.
    #[error("guest-virtual address {address:#x} is not canonical: bits 63 to 47 differ")]
    GvaNotCanonical {
        /// The refused number.
        address: u64,
    },
    /// The address cannot be held in a 32-bit register.
    #[error("address {address:#x} is out of reach of a 32-bit guest: it is above 0xffffffff")]
    AboveFourGib {
        /// The refused number.
        address: u64,
    },
}

impl Gpa {
    /// Width in bits of the widest guest-physical address.
    pub const BITS: u32 = 52;

    /// Checks that `address` has no bit above bit 51 set.
    ///
    /// # Errors
    ///
    /// [`AddressError::GpaTooWide`] when it has.
    #[inline]
    pub const fn new(address: u64) -> Result<Self, AddressError> {
        if address >> Self::BITS == 0 {
            Ok(Self(address))
        } else {
            Err(AddressError::GpaTooWide { address })
        }
    }

    /// Physical addresses have no gap: any two are in the same stretch.
    #[inline]
    const fn same_stretch(_: u64, _: u64) -> bool {
        true
    }
}

impl Gva {
    /// Width in bits of the significant part of a guest-virtual address.
    pub const BITS: u32 = 48;

    /// Checks that `address` is canonical.
    ///
    /// # Errors
    ///
    /// [`AddressError::GvaNotCanonical`] when it is not.
    #[inline]
    pub const fn new(address: u64) -> Result<Self, AddressError> {
        if Self::sign_extend(address).0 == address {
            Ok(Self(address))
        } else {
            Err(AddressError::GvaNotCanonical { address })
        }
    }

    /// Makes a canonical address of the low 48 bits of `bits`, ignoring the rest. This is how a
    /// page-table walk turns table indices into an address.
    #[must_use]
    #[inline]
    pub const fn sign_extend(bits: u64) -> Self {
        let unused = u64::BITS - Self::BITS;
        // An arithmetic right shift copies bit 47 into bits 48 to 63.
        Self(
            (bits << unused)
                .cast_signed()
                .wrapping_shr(unused)
                .cast_unsigned(),
        )
    }

    /// Whether both lie in the lower half, or both in the upper half, of the canonical addresses.
    #[inline]
    const fn same_stretch(one: u64, other: u64) -> bool {
        one >> 63 == other >> 63
    }
}

/// The operations that both address types have, each on its own type only.
macro_rules! address_operations {
    ($name:ident, $label:literal) => {
        impl $name {
            /// An address known when the program is compiled.
            ///
            /// # Panics
            ///
            /// When `address` is not valid; in a `const` that is a compile error. Meant for
            /// constants and tests: use `new` for a number that comes from outside.
            #[must_use]
            #[inline]
            pub const fn literal(address: u64) -> Self {
                match Self::new(address) {
                    Ok(valid) => valid,
                    Err(_) => panic!(concat!("not a valid ", $label)),
                }
            }

            /// The address as a number, for registers, table entries and ioctl arguments.
            #[must_use]
            #[inline]
            pub const fn as_u64(self) -> u64 {
                self.0
            }

            /// The address `bytes` further up; `None` when there is no such address.
            #[must_use]
            #[inline]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => self.neighbour(sum),
                    None => None,
                }
            }

            /// The address `bytes` further down; `None` when there is no such address.
            #[must_use]
            #[inline]
            pub const fn checked_sub(self, bytes: u64) -> Option<Self> {
                match self.0.checked_sub(bytes) {
                    Some(difference) => self.neighbour(difference),
                    None => None,
                }
            }

            /// How many bytes this address is above `base`; `None` when it is below, or when
            /// addresses that do not exist lie between them.
            #[must_use]
            #[inline]
            pub const fn offset_from(self, base: Self) -> Option<u64> {
                if Self::same_stretch(self.0, base.0) {
                    self.0.checked_sub(base.0)
                } else {
                    None
                }
            }

            /// Whether the address is a multiple of the page size.
            #[must_use]
            #[inline]
            pub const fn is_aligned(self, size: PageSize) -> bool {
                // A mask and not a division: the mapper asks this for every leaf.
                self.0 & (size.bytes() - 1) == 0
            }

            /// The start of the page of this size that holds the address.
            #[must_use]
            #[inline]
            pub const fn align_down(self, size: PageSize) -> Self {
                // Clearing bits below bit 30 keeps the address valid.
                Self(self.0 & !(size.bytes() - 1))
            }

            /// The nearest page boundary at or above the address; `None` when there is none.
            #[must_use]
            #[inline]
            pub const fn checked_align_up(self, size: PageSize) -> Option<Self> {
                match self.0.checked_add(size.bytes() - 1) {
                    Some(beyond) => self.neighbour(beyond & !(size.bytes() - 1)),
                    None => None,
                }
            }

            /// Another address that is reached from this one by counting.
            #[inline]
            const fn neighbour(self, address: u64) -> Option<Self> {
                match Self::new(address) {
                    Ok(valid) if Self::same_stretch(self.0, address) => Some(valid),
                    _ => None,
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }

        impl From<$name> for u64 {
            fn from(address: $name) -> Self {
                address.0
            }
        }
    };
}

address_operations!(Gpa, "guest-physical address");
address_operations!(Gva, "guest-virtual address");

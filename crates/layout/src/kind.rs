//! Guest architectures, translations and kinds, as values chosen at run time by the guest image.

use core::fmt;

/// Instruction set of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GuestArch {
    /// 64-bit x86.
    Amd64,
    /// 32-bit x86.
    I686,
}

/// How a guest-virtual address becomes a guest-physical one when the guest is entered first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Translation {
    /// No paging: GVA == GPA (i686 protected mode with CR0.PG = 0).
    Identity,
    /// 32-bit paging with two levels of tables (CR0.PG = 1, CR4.PAE = 0).
    TwoLevel,
    /// 4-level paging (CR0.PG = 1, CR4.PAE = 1, EFER.LME = 1, CR4.LA57 = 0).
    FourLevel,
}

/// What a guest image is, and so what the host sets up for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GuestKind {
    /// Functions in a static ELF, run in ring 3 above the host's monitor.
    Amd64User,
    /// A 64-bit guest that brings its own supervisor.
    Amd64Kernel,
    /// A 32-bit kernel entered without paging.
    I686Identity,
    /// A 32-bit kernel entered on host-built 2-level page tables.
    I686Paged,
}

impl GuestKind {
    /// Every guest kind.
    pub const ALL: [Self; 4] = [
        Self::Amd64User,
        Self::Amd64Kernel,
        Self::I686Identity,
        Self::I686Paged,
    ];

    /// The instruction set of guests of this kind.
    #[must_use]
    pub const fn arch(self) -> GuestArch {
        match self {
            Self::Amd64User | Self::Amd64Kernel => GuestArch::Amd64,
            Self::I686Identity | Self::I686Paged => GuestArch::I686,
        }
    }

    /// The translation under which guests of this kind are entered.
    #[must_use]
    pub const fn translation(self) -> Translation {
        match self {
            Self::Amd64User | Self::Amd64Kernel => Translation::FourLevel,
            Self::I686Identity => Translation::Identity,
            Self::I686Paged => Translation::TwoLevel,
        }
    }
}

impl Translation {
    /// The instruction set that uses this translation.
    #[must_use]
    pub const fn arch(self) -> GuestArch {
        match self {
            Self::Identity | Self::TwoLevel => GuestArch::I686,
            Self::FourLevel => GuestArch::Amd64,
        }
    }
}

impl fmt::Display for GuestArch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Amd64 => "amd64",
            Self::I686 => "i686",
        })
    }
}

impl fmt::Display for Translation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Identity => "identity",
            Self::TwoLevel => "2-level",
            Self::FourLevel => "4-level",
        })
    }
}

impl fmt::Display for GuestKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Amd64User => "amd64 user",
            Self::Amd64Kernel => "amd64 kernel",
            Self::I686Identity => "i686 identity",
            Self::I686Paged => "i686 paged",
        })
    }
}

//! Guest-physical ranges that no memory may take.

use core::fmt;

use crate::address::Gpa;
use crate::page::PAGE_SIZE;
use crate::range::GpaRange;

/// A range of guest-physical addresses that the machine or the hypervisor keeps for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hole {
    /// What lies there, for error messages and the memory map.
    pub name: &'static str,
    /// Where it lies.
    pub range: GpaRange,
}

/// A range of guest-physical addresses that the guest declares as its own (a user stack, say).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reserved {
    /// What the guest keeps there, for error messages and the memory map.
    pub name: &'static str,
    /// Where it lies.
    pub range: GpaRange,
}

/// The registers of the local APIC at their reset address (Intel SDM Vol. 3A, chapter "Advanced
/// Programmable Interrupt Controller (APIC)", on the local APIC's status and location).
/// Always a hole, also without an interrupt controller in the guest: KVM keeps a page of its own
/// there on some hosts and answers EEXIST to a memory slot that covers it.
pub const LOCAL_APIC_PAGE: Hole = Hole {
    name: "local APIC page",
    range: GpaRange::literal(Gpa::literal(0xfee0_0000), PAGE_SIZE),
};

/// The registers of the first I/O APIC (Intel 82093AA datasheet, section 3.1). A hole only when
/// the guest has an in-kernel interrupt controller; the backend says so in the plan request.
pub const IO_APIC_PAGE: Hole = Hole {
    name: "I/O APIC page",
    range: GpaRange::literal(Gpa::literal(0xfec0_0000), PAGE_SIZE),
};

impl fmt::Display for Hole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hole '{}' {}", self.name, self.range)
    }
}

impl fmt::Display for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "reserved range '{}' {}", self.name, self.range)
    }
}

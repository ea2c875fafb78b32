//! Why a plan is refused.

use core::fmt;

use super::RegionName;
use crate::address::Gpa;
use crate::hole::{Hole, Reserved};
use crate::range::GpaRange;

/// Why a [`super::MemoryPlan`] cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A length is zero.
    #[error("memory plan: length of the {region} is zero; give at least one page (0x1000 bytes)")]
    Empty {
        /// The region.
        region: RegionName,
    },
    /// A length is not a whole number of pages.
    #[error(
        "memory plan: length of the {region} is {len_bytes:#x} bytes, \
         which is not a multiple of 0x1000"
    )]
    Unaligned {
        /// The region.
        region: RegionName,
        /// Its length.
        len_bytes: u64,
    },
    /// A length is larger than all memory that the guest can have.
    #[error(
        "memory plan: {region} of {len_bytes:#x} bytes is larger than the guest's address space; \
         at most {max_len_bytes:#x} bytes fit"
    )]
    TooLarge {
        /// The region.
        region: RegionName,
        /// Its length.
        len_bytes: u64,
        /// The largest length that could fit.
        max_len_bytes: u64,
    },
    /// Page tables are asked for in a guest that is entered without paging.
    #[error(
        "memory plan: {len_bytes:#x} bytes of page tables for a guest without paging; \
         ask for zero"
    )]
    TablesWithoutPaging {
        /// The length asked for.
        len_bytes: u64,
    },
    /// Scratch cannot hold its parts.
    #[error(
        "memory plan: scratch of {len_bytes:#x} bytes is too small for its buffers, page tables \
         and bookkeeping; give at least {minimum_len_bytes:#x} bytes"
    )]
    ScratchTooSmall {
        /// Length of scratch.
        len_bytes: u64,
        /// The shortest scratch that would do.
        minimum_len_bytes: u64,
    },
    /// A region finds no room, because something else is in the way.
    #[error(
        "memory plan: no room for the {region} of {len_bytes:#x} bytes: {obstacle} is in the way"
    )]
    NoRoom {
        /// The region.
        region: RegionName,
        /// Its length.
        len_bytes: u64,
        /// What is in the way.
        obstacle: Obstacle,
    },
    /// A range that the guest reserves is not its to reserve.
    #[error("memory plan: {reserved} overlaps {other}")]
    ReservedOverlap {
        /// The range that the guest reserves.
        reserved: Reserved,
        /// What it overlaps.
        other: Obstacle,
    },
    /// The guest reserves too many ranges.
    #[error("memory plan: {count} reserved ranges; at most {max} are allowed")]
    TooManyReserved {
        /// How many it reserves.
        count: usize,
        /// How many it may.
        max: usize,
    },
}

/// What keeps a region from being placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Obstacle {
    /// A hole of the machine.
    Hole(Hole),
    /// A range that the guest reserves.
    Reserved(Reserved),
    /// Another region of the plan.
    Region(RegionName, GpaRange),
    /// The lowest address that memory may have.
    LowestAddress(Gpa),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hole(hole) => hole.fmt(f),
            Self::Reserved(reserved) => reserved.fmt(f),
            Self::Region(name, range) => write!(f, "{name} {range}"),
            Self::LowestAddress(gpa) => write!(f, "the lowest guest-physical address {gpa}"),
        }
    }
}

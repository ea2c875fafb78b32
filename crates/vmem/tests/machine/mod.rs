//! A machine made of memory and a software MMU: the oracle of the tests in this directory.
//!
//! The MMU is written from the manuals on plain integers, in another way than the crate, and uses
//! none of its codecs.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::BTreeMap;

use vellum_layout::{Gpa, PAGE_SIZE};
use vellum_vmem::{EntryWidth, Format, FrameSource, StoreError, TableStore};

pub(crate) mod mmu;

/// Bytes of a frame.
const FRAME_LEN: usize = 4096;

/// Sparse guest-physical memory in whole frames, some of which may be read-only.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Memory {
    frames: BTreeMap<u64, Vec<u8>>,
    read_only: bool,
}

impl Memory {
    /// Memory with zeroed frames at these addresses.
    pub(crate) fn with_frames(addresses: impl IntoIterator<Item = u64>) -> Self {
        let frame = |address| (address, vec![0; FRAME_LEN]);
        Self {
            frames: addresses.into_iter().map(frame).collect(),
            read_only: false,
        }
    }

    /// Adds zeroed frames at these addresses.
    pub(crate) fn add_frames(&mut self, addresses: &[u64]) {
        let frame = |&address| (address, vec![0; FRAME_LEN]);
        self.frames.extend(addresses.iter().map(frame));
    }

    /// Refuses all writes from now on.
    pub(crate) fn freeze(&mut self) {
        self.read_only = true;
    }

    /// The bytes of an entry, if its whole frame is there.
    pub(crate) fn bytes(&self, at: u64, len: usize) -> Option<&[u8]> {
        let frame = self.frames.get(&(at & !0xfff))?;
        let offset = usize::try_from(at & 0xfff).unwrap();
        frame.get(offset..offset + len)
    }

    /// Writes a raw entry, for tests that make tables by hand.
    pub(crate) fn poke(&mut self, at: u64, width: EntryWidth, raw: u64) {
        let len = usize::try_from(width.bytes()).unwrap();
        let frame = self.frames.get_mut(&(at & !0xfff)).expect("backed frame");
        let offset = usize::try_from(at & 0xfff).unwrap();
        frame[offset..offset + len].copy_from_slice(&raw.to_le_bytes()[..len]);
    }
}

impl TableStore for Memory {
    fn read_entry(&self, at: Gpa, width: EntryWidth) -> Result<u64, StoreError> {
        let len = usize::try_from(width.bytes()).unwrap();
        let bytes = self.bytes(at.as_u64(), len);
        let bytes = bytes.ok_or(StoreError::Unbacked { at })?;
        let mut raw = [0; 8];
        raw[..len].copy_from_slice(bytes);
        Ok(u64::from_le_bytes(raw))
    }

    fn write_entry(&mut self, at: Gpa, width: EntryWidth, raw: u64) -> Result<(), StoreError> {
        if self.read_only {
            return Err(StoreError::ReadOnly { at });
        }
        if self.bytes(at.as_u64(), 1).is_none() {
            return Err(StoreError::Unbacked { at });
        }
        self.poke(at.as_u64(), width, raw);
        Ok(())
    }
}

/// A list of frames to hand out; it can run dry.
#[derive(Clone, Debug)]
pub(crate) struct FrameList(pub(crate) Vec<u64>);

impl FrameSource for FrameList {
    fn allocate_table(&mut self) -> Option<Gpa> {
        self.0.pop().map(Gpa::literal)
    }
}

/// Where [`machine`] puts its root table; the other tables follow.
pub(crate) const ROOT: u64 = 0x10_0000;

/// Memory with an empty root and `tables` zeroed frames for further tables.
pub(crate) fn machine(tables: u64) -> (Memory, FrameList) {
    let frames: Vec<u64> = (1..=tables).rev().map(|n| ROOT + n * PAGE_SIZE).collect();
    let memory = Memory::with_frames(frames.iter().copied().chain([ROOT]));
    (memory, FrameList(frames))
}

/// A paging mode that both the crate and the software MMU know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    FourLevel,
    TwoLevel,
    TwoLevelPse,
}

impl Mode {
    pub(crate) const ALL: [Self; 3] = [Self::FourLevel, Self::TwoLevel, Self::TwoLevelPse];

    pub(crate) fn format(self) -> Format {
        match self {
            Self::FourLevel => Format::FOUR_LEVEL,
            Self::TwoLevel => Format::TWO_LEVEL,
            Self::TwoLevelPse => Format::TWO_LEVEL_PSE,
        }
    }

    /// Sign-extends a linear address where the mode has signs.
    pub(crate) fn canonical(self, linear: u64) -> u64 {
        match self {
            Self::FourLevel if linear & 1 << 47 != 0 => linear | 0xffff << 48,
            _ => linear,
        }
    }
}

/// A moderate number of cases, and no files written on failure: the output holds the input.
pub(crate) fn cases(count: u32) -> proptest::test_runner::Config {
    proptest::test_runner::Config {
        cases: count,
        failure_persistence: None,
        ..Default::default()
    }
}

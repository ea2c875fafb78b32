//! The block that tells a starting guest where its buffers, heap and stack are.
//!
//! The host writes a [`Peb`] before the guest runs and hands its address to the entry point: in RDI on amd64, in EDI on i686.
//! Every pointer in it is an address of the guest's own translation.

use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ABI_VERSION;

/// First eight bytes of a PEB: `VELLUMPB` in memory order.
pub const PEB_MAGIC: u64 = u64::from_le_bytes(*b"VELLUMPB");

/// Flag: the monitor makes pages private when the guest first writes to them, so the guest must write to each page of a
/// destination before it asks for a fill. Without it every page of the heap can be filled as it is.
pub const FLAG_TOUCH_BEFORE_FILL: u32 = 1 << 0;

/// Flag: the guest drops log records and metrics for which its [outbox](crate::outbox) has no room. Without it the guest leaves to
/// have the outbox emptied.
pub const FLAG_OUTBOX_DROPS: u32 = 1 << 1;

/// Process environment block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Peb {
    /// [`PEB_MAGIC`].
    pub magic: u64,
    /// [`ABI_VERSION`] of the host.
    pub abi_version: u32,
    /// Size of this structure; a guest ignores bytes past the fields it knows.
    pub size_bytes: u32,
    /// Input buffer: the host writes calls and host replies here. 8-byte aligned.
    pub input_ptr: u64,
    /// Length of the input buffer.
    pub input_len_bytes: u64,
    /// Output buffer: the guest writes replies, host calls and panic records here. 8-byte aligned.
    pub output_ptr: u64,
    /// Length of the output buffer.
    pub output_len_bytes: u64,
    /// Heap: zero on first touch, readable and writable, never executable. 16-byte aligned.
    pub heap_ptr: u64,
    /// Length of the heap; may be 0.
    pub heap_len_bytes: u64,
    /// First address above the stack, 16-byte aligned; the stack pointer at entry.
    pub stack_top: u64,
    /// Length of the stack below `stack_top`, without the guard page.
    pub stack_len_bytes: u64,
    /// Data that the embedder gives to the guest at start; read-only.
    pub init_data_ptr: u64,
    /// Length of the init data; 0 when there is none.
    pub init_data_len_bytes: u64,
    /// A number that differs between any two sandboxes, clones of one snapshot included. Not secret-grade randomness.
    pub seed: u64,
    /// Table of the files and host memories that the host has mapped for this guest:
    /// [`MappingEntry`](crate::mapping::MappingEntry) behind one another. It may change while the guest waits for the host.
    pub mappings_ptr: u64,
    /// Number of entries of that table that are in use, at most [`MAX_MAPPINGS`](crate::mapping::MAX_MAPPINGS).
    pub mappings_count: u64,
    /// Most verbose log level the host wants, as in [`crate::log::Level`]; 0 for none.
    pub log_level: u32,
    /// Bits that say how this host works: [`FLAG_TOUCH_BEFORE_FILL`], [`FLAG_OUTBOX_DROPS`]. Others are zero.
    pub flags: u32,
    /// Generation of the snapshot that this sandbox was made from or last restored to; 0 for a guest that has booted. A guest
    /// that finds another number than before it [asked for a snapshot](crate::port::Port::Checkpoint) is a restored copy.
    pub generation: u64,
    /// Kernel guests: where scratch begins, which ends with the bookkeeping page ([`vellum_layout`]). 0 for user guests.
    pub scratch_ptr: u64,
    /// Kernel guests: length of scratch.
    pub scratch_len_bytes: u64,
    /// Kernel guests: the guest-physical address of `scratch_ptr`. Any frame of scratch lies as far from it as its pointer lies
    /// from `scratch_ptr`.
    pub scratch_gpa: u64,
    /// The [outbox](crate::outbox). 8-byte aligned.
    pub outbox_ptr: u64,
    /// Length of the outbox: [`MIN_OUTBOX_LEN_BYTES`](crate::outbox::MIN_OUTBOX_LEN_BYTES) to
    /// [`MAX_OUTBOX_LEN_BYTES`](crate::outbox::MAX_OUTBOX_LEN_BYTES).
    pub outbox_len_bytes: u64,
}

const _: () = {
    assert!(size_of::<Peb>() == Peb::LEN_BYTES && align_of::<Peb>() == 8);
    assert!(core::mem::offset_of!(Peb, input_ptr) == 16);
    assert!(core::mem::offset_of!(Peb, heap_ptr) == 48);
    assert!(core::mem::offset_of!(Peb, init_data_ptr) == 80);
    assert!(core::mem::offset_of!(Peb, seed) == 96);
    assert!(core::mem::offset_of!(Peb, log_level) == 120);
    assert!(core::mem::offset_of!(Peb, generation) == 128);
    assert!(core::mem::offset_of!(Peb, outbox_ptr) == 160);
};

/// A PEB that a guest cannot start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PebError {
    /// The first bytes are not [`PEB_MAGIC`].
    #[error("peb starts with {0:#x}, not its magic number")]
    Magic(
        /// What was found.
        u64,
    ),
    /// Another version of the ABI.
    #[error("peb has abi version {0}, this side has {ABI_VERSION}")]
    Version(
        /// The other side's version.
        u32,
    ),
    /// Smaller than the structure of this version.
    #[error("peb says it has {0} bytes, needs {len}", len = Peb::LEN_BYTES)]
    Size(
        /// What the size field says.
        u32,
    ),
    /// A range is misaligned or wraps around the address space.
    #[error(
        "peb places its {name} at {start:#x} with {len_bytes:#x} bytes: misaligned or past the address space"
    )]
    Range {
        /// Which range.
        name: &'static str,
        /// Its first address.
        start: u64,
        /// Its length.
        len_bytes: u64,
    },
    /// A message buffer is shorter than [`MIN_BUFFER_LEN_BYTES`](crate::message::MIN_BUFFER_LEN_BYTES), or the outbox shorter than
    /// [`MIN_OUTBOX_LEN_BYTES`](crate::outbox::MIN_OUTBOX_LEN_BYTES), which is the same.
    #[error("peb gives the {name} buffer {len_bytes:#x} bytes, needs {min:#x}", min = crate::message::MIN_BUFFER_LEN_BYTES)]
    BufferTooSmall {
        /// Which buffer.
        name: &'static str,
        /// Its length.
        len_bytes: u64,
    },
}

impl Peb {
    /// Size of the structure.
    pub const LEN_BYTES: usize = 176;

    /// A block with magic, version and size filled in and everything else zero.
    #[must_use]
    pub const fn empty() -> Self {
        Self {
            magic: PEB_MAGIC,
            abi_version: ABI_VERSION,
            size_bytes: 176,
            input_ptr: 0,
            input_len_bytes: 0,
            output_ptr: 0,
            output_len_bytes: 0,
            heap_ptr: 0,
            heap_len_bytes: 0,
            stack_top: 0,
            stack_len_bytes: 0,
            init_data_ptr: 0,
            init_data_len_bytes: 0,
            seed: 0,
            mappings_ptr: 0,
            mappings_count: 0,
            log_level: 0,
            flags: 0,
            generation: 0,
            scratch_ptr: 0,
            scratch_len_bytes: 0,
            scratch_gpa: 0,
            outbox_ptr: 0,
            outbox_len_bytes: 0,
        }
    }

    /// Whether a guest of this version can start from this block.
    ///
    /// # Errors
    /// Names the first field that is wrong.
    pub fn check(&self) -> Result<(), PebError> {
        if self.magic != PEB_MAGIC {
            return Err(PebError::Magic(self.magic));
        }
        if self.abi_version != ABI_VERSION {
            return Err(PebError::Version(self.abi_version));
        }
        if (self.size_bytes as usize) < Self::LEN_BYTES {
            return Err(PebError::Size(self.size_bytes));
        }
        let min = crate::message::MIN_BUFFER_LEN_BYTES as u64;
        for (name, start, len_bytes) in [
            ("input", self.input_ptr, self.input_len_bytes),
            ("output", self.output_ptr, self.output_len_bytes),
            ("outbox", self.outbox_ptr, self.outbox_len_bytes),
        ] {
            check_range(name, start, len_bytes, 8)?;
            if len_bytes < min {
                return Err(PebError::BufferTooSmall { name, len_bytes });
            }
        }
        check_range("heap", self.heap_ptr, self.heap_len_bytes, 16)?;
        check_range("init data", self.init_data_ptr, self.init_data_len_bytes, 1)
    }
}

fn check_range(name: &'static str, start: u64, len_bytes: u64, align: u64) -> Result<(), PebError> {
    if start.checked_add(len_bytes).is_none() || !start.is_multiple_of(align) {
        return Err(PebError::Range {
            name,
            start,
            len_bytes,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Peb {
        Peb {
            input_ptr: 0x70_0000_1000,
            input_len_bytes: 0x4000,
            output_ptr: 0x70_0000_5000,
            output_len_bytes: 0x4000,
            heap_ptr: 0x40_0000_0000,
            heap_len_bytes: 0x10_0000,
            outbox_ptr: 0x70_0000_9000,
            outbox_len_bytes: 0x2000,
            ..Peb::empty()
        }
    }

    #[test]
    fn a_sound_block_is_accepted() {
        assert_eq!(sound().check(), Ok(()));
        assert_eq!(
            Peb {
                size_bytes: 4096,
                ..sound()
            }
            .check(),
            Ok(()),
            "later versions may append fields"
        );
    }

    #[test]
    fn each_defect_has_its_error() {
        let cases = [
            (
                Peb {
                    magic: 1,
                    ..sound()
                },
                PebError::Magic(1),
            ),
            (
                Peb {
                    abi_version: 1,
                    ..sound()
                },
                PebError::Version(1),
            ),
            (
                Peb {
                    size_bytes: 175,
                    ..sound()
                },
                PebError::Size(175),
            ),
            (
                Peb {
                    input_ptr: 4,
                    ..sound()
                },
                PebError::Range {
                    name: "input",
                    start: 4,
                    len_bytes: 0x4000,
                },
            ),
            (
                Peb {
                    output_len_bytes: 100,
                    ..sound()
                },
                PebError::BufferTooSmall {
                    name: "output",
                    len_bytes: 100,
                },
            ),
            (
                Peb {
                    outbox_len_bytes: 0,
                    ..sound()
                },
                PebError::BufferTooSmall {
                    name: "outbox",
                    len_bytes: 0,
                },
            ),
            (
                Peb {
                    heap_len_bytes: u64::MAX,
                    ..sound()
                },
                PebError::Range {
                    name: "heap",
                    start: 0x40_0000_0000,
                    len_bytes: u64::MAX,
                },
            ),
        ];
        for (peb, expected) in cases {
            assert_eq!(peb.check(), Err(expected));
        }
    }
}

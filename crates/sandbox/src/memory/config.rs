//! What an embedder chooses about a sandbox's memory and devices.

use std::sync::Arc;

use vellum_abi::outbox::MAX_OUTBOX_LEN_BYTES;
use vellum_backend::{IRQCHIP_HOLES, Irqchip};
use vellum_layout::{GpaRange, Hole, PAGE_SIZE, Reserved};

use super::SpaceError;

/// Sizes that an embedder may choose.
#[expect(clippy::struct_field_names, reason = "each name ends with its unit")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Sizes {
    pub(crate) heap_len_bytes: u64,
    pub(crate) stack_len_bytes: u64,
    pub(crate) input_len_bytes: u64,
    pub(crate) output_len_bytes: u64,
    pub(crate) outbox_len_bytes: u64,
    /// `None`: as much as the guest can dirty.
    pub(crate) scratch_len_bytes: Option<u64>,
}

impl Sizes {
    /// That each is a positive number of pages.
    pub(crate) fn check(&self) -> Result<(), SpaceError> {
        let all = [
            ("heap", Some(self.heap_len_bytes)),
            ("stack", Some(self.stack_len_bytes)),
            ("input buffer", Some(self.input_len_bytes)),
            ("output buffer", Some(self.output_len_bytes)),
            ("outbox", Some(self.outbox_len_bytes)),
            ("scratch", self.scratch_len_bytes),
        ];
        for (what, len_bytes) in all {
            if let Some(len_bytes) = len_bytes
                && (len_bytes == 0 || !len_bytes.is_multiple_of(PAGE_SIZE))
            {
                return Err(SpaceError::Unaligned { what, len_bytes });
            }
        }
        if self.outbox_len_bytes > MAX_OUTBOX_LEN_BYTES as u64 {
            return Err(SpaceError::OutboxTooLarge {
                len_bytes: self.outbox_len_bytes,
            });
        }
        Ok(())
    }

    /// The output buffer, and behind it the outbox.
    pub(crate) fn outgoing_len_bytes(&self) -> u64 {
        self.output_len_bytes.saturating_add(self.outbox_len_bytes)
    }
}

/// What a guest does with a log record or metric for which its outbox has no room left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OutboxOverflow {
    /// It leaves, once, to have the outbox emptied: nothing is lost.
    #[default]
    Drain,
    /// It drops the record and counts it: no log record or metric ever costs an exit. One-way calls are not dropped.
    Drop,
}

/// Everything that decides where the memories of a sandbox lie, and what its guest was told at its start. Snapshots fit sandboxes of an equal configuration.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) sizes: Sizes,
    /// Guests read it once, when they start.
    pub(crate) outbox_overflow: OutboxOverflow,
    pub(crate) irqchip: Irqchip,
    /// Ranges that the guest keeps for itself.
    pub(crate) reserved: Arc<[Reserved]>,
}

impl PartialEq for Config {
    /// The names of reserved ranges are for error messages: no memory lies elsewhere because of them.
    fn eq(&self, other: &Self) -> bool {
        let ranges = |config: &Self| -> Vec<GpaRange> {
            config.reserved.iter().map(|it| it.range).collect()
        };
        self.sizes == other.sizes
            && self.outbox_overflow == other.outbox_overflow
            && self.irqchip == other.irqchip
            && ranges(self) == ranges(other)
    }
}

impl Eq for Config {}

impl Config {
    /// Sizes that suit most guests, no interrupt controllers, nothing reserved.
    pub(crate) fn new() -> Self {
        Self {
            sizes: Sizes {
                heap_len_bytes: 64 << 20,
                stack_len_bytes: 1 << 20,
                input_len_bytes: 16 << 10,
                output_len_bytes: 16 << 10,
                outbox_len_bytes: 8 << 10,
                scratch_len_bytes: None,
            },
            outbox_overflow: OutboxOverflow::Drain,
            irqchip: Irqchip::None,
            reserved: Arc::default(),
        }
    }

    /// Where the hypervisor allows no memory.
    pub(crate) fn holes(&self) -> &'static [Hole] {
        match self.irqchip {
            Irqchip::None => &[],
            Irqchip::InKernel => &IRQCHIP_HOLES,
        }
    }
}

//! What the configuration blob of a snapshot says: everything but the pages.
//!
//! JSON, so that any tool can look into it. Numbers are plain; addresses and registers use all 64 bits. What can be derived (areas, page
//! tables, the plan of a user guest) is not stored; what is derived and must be equal everywhere is stored to be compared.

use serde::{Deserialize, Serialize};
use vellum_layout::{GpaRange, GvaRange};

use super::hex;
use super::registers::StateRecord;

/// The version of this format.
pub(super) const VERSION: u32 = 2;

/// What is read first, and of whatever version.
#[derive(Deserialize)]
pub(super) struct VersionRecord {
    pub(super) version: u32,
}

/// A snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SnapshotRecord {
    pub(super) version: u32,
    pub(super) generation: u64,
    pub(super) cpu_profile: String,
    pub(super) image: ImageRecord,
    pub(super) sizes: SizesRecord,
    /// Whether the guest drops what its outbox has no room for.
    pub(super) outbox_drops: bool,
    /// First address and length of each range that the guest keeps for itself. Their names serve error messages only.
    pub(super) reserved: Vec<(u64, u64)>,
    pub(super) view: ViewRecord,
    /// Oldest first.
    pub(super) layers: Vec<LayerRecord>,
    pub(super) space: SpaceRecord,
    pub(super) suspended: Option<SuspendedRecord>,
    pub(super) state: StateRecord,
}

/// A guest image. Its bytes, as JSON, are what identifies an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImageRecord {
    pub(super) kind: String,
    pub(super) entry: u64,
    /// One behind the other in the layer.
    pub(super) segments: Vec<SegmentRecord>,
    pub(super) exports: Vec<FunctionRecord>,
    pub(super) imports: Vec<FunctionRecord>,
    pub(super) layer: LayerRecord,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SegmentRecord {
    pub(super) start: u64,
    pub(super) len_bytes: u64,
    pub(super) writable: bool,
    pub(super) executable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FunctionRecord {
    pub(super) name: String,
    pub(super) params: Vec<String>,
    pub(super) returns: String,
    pub(super) one_way: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LayerRecord {
    pub(super) digest: String,
    pub(super) pages: u64,
}

#[expect(clippy::struct_field_names, reason = "each name ends with its unit")]
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SizesRecord {
    pub(super) heap_len_bytes: u64,
    pub(super) stack_len_bytes: u64,
    pub(super) input_len_bytes: u64,
    pub(super) output_len_bytes: u64,
    pub(super) outbox_len_bytes: u64,
    pub(super) scratch_len_bytes: Option<u64>,
}

/// A range: its first address and its length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RangeRecord(pub(super) u64, pub(super) u64);

impl From<GvaRange> for RangeRecord {
    fn from(range: GvaRange) -> Self {
        Self(range.start().as_u64(), range.len_bytes())
    }
}

impl From<GpaRange> for RangeRecord {
    fn from(range: GpaRange) -> Self {
        Self(range.start().as_u64(), range.len_bytes())
    }
}

/// The addresses that the guest was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ViewRecord {
    pub(super) peb: RangeRecord,
    pub(super) input: RangeRecord,
    pub(super) output: RangeRecord,
    pub(super) outbox: RangeRecord,
    pub(super) heap: RangeRecord,
    pub(super) stack: RangeRecord,
    pub(super) scratch: Option<RangeRecord>,
}

/// Which pages of the layers lie where. An extent is an address, the first page over all layers, and a number of pages.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub(super) enum SpaceRecord {
    /// Guest-virtual addresses.
    User { extents: Vec<(u64, u64, u64)> },
    /// Guest-physical addresses.
    Kernel {
        copy_on_write: String,
        /// Each region of the plan by its name.
        plan: Vec<(String, RangeRecord)>,
        extents: Vec<(u64, u64, u64)>,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SuspendedRecord {
    /// The exported function that was called; none in the guest's initialisation.
    pub(super) function: Option<u32>,
    #[serde(with = "hex::bytes")]
    pub(super) input: Vec<u8>,
}

//! The geometry of a sandbox: how large its memories are and what lies where in them.

use vellum_layout::{
    GpaRange, GuestKind, GvaRange, LayoutError, MemoryPlan, PAGE_SIZE, PlanError, RangeError,
};

use super::kernel::KernelParts;
use super::user::UserParts;
use super::{Area, Config, FixedFrame, Sizes};
use crate::engine::CowMode;
use crate::image::Segment;

/// Why sizes make no guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpaceError {
    #[error("memory plan refused")]
    Plan(#[from] PlanError),
    #[error("memory layout refused")]
    Layout(#[from] LayoutError),
    #[error("range refused")]
    Range(#[from] RangeError),
    #[error("{what} of {len_bytes:#x} bytes is not a positive multiple of 4096")]
    Unaligned { what: &'static str, len_bytes: u64 },
    #[error("{what} {range} overlaps the {other} {other_range} in the guest's address space")]
    Overlap {
        what: &'static str,
        range: GvaRange,
        other: &'static str,
        other_range: GvaRange,
    },
    #[error("{what} {range} lies beyond the guest's 32-bit address space")]
    BeyondReach { what: &'static str, range: GvaRange },
    #[error(
        "outbox of {len_bytes:#x} bytes is larger than {max:#x} bytes",
        max = vellum_abi::outbox::MAX_OUTBOX_LEN_BYTES
    )]
    OutboxTooLarge { len_bytes: u64 },
    #[error("memories of these sizes exceed the address space")]
    Overflow,
    #[error("guests of kind {0} have no such part")]
    Kind(GuestKind),
}

/// Everything about a sandbox's memories that never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Who copies pages of the image.
    pub(crate) cow: CowMode,
    pub(crate) plan: MemoryPlan,
    pub(crate) view: GuestView,
    pub(crate) parts: Parts,
}

/// Where the guest finds its PEB, buffers, heap and stack: addresses of its own translation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GuestView {
    pub(crate) peb: GvaRange,
    pub(crate) input: GvaRange,
    pub(crate) output: GvaRange,
    /// What it says without leaving; behind the output buffer, in the same region of the plan.
    pub(crate) outbox: GvaRange,
    pub(crate) heap: GvaRange,
    pub(crate) stack: GvaRange,
    /// All of scratch; only kernels see it.
    pub(crate) scratch: Option<GvaRange>,
}

/// What only one family of guests has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Parts {
    User(UserParts),
    Kernel(KernelParts),
}

impl GuestView {
    /// Splits the region that the guest writes to its host into output buffer and outbox.
    pub(super) fn split_outgoing(
        outgoing: GvaRange,
        sizes: &Sizes,
    ) -> Result<[GvaRange; 2], SpaceError> {
        let output = outgoing.part(0, sizes.output_len_bytes);
        let outbox = outgoing.part(sizes.output_len_bytes, sizes.outbox_len_bytes);
        match (output, outbox) {
            (Some(output), Some(outbox)) => Ok([output, outbox]),
            _ => Err(SpaceError::Overflow),
        }
    }
}

impl Geometry {
    /// Where the outbox lies.
    pub(crate) fn outbox(&self) -> Result<GpaRange, SpaceError> {
        let (output, outbox) = (self.view.output, self.view.outbox);
        self.plan
            .output()
            .part(output.len_bytes(), outbox.len_bytes())
            .ok_or(SpaceError::Overflow)
    }

    /// Plans a user guest with the given areas, heap and stack among them, whose snapshot has `layer_pages` pages in all.
    pub(crate) fn for_user(
        config: &Config,
        cow: CowMode,
        areas: &[Area],
        layer_pages: u64,
    ) -> Result<Self, SpaceError> {
        super::user::geometry(config, cow, areas, layer_pages)
    }

    /// Plans a guest that brings its own kernel, of these segments.
    pub(crate) fn for_kernel(
        kind: GuestKind,
        config: &Config,
        cow: CowMode,
        segments: &[Segment],
    ) -> Result<Self, SpaceError> {
        match kind {
            GuestKind::I686Identity => super::kernel::identity(config, segments),
            GuestKind::I686Paged | GuestKind::Amd64Kernel => {
                super::kernel::paged(kind, config, cow, segments)
            }
            GuestKind::Amd64User => Err(SpaceError::Kind(kind)),
        }
    }

    /// The parts of a user guest.
    pub(crate) fn user(&self) -> Result<&UserParts, SpaceError> {
        match &self.parts {
            Parts::User(user) => Ok(user),
            Parts::Kernel(_) => Err(SpaceError::Kind(self.plan.kind())),
        }
    }

    /// The parts of a kernel guest.
    pub(crate) fn kernel(&self) -> Result<&KernelParts, SpaceError> {
        match &self.parts {
            Parts::Kernel(kernel) => Ok(kernel),
            Parts::User(_) => Err(SpaceError::Kind(self.plan.kind())),
        }
    }

    /// Whether the layers of a snapshot fit the image slot.
    pub(crate) fn holds_layers_of(&self, pages: u64) -> bool {
        match &self.parts {
            Parts::User(user) => pages <= user.layer_pages,
            Parts::Kernel(_) => true,
        }
    }

    /// The page of the PEB, the first of the frames.
    pub(crate) fn peb_frame(&self) -> Result<GpaRange, SpaceError> {
        const FIRST: u64 = FixedFrame::Peb as u64;
        self.plan
            .frames()
            .part(FIRST * PAGE_SIZE, PAGE_SIZE)
            .ok_or(SpaceError::Overflow)
    }
}

//! From a snapshot to its record.

use std::io;

use vellum_abi::function::Signature;
use vellum_layout::MemoryPlan;
use vellum_vmem::Attrs;

use super::digest::Digest;
use super::layer_blob;
use super::record::{
    FunctionRecord, ImageRecord, LayerRecord, RangeRecord, SegmentRecord, SizesRecord,
    SnapshotRecord, SpaceRecord, SuspendedRecord, VERSION, ViewRecord,
};
use super::registers::StateRecord;
use crate::call::Phase;
use crate::engine::CowMode;
use crate::image::{Function, GuestImage};
use crate::memory::{Extents, Geometry, GuestView, Layer, OutboxOverflow, PageAddress, SpaceError};
use crate::snapshot::{SnapshotData, Space};

/// What identifies an image: its functions, segments and bytes.
pub(crate) fn image_identity(image: &GuestImage) -> io::Result<Digest> {
    let bytes = serde_json::to_vec(&image_record(image)?)?;
    Ok(Digest::of(&bytes))
}

/// Everything about a snapshot but its pages.
pub(super) fn record(snapshot: &SnapshotData) -> io::Result<SnapshotRecord> {
    let sizes = &snapshot.config.sizes;
    let layers = snapshot.layers.iter();
    let reserved = snapshot.config.reserved.iter();
    let mut state = snapshot.state.clone();
    if let Space::User(_) = &snapshot.space {
        // Where a sandbox had its tables.
        state.special.cr3 = 0;
    }
    Ok(SnapshotRecord {
        version: VERSION,
        generation: snapshot.generation,
        cpu_profile: snapshot.profile.name().to_owned(),
        image: image_record(&snapshot.image)?,
        sizes: SizesRecord {
            heap_len_bytes: sizes.heap_len_bytes,
            stack_len_bytes: sizes.stack_len_bytes,
            input_len_bytes: sizes.input_len_bytes,
            output_len_bytes: sizes.output_len_bytes,
            outbox_len_bytes: sizes.outbox_len_bytes,
            scratch_len_bytes: sizes.scratch_len_bytes,
        },
        outbox_drops: snapshot.config.outbox_overflow == OutboxOverflow::Drop,
        reserved: reserved
            .map(|it| (it.range.start().as_u64(), it.range.len_bytes()))
            .collect(),
        view: view_record(&view_of(snapshot).map_err(io::Error::other)?),
        layers: layers
            .map(|(_, layer)| layer_record(layer))
            .collect::<io::Result<_>>()?,
        space: space_record(&snapshot.space),
        suspended: snapshot.suspended.as_ref().map(|it| SuspendedRecord {
            function: match it.phase {
                Phase::Booting => None,
                Phase::Calling { function } => Some(function),
            },
            input: it.input.clone(),
        }),
        state: StateRecord(state),
    })
}

/// The addresses that the guest was told. A user guest is told the same in both modes of copy-on-write.
pub(super) fn view_of(snapshot: &SnapshotData) -> Result<GuestView, SpaceError> {
    match &snapshot.space {
        Space::Kernel { geometry, .. } => Ok(geometry.view.clone()),
        Space::User(space) => {
            let pages = snapshot.layers.pages();
            let areas = space.areas();
            Geometry::for_user(&snapshot.config, CowMode::HostSide, areas, pages)
                .map(|geometry| geometry.view)
        }
    }
}

pub(super) fn view_record(view: &GuestView) -> ViewRecord {
    ViewRecord {
        peb: view.peb.into(),
        input: view.input.into(),
        output: view.output.into(),
        outbox: view.outbox.into(),
        heap: view.heap.into(),
        stack: view.stack.into(),
        scratch: view.scratch.map(RangeRecord::from),
    }
}

pub(super) fn plan_record(plan: &MemoryPlan) -> Vec<(String, RangeRecord)> {
    plan.regions()
        .map(|(name, range)| (name.as_str().to_owned(), range.into()))
        .collect()
}

fn image_record(image: &GuestImage) -> io::Result<ImageRecord> {
    let layers = image.layers();
    let (_, layer) = layers.iter().next().ok_or(io::ErrorKind::InvalidData)?;
    let segments = image.segments().iter().map(|segment| SegmentRecord {
        start: segment.range.start().as_u64(),
        len_bytes: segment.range.len_bytes(),
        writable: segment.rights.contains(Attrs::WRITE),
        executable: !segment.rights.contains(Attrs::NO_EXECUTE),
    });
    Ok(ImageRecord {
        kind: image.kind().to_string(),
        entry: image.entry().as_u64(),
        segments: segments.collect(),
        exports: image.exports().iter().map(function_record).collect(),
        imports: image.imports().iter().map(function_record).collect(),
        layer: layer_record(layer)?,
    })
}

fn function_record(function: &Function) -> FunctionRecord {
    let signature: &Signature = function.signature();
    FunctionRecord {
        name: function.name().to_owned(),
        params: signature
            .params()
            .iter()
            .map(|it| it.name().to_owned())
            .collect(),
        returns: signature.ret().name().to_owned(),
        one_way: signature.is_one_way(),
    }
}

fn layer_record(layer: &Layer) -> io::Result<LayerRecord> {
    Ok(LayerRecord {
        digest: layer_blob::id(layer)?.digest.to_string(),
        pages: layer.pages(),
    })
}

fn space_record(space: &Space) -> SpaceRecord {
    match space {
        Space::User(space) => SpaceRecord::User {
            extents: extent_records(space.extents()),
        },
        Space::Kernel { geometry, extents } => SpaceRecord::Kernel {
            copy_on_write: geometry.cow.to_string(),
            plan: plan_record(&geometry.plan),
            extents: extent_records(extents),
        },
    }
}

fn extent_records<A: PageAddress>(extents: &Extents<A>) -> Vec<(u64, u64, u64)> {
    let extents = extents.as_slice().iter();
    extents
        .map(|it| (it.at.number(), it.image_page, it.pages))
        .collect()
}

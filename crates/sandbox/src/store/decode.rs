//! From a record to a snapshot. Nothing in a record is believed: what can be derived is derived and compared, and every number is
//! checked against what it refers to.

use std::sync::{Arc, OnceLock};

use vellum_abi::function::Signature;
use vellum_abi::value::ValueType;
use vellum_backend::Irqchip;
use vellum_backend::cpuid::{CpuModel, CpuProfile};
use vellum_backend::state::{VcpuState, cr4};
use vellum_layout::{Gpa, GpaRange, GuestKind, Gva, GvaRange, MAX_RESERVED, PAGE_SIZE, Reserved};
use vellum_vmem::Attrs;

use super::digest::Digest;
use super::encode;
use super::error::Invalid;
use super::layer_blob::MAX_PAGES;
use super::record::{FunctionRecord, ImageRecord, LayerRecord, SnapshotRecord, SpaceRecord};
use super::registers;
use crate::call::Phase;
use crate::capture::{MAX_LAYERS, MAX_MAPPINGS};
use crate::engine::CowMode;
use crate::error::Failure;
use crate::image::{GuestImage, LoadedImage};
use crate::memory::{
    Backing, Config, Extent, Extents, Geometry, Layer, Layers, OutboxOverflow, PageAddress, Sizes,
    SpaceError, UserSpace,
};
use crate::snapshot::{SnapshotData, Space, Suspended, user_space, user_state};

/// The highest generation that is believed: so many snapshots cannot have been taken of each other.
const MAX_GENERATION: u64 = 1 << 62;
/// Layers of a snapshot and, perhaps apart from them, of its image.
pub(super) const MAX_STORED_LAYERS: usize = MAX_LAYERS + 1;
/// The name of reserved ranges that come from a store, in error messages.
const RESERVED_NAME: &str = "of a stored snapshot";

/// The layers that a record names: that of the image, and those of the snapshot.
#[derive(Debug)]
pub(super) struct LayerIds {
    pub(super) image: (Digest, u64),
    pub(super) snapshot: Vec<(Digest, u64)>,
}

impl LayerIds {
    /// Checks digests and sizes, before any layer is looked at.
    pub(super) fn of(record: &SnapshotRecord) -> Result<Self, Invalid> {
        if record.layers.is_empty() || record.layers.len() > MAX_LAYERS {
            let problem = format!("are {}, not 1 to {MAX_LAYERS}", record.layers.len());
            return Err(Invalid::field("layers", problem));
        }
        let ids = Self {
            image: layer_id(&record.image.layer)?,
            snapshot: record
                .layers
                .iter()
                .map(layer_id)
                .collect::<Result<_, _>>()?,
        };
        let pages: u64 = ids.snapshot.iter().map(|(_, pages)| pages).sum();
        if pages > MAX_PAGES {
            let problem = format!("have {pages} pages, more than {MAX_PAGES}");
            return Err(Invalid::field("layers", problem));
        }
        Ok(ids)
    }
}

fn layer_id(record: &LayerRecord) -> Result<(Digest, u64), Invalid> {
    let digest = Digest::parse(&record.digest)
        .ok_or_else(|| Invalid::field("layer.digest", "is no sha256 digest"))?;
    if record.pages == 0 || record.pages > MAX_PAGES {
        let problem = format!("is {}, not 1 to {MAX_PAGES}", record.pages);
        return Err(Invalid::field("layer.pages", problem));
    }
    Ok((digest, record.pages))
}

/// Makes a snapshot of a record and its layers, which have as many pages as the record says.
pub(super) fn snapshot(
    record: SnapshotRecord,
    image_layer: Arc<Layer>,
    layers: Vec<Arc<Layer>>,
) -> Result<SnapshotData, Invalid> {
    if record.generation == 0 || record.generation > MAX_GENERATION {
        let problem = format!("is {}, not 1 to {MAX_GENERATION}", record.generation);
        return Err(Invalid::field("generation", problem));
    }
    let profile = profile(&record.cpu_profile)?;
    let image = image(&record.image, image_layer)?;
    let config = config(&record)?;
    let layers = Layers::of(layers);
    let space = space(&record.space, &image, &config, &layers)?;
    let state = record.state.0;
    check_state(&state, &image, &config, profile)?;
    let suspended = match record.suspended {
        None => None,
        Some(it) => Some(suspended(it.function, it.input, &image, &config)?),
    };
    let snapshot = SnapshotData {
        image,
        config,
        profile,
        layers,
        space,
        state,
        generation: record.generation,
        suspended,
        template: OnceLock::new(),
    };
    if encode::view_record(&encode::view_of(&snapshot)?) != record.view {
        return Err(Invalid::field(
            "view",
            "is not where this version of vellum places buffers, heap and stack",
        ));
    }
    Ok(snapshot)
}

/// A value by its name.
fn named<T: Copy>(
    field: &'static str,
    all: &[T],
    name: impl Fn(T) -> String,
    found: &str,
) -> Result<T, Invalid> {
    let known = all.iter().copied().find(|&it| name(it) == found);
    known.ok_or_else(|| Invalid::Version {
        field,
        found: format!("{:?}", found.chars().take(64).collect::<String>()),
        known: all
            .iter()
            .map(|&it| name(it))
            .collect::<Vec<_>>()
            .join(", "),
    })
}

fn profile(name: &str) -> Result<CpuProfile, Invalid> {
    const NAMED: [CpuProfile; 3] = [CpuProfile::V1, CpuProfile::V2, CpuProfile::V3];
    named("cpu_profile", &NAMED, |it| it.name().to_owned(), name)
}

fn value_type(name: &str) -> Result<ValueType, Invalid> {
    let all = &ValueType::ALL;
    named("image.exports", all, |it| it.name().to_owned(), name)
}

fn function(record: &FunctionRecord) -> Result<(String, Signature), Invalid> {
    let params = record.params.iter().map(|it| value_type(it));
    let params = params.collect::<Result<Vec<_>, _>>()?;
    let returns = value_type(&record.returns)?;
    let signature = match (record.one_way, returns) {
        (false, _) => Signature::new(&params, returns),
        (true, ValueType::Unit) => Signature::one_way(&params),
        (true, _) => {
            let problem = "have a one-way function that returns something";
            return Err(Invalid::field("image.imports", problem));
        }
    };
    let signature = signature
        .ok_or_else(|| Invalid::field("image.exports", "have one with too many parameters"))?;
    Ok((record.name.clone(), signature))
}

fn image(record: &ImageRecord, layer: Arc<Layer>) -> Result<GuestImage, Invalid> {
    let kind = named(
        "image.kind",
        &GuestKind::ALL,
        |it| it.to_string(),
        &record.kind,
    )?;
    let segments = record.segments.iter().map(|segment| {
        let start = Gva::new(segment.start).ok();
        let range = start.and_then(|start| GvaRange::new(start, segment.len_bytes).ok());
        let range = range.filter(|range| range.pages() > 0);
        let range = range.ok_or_else(|| Invalid::field("image.segments", "have no valid range"))?;
        let mut rights = Attrs::empty();
        rights.set(Attrs::WRITE, segment.writable);
        rights.set(Attrs::NO_EXECUTE, !segment.executable);
        Ok((range, rights))
    });
    let segments = segments.collect::<Result<Vec<_>, Invalid>>()?;
    let pages = segments
        .iter()
        .try_fold(0_u64, |sum, (range, _)| sum.checked_add(range.pages()));
    if pages != Some(layer.pages()) {
        return Err(Invalid::field(
            "image.layer.pages",
            "is not the sum of the segments' pages",
        ));
    }
    let functions =
        |records: &[FunctionRecord]| records.iter().map(function).collect::<Result<Vec<_>, _>>();
    let loaded = LoadedImage {
        kind,
        entry: record.entry,
        segments,
        exports: functions(&record.exports)?,
        imports: functions(&record.imports)?,
    };
    Ok(GuestImage::from_loaded(loaded, layer)?)
}

fn config(record: &SnapshotRecord) -> Result<Config, Invalid> {
    let sizes = &record.sizes;
    if record.reserved.len() > MAX_RESERVED {
        let problem = format!("are {}, more than {MAX_RESERVED}", record.reserved.len());
        return Err(Invalid::field("reserved", problem));
    }
    let reserved = record.reserved.iter().map(|&(start, len_bytes)| {
        let range = Gpa::new(start)
            .ok()
            .and_then(|start| GpaRange::new(start, len_bytes).ok());
        let range = range.ok_or_else(|| Invalid::field("reserved", "have no valid range"))?;
        Ok(Reserved {
            name: RESERVED_NAME,
            range,
        })
    });
    let config = Config {
        sizes: Sizes {
            heap_len_bytes: sizes.heap_len_bytes,
            stack_len_bytes: sizes.stack_len_bytes,
            input_len_bytes: sizes.input_len_bytes,
            output_len_bytes: sizes.output_len_bytes,
            outbox_len_bytes: sizes.outbox_len_bytes,
            scratch_len_bytes: sizes.scratch_len_bytes,
        },
        outbox_overflow: if record.outbox_drops {
            OutboxOverflow::Drop
        } else {
            OutboxOverflow::Drain
        },
        irqchip: Irqchip::None,
        reserved: reserved.collect::<Result<_, Invalid>>()?,
    };
    config.sizes.check()?;
    Ok(config)
}

fn space(
    record: &SpaceRecord,
    image: &GuestImage,
    config: &Config,
    layers: &Layers,
) -> Result<Space, Invalid> {
    let kind = image.kind();
    match (record, kind) {
        (SpaceRecord::User { extents }, GuestKind::Amd64User) => {
            let boot = user_space(image, config).map_err(of_failure)?;
            let address = |number| Gva::new(number).ok();
            let extents = checked_extents(extents, layers, address)?;
            check_user_extents(&boot, &extents)?;
            Ok(Space::User(boot.with_extents(extents)))
        }
        (SpaceRecord::Kernel { .. }, GuestKind::Amd64User) | (SpaceRecord::User { .. }, _) => {
            let problem = format!("is not that of a guest of kind {kind}");
            Err(Invalid::field("space", problem))
        }
        (
            SpaceRecord::Kernel {
                copy_on_write,
                plan,
                extents,
            },
            _,
        ) => {
            let modes = [CowMode::GuestSide, CowMode::HostSide];
            let field = "space.copy_on_write";
            let cow = named(field, &modes, |it| it.to_string(), copy_on_write)?;
            let geometry = Geometry::for_kernel(kind, config, cow, image.segments())?;
            if geometry.cow != cow || encode::plan_record(&geometry.plan) != *plan {
                return Err(Invalid::field(
                    "space.plan",
                    "is not how this version of vellum places the memories of such a guest",
                ));
            }
            let extents = checked_extents(extents, layers, |number| Gpa::new(number).ok())?;
            check_kernel_extents(&geometry, &extents)?;
            Ok(Space::Kernel {
                geometry: Arc::new(geometry),
                extents,
            })
        }
    }
}

/// What a failure of the functions that make a boot state says about the sizes.
fn of_failure(failure: Failure) -> Invalid {
    match failure {
        Failure::Space(error) => Invalid::Space(error),
        other => Invalid::field("sizes", other.to_string()),
    }
}

/// Extents that are sorted and disjoint, of whole pages, each inside of one layer, and no page of a layer in two of them.
fn checked_extents<A: PageAddress>(
    records: &[(u64, u64, u64)],
    layers: &Layers,
    address: impl Fn(u64) -> Option<A>,
) -> Result<Extents<A>, Invalid> {
    let mut extents = Vec::with_capacity(records.len());
    let mut free = 0;
    for &(number, image_page, pages) in records {
        let wrong = |problem: &str| {
            let problem =
                format!("have one of {pages} pages at {number:#x}, page {image_page}, {problem}");
            Invalid::field("space.extents", problem)
        };
        let at = address(number).filter(|_| number.is_multiple_of(PAGE_SIZE));
        let at = at.ok_or_else(|| wrong("which is not the address of a page"))?;
        let end = pages
            .checked_mul(PAGE_SIZE)
            .and_then(|len_bytes| number.checked_add(len_bytes));
        let end = end.ok_or_else(|| wrong("which is too long"))?;
        if number < free {
            return Err(wrong("which overlaps another or is out of order"));
        }
        if pages == 0 || layers.find(image_page, pages).is_none() {
            return Err(wrong("which no layer has"));
        }
        free = end;
        extents.push(Extent {
            at,
            image_page,
            pages,
        });
    }
    let mut pages: Vec<(u64, u64)> = extents.iter().map(|it| (it.image_page, it.pages)).collect();
    pages.sort_unstable();
    match pages
        .windows(2)
        .find(|pair| pair[0].0 + pair[0].1 > pair[1].0)
    {
        None => Ok(Extents::new(extents)),
        Some(pair) => {
            let problem = format!("have page {} of the layers twice", pair[1].0);
            Err(Invalid::field("space.extents", problem))
        }
    }
}

/// That each extent lies in one area, and that extents cover the areas that have nothing else.
fn check_user_extents(space: &UserSpace, extents: &Extents<Gva>) -> Result<(), Invalid> {
    let mut in_areas = 0;
    for area in space.areas() {
        let slice = extents.as_slice();
        let first = slice.partition_point(|extent| extent.at < area.range.start());
        let inside = slice[first..]
            .iter()
            .take_while(|extent| extent.at < area.range.end());
        let mut pages = 0;
        for extent in inside {
            let range = GvaRange::new(extent.at, extent.len_bytes()).map_err(SpaceError::from)?;
            if !area.range.contains_range(&range) {
                let problem = format!("have {range}, which leaves its area {}", area.range);
                return Err(Invalid::field("space.extents", problem));
            }
            pages += extent.pages;
            in_areas += 1;
        }
        if area.backing == Backing::Image && pages != area.range.pages() {
            let problem = format!("do not cover the segment {}", area.range);
            return Err(Invalid::field("space.extents", problem));
        }
    }
    if in_areas == extents.as_slice().len() {
        return Ok(());
    }
    Err(Invalid::field("space.extents", "lie outside of every area"))
}

/// That extents are few, and begin and end in the guest's memories. (One may bridge what lies between the two.)
fn check_kernel_extents(geometry: &Geometry, extents: &Extents<Gpa>) -> Result<(), Invalid> {
    let extents = extents.as_slice();
    if extents.len() > MAX_MAPPINGS {
        let problem = format!("are {}, more than {MAX_MAPPINGS}", extents.len());
        return Err(Invalid::field("space.extents", problem));
    }
    let memories = [geometry.plan.image(), geometry.plan.scratch()];
    let is_backed = |gpa: Gpa| memories.iter().any(|memory| memory.contains(gpa));
    for extent in extents {
        let range = GpaRange::new(extent.at, extent.len_bytes()).map_err(SpaceError::from)?;
        if !is_backed(range.start()) || !is_backed(range.last()) {
            let problem = format!("have {range}, which no memory of the guest has");
            return Err(Invalid::field("space.extents", problem));
        }
    }
    Ok(())
}

fn check_state(
    state: &VcpuState,
    image: &GuestImage,
    config: &Config,
    profile: CpuProfile,
) -> Result<(), Invalid> {
    if image.kind() != GuestKind::Amd64User {
        return registers::check_kernel(state, image.kind());
    }
    // What the processor of the snapshot had; whether this one has it, is asked when a sandbox is made.
    let model = CpuModel {
        profile,
        leaves: Vec::new(),
        xcr0: state.xcr0,
        cr4_features: state.special.cr4 & cr4::SUPERVISOR_PROTECTION,
    };
    let boot = user_state(image, config, &model).map_err(of_failure)?;
    registers::check_user(state, &boot)
}

fn suspended(
    function: Option<u32>,
    input: Vec<u8>,
    image: &GuestImage,
    config: &Config,
) -> Result<Suspended, Invalid> {
    if input.len() as u64 > config.sizes.input_len_bytes {
        let problem = format!("has {:#x} bytes, more than the buffer", input.len());
        return Err(Invalid::field("suspended.input", problem));
    }
    let phase = match function {
        None => Phase::Booting,
        Some(function) => {
            let known = usize::try_from(function).is_ok_and(|it| it < image.exports().len());
            if !known {
                let problem = format!("is {function}, which the guest does not export");
                return Err(Invalid::field("suspended.function", problem));
            }
            Phase::Calling { function }
        }
    };
    Ok(Suspended { phase, input })
}

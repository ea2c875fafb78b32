//! Snapshots: an immutable state of a sandbox, shared by every sandbox that is made from it.

use std::fmt;
use std::sync::{Arc, OnceLock};

use vellum_backend::boot::{self, EntryPoint};
use vellum_backend::cpuid::{CpuModel, CpuProfile};
use vellum_backend::hyperv::validate_for_hyperv;
use vellum_backend::{VcpuState, VmError};
use vellum_layout::amd64::user;
use vellum_layout::{Gpa, GuestKind, Gva, PAGE_SIZE};

use crate::engine::CowMode;
use crate::error::Failure;
use crate::image::GuestImage;
use crate::instance::{ChangedPage, Instance};
use crate::machine::{SharedTables, amd64_machine};
use crate::memory::{
    Area, Backing, Extent, Extents, Geometry, Layer, Layers, PAGE_LEN_BYTES, Sizes, SpaceError,
    identity,
};
use vellum_vmem::Attrs;

/// Layers beyond which a snapshot is copied into one.
const MAX_LAYERS: usize = 16;

/// An immutable state of a sandbox: memory and registers. Cheap to clone; sandboxes that are made from it share its pages.
#[derive(Clone)]
pub struct Snapshot {
    pub(crate) data: Arc<SnapshotData>,
}

impl Snapshot {
    /// How many snapshots lie between this one and the guest's image.
    pub fn generation(&self) -> u64 {
        self.data.generation
    }

    /// The image that the guest was loaded from.
    pub fn image(&self) -> &GuestImage {
        &self.data.image
    }

    /// Bytes of memory that this snapshot and those below it hold, shared by all sandboxes of it.
    pub fn len_bytes(&self) -> u64 {
        self.data.layers.pages() * PAGE_SIZE
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("generation", &self.data.generation)
            .field("len_bytes", &self.len_bytes())
            .finish_non_exhaustive()
    }
}

/// What a snapshot is made of. The state before the first instruction of a guest is one, too.
#[derive(Debug)]
pub(crate) struct SnapshotData {
    pub(crate) image: GuestImage,
    pub(crate) sizes: Sizes,
    /// The CPU that the guest has seen.
    pub(crate) profile: CpuProfile,
    pub(crate) layers: Layers,
    pub(crate) space: Extents,
    pub(crate) state: VcpuState,
    pub(crate) generation: u64,
    /// Tables for the sandboxes that are made from this snapshot, once the first one was.
    pub(crate) tables: OnceLock<SharedTables>,
}

impl SnapshotData {
    /// The state in which a guest boots.
    pub(crate) fn boot(
        image: &GuestImage,
        sizes: Sizes,
        model: &CpuModel,
    ) -> Result<Self, Failure> {
        let (space, state) = match image.kind() {
            GuestKind::Amd64User => (user_space(image, sizes)?, user_state(image, sizes, model)?),
            GuestKind::I686Identity => identity_boot(image, sizes)?,
            other => return Err(SpaceError::Kind(other).into()),
        };
        Ok(Self {
            image: image.clone(),
            sizes,
            profile: model.profile,
            layers: image.layers().clone(),
            space,
            state,
            generation: 0,
            tables: OnceLock::new(),
        })
    }
}

fn user_state(image: &GuestImage, sizes: Sizes, model: &CpuModel) -> Result<VcpuState, Failure> {
    let stack = user::stack(sizes.stack_len_bytes).map_err(|error| Failure::Space(error.into()))?;
    let start = EntryPoint {
        entry: image.entry(),
        stack_top: stack.end(),
        peb: user::IO_BASE,
    };
    // CR3 is filled in when the state is loaded: each sandbox has its root where its scratch begins.
    let machine = amd64_machine(Gpa::literal(0), model);
    Ok(boot::amd64_user(&machine, &start))
}

/// One area over everything, with the segments in it, and a vCPU without paging.
fn identity_boot(image: &GuestImage, sizes: Sizes) -> Result<(Extents, VcpuState), Failure> {
    let image_end = image
        .segments()
        .iter()
        .map(|segment| segment.range.end())
        .max();
    let image_end = image_end.ok_or(SpaceError::Overflow)?;
    let (_, stack) = identity::heap_and_stack(image_end, &sizes)?;
    let area = Area {
        range: identity::whole_range(stack.end())?,
        rights: Attrs::WRITE,
        backing: Backing::Zero { first_page: 0 },
    };
    let space = Extents::new(vec![area], segment_extents(image));
    let geometry = Geometry::for_guest(image.kind(), sizes, CowMode::HostSide, space.areas(), 0)?;
    let physical = |gva| identity::physical_of(gva).ok_or(SpaceError::Overflow);
    let state = boot::i686_identity(
        physical(image.entry())?,
        physical(stack.end())?,
        physical(geometry.view.peb.start())?,
    );
    Ok((space, state))
}

fn segment_extents(image: &GuestImage) -> Vec<Extent> {
    let segments = image.segments().iter();
    segments
        .map(|segment| Extent {
            gva: segment.range.start(),
            image_page: segment.first_page,
            pages: segment.pages(),
        })
        .collect()
}

/// Segments from the image, heap and stack from zeroes.
fn user_space(image: &GuestImage, sizes: Sizes) -> Result<Extents, Failure> {
    let heap = user::heap(sizes.heap_len_bytes).map_err(|error| Failure::Space(error.into()))?;
    let stack = user::stack(sizes.stack_len_bytes).map_err(|error| Failure::Space(error.into()))?;
    let data = Attrs::WRITE | Attrs::NO_EXECUTE;
    let mut areas = vec![
        Area {
            range: heap,
            rights: data,
            backing: Backing::Zero { first_page: 0 },
        },
        Area {
            range: stack,
            rights: data,
            backing: Backing::Zero {
                first_page: heap.pages(),
            },
        },
    ];
    areas.extend(image.segments().iter().map(|segment| Area {
        range: segment.range,
        rights: segment.rights,
        backing: Backing::Image,
    }));
    Ok(Extents::new(areas, segment_extents(image)))
}

/// Takes the state of an instance: the pages that changed since its base become a new layer.
pub(crate) fn capture(instance: &mut Instance) -> Result<SnapshotData, Failure> {
    let state = instance.save_state()?;
    // A kernel can be in a state that no restore would be given: better to refuse it now than when it is too late.
    validate_for_hyperv(&state.special).map_err(VmError::InvalidState)?;
    let base = instance.base().clone();
    let changed = instance.changed_pages()?;
    let (layers, space) = if base.layers.len() < MAX_LAYERS {
        add_layer(instance, &base, &changed)?
    } else {
        flatten(instance, &base, &changed)?
    };
    Ok(SnapshotData {
        image: base.image.clone(),
        sizes: base.sizes,
        profile: base.profile,
        layers,
        space,
        state,
        generation: base.generation + 1,
        tables: OnceLock::new(),
    })
}

type Changed = [(Gva, ChangedPage)];

/// The base, and the changed pages on top.
fn add_layer(
    instance: &Instance,
    base: &SnapshotData,
    changed: &Changed,
) -> Result<(Layers, Extents), Failure> {
    if changed.is_empty() {
        return Ok((base.layers.clone(), base.space.clone()));
    }
    let layer = Layer::create(changed.len() as u64, |memory| {
        let mut page = [0; PAGE_LEN_BYTES];
        for (offset, (_, source)) in (0..).step_by(PAGE_LEN_BYTES).zip(changed) {
            instance.read_changed(*source, &mut page)?;
            memory.write(offset, &page)?;
        }
        Ok(())
    })
    .map_err(Failure::Memory)?;
    let addresses: Vec<Gva> = changed.iter().map(|(gva, _)| *gva).collect();
    let space = base.space.with_overlay(&addresses, base.layers.pages());
    Ok((base.layers.with(layer), space))
}

/// Everything in one layer: what the base's extents hold, and the changed pages over it.
fn flatten(
    instance: &Instance,
    base: &SnapshotData,
    changed: &Changed,
) -> Result<(Layers, Extents), Failure> {
    let addresses: Vec<Gva> = changed.iter().map(|(gva, _)| *gva).collect();
    let merged = base.space.with_overlay(&addresses, base.layers.pages());
    let pages = merged.extents().iter().map(|extent| extent.pages).sum();
    let mut extents = Vec::with_capacity(merged.extents().len());
    let layer = Layer::create(pages, |memory| {
        let mut next = 0;
        for extent in merged.extents() {
            for page in extent.image_page..extent.image_page + extent.pages {
                let target = (next + page - extent.image_page) * PAGE_SIZE;
                copy_page(instance, base, changed, page, |bytes| {
                    memory.write(target, bytes)
                })?;
            }
            extents.push(Extent {
                image_page: next,
                ..*extent
            });
            next += extent.pages;
        }
        Ok(())
    })
    .map_err(Failure::Memory)?;
    let space = Extents::new(merged.areas().to_vec(), extents);
    Ok((Layers::new(Some(layer)), space))
}

/// Reads one page of base and changed pages, numbered one after the other.
fn copy_page(
    instance: &Instance,
    base: &SnapshotData,
    changed: &Changed,
    image_page: u64,
    write: impl FnOnce(&[u8]) -> Result<(), vellum_backend::memory::OutOfBounds>,
) -> Result<(), vellum_backend::memory::OutOfBounds> {
    let mut bytes = [0; PAGE_LEN_BYTES];
    if let Some((memory, offset)) = base.layers.pristine(image_page) {
        memory.read(offset, &mut bytes)?;
    } else {
        let index = usize::try_from(image_page - base.layers.pages()).unwrap_or(usize::MAX);
        if let Some((_, source)) = changed.get(index) {
            instance.read_changed(*source, &mut bytes)?;
        }
    }
    write(&bytes)
}

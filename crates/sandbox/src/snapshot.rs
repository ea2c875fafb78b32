//! Snapshots: an immutable state of a sandbox, shared by every sandbox that is made from it.

use std::fmt;
use std::sync::{Arc, OnceLock};

use vellum_backend::VcpuState;
use vellum_backend::boot::{self, Amd64Machine, EntryPoint};
use vellum_backend::cpuid::{CpuModel, CpuProfile};
use vellum_backend::state::{Xcr0, cr4};
use vellum_layout::amd64::user;
use vellum_layout::{Gpa, GuestArch, GuestKind, Gva, PAGE_SIZE};

use crate::call::Phase;
use crate::engine::Engine;
use crate::error::Failure;
use crate::image::{Function, GuestImage};
use crate::machine::{Template, amd64_machine};
use crate::memory::{
    Area, Backing, Config, Extent, Extents, Geometry, Layers, Parts, SpaceError, UserSpace,
};
use vellum_vmem::Attrs;

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
        self.data.layers.held_pages() * PAGE_SIZE
    }
}

impl Snapshot {
    /// What the guest was in the middle of; `None` when it idled, as it does unless it [asked](crate::Checkpoint) for the snapshot itself.
    pub fn suspension(&self) -> Option<Suspension<'_>> {
        self.data.suspension()
    }
}

/// What a guest is in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspension<'a> {
    /// Its initialisation.
    Booting,
    /// A call of this function.
    Calling(&'a Function),
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
    pub(crate) config: Config,
    /// The CPU that the guest has seen.
    pub(crate) profile: CpuProfile,
    pub(crate) layers: Layers,
    pub(crate) space: Space,
    pub(crate) state: VcpuState,
    pub(crate) generation: u64,
    /// What the guest was in the middle of; `None` when it idled.
    pub(crate) suspended: Option<Suspended>,
    /// What the scratch of the sandboxes that are made from this snapshot begins with, once the first one was.
    pub(crate) template: OnceLock<Template>,
}

/// What a guest has that another engine's processor lacks. (Equal profiles do not say all: supervisor protection is the processor's, and not
/// every processor offers all vector state.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OtherProcessor {
    #[error(
        "snapshot is one for the cpu profile {needed}, and this engine shows guests {offered}; choose one that both machines offer, with EngineBuilder::cpu_profile"
    )]
    Profile {
        needed: &'static str,
        offered: &'static str,
    },
    #[error(
        "snapshot has vector state switched on that this processor lacks: XCR0 {missing:#x}; take it with a lower cpu profile"
    )]
    VectorState { missing: u64 },
    #[error(
        "snapshot has supervisor protection switched on that this processor lacks: CR4 {missing:#x}"
    )]
    Protection { missing: u64 },
}

impl OtherProcessor {
    fn check(
        profile: CpuProfile,
        xcr0: Xcr0,
        protection: u64,
        model: &CpuModel,
    ) -> Result<(), Self> {
        if profile != model.profile {
            return Err(Self::Profile {
                needed: profile.name(),
                offered: model.profile.name(),
            });
        }
        let missing = xcr0.0 & !model.xcr0.0;
        if missing != 0 {
            return Err(Self::VectorState { missing });
        }
        match protection & !model.cr4_features {
            0 => Ok(()),
            missing => Err(Self::Protection { missing }),
        }
    }
}

/// What a guest was in the middle of when its snapshot was taken.
#[derive(Debug)]
pub(crate) struct Suspended {
    pub(crate) phase: Phase,
    /// What lay in its input buffer: arguments that it may not have read yet.
    pub(crate) input: Vec<u8>,
}

/// Which pages of the layers lie where.
#[derive(Debug)]
pub(crate) enum Space {
    /// In the address space of a user guest. Where they lie in guest-physical memory is each sandbox's own affair.
    User(UserSpace),
    /// In the guest-physical memory of a kernel, which may know where it is: every copy has the same geometry.
    Kernel {
        geometry: Arc<Geometry>,
        extents: Extents<Gpa>,
    },
}

impl SnapshotData {
    /// The state in which a guest boots.
    pub(crate) fn boot(
        image: &GuestImage,
        config: &Config,
        engine: &Engine,
    ) -> Result<Self, Failure> {
        let model = engine.model();
        let (space, state) = match image.kind() {
            GuestKind::Amd64User => (
                Space::User(user_space(image, config)?),
                user_state(image, config, model)?,
            ),
            _ => kernel_boot(image, config, engine)?,
        };
        Ok(Self {
            image: image.clone(),
            config: config.clone(),
            profile: model.profile,
            layers: image.layers().clone(),
            space,
            state,
            generation: 0,
            suspended: None,
            template: OnceLock::new(),
        })
    }

    /// What the guest is in the middle of.
    pub(crate) fn suspension(&self) -> Option<Suspension<'_>> {
        match self.suspended.as_ref()?.phase {
            Phase::Booting => Some(Suspension::Booting),
            Phase::Calling { function } => {
                let function = usize::try_from(function).ok()?;
                self.image.exports().get(function).map(Suspension::Calling)
            }
        }
    }

    /// Checks that a processor of this model has what the guest's registers say is switched on. Supervisor protection of a user guest is no part
    /// of its state: it gets what each processor has.
    pub(crate) fn check_runs_on(&self, model: &CpuModel) -> Result<(), OtherProcessor> {
        let protection = match self.space {
            Space::User(_) => 0,
            Space::Kernel { .. } => self.state.special.cr4 & cr4::SUPERVISOR_PROTECTION,
        };
        OtherProcessor::check(self.profile, self.state.xcr0, protection, model)
    }

    /// The geometry of a new sandbox.
    pub(crate) fn geometry(&self, engine: &Engine) -> Result<Arc<Geometry>, Failure> {
        match &self.space {
            Space::Kernel { geometry, .. } => Ok(geometry.clone()),
            Space::User(space) => {
                let cow = engine.cow_mode();
                let pages = self.layers.pages();
                let geometry = Geometry::for_user(&self.config, cow, space.areas(), pages)?;
                Ok(Arc::new(geometry))
            }
        }
    }

    /// Whether a sandbox of this geometry can hold it.
    pub(crate) fn is_for(&self, other: &Arc<Geometry>) -> bool {
        match &self.space {
            Space::User(_) => other.holds_layers_of(self.layers.pages()),
            Space::Kernel { geometry, .. } => Arc::ptr_eq(geometry, other) || geometry == other,
        }
    }

    /// The template for a sandbox of this geometry, if there is one by now.
    pub(crate) fn template_for(&self, geometry: &Geometry) -> Option<&Template> {
        let template = self.template.get();
        template.filter(|template| template.fits(geometry))
    }

    /// The address space of a user guest.
    pub(crate) fn user_space(&self) -> Result<&UserSpace, SpaceError> {
        match &self.space {
            Space::User(space) => Ok(space),
            Space::Kernel { .. } => Err(SpaceError::Kind(self.image.kind())),
        }
    }

    /// What lies where in the memories of a kernel guest.
    pub(crate) fn kernel_extents(&self) -> Result<&Extents<Gpa>, SpaceError> {
        match &self.space {
            Space::Kernel { extents, .. } => Ok(extents),
            Space::User(_) => Err(SpaceError::Kind(self.image.kind())),
        }
    }
}

/// The state in which a user guest boots.
pub(crate) fn user_state(
    image: &GuestImage,
    config: &Config,
    model: &CpuModel,
) -> Result<VcpuState, Failure> {
    let stack =
        user::stack(config.sizes.stack_len_bytes).map_err(|error| Failure::Space(error.into()))?;
    let start = EntryPoint {
        entry: image.entry(),
        stack_top: stack.end(),
        peb: user::IO_BASE,
    };
    // CR3 is filled in when the state is loaded: each sandbox has its root where its scratch begins.
    let machine = amd64_machine(Gpa::literal(0), model);
    Ok(boot::amd64_user(&machine, &start))
}

/// The segments in place, and a vCPU in ring 0.
fn kernel_boot(
    image: &GuestImage,
    config: &Config,
    engine: &Engine,
) -> Result<(Space, VcpuState), Failure> {
    let kind = image.kind();
    let cow = engine.cow_mode_for(kind);
    let geometry = Geometry::for_kernel(kind, config, cow, image.segments())?;
    let extents = geometry.boot_extents(image.segments())?;
    let state = kernel_state(image.entry(), &geometry, engine.model())?;
    let space = Space::Kernel {
        geometry: Arc::new(geometry),
        extents,
    };
    Ok((space, state))
}

fn kernel_state(
    entry: Gva,
    geometry: &Geometry,
    model: &CpuModel,
) -> Result<VcpuState, SpaceError> {
    let view = &geometry.view;
    let start = EntryPoint {
        entry,
        stack_top: view.stack.end(),
        peb: view.peb.start(),
    };
    let Parts::Kernel(kernel) = &geometry.parts else {
        return Err(SpaceError::Kind(geometry.plan.kind()));
    };
    let Some(paging) = &kernel.paging else {
        // Without translation a pointer is a guest-physical address.
        let physical = |gva: Gva| Gpa::new(gva.as_u64()).map_err(|_| SpaceError::Overflow);
        return Ok(boot::i686_identity(
            physical(start.entry)?,
            physical(start.stack_top)?,
            physical(start.peb)?,
        ));
    };
    let root = paging.tables.start();
    Ok(match geometry.plan.kind().arch() {
        GuestArch::I686 => boot::i686_paged(root, &start),
        GuestArch::Amd64 => {
            let xcr0 = amd64_machine(root, model).xcr0;
            boot::amd64_kernel(&Amd64Machine::bare(root, xcr0), &start)
        }
    })
}

fn segment_extents(image: &GuestImage) -> Extents<Gva> {
    let segments = image.segments().iter();
    let extents = segments.map(|segment| Extent {
        at: segment.range.start(),
        image_page: segment.first_page,
        pages: segment.pages(),
    });
    Extents::new(extents.collect())
}

/// Segments from the image, heap and stack from zeroes.
pub(crate) fn user_space(image: &GuestImage, config: &Config) -> Result<UserSpace, Failure> {
    let sizes = &config.sizes;
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
    Ok(UserSpace::new(areas, segment_extents(image)))
}

#[cfg(test)]
mod tests;

//! Every pointer that a guest is told, followed through the guest's own translation to a byte of the host.

use proptest::prelude::*;
use vellum_abi::peb::Peb;
use vellum_backend::Irqchip;
use vellum_layout::{Gpa, GuestKind, Gva, GvaRange, PAGE_SIZE, RegionName};
use vellum_vmem::{Attrs, Format, translate};

use super::{FLAG_OUTBOX_DROPS, OutboxOverflow, peb};
use crate::engine::CowMode;
use crate::image::Segment;
use crate::machine;
use crate::memory::{
    Area, Backing, Config, Extent, Extents, FixedFrame, Geometry, GuestMemory, Parts, TableAccess,
    UserSpace,
};

const MODES: [CowMode; 2] = [CowMode::GuestSide, CowMode::HostSide];

/// A guest that was built but never run.
struct Built {
    kind: GuestKind,
    geometry: Geometry,
    memory: GuestMemory,
}

fn segments() -> Vec<Segment> {
    let start = Gva::literal(0x40_0000);
    let range = GvaRange::new(start, 8 * PAGE_SIZE).expect("a range");
    vec![Segment::for_test(range, Attrs::empty(), 0)]
}

fn user_space(config: &Config) -> UserSpace {
    use vellum_layout::amd64::user;
    let heap = user::heap(config.sizes.heap_len_bytes).expect("a heap");
    let stack = user::stack(config.sizes.stack_len_bytes).expect("a stack");
    let area = |range, backing| Area {
        range,
        rights: Attrs::WRITE | Attrs::NO_EXECUTE,
        backing,
    };
    let segment = &segments()[0];
    let areas = vec![
        area(segment.range, Backing::Image),
        area(heap, Backing::Zero { first_page: 0 }),
        area(
            stack,
            Backing::Zero {
                first_page: heap.pages(),
            },
        ),
    ];
    let extent = Extent {
        at: segment.range.start(),
        image_page: 0,
        pages: segment.pages(),
    };
    UserSpace::new(areas, Extents::new(vec![extent]))
}

impl Built {
    /// `None` where these sizes make no guest.
    fn new(kind: GuestKind, config: &Config, cow: CowMode) -> Option<Self> {
        let space = user_space(config);
        let geometry = match kind {
            GuestKind::Amd64User => Geometry::for_user(config, cow, space.areas(), 8),
            _ => Geometry::for_kernel(kind, config, cow, &segments()),
        };
        let geometry = geometry.ok()?;
        let memory = GuestMemory::zeroed(&geometry).expect("address space");
        match &geometry.parts {
            Parts::User(_) => {
                machine::build(&memory, &geometry, &space).expect("tables");
            }
            Parts::Kernel(kernel) => {
                if let Some(paging) = &kernel.paging {
                    machine::build_kernel(&memory, paging).expect("tables");
                }
            }
        }
        Some(Self {
            kind,
            geometry,
            memory,
        })
    }

    /// Where the guest arrives when it follows a pointer.
    fn follow(&self, pointer: u64) -> Gpa {
        let gva = Gva::new(pointer).expect("canonical");
        let (root, format) = match &self.geometry.parts {
            Parts::User(user) => (user.tables.start(), Format::FOUR_LEVEL),
            Parts::Kernel(kernel) => match &kernel.paging {
                Some(paging) => (paging.tables.start(), paging.format),
                None => return Gpa::new(pointer).expect("an address"),
            },
        };
        let store = TableAccess::in_scratch(&self.memory);
        let mapping = translate(&store, root, gva, format);
        mapping
            .unwrap_or_else(|error| panic!("{}: {error:?}", self.kind))
            .gpa
    }

    /// That `pointer` and the last byte of its range lead to the bytes of `region`, `offset` from its start.
    fn assert_leads_to(&self, pointer: u64, len_bytes: u64, region: RegionName, offset: u64) {
        let start = self.geometry.plan.region(region).expect("a region");
        for at in [0, len_bytes - 1] {
            let gpa = self.follow(pointer + at);
            assert_eq!(
                gpa.offset_from(start.start()),
                Some(offset + at),
                "{} {region}: {pointer:#x}",
                self.kind
            );
            let (memory, found) = self.memory.locate(gpa).expect("memory");
            let expected = match region {
                RegionName::Image => &self.memory.image,
                _ => &self.memory.scratch,
            };
            assert!(std::ptr::eq(memory, expected));
            // The very byte, and not one of the same number elsewhere.
            memory.write(found, &[0xA5]).expect("in bounds");
            memory.write(found, &[0]).expect("in bounds");
        }
    }

    fn assert_sound(&self) {
        let told: Peb = peb(&self.geometry, OutboxOverflow::Drop);
        assert_ne!(told.flags & FLAG_OUTBOX_DROPS, 0);
        told.check().expect("the guest accepts it");
        let view = self.geometry.view.peb;
        let frame = FixedFrame::Peb as u64 * PAGE_SIZE;
        let (peb_len, region) = (Peb::LEN_BYTES as u64, RegionName::Frames);
        self.assert_leads_to(view.start().as_u64(), peb_len, region, frame);
        let (at, len_bytes) = (told.input_ptr, told.input_len_bytes);
        self.assert_leads_to(at, len_bytes, RegionName::Input, 0);
        let (at, len_bytes) = (told.output_ptr, told.output_len_bytes);
        self.assert_leads_to(at, len_bytes, RegionName::Output, 0);
        let (at, len_bytes) = (told.outbox_ptr, told.outbox_len_bytes);
        self.assert_leads_to(at, len_bytes, RegionName::Output, told.output_len_bytes);
        self.assert_heap_and_stack(&told);
        if self.kind != GuestKind::Amd64User {
            self.assert_scratch(&told);
        }
    }

    /// The heap where it is there from the start, and the top of the stack.
    fn assert_heap_and_stack(&self, told: &Peb) {
        if self.geometry.cow == CowMode::HostSide {
            let first = self.follow(told.heap_ptr);
            let last = self.follow(told.heap_ptr + told.heap_len_bytes - 1);
            assert_eq!(last.offset_from(first), Some(told.heap_len_bytes - 1));
            assert!(self.geometry.plan.image().contains(first));
            assert!(self.geometry.plan.image().contains(last));
        }
        if self.kind == GuestKind::Amd64User && self.geometry.cow == CowMode::GuestSide {
            return;
        }
        let top = self.follow(told.stack_top - 1);
        let bottom = self.follow(told.stack_top - told.stack_len_bytes);
        assert_eq!(top.offset_from(bottom), Some(told.stack_len_bytes - 1));
        assert!(self.memory.locate(top).is_some());
    }

    /// Scratch as a kernel sees it, up to the bookkeeping words; but for the guard page.
    fn assert_scratch(&self, told: &Peb) {
        let plan = &self.geometry.plan;
        assert_eq!(told.scratch_gpa, plan.scratch().start().as_u64());
        assert_eq!(told.scratch_len_bytes, plan.scratch().len_bytes());
        let end = told.scratch_ptr + (told.scratch_len_bytes - 8);
        for offset in [
            vellum_layout::SCRATCH_TOP_SIZE_OFFSET,
            vellum_layout::SCRATCH_TOP_ALLOCATOR_OFFSET,
            vellum_layout::SCRATCH_TOP_SNAPSHOT_PT_GPA_BASE_OFFSET,
            vellum_layout::SCRATCH_TOP_SNAPSHOT_GENERATION_OFFSET,
        ] {
            let word = plan.bookkeeping_at(offset).expect("a word");
            assert_eq!(self.follow(end - (offset - 8)), word, "{}", self.kind);
        }
        let guard = plan.guard().start().offset_from(plan.scratch().start());
        let below = guard.expect("it lies in scratch") - 1;
        let distance = self.follow(told.scratch_ptr + below);
        assert_eq!(distance.as_u64() - told.scratch_gpa, below);
    }
}

fn config(scratch_len_bytes: Option<u64>, irqchip: Irqchip) -> Config {
    let mut config = Config::new();
    config.sizes.heap_len_bytes = 8 << 20;
    config.sizes.scratch_len_bytes = scratch_len_bytes;
    config.irqchip = irqchip;
    config
}

#[test]
fn every_kind_of_guest_can_follow_what_it_is_told_at_the_default_size() {
    for kind in GuestKind::ALL {
        for cow in MODES {
            let config = config(None, Irqchip::None);
            let built = Built::new(kind, &config, cow).expect("a guest");
            built.assert_sound();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// At every size of scratch from the least to 3 GiB.
    #[test]
    fn every_kind_of_guest_can_follow_what_it_is_told(
        pages in prop_oneof![400..2048_u64, 400..0xC0000_u64, 0xBF000..=0xC0000_u64],
        in_kernel in any::<bool>(),
    ) {
        let irqchip = if in_kernel { Irqchip::InKernel } else { Irqchip::None };
        for kind in GuestKind::ALL {
            for cow in MODES {
                let config = config(Some(pages * PAGE_SIZE), irqchip);
                if let Some(built) = Built::new(kind, &config, cow) {
                    built.assert_sound();
                } else {
                    // Only a scratch that is too small for its parts makes no guest.
                    prop_assert!(pages < 4096, "{kind} {cow} {pages}");
                }
            }
        }
    }
}

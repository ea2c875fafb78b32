use proptest::prelude::*;
use vellum_backend::Irqchip;
use vellum_layout::{
    Gpa, GpaRange, GuestKind, Gva, GvaRange, IO_APIC_PAGE, LOCAL_APIC_PAGE, PAGE_SIZE, PlanError,
    Reserved,
};
use vellum_vmem::Attrs;

use super::{Config, Geometry, Sizes, SpaceError};
use crate::engine::CowMode;
use crate::image::Segment;

const MIB: u64 = 1 << 20;
const PAGED: [GuestKind; 2] = [GuestKind::Amd64Kernel, GuestKind::I686Paged];
const KERNELS: [GuestKind; 3] = [
    GuestKind::Amd64Kernel,
    GuestKind::I686Identity,
    GuestKind::I686Paged,
];
const MODES: [CowMode; 2] = [CowMode::GuestSide, CowMode::HostSide];

fn config(change: impl FnOnce(&mut Sizes)) -> Config {
    let mut config = Config::new();
    change(&mut config.sizes);
    config
}

/// Code and data, one behind the other in the image, at `start` and 1 MiB above it.
fn segments(start: u64) -> Vec<Segment> {
    let range = |start| {
        GvaRange::new(Gva::new(start).expect("canonical"), 16 * PAGE_SIZE).expect("a range")
    };
    vec![
        Segment::for_test(range(start), Attrs::empty(), 0),
        Segment::for_test(range(start + MIB), Attrs::WRITE | Attrs::NO_EXECUTE, 16),
    ]
}

fn geometry(kind: GuestKind, config: &Config, cow: CowMode) -> Result<Geometry, SpaceError> {
    Geometry::for_kernel(kind, config, cow, &segments(0x40_0000))
}

#[test]
fn large_pages_can_map_the_heap_where_the_host_copies_pages() {
    for (kind, large) in [
        (GuestKind::Amd64Kernel, 2 * MIB),
        (GuestKind::I686Paged, 4 * MIB),
    ] {
        let geometry = geometry(kind, &Config::new(), CowMode::HostSide).expect("a geometry");
        let paging = geometry.kernel().expect("a kernel").paging.as_ref();
        let heap = paging.expect("paging").mapped.iter();
        let heap = heap.clone().find(|it| it.what == "heap").expect("mapped");
        assert_eq!(heap.range, geometry.view.heap);
        assert!(heap.range.start().as_u64().is_multiple_of(large), "{kind}");
        assert!(heap.frame.as_u64().is_multiple_of(large), "{kind}");
    }
}

#[test]
fn where_the_guest_copies_pages_the_heap_comes_on_demand_and_data_is_read_only() {
    for kind in PAGED {
        let geometry = geometry(kind, &Config::new(), CowMode::GuestSide).expect("a geometry");
        let parts = geometry.kernel().expect("a kernel");
        let mapped = &parts.paging.as_ref().expect("paging").mapped;
        assert!(mapped.iter().all(|it| it.what != "heap"));
        let data = mapped.iter().find(|it| it.attrs.contains(Attrs::COW));
        let data = data.expect("the writable segment");
        assert!(!data.attrs.contains(Attrs::WRITE));
        assert_eq!(data.range.start().as_u64(), 0x40_0000 + MIB);
        let writable_pages = 16 + geometry.view.heap.pages();
        assert!(parts.free_frames.pages() > writable_pages);
    }
}

#[test]
fn the_stack_has_unmapped_pages_on_both_sides_and_is_writable_from_the_start() {
    for kind in PAGED {
        for cow in MODES {
            let geometry = geometry(kind, &Config::new(), cow).expect("a geometry");
            let paging = geometry.kernel().expect("a kernel").paging.as_ref();
            let mapped = &paging.expect("paging").mapped;
            let stack = geometry.view.stack;
            let covers = |gva: Gva| mapped.iter().find(|it| it.range.contains(gva));
            assert!(covers(stack.start().checked_sub(1).expect("an address")).is_none());
            assert!(covers(stack.end()).is_none());
            let attrs = covers(stack.start()).expect("mapped").attrs;
            assert!(attrs.contains(Attrs::WRITE) && !attrs.contains(Attrs::COW));
        }
    }
}

#[test]
fn an_image_linked_over_scratch_is_refused_with_both_names() {
    let paged = GuestKind::I686Paged;
    let over = segments(0xFFE0_0000);
    let error = Geometry::for_kernel(paged, &Config::new(), CowMode::HostSide, &over);
    let text = error.expect_err("refused").to_string();
    assert!(
        text.contains("overlaps") && text.contains("scratch"),
        "{text}"
    );
    // Without paging it is the plan that says so, in guest-physical terms.
    let small = config(|sizes| {
        sizes.heap_len_bytes = PAGE_SIZE;
        sizes.stack_len_bytes = PAGE_SIZE;
    });
    let over = segments(0xFECE_1000);
    let error = Geometry::for_kernel(GuestKind::I686Identity, &small, CowMode::HostSide, &over);
    let Err(SpaceError::Plan(plan)) = error else {
        panic!("{error:?}");
    };
    let text = plan.to_string();
    assert!(text.contains("image") && text.contains("scratch"), "{text}");
}

#[test]
fn a_32_bit_guest_has_nothing_beyond_4_gib() {
    let config = config(|sizes| sizes.heap_len_bytes = MIB);
    for cow in MODES {
        let segments = segments(0xFFB0_0000);
        let error = Geometry::for_kernel(GuestKind::I686Paged, &config, cow, &segments);
        let text = error.expect_err("refused").to_string();
        assert!(text.contains("heap"), "{text}");
    }
}

#[test]
fn interrupt_controllers_and_reserved_ranges_push_scratch_down() {
    let large = config(|sizes| sizes.scratch_len_bytes = Some(64 * MIB));
    for kind in [GuestKind::I686Identity, GuestKind::I686Paged] {
        let free = geometry(kind, &large, CowMode::HostSide).expect("a geometry");
        assert_eq!(free.plan.scratch().end(), LOCAL_APIC_PAGE.range.start());
        let irqchip = Config {
            irqchip: Irqchip::InKernel,
            ..large.clone()
        };
        let below = geometry(kind, &irqchip, CowMode::HostSide).expect("a geometry");
        assert_eq!(below.plan.scratch().end(), IO_APIC_PAGE.range.start());
        let stack = GpaRange::new(Gpa::literal(0xF800_0000), MIB).expect("a range");
        let reserving = Config {
            reserved: [Reserved {
                name: "user stack",
                range: stack,
            }]
            .into(),
            ..irqchip
        };
        let lower = geometry(kind, &reserving, CowMode::HostSide).expect("a geometry");
        assert!(lower.plan.scratch().end() <= below.plan.scratch().end());
        assert!(!lower.plan.scratch().overlaps(&stack));
        let filling = Config {
            sizes: Sizes {
                scratch_len_bytes: Some(0xF800_0000),
                ..reserving.sizes
            },
            ..reserving
        };
        let error = geometry(kind, &filling, CowMode::HostSide).expect_err("no room");
        let SpaceError::Plan(plan) = error else {
            panic!("{error}");
        };
        assert!(plan.to_string().contains("user stack"), "{plan}");
    }
}

#[test]
fn a_scratch_below_the_minimum_is_refused_and_the_minimum_suffices() {
    for kind in KERNELS {
        for cow in MODES {
            let with = |len_bytes| {
                let config = config(|sizes| sizes.scratch_len_bytes = Some(len_bytes));
                geometry(kind, &config, cow)
            };
            let mut len_bytes = PAGE_SIZE;
            // A longer scratch may need one more table, and so be too short by a page.
            while let Err(error) = with(len_bytes) {
                let SpaceError::Plan(PlanError::ScratchTooSmall {
                    minimum_len_bytes, ..
                }) = error
                else {
                    panic!("{error}");
                };
                assert!(minimum_len_bytes > len_bytes);
                len_bytes = minimum_len_bytes;
            }
            assert!(with(len_bytes - PAGE_SIZE).is_err(), "{kind} {cow}");
        }
    }
}

proptest! {
    /// Any sizes give memories and mappings that are disjoint, or an error.
    #[test]
    fn any_sizes_make_disjoint_parts_or_an_error(
        heap in 1..1_u64 << 20,
        stack in 1..1_u64 << 12,
        (input, output) in (1..1_u64 << 10, 1..1_u64 << 10),
        scratch in proptest::option::of(1..0xC0000_u64),
        start in 1..0xF0000_u64,
        in_kernel in any::<bool>(),
    ) {
        let config = Config {
            irqchip: if in_kernel { Irqchip::InKernel } else { Irqchip::None },
            ..config(|sizes| *sizes = Sizes {
                heap_len_bytes: heap * PAGE_SIZE,
                stack_len_bytes: stack * PAGE_SIZE,
                input_len_bytes: input * PAGE_SIZE,
                output_len_bytes: output * PAGE_SIZE,
                outbox_len_bytes: PAGE_SIZE,
                scratch_len_bytes: scratch.map(|pages| pages * PAGE_SIZE),
            })
        };
        for kind in KERNELS {
            for cow in MODES {
                let segments = segments(start * PAGE_SIZE);
                let Ok(geometry) = Geometry::for_kernel(kind, &config, cow, &segments) else {
                    continue;
                };
                let plan = &geometry.plan;
                prop_assert!(!plan.image().overlaps(&plan.scratch()));
                for hole in config.holes() {
                    prop_assert!(!plan.image().overlaps(&hole.range));
                    prop_assert!(!plan.scratch().overlaps(&hole.range));
                }
                let extents = geometry.boot_extents(&segments).expect("they have a place");
                for extent in extents.as_slice() {
                    let range = GpaRange::new(extent.at, extent.len_bytes()).expect("a range");
                    prop_assert!(plan.image().contains_range(&range));
                }
                let Some(paging) = &geometry.kernel().expect("a kernel").paging else {
                    continue;
                };
                for it in &paging.mapped {
                    let frames = GpaRange::new(it.frame, it.range.len_bytes()).expect("a range");
                    let memories = [plan.image(), plan.scratch()];
                    prop_assert!(memories.iter().any(|memory| memory.contains_range(&frames)));
                }
            }
        }
    }
}

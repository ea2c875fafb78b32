use proptest::prelude::*;
use vellum_layout::{Gpa, GpaRange, Gva, GvaRange, PAGE_SIZE, PageSize, PlanError};
use vellum_vmem::Attrs;

use super::super::{Area, Backing, Config};
use super::{FixedFrame, Geometry, Sizes, SpaceError, UserParts, user};
use crate::engine::CowMode;

const MODES: [CowMode; 2] = [CowMode::GuestSide, CowMode::HostSide];

const SIZES: Sizes = Sizes {
    heap_len_bytes: 64 << 20,
    stack_len_bytes: 1 << 20,
    input_len_bytes: 16 << 10,
    output_len_bytes: 16 << 10,
    outbox_len_bytes: 8 << 10,
    scratch_len_bytes: None,
};

/// Heap and stack of these sizes, and two segments, of which one can be written.
fn areas(sizes: &Sizes) -> Vec<Area> {
    let data = Attrs::WRITE | Attrs::NO_EXECUTE;
    let (Ok(heap), Ok(stack)) = (
        user::heap(sizes.heap_len_bytes),
        user::stack(sizes.stack_len_bytes),
    ) else {
        return Vec::new();
    };
    let segment = |start: u64, rights| Area {
        range: GvaRange::new(Gva::new(start).expect("canonical"), 16 * PAGE_SIZE).expect("a range"),
        rights,
        backing: Backing::Image,
    };
    let zero = |range, first_page| Area {
        range,
        rights: data,
        backing: Backing::Zero { first_page },
    };
    vec![
        segment(0x20_0000, Attrs::empty()),
        segment(0x30_0000, data),
        zero(heap, 0),
        zero(stack, heap.pages()),
    ]
}

fn config(sizes: Sizes) -> Config {
    Config {
        sizes,
        ..Config::new()
    }
}

fn geometry(sizes: Sizes, cow: CowMode) -> Result<Geometry, SpaceError> {
    Geometry::for_user(&config(sizes), cow, &areas(&sizes), 32)
}

fn parts_of(geometry: &Geometry) -> &UserParts {
    geometry.user().expect("a user guest")
}

/// Everything that lies in guest-physical memory, by name.
fn parts(geometry: &Geometry) -> Vec<(&'static str, GpaRange)> {
    let user = parts_of(geometry);
    let frame = |which| user.fixed_frame(which).expect("it has a place");
    let mut parts = vec![
        (
            "layers",
            GpaRange::new(geometry.plan.image().start(), user.layer_pages * PAGE_SIZE)
                .expect("a range"),
        ),
        ("input", geometry.plan.input()),
        ("output", geometry.plan.output()),
        ("tables", user.tables),
        ("mapping tables", user.mapping_tables),
        ("peb", frame(FixedFrame::Peb)),
        ("machine", frame(FixedFrame::Machine)),
        ("monitor", frame(FixedFrame::Monitor)),
        ("resume", frame(FixedFrame::Resume)),
        (
            "log",
            parts_of(geometry).frame_log().expect("it has a place"),
        ),
        (
            "frames",
            parts_of(geometry).free_frames().expect("it has a place"),
        ),
        ("guard", geometry.plan.guard()),
        ("exception stack", geometry.plan.exception_stack()),
        ("bookkeeping", geometry.plan.bookkeeping()),
    ];
    if user.zero_pages > 0 {
        let zero = GpaRange::new(user.zero_base, user.zero_pages * PAGE_SIZE);
        parts.push(("zero region", zero.expect("a range")));
    }
    parts
}

fn assert_sound(geometry: &Geometry) {
    let parts = parts(geometry);
    for (index, (name, range)) in parts.iter().enumerate() {
        for (other_name, other) in &parts[index + 1..] {
            assert!(
                !range.overlaps(other),
                "{name} {range:x?} and {other_name} {other:x?}"
            );
        }
        let memory = [geometry.plan.image(), geometry.plan.scratch()];
        assert!(
            memory.iter().any(|memory| memory.contains_range(range)),
            "{name} lies outside"
        );
    }
    let log = parts_of(geometry).frame_log().expect("it has a place");
    let frames = parts_of(geometry).free_frames().expect("it has a place");
    assert!(
        log.len_bytes() >= frames.pages() * 8,
        "an entry for each frame"
    );
    assert!(frames.pages() > 0);
}

#[test]
fn the_default_sizes_make_a_guest_in_both_modes() {
    for cow in MODES {
        let geometry = geometry(SIZES, cow).expect("a geometry");
        assert_sound(&geometry);
        assert_eq!(
            geometry.plan.scratch().last(),
            vellum_layout::amd64::MAX_GPA
        );
        assert_eq!(geometry.view.heap.len_bytes(), SIZES.heap_len_bytes);
        let user = parts_of(&geometry);
        assert_eq!(user.stack_guard.end(), geometry.view.stack.start());
    }
}

#[test]
fn only_the_host_side_has_a_zero_region_for_heap_and_stack() {
    let guest_side = geometry(SIZES, CowMode::GuestSide).expect("a geometry");
    assert_eq!(parts_of(&guest_side).zero_pages, 0);
    let host_side = geometry(SIZES, CowMode::HostSide).expect("a geometry");
    assert_eq!(parts_of(&host_side).zero_pages, (65 << 20) / PAGE_SIZE);
    // Large pages can map it.
    assert!(
        parts_of(&host_side)
            .zero_base
            .is_aligned(PageSize::Size2MiB)
    );
}

#[test]
fn the_guest_side_has_a_frame_for_every_page_that_the_guest_can_write() {
    let geometry = geometry(SIZES, CowMode::GuestSide).expect("a geometry");
    let writable = (65 << 20) / PAGE_SIZE + 16;
    assert!(parts_of(&geometry).free_frames().expect("frames").pages() >= writable);
}

#[test]
fn image_pages_have_an_address_up_to_the_room_for_layers() {
    let geometry = geometry(SIZES, CowMode::HostSide).expect("a geometry");
    let start = geometry.plan.image().start();
    assert_eq!(parts_of(&geometry).image_gpa(0), Some(start));
    assert_eq!(
        parts_of(&geometry).image_gpa(1),
        start.checked_add(PAGE_SIZE)
    );
    assert!(
        parts_of(&geometry)
            .image_gpa(parts_of(&geometry).layer_pages - 1)
            .is_some()
    );
    for outside in [
        parts_of(&geometry).layer_pages,
        u64::MAX / PAGE_SIZE,
        u64::MAX,
    ] {
        assert_eq!(parts_of(&geometry).image_gpa(outside), None);
    }
}

#[test]
fn a_length_that_is_zero_or_unaligned_is_refused_by_name() {
    type Set = fn(&mut Sizes, u64);
    let fields: [(&str, Set); 5] = [
        ("heap", |sizes, bytes| sizes.heap_len_bytes = bytes),
        ("stack", |sizes, bytes| sizes.stack_len_bytes = bytes),
        ("input buffer", |sizes, bytes| sizes.input_len_bytes = bytes),
        ("output buffer", |sizes, bytes| {
            sizes.output_len_bytes = bytes;
        }),
        ("scratch", |sizes, bytes| {
            sizes.scratch_len_bytes = Some(bytes);
        }),
    ];
    for cow in MODES {
        for (what, set) in fields {
            for len_bytes in [0, 1, 4095, 4097, u64::MAX] {
                let mut sizes = SIZES;
                set(&mut sizes, len_bytes);
                // The areas are checked by their owner, so they stay those of the default.
                let error = Geometry::for_user(&config(sizes), cow, &areas(&SIZES), 32)
                    .expect_err("refused");
                assert_eq!(error, SpaceError::Unaligned { what, len_bytes }, "{cow}");
            }
        }
    }
}

#[test]
fn lengths_beyond_the_address_space_are_refused() {
    for cow in MODES {
        for len_bytes in [1 << 38, 1 << 47, 1 << 63, u64::MAX - 4095] {
            for sizes in [
                Sizes {
                    heap_len_bytes: len_bytes,
                    ..SIZES
                },
                Sizes {
                    stack_len_bytes: len_bytes,
                    ..SIZES
                },
                Sizes {
                    input_len_bytes: len_bytes,
                    ..SIZES
                },
                Sizes {
                    output_len_bytes: len_bytes,
                    ..SIZES
                },
                Sizes {
                    scratch_len_bytes: Some(len_bytes),
                    ..SIZES
                },
            ] {
                assert!(geometry(sizes, cow).is_err(), "{cow}, {sizes:x?}");
            }
        }
        for layer_pages in [u64::MAX, u64::MAX / PAGE_SIZE, 1 << 40] {
            assert!(Geometry::for_user(&config(SIZES), cow, &areas(&SIZES), layer_pages).is_err());
        }
    }
}

#[test]
fn a_scratch_below_the_minimum_is_refused_and_the_minimum_suffices() {
    for cow in MODES {
        let with = |len_bytes| {
            geometry(
                Sizes {
                    scratch_len_bytes: Some(len_bytes),
                    ..SIZES
                },
                cow,
            )
        };
        let Err(SpaceError::Plan(PlanError::ScratchTooSmall {
            len_bytes,
            minimum_len_bytes,
        })) = with(PAGE_SIZE)
        else {
            panic!("a scratch of one page was not refused as too small");
        };
        assert_eq!(len_bytes, PAGE_SIZE);
        assert!(with(minimum_len_bytes - PAGE_SIZE).is_err());
        assert_sound(&with(minimum_len_bytes).expect("the minimum is enough"));
    }
}

proptest! {
    /// Any sizes give parts that do not overlap, or an error.
    #[test]
    fn any_sizes_make_disjoint_parts_or_an_error(
        heap in 1..1_u64 << 22,
        stack in 1..1_u64 << 12,
        (input, output) in (1..1_u64 << 10, 1..1_u64 << 10),
        scratch in proptest::option::of(1..1_u64 << 23),
        layer_pages in 0..1_u64 << 20,
    ) {
        let sizes = Sizes {
            heap_len_bytes: heap * PAGE_SIZE,
            stack_len_bytes: stack * PAGE_SIZE,
            input_len_bytes: input * PAGE_SIZE,
            output_len_bytes: output * PAGE_SIZE,
            outbox_len_bytes: PAGE_SIZE,
            scratch_len_bytes: scratch.map(|pages| pages * PAGE_SIZE),
        };
        for cow in MODES {
            if let Ok(geometry) = Geometry::for_user(&config(sizes), cow, &areas(&sizes), layer_pages) {
                assert_sound(&geometry);
                prop_assert!(parts_of(&geometry).layer_pages > layer_pages);
                prop_assert!(geometry.plan.image().start() >= Gpa::literal(0x1000));
            }
        }
    }
}

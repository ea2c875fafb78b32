use proptest::prelude::*;
use vellum_backend::Irqchip;
use vellum_layout::{GuestKind, Gva, GvaRange, IO_APIC_PAGE, MemoryPlan};
use vellum_vmem::Attrs;

use super::*;
use crate::engine::CowMode;
use crate::image::Segment;
use crate::memory::{Area, Backing};

const AT: u64 = 0x4000_0000;

fn config(irqchip: Irqchip) -> Config {
    let mut config = Config::new();
    config.irqchip = irqchip;
    config
}

/// A guest of the default sizes.
fn geometry(kind: GuestKind, config: &Config) -> Geometry {
    let range = GvaRange::literal(Gva::literal(0x40_0000), 8 * PAGE_SIZE);
    let geometry = if kind == GuestKind::Amd64User {
        let area = Area {
            range: amd64::user::heap(config.sizes.heap_len_bytes).expect("a heap"),
            rights: Attrs::WRITE,
            backing: Backing::Zero { first_page: 0 },
        };
        Geometry::for_user(config, CowMode::HostSide, &[area], 8)
    } else {
        let segments = [Segment::for_test(range, Attrs::empty(), 0)];
        Geometry::for_kernel(kind, config, CowMode::HostSide, &segments)
    };
    geometry.expect("a geometry")
}

fn max_gpa(kind: GuestKind) -> Gpa {
    match kind.arch() {
        GuestArch::Amd64 => amd64::MAX_GPA,
        GuestArch::I686 => i686::MAX_GPA,
    }
}

fn range(start: u64, pages: u64) -> GpaRange {
    GpaRange::new(Gpa::new(start).expect("an address"), pages * PAGE_SIZE).expect("a range")
}

fn label(text: &str) -> Arc<str> {
    text.into()
}

fn memory(len_bytes: u64) -> SharedMemory {
    SharedMemory::new(len_bytes).expect("memory")
}

#[test]
fn a_mapping_is_for_reading_unless_it_is_asked_to_be_writable() {
    let mapping = Mapping::region("m", &memory(5000)).expect("a mapping");
    assert!(!mapping.is_writable());
    assert_eq!((mapping.label(), mapping.len_bytes()), ("m", 5000));
    assert!(mapping.writable().is_writable());
}

#[test]
fn a_mapping_takes_whole_pages() {
    for (len_bytes, pages) in [(1, 1), (4096, 1), (4097, 2), (8192, 2)] {
        let mapping = Mapping::region("m", &memory(len_bytes)).expect("a mapping");
        let taken = mapping.range_at(Gpa::literal(AT)).expect("a range");
        assert_eq!(taken, range(AT, pages), "{len_bytes}");
    }
}

#[test]
fn an_address_inside_of_a_page_is_refused() {
    let mapping = Mapping::region("m", &memory(1)).expect("a mapping");
    for start in [1, 8, 0xFFF, AT + 0x800] {
        let refused = mapping.range_at(Gpa::new(start).expect("an address"));
        assert!(
            matches!(
                refused,
                Err(MappingError::Range {
                    source: RangeError::UnalignedStart { .. },
                    ..
                })
            ),
            "{start:#x}: {refused:?}"
        );
    }
}

/// What is in the way of a range, in a guest without other mappings.
fn in_the_way(kind: GuestKind, irqchip: Irqchip, wanted: GpaRange) -> Option<String> {
    let config = config(irqchip);
    let geometry = geometry(kind, &config);
    let places = Places::new(&geometry, &config);
    match places.check_plan(&label("m"), wanted) {
        Ok(()) => None,
        Err(MappingError::Overlap { other, .. }) => Some(other.to_string()),
        Err(other) => Some(other.to_string()),
    }
}

#[test]
fn what_is_in_the_way_is_named() {
    for kind in GuestKind::ALL {
        let plan: MemoryPlan = geometry(kind, &config(Irqchip::None)).plan;
        let last = |range: GpaRange| range.end().as_u64() - PAGE_SIZE;
        let cases = [
            (range(0, 1), "lowest guest-physical address"),
            (range(last(plan.image()), 2), "image ["),
            (range(plan.scratch().start().as_u64(), 1), "scratch ["),
            (range(last(plan.scratch()), 1), "scratch ["),
            (LOCAL_APIC_PAGE.range, "local APIC page"),
            (
                range(max_gpa(kind).as_u64() + 1 + 16 * PAGE_SIZE, 1),
                "highest",
            ),
        ];
        for (wanted, name) in cases {
            let found = in_the_way(kind, Irqchip::None, wanted).unwrap_or_default();
            assert!(found.contains(name), "{kind} {wanted}: {found}");
        }
        assert_eq!(in_the_way(kind, Irqchip::None, range(AT, 16)), None);
    }
}

#[test]
fn devices_are_in_the_way_where_there_are_any() {
    let kind = GuestKind::Amd64User;
    let found = in_the_way(kind, Irqchip::InKernel, IO_APIC_PAGE.range);
    assert!(found.expect("refused").contains("I/O APIC page"));
    assert_eq!(in_the_way(kind, Irqchip::None, IO_APIC_PAGE.range), None);
}

#[test]
fn other_mappings_are_in_the_way_by_place_and_by_label() {
    let config = config(Irqchip::None);
    let geometry = geometry(GuestKind::Amd64User, &config);
    let places = Places::new(&geometry, &config);
    let (a, b) = (label("a"), label("b"));
    let taken = [(&a, range(AT, 2))];
    let check = |label, start| places.check(label, range(start, 1), taken.into_iter());
    let duplicate = check(&a, AT + 2 * PAGE_SIZE).expect_err("taken");
    assert!(matches!(duplicate, MappingError::DuplicateLabel { .. }));
    for start in [AT, AT + PAGE_SIZE] {
        let overlap = check(&b, start).expect_err("taken").to_string();
        assert!(
            overlap.contains("\"b\"") && overlap.contains("mapping \"a\""),
            "{overlap}"
        );
    }
    for start in [AT - PAGE_SIZE, AT + 2 * PAGE_SIZE] {
        assert!(check(&b, start).is_ok(), "{start:#x}");
    }
}

#[test]
fn there_is_room_for_as_many_as_the_table_holds() {
    let config = config(Irqchip::None);
    let geometry = geometry(GuestKind::Amd64User, &config);
    let places = Places::new(&geometry, &config);
    let labels: Vec<_> = (0..MAX_MAPPINGS)
        .map(|index| label(&index.to_string()))
        .collect();
    let taken: Vec<_> = labels.iter().zip((AT..).step_by(4096)).collect();
    let others = |count| {
        let taken = taken.iter().take(count);
        taken.map(|(label, start)| (*label, range(*start, 1)))
    };
    let wanted = range(2 * AT, 1);
    let last = places.check(&label("last"), wanted, others(MAX_MAPPINGS - 1));
    assert!(last.is_ok(), "{last:?}");
    let more = places.check(&label("more"), wanted, others(MAX_MAPPINGS));
    assert!(
        matches!(more, Err(MappingError::TooMany { .. })),
        "{more:?}"
    );
}

proptest! {
    // No regression files: a failure worth keeping becomes a test with a name.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn a_place_that_is_granted_is_free(
        kind in prop::sample::select(GuestKind::ALL.to_vec()),
        start in prop_oneof![0..0x10_0000_u64, 0xF_EB00..0xF_EF00_u64, 0xFF_0000..0x100_0010_u64],
        pages in 1..0x2_0000_u64,
    ) {
        let config = config(Irqchip::InKernel);
        let geometry = geometry(kind, &config);
        let wanted = range(start * PAGE_SIZE, pages);
        let granted = Places::new(&geometry, &config).check_plan(&label("m"), wanted).is_ok();
        let plan = &geometry.plan;
        let free = wanted.start().as_u64() >= PAGE_SIZE
            && wanted.last() <= max_gpa(kind)
            && [plan.image(), plan.scratch(), LOCAL_APIC_PAGE.range]
                .into_iter()
                .chain(config.holes().iter().map(|hole| hole.range))
                .all(|taken| !taken.overlaps(&wanted));
        prop_assert_eq!(granted, free);
    }
}

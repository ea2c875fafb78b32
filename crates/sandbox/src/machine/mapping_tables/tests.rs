use proptest::prelude::*;
use vellum_abi::mapping::MAX_MAPPINGS;
use vellum_layout::amd64::MAX_GPA;
use vellum_layout::amd64::user::{self, window_gva};
use vellum_layout::{Gva, PAGE_SIZE};
use vellum_vmem::{TranslateError, translate};

use super::*;
use crate::engine::CowMode;
use crate::memory::{Area, Backing, Config, Geometry};

const MIB: u64 = 1 << 20;

struct Built {
    geometry: Geometry,
    memory: GuestMemory,
}

impl Built {
    fn new(mapped: &[(GpaRange, GuestAccess)]) -> Self {
        let config = Config::new();
        let area = Area {
            range: user::heap(config.sizes.heap_len_bytes).expect("a heap"),
            rights: Attrs::WRITE,
            backing: Backing::Zero { first_page: 0 },
        };
        let geometry =
            Geometry::for_user(&config, CowMode::GuestSide, &[area], 8).expect("a geometry");
        let memory = GuestMemory::zeroed(&geometry).expect("address space");
        let parts = geometry.user().expect("a user guest");
        build_mappings(&memory, parts, mapped.iter().copied()).expect("built");
        Self { geometry, memory }
    }

    fn translate(&self, gva: Gva) -> Result<vellum_vmem::Mapping, TranslateError> {
        let root = self.geometry.user().expect("a user guest").tables.start();
        let store = TableAccess::in_scratch(&self.memory);
        translate(&store, root, gva, Format::FOUR_LEVEL)
    }

    /// Where the guest finds the byte at a guest-physical address.
    fn window(gpa: u64) -> Gva {
        user::MAPPINGS_WINDOW.at(gpa).expect("in the window")
    }
}

fn range(start: u64, pages: u64) -> GpaRange {
    GpaRange::new(Gpa::new(start).expect("an address"), pages * PAGE_SIZE).expect("a range")
}

#[test]
fn rights_are_those_that_were_asked_for_and_never_to_execute() {
    let built = Built::new(&[
        (range(0x4000_0000, 1), GuestAccess::Read),
        (range(0x4000_1000, 1), GuestAccess::ReadWrite),
        (range(0x5000_0000, 1024), GuestAccess::Read),
    ]);
    let read = Attrs::USER | Attrs::NO_EXECUTE;
    for (gpa, rights) in [
        (0x4000_0000, read),
        (0x4000_1000, read | Attrs::WRITE),
        (0x5000_0000, read),
        (0x503F_F000, read),
    ] {
        let found = built.translate(Built::window(gpa)).expect("mapped");
        assert_eq!(found.gpa.as_u64(), gpa);
        assert_eq!(found.effective & Attrs::RIGHTS, rights, "{gpa:#x}");
        assert!(!found.effective.contains(Attrs::COW), "{gpa:#x}");
    }
}

#[test]
fn nothing_else_is_mapped() {
    let built = Built::new(&[(range(0x4000_0000, 2), GuestAccess::Read)]);
    for gpa in [0x3FFF_F000, 0x4000_2000, 0, MAX_GPA.as_u64()] {
        let found = built.translate(Built::window(gpa));
        assert!(
            matches!(found, Err(TranslateError::NotMapped { .. })),
            "{gpa:#x}: {found:?}"
        );
    }
    let supervisor = window_gva(Gpa::literal(0x4000_0000)).expect("in the window");
    assert!(built.translate(supervisor).is_err());
}

#[test]
fn large_pages_serve_where_they_fit() {
    let built = Built::new(&[(range(0x4000_1000, 1024), GuestAccess::Read)]);
    let sizes = [0x4000_1000, 0x4020_0000, 0x4040_0000].map(|gpa| {
        let found = built.translate(Built::window(gpa)).expect("mapped");
        found.size
    });
    let (small, large) = (PageSize::Size4KiB, PageSize::Size2MiB);
    assert_eq!(sizes, [small, large, small]);
}

#[test]
fn the_most_mappings_in_the_worst_places_have_room() {
    // Each in another GiB, as far as there are any, and with small pages at both ends.
    let mapped: Vec<_> = (0..MAX_MAPPINGS as u64)
        .map(|index| {
            let start = index * 2 * 1024 * MIB + 1020 * MIB + PAGE_SIZE;
            (range(start, 1025 + 512), GuestAccess::ReadWrite)
        })
        .collect();
    let built = Built::new(&mapped);
    for (range, _) in mapped {
        for gpa in [range.start().as_u64(), range.last().as_u64()] {
            let found = built.translate(Built::window(gpa)).expect("mapped");
            assert_eq!(found.gpa.as_u64(), gpa);
        }
    }
}

#[test]
fn everything_can_be_mapped_at_once() {
    let pages = MAX_GPA.as_u64().div_ceil(PAGE_SIZE) - 1;
    let built = Built::new(&[(range(PAGE_SIZE, pages), GuestAccess::Read)]);
    for gpa in [PAGE_SIZE, 512 * MIB, MAX_GPA.as_u64()] {
        let found = built.translate(Built::window(gpa)).expect("mapped");
        assert_eq!(found.gpa.as_u64(), gpa);
    }
}

proptest! {
    // No regression files: a failure worth keeping becomes a test with a name.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(32) })]

    #[test]
    fn each_address_of_a_mapping_leads_to_itself(
        first_page in 1..0x80_0000_u64,
        lengths in prop::collection::vec(1..3000_u64, 1..=MAX_MAPPINGS),
        gap in 0..700_u64,
    ) {
        let mut next = first_page;
        let mapped: Vec<_> = lengths
            .iter()
            .map(|pages| {
                let placed = range(next * PAGE_SIZE, *pages);
                next += pages + gap;
                (placed, GuestAccess::Read)
            })
            .collect();
        let built = Built::new(&mapped);
        for (range, _) in mapped {
            for gpa in [range.start().as_u64(), range.start().as_u64() + range.len_bytes() / 2, range.last().as_u64()] {
                let found = built.translate(Built::window(gpa));
                prop_assert_eq!(found.map(|it| it.gpa.as_u64()), Ok(gpa));
            }
            if gap > 0 {
                prop_assert!(built.translate(Built::window(range.end().as_u64())).is_err());
            }
        }
    }
}

use proptest::prelude::*;
use vellum_layout::amd64::user;
use vellum_layout::{GvaRange, PAGE_SIZE};
use vellum_vmem::{EntryWidth, TableStore, TranslateError, translate};

use super::*;
use crate::memory::{Config, Extent, Extents, placed};

/// Pages of the heap that hold anything: a run of large pages with ragged ends, a shorter one, and single ones.
fn dirty_heap(heap: GvaRange, runs: &[(u64, u64)]) -> Extents<Gva> {
    let pages = runs
        .iter()
        .flat_map(|&(first, count)| first..(first + count).min(heap.pages()))
        .filter_map(|page| heap.at(page * PAGE_SIZE));
    let mut pages: Vec<Gva> = pages.collect();
    pages.sort_unstable();
    pages.dedup();
    Extents::new(placed(&pages, 0))
}

struct Built {
    geometry: Geometry,
    memory: GuestMemory,
    space: UserSpace,
}

impl Built {
    fn new(runs: &[(u64, u64)]) -> Self {
        let config = Config::new();
        let heap = user::heap(config.sizes.heap_len_bytes).expect("a heap");
        let area = Area {
            range: heap,
            rights: Attrs::WRITE | Attrs::NO_EXECUTE,
            backing: Backing::Zero { first_page: 0 },
        };
        let extents = dirty_heap(heap, runs);
        let pages = extents.as_slice().iter().map(Extent::end_page);
        let pages = pages.max().unwrap_or(0);
        let geometry =
            Geometry::for_user(&config, CowMode::GuestSide, &[area], pages).expect("a geometry");
        let memory = GuestMemory::zeroed(&geometry).expect("address space");
        let space = UserSpace::new(vec![area], extents);
        build(&memory, &geometry, &space).expect("built");
        Self {
            geometry,
            memory,
            space,
        }
    }

    fn heap(&self) -> GvaRange {
        self.space.areas()[0].range
    }

    fn translate(&self, gva: Gva) -> Result<vellum_vmem::Mapping, TranslateError> {
        let root = self.geometry.user().expect("a user guest").tables.start();
        let store = TableAccess::in_scratch(&self.memory);
        translate(&store, root, gva, Format::FOUR_LEVEL)
    }

    fn entry(&self, at: Gpa) -> u64 {
        TableAccess::in_scratch(&self.memory)
            .read_entry(at, EntryWidth::Bytes8)
            .expect("a table")
    }

    /// What was built at an address is what would be put back there.
    fn check(&self, gva: Gva) {
        let pristine = |level| {
            pristine_entry(&self.geometry, &self.space, gva, level).expect("a pristine entry")
        };
        match self.translate(gva) {
            Ok(found) if found.size == PageSize::Size2MiB => {
                assert_eq!(pristine(Level::L2), self.entry(found.entry_gpa), "{gva:?}");
            }
            Ok(found) => {
                assert_eq!(pristine(Level::L1), self.entry(found.entry_gpa), "{gva:?}");
                assert_eq!(pristine(Level::L2), 0, "{gva:?}");
            }
            Err(TranslateError::NotMapped { .. }) => {
                assert_eq!(pristine(Level::L1), 0, "{gva:?}");
                assert_eq!(pristine(Level::L2), 0, "{gva:?}");
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[test]
fn long_runs_of_content_get_large_leaves() {
    // The heap begins at a multiple of a large page.
    let built = Built::new(&[(500, 1060), (4000, 3)]);
    let sizes = [500, 512, 1535, 1536, 4001].map(|page| {
        let gva = built.heap().at(page * PAGE_SIZE).expect("in the heap");
        let found = built.translate(gva).expect("mapped");
        assert!(found.attrs.contains(Attrs::COW), "page {page}");
        assert!(!found.attrs.contains(Attrs::WRITE), "page {page}");
        found.size
    });
    let (small, large) = (PageSize::Size4KiB, PageSize::Size2MiB);
    assert_eq!(sizes, [small, large, large, small, small]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Undoing what the monitor did leaves the tables that were built.
    #[test]
    fn what_is_put_back_is_what_was_built(
        runs in prop::collection::vec((0..3000_u64, 1..1300_u64), 1..4),
        probes in prop::collection::vec(0..4500_u64, 64),
    ) {
        let built = Built::new(&runs);
        for page in probes {
            if let Some(gva) = built.heap().at(page * PAGE_SIZE) {
                built.check(gva);
            }
        }
    }
}

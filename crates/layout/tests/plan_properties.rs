//! Plans of any sizes: disjoint, aligned and outside the holes, or an error naming both parties.

use proptest::prelude::*;
use vellum_layout::amd64::user;
use vellum_layout::{
    Gpa, GpaRange, GuestArch, GuestKind, GuestPtr, Hole, IO_APIC_PAGE, LOCAL_APIC_PAGE, MemoryPlan,
    Obstacle, PAGE_SIZE, PageSize, PlanError, PlanRequest, RegionName, Reserved, ScratchRequest,
    Translation, amd64, i686, minimum_scratch_len,
};

/// A request that owns its lists.
#[derive(Clone, Debug)]
struct Case {
    kind: GuestKind,
    image_len_bytes: u64,
    scratch: ScratchRequest,
    holes: Vec<Hole>,
    reserved: Vec<Reserved>,
}

impl Case {
    fn plan(&self) -> Result<MemoryPlan, PlanError> {
        MemoryPlan::new(&PlanRequest {
            kind: self.kind,
            image_len_bytes: self.image_len_bytes,
            scratch: self.scratch,
            holes: &self.holes,
            reserved: &self.reserved,
        })
    }

    /// Lowest address and exclusive end of guest memory.
    fn bounds(&self) -> (u64, u64) {
        match self.kind.arch() {
            GuestArch::Amd64 => (amd64::BASE_ADDRESS.as_u64(), amd64::MAX_GPA.as_u64() + 1),
            GuestArch::I686 => (i686::BASE_ADDRESS.as_u64(), i686::MAX_GPA.as_u64() + 1),
        }
    }

    /// All that memory must keep clear of.
    fn forbidden(&self) -> Vec<GpaRange> {
        let holes = self.holes.iter().map(|hole| hole.range);
        let reserved = self.reserved.iter().map(|reserved| reserved.range);
        holes
            .chain(reserved)
            .chain([LOCAL_APIC_PAGE.range])
            .collect()
    }

    /// Whether any placement exists at all, found by trying every place where a region touches
    /// an obstacle or a bound. Deliberately not how the planner does it.
    fn is_feasible(&self) -> bool {
        let (lowest, end) = self.bounds();
        let forbidden = self.forbidden();
        let clear = |start: u64, len: u64| {
            start >= lowest
                && start.checked_add(len).is_some_and(|top| top <= end)
                && forbidden
                    .iter()
                    .all(|f| start + len <= f.start().as_u64() || f.end().as_u64() <= start)
        };
        let tops = forbidden.iter().map(|f| f.start().as_u64()).chain([end]);
        let scratch_starts: Vec<u64> = tops
            .filter_map(|top| top.checked_sub(self.scratch.len_bytes))
            .filter(|&start| clear(start, self.scratch.len_bytes))
            .collect();
        // A paged image lies a number of large pages above the lowest address.
        let unit = match self.kind.arch() {
            GuestArch::Amd64 => 2 << 20,
            GuestArch::I686 => 4 << 20,
        };
        let image_starts: Vec<u64> = match self.kind.translation() {
            Translation::Identity => vec![lowest],
            _ => forbidden
                .iter()
                .map(|f| lowest + f.end().as_u64().saturating_sub(lowest).div_ceil(unit) * unit)
                .chain([lowest])
                .collect(),
        };
        image_starts
            .iter()
            .filter(|&&start| clear(start, self.image_len_bytes))
            .any(|&image| {
                scratch_starts
                    .iter()
                    .any(|&scratch| image + self.image_len_bytes <= scratch)
            })
    }
}

/// Whole pages in three magnitudes, so that both room and lack of it are common.
fn page_count() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 1_u64..64, 3 => 1_u64..0x8_0000, 2 => 1_u64..0x10_0000, 1 => 1_u64..0x100_0000]
}

fn length() -> impl Strategy<Value = u64> {
    page_count().prop_map(|pages| pages * PAGE_SIZE)
}

/// Obstacles near the bottom, near the top of i686 memory, and anywhere below 64 GiB.
fn obstacle_range() -> impl Strategy<Value = GpaRange> {
    let first_page = prop_oneof![0_u64..0x400, 0xf_e000_u64..0xf_f000, 0_u64..0x100_0000];
    (first_page, 1_u64..64).prop_map(|(first, pages)| range(first * PAGE_SIZE, pages * PAGE_SIZE))
}

fn holes() -> impl Strategy<Value = Vec<Hole>> {
    let hole = prop_oneof![
        2 => obstacle_range().prop_map(|range| Hole { name: "some hole", range }),
        1 => Just(IO_APIC_PAGE),
    ];
    prop::collection::vec(hole, 0..4)
}

fn reserved() -> impl Strategy<Value = Vec<Reserved>> {
    let one = obstacle_range().prop_map(|range| Reserved {
        name: "some reserved range",
        range,
    });
    prop::collection::vec(one, 0..3)
}

prop_compose! {
    /// Requests whose lengths are valid for themselves.
    fn sane_case()(
        kind in prop::sample::select(GuestKind::ALL.to_vec()),
        image_len_bytes in length(),
        buffers in (1_u64..64, 1_u64..64, 1_u64..256),
        spare in page_count(),
        holes in holes(),
        reserved in reserved(),
    ) -> Case {
        let (input, output, tables) = buffers;
        let tables = if kind.translation() == Translation::Identity { 0 } else { tables };
        Case {
            kind,
            image_len_bytes,
            scratch: ScratchRequest {
                len_bytes: (input + output + tables + 3 + spare) * PAGE_SIZE,
                input_len_bytes: input * PAGE_SIZE,
                output_len_bytes: output * PAGE_SIZE,
                tables_len_bytes: tables * PAGE_SIZE,
            },
            holes,
            reserved,
        }
    }
}

prop_compose! {
    /// Requests with any numbers at all.
    fn wild_case()(
        sane in sane_case(),
        image in prop_oneof![Just(None), any::<u64>().prop_map(Some)],
        lengths in prop::array::uniform4(prop_oneof![3 => Just(None), 1 => any::<u64>().prop_map(Some)]),
    ) -> Case {
        let scratch = sane.scratch;
        Case {
            image_len_bytes: image.unwrap_or(sane.image_len_bytes),
            scratch: ScratchRequest {
                len_bytes: lengths[0].unwrap_or(scratch.len_bytes),
                input_len_bytes: lengths[1].unwrap_or(scratch.input_len_bytes),
                output_len_bytes: lengths[2].unwrap_or(scratch.output_len_bytes),
                tables_len_bytes: lengths[3].unwrap_or(scratch.tables_len_bytes),
            },
            ..sane
        }
    }
}

fn range(start: u64, len_bytes: u64) -> GpaRange {
    GpaRange::literal(Gpa::literal(start), len_bytes)
}

/// Asserts all that a plan promises.
fn check_plan(case: &Case, plan: &MemoryPlan) -> Result<(), TestCaseError> {
    let regions: Vec<(RegionName, GpaRange)> = plan.regions().collect();
    let (lowest, end) = case.bounds();
    for (name, region) in &regions {
        prop_assert!(region.start().is_aligned(PageSize::Size4KiB), "{name}");
        prop_assert!(
            region.len_bytes() > 0 && region.len_bytes() % PAGE_SIZE == 0,
            "{name}"
        );
        prop_assert!(
            region.start().as_u64() >= lowest && region.end().as_u64() <= end,
            "{name}"
        );
        for forbidden in case.forbidden() {
            prop_assert!(
                !region.overlaps(&forbidden),
                "{name} {region} and {forbidden}"
            );
        }
    }
    for pair in regions.windows(2) {
        prop_assert!(
            pair[0].1.end() <= pair[1].1.start(),
            "{} and {}",
            pair[0].0,
            pair[1].0
        );
    }
    // The parts fill scratch exactly.
    let parts = &regions[1..];
    prop_assert!(
        parts
            .windows(2)
            .all(|pair| pair[0].1.end() == pair[1].1.start())
    );
    prop_assert_eq!(
        parts.first().map(|part| part.1.start()),
        Some(plan.scratch().start())
    );
    prop_assert_eq!(
        parts.last().map(|part| part.1.end()),
        Some(plan.scratch().end())
    );
    check_lengths(case, plan)
}

fn check_lengths(case: &Case, plan: &MemoryPlan) -> Result<(), TestCaseError> {
    let tables = plan.tables().map_or(0, |tables| tables.len_bytes());
    prop_assert_eq!(plan.image().len_bytes(), case.image_len_bytes);
    if case.kind.translation() == Translation::Identity {
        prop_assert_eq!(plan.image().start(), i686::BASE_ADDRESS);
    }
    prop_assert_eq!(plan.scratch().len_bytes(), case.scratch.len_bytes);
    prop_assert_eq!(plan.input().len_bytes(), case.scratch.input_len_bytes);
    prop_assert_eq!(plan.output().len_bytes(), case.scratch.output_len_bytes);
    prop_assert_eq!(tables, case.scratch.tables_len_bytes);
    Ok(())
}

/// Asserts that a refusal for lack of room names the region and what is really in its way.
fn check_refusal(case: &Case, error: &PlanError) -> Result<(), TestCaseError> {
    let message = error.to_string();
    match *error {
        PlanError::NoRoom {
            region,
            len_bytes,
            obstacle,
        } => {
            prop_assert!(message.contains(region.as_str()), "{message}");
            prop_assert!(message.contains(&format!("{len_bytes:#x}")), "{message}");
            prop_assert!(message.contains(&obstacle.to_string()), "{message}");
            prop_assert!(!case.is_feasible(), "{message}, but a placement exists");
            match obstacle {
                Obstacle::Hole(hole) => {
                    prop_assert!(hole == LOCAL_APIC_PAGE || case.holes.contains(&hole));
                }
                Obstacle::Reserved(reserved) => prop_assert!(case.reserved.contains(&reserved)),
                Obstacle::Region(name, _) => prop_assert_eq!(name, RegionName::Scratch),
                _ => prop_assert!(region == RegionName::Scratch, "{}", message),
            }
        }
        PlanError::ReservedOverlap { reserved, other } => {
            prop_assert!(case.reserved.contains(&reserved));
            prop_assert!(message.contains(&reserved.to_string()), "{message}");
            prop_assert!(message.contains(&other.to_string()), "{message}");
        }
        PlanError::TooLarge {
            region,
            len_bytes,
            max_len_bytes,
        } => {
            let (lowest, end) = case.bounds();
            prop_assert_eq!(max_len_bytes, end - lowest);
            prop_assert!(len_bytes > max_len_bytes);
            prop_assert!(message.contains(region.as_str()), "{message}");
        }
        _ => {
            return Err(TestCaseError::fail(format!(
                "lengths are fine, but: {message}"
            )));
        }
    }
    Ok(())
}

fn reserved_ranges_conflict(case: &Case) -> bool {
    let ranges = &case.reserved;
    let among_themselves = ranges
        .iter()
        .enumerate()
        .any(|(i, one)| ranges[..i].iter().any(|two| one.range.overlaps(&two.range)));
    let holes = || case.holes.iter().chain([&LOCAL_APIC_PAGE]);
    among_themselves
        || ranges
            .iter()
            .any(|one| holes().any(|hole| hole.range.overlaps(&one.range)))
}

proptest! {
    // No regression files: a failure worth keeping becomes a test with a name.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn any_sane_sizes_give_a_right_plan_or_name_both_parties(case in sane_case()) {
        let possible = case.is_feasible() && !reserved_ranges_conflict(&case);
        let result = case.plan();
        prop_assert_eq!(result.is_ok(), possible);
        match result {
            Ok(plan) => check_plan(&case, &plan)?,
            Err(error) => check_refusal(&case, &error)?,
        }
    }

    #[test]
    fn any_numbers_give_a_right_plan_or_an_error(case in wild_case()) {
        if let Ok(plan) = case.plan() {
            check_plan(&case, &plan)?;
        }
        if let Ok(minimum) = minimum_scratch_len(case.kind, &case.scratch) {
            prop_assert!(minimum > case.scratch.input_len_bytes);
            let short = minimum > case.scratch.len_bytes;
            prop_assert!(!short || case.plan().is_err());
        }
    }

    #[test]
    fn the_same_request_gives_the_same_answer(case in wild_case()) {
        prop_assert_eq!(case.plan(), case.plan());
    }

    #[test]
    fn in_identity_mode_every_pointer_is_its_physical_address(sane in sane_case()) {
        let mut case = sane;
        case.kind = GuestKind::I686Identity;
        case.scratch.tables_len_bytes = 0;
        if let Ok(plan) = case.plan() {
            for (name, range) in plan.regions() {
                let pointer = plan.guest_ptr(name).map_err(|e| TestCaseError::fail(e.to_string()))?;
                prop_assert_eq!(pointer.translation(), Translation::Identity);
                prop_assert_eq!(pointer.gpa(), Some(range.start()));
                prop_assert_eq!(pointer.as_u64(), range.start().as_u64());
                prop_assert_eq!(pointer.gva().as_u64(), range.start().as_u64());
            }
        }
    }

    #[test]
    fn a_kernel_guest_sees_scratch_as_one_piece_at_the_top(sane in sane_case(), wide in any::<bool>()) {
        let mut case = sane;
        case.kind = if wide { GuestKind::Amd64Kernel } else { GuestKind::I686Paged };
        case.scratch.tables_len_bytes = case.scratch.tables_len_bytes.max(PAGE_SIZE);
        case.scratch.len_bytes += PAGE_SIZE;
        if let Ok(plan) = case.plan() {
            let last = if wide { amd64::MAX_GVA } else { i686::MAX_GVA_PAGED };
            for (name, range) in plan.regions() {
                let from_top = plan.scratch().end().as_u64().checked_sub(range.start().as_u64());
                match plan.guest_ptr(name) {
                    Ok(pointer) => prop_assert_eq!(Some(last.as_u64() - pointer.as_u64() + 1), from_top),
                    Err(_) => prop_assert!(matches!(name, RegionName::Image | RegionName::Guard)),
                }
            }
        }
    }

    #[test]
    fn a_user_guest_sees_its_buffers_in_the_io_area(sane in sane_case()) {
        let mut case = sane;
        case.kind = GuestKind::Amd64User;
        case.scratch.tables_len_bytes = case.scratch.tables_len_bytes.max(PAGE_SIZE);
        case.scratch.len_bytes += PAGE_SIZE;
        if let Ok(plan) = case.plan() {
            let buffers = user::io_area(plan.input().len_bytes(), plan.output().len_bytes());
            let buffers = buffers.map_err(|error| TestCaseError::fail(error.to_string()))?;
            for (name, _) in plan.regions() {
                let expected = match name {
                    RegionName::Input => Some(buffers.input),
                    RegionName::Output => Some(buffers.output),
                    RegionName::ExceptionStack => Some(user::EXCEPTION_STACK),
                    RegionName::Bookkeeping => Some(user::BOOKKEEPING),
                    _ => None,
                };
                let pointer = plan.guest_ptr(name).map(GuestPtr::gva).ok();
                prop_assert_eq!(pointer, expected.map(|range| range.start()), "{}", name);
            }
        }
    }
}

//! Plans, case by case.

use vellum_layout::{Gpa, GpaRange};
use vellum_layout::{
    GuestKind, Hole, IO_APIC_PAGE, LOCAL_APIC_PAGE, MAX_RESERVED, MemoryPlan, Obstacle, PAGE_SIZE,
    PlanError, PlanRequest, RegionName, Reserved, SCRATCH_TOP_ALLOCATOR_OFFSET,
    SCRATCH_TOP_LEN_BYTES, SCRATCH_TOP_SIZE_OFFSET, ScratchRequest, Translation, amd64, i686,
    minimum_scratch_len,
};

const MIB: u64 = 0x10_0000;
const GIB: u64 = 0x4000_0000;

/// A modest request that every kind accepts.
fn request(kind: GuestKind) -> PlanRequest<'static> {
    let tables_len_bytes = match kind.translation() {
        Translation::Identity => 0,
        Translation::TwoLevel | Translation::FourLevel => 0x1_0000,
    };
    PlanRequest {
        kind,
        image_len_bytes: MIB,
        scratch: ScratchRequest {
            len_bytes: 4 * MIB,
            input_len_bytes: 0x4000,
            output_len_bytes: 0x8000,
            tables_len_bytes,
        },
        holes: &[],
        reserved: &[],
    }
}

fn range(start: u64, len_bytes: u64) -> GpaRange {
    GpaRange::literal(Gpa::literal(start), len_bytes)
}

fn max_gpa(kind: GuestKind) -> Gpa {
    match kind {
        GuestKind::Amd64User | GuestKind::Amd64Kernel => amd64::MAX_GPA,
        GuestKind::I686Identity | GuestKind::I686Paged => i686::MAX_GPA,
    }
}

#[test]
fn without_holes_scratch_ends_at_the_highest_address() {
    for kind in GuestKind::ALL {
        let plan = MemoryPlan::new(&request(kind)).expect("modest request");
        assert_eq!(plan.kind(), kind);
        assert_eq!(plan.image(), range(0x1000, MIB), "{kind}");
        assert_eq!(plan.scratch().last(), max_gpa(kind), "{kind}");
        assert_eq!(plan.input().start(), plan.scratch().start(), "{kind}");
        assert_eq!(plan.bookkeeping().last(), max_gpa(kind), "{kind}");
        assert_eq!(plan.tables().is_none(), kind == GuestKind::I686Identity);
    }
}

#[test]
fn i686_scratch_goes_below_the_io_apic_when_that_is_a_hole() {
    for kind in [GuestKind::I686Identity, GuestKind::I686Paged] {
        let plan = MemoryPlan::new(&PlanRequest {
            holes: &[IO_APIC_PAGE],
            ..request(kind)
        })
        .expect("room below the hole");
        assert_eq!(plan.scratch().end(), IO_APIC_PAGE.range.start(), "{kind}");
    }
}

#[test]
fn i686_scratch_that_fits_above_the_io_apic_stays_there() {
    let plan = MemoryPlan::new(&PlanRequest {
        scratch: ScratchRequest {
            len_bytes: 2 * MIB - PAGE_SIZE,
            ..request(GuestKind::I686Paged).scratch
        },
        holes: &[IO_APIC_PAGE],
        ..request(GuestKind::I686Paged)
    })
    .expect("exactly the room between the two holes");
    assert_eq!(plan.scratch().start(), IO_APIC_PAGE.range.end());
    assert_eq!(plan.scratch().end(), LOCAL_APIC_PAGE.range.start());
}

#[test]
fn a_displaced_scratch_still_ends_at_the_highest_virtual_address() {
    let plan = MemoryPlan::new(&PlanRequest {
        holes: &[IO_APIC_PAGE],
        ..request(GuestKind::I686Paged)
    })
    .expect("room below the hole");
    let bookkeeping = plan.guest_ptr(RegionName::Bookkeeping).expect("mapped");
    assert_eq!(
        bookkeeping.as_u64() + PAGE_SIZE - 1,
        i686::MAX_GVA_PAGED.as_u64()
    );
}

#[test]
fn an_identity_image_that_meets_a_hole_is_refused() {
    let hole = Hole {
        name: "test hole",
        range: range(0x8_0000, PAGE_SIZE),
    };
    let error = MemoryPlan::new(&PlanRequest {
        holes: &[hole],
        ..request(GuestKind::I686Identity)
    })
    .expect_err("the image is linked to its addresses");
    assert_eq!(
        error,
        PlanError::NoRoom {
            region: RegionName::Image,
            len_bytes: MIB,
            obstacle: Obstacle::Hole(hole),
        }
    );
    assert_eq!(
        error.to_string(),
        "memory plan: no room for the image of 0x100000 bytes: \
         hole 'test hole' [0x80000, 0x81000) is in the way"
    );
}

#[test]
fn a_paged_image_that_meets_a_hole_moves_up_by_whole_large_pages() {
    let hole = Hole {
        name: "test hole",
        range: range(0x8_0000, PAGE_SIZE),
    };
    let cases = [
        (GuestKind::Amd64User, 0x20_1000),
        (GuestKind::Amd64Kernel, 0x20_1000),
        (GuestKind::I686Paged, 0x40_1000),
    ];
    for (kind, start) in cases {
        let plan = MemoryPlan::new(&PlanRequest {
            holes: &[hole],
            ..request(kind)
        })
        .expect("room above the hole");
        assert_eq!(plan.image(), range(start, MIB), "{kind}");
    }
}

#[test]
fn an_amd64_image_longer_than_4_gib_clears_the_local_apic_page() {
    let plan = MemoryPlan::new(&PlanRequest {
        image_len_bytes: 8 * GIB,
        ..request(GuestKind::Amd64User)
    })
    .expect("64 GiB of addresses");
    assert_eq!(plan.image().start(), LOCAL_APIC_PAGE.range.end());
}

#[test]
fn image_and_scratch_that_meet_name_each_other() {
    for kind in [GuestKind::I686Identity, GuestKind::I686Paged] {
        let base = request(kind);
        let error = MemoryPlan::new(&PlanRequest {
            image_len_bytes: 2 * GIB,
            scratch: ScratchRequest {
                len_bytes: 2 * GIB,
                ..base.scratch
            },
            ..base
        })
        .expect_err("4 GiB do not fit below the local APIC page");
        let message = error.to_string();
        assert!(message.contains("image of 0x80000000 bytes"), "{message}");
        assert!(
            message.contains("scratch [0x7ee00000, 0xfee00000)"),
            "{message}"
        );
    }
}

#[test]
fn scratch_without_room_names_what_is_in_the_way() {
    let hole = Hole {
        name: "firmware",
        range: range(0x8000_0000, PAGE_SIZE),
    };
    let base = request(GuestKind::I686Paged);
    let error = MemoryPlan::new(&PlanRequest {
        scratch: ScratchRequest {
            len_bytes: 3 * GIB,
            ..base.scratch
        },
        holes: &[hole],
        ..base
    })
    .expect_err("neither side of the hole has 3 GiB");
    assert_eq!(
        error,
        PlanError::NoRoom {
            region: RegionName::Scratch,
            len_bytes: 3 * GIB,
            obstacle: Obstacle::Hole(hole),
        }
    );
}

#[test]
fn scratch_never_reaches_below_the_lowest_address() {
    let top_page = [Reserved {
        name: "top page",
        range: range(0xfedf_f000, PAGE_SIZE),
    }];
    let base = request(GuestKind::I686Paged);
    let len_bytes = i686::MAX_SCRATCH_LEN_BYTES;
    let plan = |reserved| {
        MemoryPlan::new(&PlanRequest {
            image_len_bytes: PAGE_SIZE,
            scratch: ScratchRequest {
                len_bytes,
                ..base.scratch
            },
            reserved,
            ..base
        })
    };
    // Below the reserved page this scratch would begin at 0.
    assert_eq!(
        plan(&top_page),
        Err(PlanError::NoRoom {
            region: RegionName::Scratch,
            len_bytes,
            obstacle: Obstacle::Reserved(top_page[0]),
        })
    );
    // Without it scratch fits, and takes all the room there is.
    assert_eq!(
        plan(&[]),
        Err(PlanError::NoRoom {
            region: RegionName::Image,
            len_bytes: PAGE_SIZE,
            obstacle: Obstacle::Region(RegionName::Scratch, range(0x1000, len_bytes)),
        })
    );
}

#[test]
fn reserved_ranges_are_kept_clear() {
    let stack = Reserved {
        name: "user stack",
        range: range(0xfed0_0000, 0x1_0000),
    };
    let plan = MemoryPlan::new(&PlanRequest {
        reserved: &[stack],
        ..request(GuestKind::I686Identity)
    })
    .expect("room below the stack");
    assert_eq!(plan.scratch().end(), stack.range.start());
}

#[test]
fn reserved_ranges_do_not_overlap_holes_or_each_other() {
    let one = Reserved {
        name: "one",
        range: range(0x1000_0000, 0x2000),
    };
    let two = Reserved {
        name: "two",
        range: range(0x1000_1000, 0x2000),
    };
    let apic = Reserved {
        name: "mine",
        range: LOCAL_APIC_PAGE.range,
    };
    let cases = [
        ([one, two], two, Obstacle::Reserved(one)),
        ([one, apic], apic, Obstacle::Hole(LOCAL_APIC_PAGE)),
    ];
    for (list, reserved, other) in cases {
        let error = MemoryPlan::new(&PlanRequest {
            reserved: &list,
            ..request(GuestKind::Amd64Kernel)
        })
        .expect_err("overlap");
        assert_eq!(error, PlanError::ReservedOverlap { reserved, other });
        let message = error.to_string();
        assert!(message.contains(reserved.name), "{message}");
    }
}

#[test]
fn too_many_reserved_ranges_are_refused() {
    let list: Vec<_> = (0..=MAX_RESERVED as u64)
        .map(|index| Reserved {
            name: "page",
            range: range(0x1000_0000 + index * PAGE_SIZE, PAGE_SIZE),
        })
        .collect();
    let plan = |reserved| {
        MemoryPlan::new(&PlanRequest {
            reserved,
            ..request(GuestKind::Amd64User)
        })
    };
    assert!(plan(&list[1..]).is_ok());
    assert_eq!(
        plan(&list),
        Err(PlanError::TooManyReserved {
            count: MAX_RESERVED + 1,
            max: MAX_RESERVED
        })
    );
}

#[test]
fn holes_may_repeat_and_overlap() {
    let plan = MemoryPlan::new(&PlanRequest {
        holes: &[LOCAL_APIC_PAGE, IO_APIC_PAGE, IO_APIC_PAGE],
        ..request(GuestKind::Amd64User)
    });
    assert!(plan.is_ok());
}

#[test]
fn the_minimum_scratch_is_enough_and_a_page_less_is_not() {
    for kind in GuestKind::ALL {
        let base = request(kind);
        let minimum_len_bytes = minimum_scratch_len(kind, &base.scratch).expect("valid parts");
        let plan = |len_bytes| {
            MemoryPlan::new(&PlanRequest {
                scratch: ScratchRequest {
                    len_bytes,
                    ..base.scratch
                },
                ..base
            })
        };
        let smallest = plan(minimum_len_bytes).expect("the minimum is enough");
        assert_eq!(smallest.frames().pages(), 1, "{kind}");
        let len_bytes = minimum_len_bytes - PAGE_SIZE;
        assert_eq!(
            plan(len_bytes),
            Err(PlanError::ScratchTooSmall {
                len_bytes,
                minimum_len_bytes
            }),
            "{kind}"
        );
    }
}

/// Sets one length of a request.
type SetLength = fn(&mut PlanRequest<'static>, u64);

#[test]
fn lengths_that_cannot_be_are_refused_region_by_region() {
    let lengths: [(RegionName, SetLength); 5] = [
        (RegionName::Image, |r, len| r.image_len_bytes = len),
        (RegionName::Scratch, |r, len| r.scratch.len_bytes = len),
        (RegionName::Input, |r, len| r.scratch.input_len_bytes = len),
        (RegionName::Output, |r, len| {
            r.scratch.output_len_bytes = len;
        }),
        (RegionName::Tables, |r, len| {
            r.scratch.tables_len_bytes = len;
        }),
    ];
    for (region, set) in lengths {
        for len_bytes in [0, 1, 0xfff, 0x1001, u64::MAX, !0xfff] {
            let mut request = request(GuestKind::Amd64User);
            set(&mut request, len_bytes);
            let expected = match len_bytes {
                0 => PlanError::Empty { region },
                0xffff_ffff_ffff_f000 => PlanError::TooLarge {
                    region,
                    len_bytes,
                    max_len_bytes: amd64::MAX_SCRATCH_LEN_BYTES,
                },
                _ => PlanError::Unaligned { region, len_bytes },
            };
            assert_eq!(MemoryPlan::new(&request), Err(expected), "{region}");
            assert!(expected.to_string().contains(region.as_str()), "{expected}");
        }
    }
}

#[test]
fn a_guest_without_paging_has_no_page_tables() {
    let base = request(GuestKind::I686Identity);
    let error = MemoryPlan::new(&PlanRequest {
        scratch: ScratchRequest {
            tables_len_bytes: PAGE_SIZE,
            ..base.scratch
        },
        ..base
    });
    assert_eq!(
        error,
        Err(PlanError::TablesWithoutPaging {
            len_bytes: PAGE_SIZE
        })
    );
}

#[test]
fn bookkeeping_words_are_counted_down_from_the_top() {
    let plan = MemoryPlan::new(&request(GuestKind::Amd64User)).expect("modest request");
    let cases = [
        (SCRATCH_TOP_SIZE_OFFSET, Some(0xf_ffff_fff8)),
        (SCRATCH_TOP_ALLOCATOR_OFFSET, Some(0xf_ffff_fff0)),
        (PAGE_SIZE, Some(0xf_ffff_f000)),
        (PAGE_SIZE + 1, None),
        (0, None),
        (u64::MAX, None),
    ];
    for (offset, address) in cases {
        let found = plan.bookkeeping_at(offset).map(Gpa::as_u64);
        assert_eq!(found, address, "{offset:#x}");
    }
    assert_eq!(
        plan.guard().start().checked_add(SCRATCH_TOP_LEN_BYTES),
        Some(plan.scratch().end())
    );
}

#[test]
fn a_plan_prints_one_line_per_region() {
    let plan = MemoryPlan::new(&request(GuestKind::Amd64User)).expect("modest request");
    let text = plan.to_string();
    assert_eq!(text.lines().count(), plan.regions().count());
    for (line, (name, range)) in text.lines().zip(plan.regions()) {
        assert!(line.ends_with(name.as_str()), "{line}");
        assert!(line.contains(&format!("{:x}", range.start())), "{line}");
    }
}

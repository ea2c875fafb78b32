use vellum_layout::{Gva, GvaRange, PAGE_SIZE};
use vellum_vmem::Attrs;

use super::super::{Extent, Extents, placed};
use super::{Area, Backing, UserSpace};

const BASE: u64 = 0x10_0000;

fn gva(page: u64) -> Gva {
    Gva::new(BASE + page * PAGE_SIZE).expect("canonical")
}

fn area(first: u64, pages: u64, backing: Backing) -> Area {
    Area {
        range: GvaRange::new(gva(first), pages * PAGE_SIZE).expect("a range"),
        rights: Attrs::WRITE,
        backing,
    }
}

#[test]
fn an_area_is_found_by_any_of_its_addresses_and_no_other() {
    let areas = vec![area(10, 2, Backing::Image), area(4, 3, Backing::Image)];
    let space = UserSpace::new(areas, Extents::new(Vec::new()));
    let cases = [
        (3, None),
        (4, Some(4)),
        (6, Some(4)),
        (7, None),
        (9, None),
        (10, Some(10)),
        (11, Some(10)),
        (12, None),
    ];
    for (page, expected) in cases {
        for address in [
            gva(page),
            Gva::new(gva(page).as_u64() + 4095).expect("canonical"),
        ] {
            let found = space.area_of(address).map(|area| area.range.start());
            assert_eq!(found, expected.map(gva), "page {page}");
        }
    }
}

#[test]
fn areas_keep_their_rights_and_backing_through_an_overlay() {
    let areas = vec![
        area(0, 4, Backing::Image),
        area(8, 4, Backing::Zero { first_page: 3 }),
    ];
    let extent = Extent {
        at: gva(0),
        image_page: 0,
        pages: 4,
    };
    let space = UserSpace::new(areas.clone(), Extents::new(vec![extent]));
    let overlaid = space.extents().below(&placed(&[gva(9)], 4));
    assert_eq!(space.with_extents(overlaid).areas(), areas);
}

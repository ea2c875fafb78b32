use super::*;
use crate::engine::CowMode;
use crate::machine::build;
use crate::memory::{Config, Extents, FixedFrame, Layer, Layers, PAGE_LEN_BYTES, UserSpace};

fn geometry(cow: CowMode) -> Geometry {
    Geometry::for_user(&Config::new(), cow, &[], 2).expect("a geometry")
}

/// A memory with tables and with frames that can be told apart, and its template.
fn with_template(geometry: &Geometry) -> (GuestMemory, Template) {
    let user = geometry.user().expect("a user guest");
    let memory = GuestMemory::zeroed(geometry).expect("address space");
    let space = UserSpace::new(Vec::new(), Extents::new(Vec::new()));
    let used = build(&memory, geometry, &space).expect("built");
    for (frame, byte) in [
        (FixedFrame::Peb, 1),
        (FixedFrame::Machine, 2),
        (FixedFrame::Monitor, 3),
        (FixedFrame::Resume, 4),
    ] {
        let at = user.fixed_frame(frame).expect("a frame").start();
        memory
            .write(at, &[byte; PAGE_LEN_BYTES])
            .expect("in scratch");
    }
    let template = Template::copy_of(&memory, geometry, user, used).expect("sealed");
    (memory, template)
}

fn layers() -> Layers {
    let layer = |byte: u8| {
        let filled = Layer::create(1, |writer| writer.write(0, &[byte; PAGE_LEN_BYTES]));
        filled.expect("sealed")
    };
    Layers::of([layer(0xA), layer(0xB)])
}

fn scratch(memory: &GuestMemory) -> Vec<u8> {
    let len = usize::try_from(memory.scratch.len_bytes()).expect("small");
    let mut bytes = vec![0; len];
    memory.scratch.read(0, &mut bytes).expect("in bounds");
    bytes
}

#[test]
fn a_memory_of_a_template_begins_like_the_one_that_it_was_made_of() {
    for cow in [CowMode::GuestSide, CowMode::HostSide] {
        let geometry = geometry(cow);
        let (original, template) = with_template(&geometry);
        let copy = GuestMemory::of_layers(&geometry, &layers(), Some(&template)).expect("mapped");
        assert!(scratch(&original) == scratch(&copy), "{cow:?}");
        let mut image = [0; 3 * PAGE_LEN_BYTES];
        copy.image.read(0, &mut image).expect("in bounds");
        for (page, byte) in image.chunks(PAGE_LEN_BYTES).zip([0xA, 0xB, 0]) {
            assert!(page.iter().all(|&found| found == byte), "{byte:#x}");
        }
    }
}

#[test]
fn what_one_memory_writes_is_in_no_other() {
    let geometry = geometry(CowMode::GuestSide);
    let (original, template) = with_template(&geometry);
    let of_template = || GuestMemory::of_layers(&geometry, &layers(), Some(&template));
    let (one, two) = (
        of_template().expect("mapped"),
        of_template().expect("mapped"),
    );
    let len_bytes = one.scratch.len_bytes();
    for offset in (0..len_bytes).step_by(PAGE_LEN_BYTES) {
        one.scratch.write_u64(offset, u64::MAX).expect("writable");
    }
    assert!(scratch(&two) == scratch(&original));
}

#[test]
fn tables_alone_are_mapped_over_those_of_another_snapshot() {
    let geometry = geometry(CowMode::GuestSide);
    let (original, template) = with_template(&geometry);
    let user = geometry.user().expect("a user guest");
    let mut moved = GuestMemory::zeroed(&geometry).expect("address space");
    let peb = user.fixed_frame(FixedFrame::Peb).expect("a frame").start();
    moved.write(peb, &[9; PAGE_LEN_BYTES]).expect("in scratch");
    template.map_tables_into(&mut moved).expect("mapped");
    let start = usize::try_from(moved.scratch_offset(user.tables)).expect("small");
    let tables = start..start + usize::try_from(template.tables_len_bytes).expect("small");
    assert!(scratch(&moved)[tables.clone()] == scratch(&original)[tables]);
    let mut found = [0; PAGE_LEN_BYTES];
    let offset = moved.scratch_offset_of(peb).expect("in scratch");
    moved.scratch.read(offset, &mut found).expect("in bounds");
    assert_eq!(found, [9; PAGE_LEN_BYTES]);
}

#[test]
fn a_template_fits_only_its_own_geometry() {
    let (_, template) = with_template(&geometry(CowMode::GuestSide));
    assert!(template.fits(&geometry(CowMode::GuestSide)));
    assert!(!template.fits(&geometry(CowMode::HostSide)));
}

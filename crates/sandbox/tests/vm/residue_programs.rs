//! Random programs of the user guest, compared with what they do in a new sandbox.

use vellum_layout::amd64::user;
use vellum_sandbox::{CowMode, RingZero};

use super::residue_harness::{Plan, Subject};
use super::support::{HEAP_LEN_BYTES, Lab, host, in_mode};

/// FXSAVE image, flags, memory: what ring 3 sees everywhere.
const SEEN_EVERYWHERE: u64 = 1 << 0 | 1 << 4 | 1 << 11;

/// The selectors in the segment registers. Where ring 0 is emulated and ring 3 is not, `mov` shows ring 3 those of the processor, which
/// are the host kernel's and follow neither the guest's own nor what the hypervisor is told to load. Where the monitor copies pages, a fault ends in an
/// `iret` to ring 3, which clears the low bits of a null selector on some processors (Intel SDM volume 2, `IRET`), and in the emulator; and
/// which pages fault anew is no part of a snapshot.
const SELECTORS: u64 = 1 << 5;

fn subject(lab: &Lab) -> Subject {
    let each = |letter, count: u8| (0..count).map(move |selector| (letter, selector));
    let changes = each(b'x', 52)
        .chain(each(b'y', 16))
        .chain(each(b'7', 8))
        .chain(each(b's', 4))
        .chain(each(b'b', 2))
        .chain(each(b'k', 1))
        .chain(each(b'h', 2))
        .chain(each(b'l', 1))
        .chain((0..4).flat_map(|_| each(b'm', 5)))
        .chain((0..8).map(|_| (b'f', 0)));
    let unseen = match (lab.engine.capabilities().ring_zero, lab.engine.cow_mode()) {
        (RingZero::Emulated, _) | (_, CowMode::GuestSide) => SELECTORS,
        (RingZero::Native, CowMode::HostSide) => 0,
    };
    let subject = Subject::new(Plan {
        engine: lab.engine.clone(),
        image: lab.image.clone(),
        host: host(),
        heap_len_bytes: HEAP_LEN_BYTES,
        heap: user::HEAP_BASE.as_u64(),
        changes: changes.collect(),
        endings: each(b'e', 22).chain(each(b'a', 6)).collect(),
        observations: 12,
        unseen,
    });
    let menu = subject.menu();
    assert!(menu.sees(SEEN_EVERYWHERE), "{menu:x?}");
    assert!(
        b"x7sfmhl".iter().all(|letter| menu.has(*letter)),
        "{menu:x?}"
    );
    subject
}

#[test]
fn a_user_guest_whose_pages_the_host_copies_is_as_new_after_a_restore() {
    in_mode(CowMode::HostSide, |lab| subject(lab).run_cases(80));
}

#[test]
fn a_user_guest_that_copies_its_pages_is_as_new_after_a_restore() {
    in_mode(CowMode::GuestSide, |lab| subject(lab).run_cases(25));
}

/// Without this the tests above could pass by comparing nothing.
#[test]
fn without_a_restore_every_way_of_looking_finds_what_a_program_left() {
    in_mode(CowMode::HostSide, |lab| {
        subject(lab).expect_differences(&[
            (b'x', 40, "Xsave"),
            (b'm', 0, "result"),
            (b'm', 1, "memory"),
            (b'a', 1, "General"),
        ]);
    });
}

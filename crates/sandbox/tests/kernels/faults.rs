//! Page faults that a kernel serves itself, counted: none where the host copies, exactly one for each page where the guest does.

use vellum_sandbox::Sandbox;

use super::support::{HEAP_LEN_BYTES, PAGE, call, with_each_paged};

/// Pages of the heap that a test touches.
const PAGES: u64 = 16;

fn fault_count(sandbox: &mut Sandbox) -> u64 {
    call(sandbox, "fault_count", ())
}

/// Index of a word in the upper half of the heap, where nothing is allocated, one page for each number.
fn word(page: u64) -> u64 {
    (HEAP_LEN_BYTES / 2 + page * PAGE) / 8 + 3
}

/// Writes to as many pages, and returns how many faults that cost.
fn touch(sandbox: &mut Sandbox, pages: u64) -> u64 {
    let before = fault_count(sandbox);
    for page in 0..pages {
        let () = call(sandbox, "set_heap_word", (word(page), 0x5EED + page));
    }
    fault_count(sandbox) - before
}

fn expect_words(sandbox: &mut Sandbox, pages: u64, value: impl Fn(u64) -> u64) {
    for page in 0..pages {
        let seen: u64 = call(sandbox, "heap_word", (word(page),));
        assert_eq!(seen, value(page), "page {page}");
    }
}

#[test]
fn a_page_of_the_heap_costs_one_fault_when_it_is_first_touched_and_after_a_restore_again() {
    with_each_paged(|lab| {
        let expected = if lab.copies_itself() { PAGES } else { 0 };
        let mut sandbox = lab.sandbox();
        let clean = sandbox.snapshot().expect("a snapshot");
        assert_eq!(touch(&mut sandbox, PAGES), expected, "first touch");
        assert_eq!(touch(&mut sandbox, PAGES), 0, "second touch");
        expect_words(&mut sandbox, PAGES, |page| 0x5EED + page);
        sandbox.restore(&clean).expect("restored");
        assert_eq!(touch(&mut sandbox, PAGES), expected, "after a restore");
        let mut fork = lab.fork(&clean);
        assert_eq!(touch(&mut fork, PAGES), expected, "in a fork");
    });
}

#[test]
fn pages_of_a_snapshot_cost_no_fault_in_what_is_made_from_it() {
    with_each_paged(|lab| {
        let mut sandbox = lab.sandbox();
        touch(&mut sandbox, PAGES);
        let touched = sandbox.snapshot().expect("a snapshot");
        assert_eq!(touch(&mut sandbox, PAGES), 0, "after the snapshot");
        sandbox.restore(&touched).expect("restored");
        expect_words(&mut sandbox, PAGES, |page| 0x5EED + page);
        assert_eq!(touch(&mut sandbox, PAGES), 0, "after a restore");
        let mut fork = lab.fork(&touched);
        expect_words(&mut fork, PAGES, |page| 0x5EED + page);
        assert_eq!(touch(&mut fork, PAGES), 0, "in a fork");
    });
}

#[test]
fn reading_the_heap_finds_zeroes_and_costs_a_fault_as_well() {
    with_each_paged(|lab| {
        let mut sandbox = lab.sandbox();
        let before = fault_count(&mut sandbox);
        expect_words(&mut sandbox, 1, |_| 0);
        let faults = u64::from(lab.copies_itself());
        assert_eq!(fault_count(&mut sandbox) - before, faults);
    });
}

#[test]
fn a_write_to_data_of_the_image_copies_its_page_once() {
    with_each_paged(|lab| {
        let faults = u64::from(lab.copies_itself());
        let mut sandbox = lab.sandbox();
        let clean = sandbox.snapshot().expect("a snapshot");
        let address: u64 = call(&mut sandbox, "data_address", ());
        let read = |sandbox: &mut Sandbox, offset| -> u64 {
            call(sandbox, "read_address", (address + offset,))
        };
        let before = fault_count(&mut sandbox);
        assert_eq!(read(&mut sandbox, 0), 0x5EED, "reading copies nothing");
        assert_eq!(fault_count(&mut sandbox), before);
        for value in [1_u64, 2] {
            let () = call(&mut sandbox, "write_address", (address, value));
            assert_eq!(read(&mut sandbox, 0), value);
            assert_eq!(read(&mut sandbox, PAGE - 8), 0x5EED, "the rest of the page");
            assert_eq!(fault_count(&mut sandbox) - before, faults);
        }
        let mut fork = lab.fork(&clean);
        assert_eq!(read(&mut fork, 0), 0x5EED, "another sandbox of the image");
        sandbox.restore(&clean).expect("restored");
        assert_eq!(read(&mut sandbox, 0), 0x5EED);
    });
}

#[test]
fn a_page_is_copied_whatever_the_direction_flag_says() {
    with_each_paged(|lab| {
        let mut sandbox = lab.sandbox();
        let address: u64 = call(&mut sandbox, "data_address", ());
        assert!(call::<_, bool>(
            &mut sandbox,
            "fault_with_direction_flag",
            (address,)
        ));
        for offset in [0, 8, PAGE - 8] {
            let value: u64 = call(&mut sandbox, "read_address", (address + offset,));
            assert_eq!(value, 0x5EED, "offset {offset:#x}");
        }
    });
}

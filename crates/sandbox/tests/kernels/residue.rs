//! Random programs of kernels, compared with what they do in a new sandbox.

use super::residue_harness::{Plan, Subject};
use super::support::{HEAP_LEN_BYTES, Kernel, Lab, call, host, with_kernels};

/// CR0, CR2, flags, memory: what ring 0 sees everywhere.
const SEEN_EVERYWHERE: u64 = 1 << 1 | 1 << 2 | 1 << 7 | 1 << 11;

fn subject(lab: &Lab) -> Subject {
    let each = |letter, count: u8| (0..count).map(move |selector| (letter, selector));
    let changes = each(b'c', 9)
        .chain(each(b'd', 8))
        .chain(each(b'w', 11))
        .chain(each(b'X', 1))
        .chain(each(b'x', 36))
        .chain(each(b'g', 5))
        .chain(each(b's', 2))
        .chain(each(b'h', 1))
        .chain(each(b'l', 1))
        .chain((0..2).flat_map(|_| each(b'm', 5)))
        .chain((0..4).map(|_| (b'f', 0)));
    let subject = Subject::new(Plan {
        engine: lab.engine.clone(),
        image: lab.image.clone(),
        host: host(),
        heap_len_bytes: HEAP_LEN_BYTES,
        heap: call(&mut lab.sandbox(), "heap_start", ()),
        changes: changes.collect(),
        endings: each(b'e', 25).chain(each(b'a', 6)).collect(),
        observations: 23,
        unseen: 0,
    });
    let menu = subject.menu();
    assert!(menu.sees(SEEN_EVERYWHERE), "{menu:x?}");
    assert!(
        b"cdwgsmfhl".iter().all(|letter| menu.has(*letter)),
        "{menu:x?}"
    );
    subject
}

fn run(kernel: Kernel, cases: u32) {
    with_kernels(|other| other == kernel, |lab| subject(lab).run_cases(cases));
}

#[test]
fn a_kernel_without_paging_is_as_new_after_a_restore() {
    run(Kernel::IdentityRust, 30);
}

#[test]
fn a_paged_kernel_is_as_new_after_a_restore() {
    run(Kernel::Paged, 20);
}

#[test]
fn an_amd64_kernel_is_as_new_after_a_restore() {
    run(Kernel::Amd64, 20);
}

/// Without this the tests above could pass by comparing nothing.
#[test]
fn without_a_restore_every_way_of_looking_finds_what_a_kernel_left() {
    with_kernels(
        |kernel| kernel == Kernel::IdentityRust,
        |lab| {
            subject(lab).expect_differences(&[
                (b'c', 2, "Special"),
                (b'd', 0, "Debug"),
                (b'm', 0, "result"),
                (b'm', 1, "memory"),
                (b'a', 0, "General"),
            ]);
        },
    );
}

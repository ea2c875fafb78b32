//! Mapped memory, its first writes, and page tables that the host edits.
#![expect(unsafe_code, reason = "lends memory to test guests")]

use std::collections::BTreeSet;

use vellum_backend::Tracking;
use vellum_backend::{Access, Exit, HostMemory, Protection, StateGroup, Vm, VmError};

use crate::support::{
    Guest, MEMORY_LEN_BYTES, PRESENT_WRITE_USER_USED, PT, flat_state, guest, guest_of, kvm,
    out_data, range, skip, tracked_guest, user_state,
};

#[test]
fn a_host_edit_of_page_tables_is_visible_once_published() {
    let Some(kvm) = kvm() else { return };
    // again: mov eax, [0x8000]; out 0xe0, eax; jmp again
    let code = [0x8B, 0x04, 0x25, 0, 0x80, 0, 0, 0xE7, 0xE0, 0xEB, 0xF5];
    let mut guest = guest(&kvm, &code, Protection::Write);
    for (page, value) in [(0x6000, 1), (0x7000, 2)] {
        guest.memory.write_u64(page, value).expect("in bounds");
    }
    let point_window_at = |memory: &HostMemory, page: u64| {
        memory
            .write_u64(PT + 8 * 8, page | PRESENT_WRITE_USER_USED)
            .expect("in bounds");
    };
    point_window_at(&guest.memory, 0x6000);
    let mut state = user_state();
    state.restore(&mut guest.vm).expect("restored");
    assert_eq!(out_data(guest.vm.run().expect("ran")), 1);
    for (page, value, old) in [
        (0x7000, 2, 0x6000),
        (0x6000, 1, 0x7000),
        (0x7000, 2, 0x6000),
        (0x6000, 1, 0x7000),
    ] {
        point_window_at(&guest.memory, page);
        if page == 0x7000 {
            guest.vm.publish_tables().expect("published");
        } else {
            guest
                .vm
                .publish_remap(range(old, 0x1000))
                .expect("published");
        }
        state.special.cr3 ^= 1 << 3;
        guest
            .vm
            .set_state(StateGroup::Special, &state)
            .expect("set");
        assert_eq!(out_data(guest.vm.run().expect("ran")), value);
    }
}

#[test]
fn overlapping_unaligned_and_unknown_ranges_are_refused() {
    let Some(kvm) = kvm() else { return };
    let mut guest = guest(&kvm, &[0xF4], Protection::Write);
    let extra = HostMemory::zeroed(0x2000).expect("memory");
    for start in [0, 0xF_F000] {
        // SAFETY: nothing is mapped when the call fails, which is asserted.
        let result = unsafe {
            guest
                .vm
                .map(range(start, 0x2000), extra.hva(), Protection::Write)
        };
        assert!(matches!(result, Err(VmError::Overlap { .. })), "{result:?}");
    }
    let unaligned = extra.hva().checked_add(8).expect("an address");
    // SAFETY: as above.
    let result = unsafe {
        guest
            .vm
            .map(range(0x20_0000, 0x1000), unaligned, Protection::Write)
    };
    assert!(
        matches!(result, Err(VmError::Unaligned { .. })),
        "{result:?}"
    );
    for unknown in [range(0x20_0000, 0x1000), range(0, 0x1000)] {
        assert!(matches!(
            guest.vm.unmap(unknown),
            Err(VmError::NotMapped { .. })
        ));
        assert!(guest.vm.publish_remap(range(0x20_0000, 0x1000)).is_err());
    }
    guest
        .vm
        .unmap(range(0, MEMORY_LEN_BYTES))
        .expect("exactly what was mapped");
}

#[test]
fn first_writes_are_reported_once_until_the_ring_is_reset() {
    let Some(kvm) = kvm() else { return };
    // ring 3: mov ecx, 4; mov edi, 0x20000; again: mov [rdi], cl; add edi, 0x1000; dec ecx; jnz again; out 0xe0, eax; jmp start
    let code = [
        0xB9, 4, 0, 0, 0, 0xBF, 0, 0, 2, 0, 0x88, 0x0F, 0x81, 0xC7, 0, 0x10, 0, 0, 0xFF, 0xC9,
        0x75, 0xF4, 0xE7, 0xE0, 0xEB, 0xE6,
    ];
    let mut guest = guest(&kvm, &code, Protection::TrackedWrite);
    user_state().restore(&mut guest.vm).expect("restored");
    let written = [0x2_0000, 0x2_1000, 0x2_2000, 0x2_3000];
    out_data(guest.vm.run().expect("ran"));
    let mut dirty = Vec::new();
    guest
        .vm
        .take_dirty(&mut |page| dirty.push(page.as_u64()))
        .expect("taken");
    for page in written {
        assert!(dirty.contains(&page), "{page:#x} in {dirty:x?}");
    }
    out_data(guest.vm.run().expect("ran"));
    let mut again = Vec::new();
    guest
        .vm
        .take_dirty(&mut |page| again.push(page.as_u64()))
        .expect("taken");
    assert!(
        again.iter().all(|page| !written.contains(page)),
        "{again:x?}"
    );
    guest.vm.rearm_dirty().expect("re-armed");
    out_data(guest.vm.run().expect("ran"));
    let dirty = dirty_pages(&mut guest);
    for page in written {
        assert!(dirty.contains(&page), "{page:#x} in {dirty:x?}");
    }
}

/// Ring 0 without paging: 20,000 stores to the page at 0x20000, more than a ring has entries, then one to that at 0x21000.
const MANY_STORES: [u8; 22] = [
    0xBA, 0x20, 0x4E, 0, 0, // mov edx, 20000
    0xBF, 0, 0, 2, 0, // mov edi, 0x20000
    0x89, 0x17, // again: mov [edi], edx
    0x4A, // dec edx
    0x75, 0xFB, // jnz again
    0xA3, 0, 0x10, 2, 0, // mov [0x21000], eax
    0xE7, 0xE0, // out 0xe0, eax
];

fn dirty_pages(guest: &mut Guest) -> BTreeSet<u64> {
    let mut dirty = BTreeSet::new();
    guest
        .vm
        .take_dirty(&mut |page| {
            dirty.insert(page.as_u64());
        })
        .expect("taken");
    dirty
}

/// What [`MANY_STORES`] writes is reported. A page that it only reads may be as well: KVM counts a page as written when it makes it
/// writable, at whatever access.
fn expect_written(dirty: &BTreeSet<u64>) {
    let written = BTreeSet::from([0x2_0000, 0x2_1000]);
    assert!(dirty.is_superset(&written), "{dirty:x?}");
    assert!(dirty.len() <= written.len() + 1, "{dirty:x?}");
}

#[test]
fn a_bitmap_reports_the_pages_of_any_number_of_stores() {
    let Some(kvm) = kvm() else { return };
    let tracking = (Protection::TrackedWrite, Tracking::Bitmap);
    let mut guest = tracked_guest(&kvm, &MANY_STORES, tracking, MEMORY_LEN_BYTES);
    for _ in 0..3 {
        flat_state().restore(&mut guest.vm).expect("restored");
        out_data(guest.vm.run().expect("ran"));
        expect_written(&dirty_pages(&mut guest));
        assert_eq!(dirty_pages(&mut guest), BTreeSet::new());
    }
    // Rebuilding a shadow takes the slot away and brings it back: nothing is forgotten.
    flat_state().restore(&mut guest.vm).expect("restored");
    out_data(guest.vm.run().expect("ran"));
    guest.vm.publish_tables().expect("published");
    expect_written(&dirty_pages(&mut guest));
}

#[test]
fn a_ring_that_is_overrun_is_an_error_and_loses_nothing_in_silence() {
    let Some(kvm) = kvm() else { return };
    let tracking = (Protection::TrackedWrite, Tracking::FirstWrites);
    let mut guest = tracked_guest(&kvm, &MANY_STORES, tracking, MEMORY_LEN_BYTES);
    flat_state().restore(&mut guest.vm).expect("restored");
    let mut dirty = BTreeSet::new();
    let outcome = guest.vm.run().map(out_data).and_then(|_| {
        guest.vm.take_dirty(&mut |page| {
            dirty.insert(page.as_u64());
        })
    });
    match outcome {
        Ok(()) => expect_written(&dirty),
        Err(error) => assert!(error.to_string().contains("overrun"), "{error}"),
    }
}

/// Ring 3, `passes` times: writes a byte to each of `pages` pages from 2 MiB on; then out 0xe0, eax.
fn writer(pages: u32, passes: u32) -> Vec<u8> {
    let [p0, p1, p2, p3] = pages.to_le_bytes();
    let [n0, n1, n2, n3] = passes.to_le_bytes();
    vec![
        0xBA, n0, n1, n2, n3, // mov edx, passes
        0xB9, p0, p1, p2, p3, // pass: mov ecx, pages
        0xBF, 0, 0, 0x20, 0, // mov edi, 0x200000
        0x88, 0x0F, // page: mov [rdi], cl
        0x81, 0xC7, 0, 0x10, 0, 0, // add edi, 0x1000
        0xFF, 0xC9, // dec ecx
        0x75, 0xF4, // jnz page
        0xFF, 0xCA, // dec edx
        0x75, 0xE6, // jnz pass
        0xE7, 0xE0, // out 0xe0, eax
        0xEB, 0xDD, // jmp to the start
    ]
}

/// More pages than a dirty ring names.
const MANY_PAGES: u32 = 6000;
const MANY_LEN_BYTES: u64 = (1 << 21) + (MANY_PAGES as u64) * 0x1000;

#[test]
fn more_first_writes_than_the_ring_holds_are_all_reported_and_the_guest_does_not_notice() {
    let Some(kvm) = kvm() else { return };
    if kvm.capabilities().dirty_ring_pages == 0 {
        skip("this kernel has no dirty ring");
        return;
    }
    assert!(kvm.capabilities().dirty_ring_pages < MANY_PAGES);
    let mut guest = guest_of(
        &kvm,
        &writer(MANY_PAGES, 1),
        Protection::TrackedWrite,
        MANY_LEN_BYTES,
    );
    user_state().restore(&mut guest.vm).expect("restored");
    // The second time some pages were written before, some are protected again.
    let mut ever = BTreeSet::new();
    for _ in 0..2 {
        out_data(guest.run());
        guest
            .vm
            .take_dirty(&mut |page| {
                ever.insert(page.as_u64());
            })
            .expect("taken");
        let written = ever.range(1 << 21..).count();
        assert_eq!(written, MANY_PAGES as usize);
    }
}

#[test]
fn a_guest_that_writes_the_same_pages_again_and_again_does_not_fill_the_host() {
    let Some(kvm) = kvm() else { return };
    if kvm.capabilities().dirty_ring_pages == 0 {
        skip("this kernel has no dirty ring");
        return;
    }
    // Ten passes fill the ring about 14 times: 60,000 entries.
    let mut guest = guest_of(
        &kvm,
        &writer(MANY_PAGES, 10),
        Protection::TrackedWrite,
        MANY_LEN_BYTES,
    );
    user_state().restore(&mut guest.vm).expect("restored");
    out_data(guest.run());
    let mut reports = 0;
    let mut pages = BTreeSet::new();
    guest
        .vm
        .take_dirty(&mut |page| {
            reports += 1;
            pages.insert(page);
        })
        .expect("taken");
    assert!(pages.len() >= MANY_PAGES as usize, "{}", pages.len());
    assert!(
        reports <= 2 * pages.len() + 8192,
        "{reports} reports of {} pages",
        pages.len()
    );
}

#[test]
fn reads_and_untracked_memory_are_not_reported() {
    let Some(kvm) = kvm() else { return };
    // mov eax, [0x20000]; out 0xe0, eax
    let read = [0x8B, 0x04, 0x25, 0, 0, 2, 0, 0xE7, 0xE0];
    // mov [0x20000], eax; out 0xe0, eax
    let write = [0x89, 0x04, 0x25, 0, 0, 2, 0, 0xE7, 0xE0];
    for (code, protection) in [(read, Protection::TrackedWrite), (write, Protection::Write)] {
        let mut guest = guest(&kvm, &code, protection);
        user_state().restore(&mut guest.vm).expect("restored");
        out_data(guest.run());
        let mut pages = Vec::new();
        guest
            .vm
            .take_dirty(&mut |page| pages.push(page.as_u64()))
            .expect("taken");
        assert!(!pages.contains(&0x2_0000), "{protection:?} {pages:x?}");
    }
}

#[test]
fn a_range_that_was_unmapped_is_absent_and_can_be_mapped_anew() {
    let Some(kvm) = kvm() else { return };
    // again: mov eax, [0x200000]; out 0xe0, eax; jmp again
    let code = [0xA1, 0, 0, 0x20, 0, 0xE7, 0xE0, 0xEB, 0xF7];
    let memories = [1, 2].map(|value| {
        let memory = HostMemory::zeroed(0x1000).expect("memory");
        memory.write_u64(0, value).expect("in bounds");
        memory
    });
    let mut guest = guest(&kvm, &code, Protection::Write);
    for (memory, value) in memories.iter().zip([1, 2]) {
        for protection in [
            Protection::Write,
            Protection::ReadOnly,
            Protection::TrackedWrite,
        ] {
            // SAFETY: `memories` outlives `guest`, which is declared later; nothing borrows their bytes.
            unsafe {
                guest
                    .vm
                    .map(range(0x20_0000, 0x1000), memory.hva(), protection)
            }
            .expect("mapped");
            flat_state().restore(&mut guest.vm).expect("restored");
            assert_eq!(out_data(guest.run()), value, "{protection:?}");
            guest
                .vm
                .unmap(range(0x20_0000, 0x1000))
                .expect("it is mapped");
            let fault = Exit::MemoryFault {
                gpa: 0x20_0000,
                access: Access::Read,
                mapped: false,
            };
            assert_eq!(guest.run(), fault, "{protection:?}");
        }
    }
}

#[test]
fn dirty_pages_of_a_range_that_was_unmapped_are_forgotten() {
    let Some(kvm) = kvm() else { return };
    // mov [0x20000], eax; out 0xe0, eax
    let code = [0x89, 0x04, 0x25, 0, 0, 2, 0, 0xE7, 0xE0];
    let mut guest = guest(&kvm, &code, Protection::TrackedWrite);
    user_state().restore(&mut guest.vm).expect("restored");
    out_data(guest.run());
    guest
        .vm
        .unmap(range(0, MEMORY_LEN_BYTES))
        .expect("it is mapped");
    let mut pages = Vec::new();
    guest
        .vm
        .take_dirty(&mut |page| pages.push(page))
        .expect("taken");
    assert_eq!(pages, []);
}

#[test]
fn a_ring_that_was_collected_before_it_is_reported_full_goes_on() {
    let Some(kvm) = kvm() else { return };
    // 2020 stores and one more: twice that fills a ring but does not overrun it.
    let mut code = MANY_STORES;
    code[1..5].copy_from_slice(&2020_u32.to_le_bytes());
    let tracking = (Protection::TrackedWrite, Tracking::FirstWrites);
    let mut guest = tracked_guest(&kvm, &code, tracking, MEMORY_LEN_BYTES);
    for round in 0..6 {
        flat_state().restore(&mut guest.vm).expect("restored");
        let exit = guest.vm.run();
        out_data(exit.unwrap_or_else(|error| panic!("round {round}: {error:?}")));
        dirty_pages(&mut guest);
    }
}

//! Page tables that change under the guest: by its own hand and by the host's.

use vellum_backend::cpuid::CpuidLeaf;
use vellum_backend::{StateGroup, VmError};

use crate::failure::{Result, ensure, ensure_eq};
use crate::guest::guest;
use crate::rig::{ABSENT, CODE, DATA, EXTRA, Mode, OPEN, PAGE, PD, PML4, PT, Rig, range};
use crate::subject::Subject;

/// A page whose entry changes, and the pages that it points to in turn.
const WINDOW: u64 = DATA + 8 * PAGE;
const WINDOW_ENTRY: u64 = PT + (WINDOW >> 12) * 8;
const TARGETS: [u64; 3] = [DATA, DATA + PAGE, DATA + 2 * PAGE];
/// CR3.PWT changes nothing here but makes CR3 another value, so that loading it flushes translations.
const CR3_PWT: u64 = 1 << 3;

guest!(
    READ_WINDOW,
    64,
    "2:",
    "mov eax, [0x18000]",
    "out 0xe0, eax",
    "jmp 2b",
);

fn rig_with_targets(subject: &Subject, mode: Mode) -> Result<Rig> {
    let rig = Rig::new(subject, mode, &READ_WINDOW)?;
    for (value, target) in (1..).zip(TARGETS) {
        rig.ram.write_u64(target, value)?;
    }
    rig.ram.write_u64(WINDOW_ENTRY, TARGETS[0] | OPEN)?;
    Ok(rig)
}

fn host_edits(
    subject: &Subject,
    mode: Mode,
    publish: fn(&mut Rig, u64) -> std::result::Result<(), VmError>,
) -> Result {
    let mut rig = rig_with_targets(subject, mode)?;
    let mut state = rig.boot_state();
    let first = rig.result()?;
    ensure_eq!(first, 1, "before any edit");
    let mut old = TARGETS[0];
    for round in 0..6 {
        let index = (round + 1) % TARGETS.len();
        rig.ram.write_u64(WINDOW_ENTRY, TARGETS[index] | OPEN)?;
        publish(&mut rig, old)?;
        old = TARGETS[index];
        state.special.cr3 ^= CR3_PWT;
        rig.vm.set_state(StateGroup::Special, &state)?;
        let read = rig.result()?;
        ensure_eq!(u64::from(read), index as u64 + 1, "edit {round}");
    }
    Ok(())
}

pub(crate) fn an_edit_is_seen_once_tables_are_published(subject: &Subject) -> Result {
    for mode in [Mode::User, Mode::Kernel] {
        host_edits(subject, mode, |rig, _| rig.vm.publish_tables())
            .map_err(|failure| failure.within(format!("{mode:?}")))?;
    }
    Ok(())
}

pub(crate) fn an_edit_is_seen_once_its_old_target_is_published(subject: &Subject) -> Result {
    for mode in [Mode::User, Mode::Kernel] {
        host_edits(subject, mode, |rig, old| {
            rig.vm.publish_remap(range(old, PAGE))
        })
        .map_err(|failure| failure.within(format!("{mode:?}")))?;
    }
    Ok(())
}

/// An upper table that the host points elsewhere.
pub(crate) fn an_edit_of_an_upper_table_is_seen_once_published(subject: &Subject) -> Result {
    let mut rig = rig_with_targets(subject, Mode::User)?;
    rig.result()?;
    let other_table = DATA + 4 * PAGE;
    for page in 0..512 {
        rig.ram
            .write_u64(other_table + page * 8, page << 12 | OPEN)?;
    }
    rig.ram
        .write_u64(other_table + (WINDOW >> 12) * 8, TARGETS[2] | OPEN)?;
    rig.ram.write_u64(PD, other_table | OPEN)?;
    rig.vm.publish_tables()?;
    rig.start_with(|state| state.special.cr3 |= CR3_PWT)?;
    let read = rig.result()?;
    ensure_eq!(read, 3, "through the other table");
    Ok(())
}

/// A page that the host takes away is missed by the guest.
pub(crate) fn a_page_taken_away_is_missed_once_published(subject: &Subject) -> Result {
    let mut rig = rig_with_targets(subject, Mode::User)?;
    rig.result()?;
    rig.ram.write_u64(WINDOW_ENTRY, 0)?;
    rig.vm.publish_remap(range(TARGETS[0], PAGE))?;
    rig.start_with(|state| state.special.cr3 |= CR3_PWT)?;
    let exception = rig.exception()?;
    // User, read, not present (Intel SDM volume 3, section 4.7).
    ensure_eq!(
        (exception.vector, exception.error_code),
        (14, Some(4)),
        "page fault"
    );
    let address = rig.settled()?.special.cr2;
    ensure_eq!(address, WINDOW, "cr2");
    Ok(())
}

/// Only memory that is there, and that the guest may write, can be published.
pub(crate) fn only_writable_memory_is_published(subject: &Subject) -> Result {
    let mut rig = rig_with_targets(subject, Mode::User)?;
    let cases = [
        range(ABSENT, PAGE),
        range(ABSENT - PAGE, 2 * PAGE),
        range(0x4000_0000, PAGE),
    ];
    for wanted in cases {
        let result = rig.vm.publish_remap(wanted);
        ensure!(
            matches!(result, Err(VmError::NotMapped { range }) if range == wanted),
            "{wanted:x?}: {result:?}"
        );
    }
    if subject.capabilities().read_only_memory {
        rig.lend(range(EXTRA, PAGE), vellum_backend::Protection::ReadOnly)?;
        let result = rig.vm.publish_remap(range(EXTRA, PAGE));
        ensure!(
            matches!(result, Err(VmError::NotMapped { .. })),
            "read-only: {result:?}"
        );
    }
    Ok(())
}

// Reads the window, points it at the page of RCX, forgets the old translation, and reads again; then the same by a load of CR3.
guest!(
    EDIT_OWN_TABLES,
    64,
    "mov eax, [0x18000]",
    "out 0xe0, eax",
    "mov [rbx], rcx",
    "invlpg [0x18000]",
    "mov eax, [0x18000]",
    "out 0xe0, eax",
    "mov [rbx], rdx",
    "mov rax, cr3",
    "mov cr3, rax",
    "mov eax, [0x18000]",
    "out 0xe0, eax",
);

/// A guest that edits its own tables sees the edit after INVLPG and after a load of CR3 (Intel SDM volume 3, section 4.10.4).
pub(crate) fn a_guest_sees_its_own_edits(subject: &Subject) -> Result {
    let mut rig = rig_with_targets(subject, Mode::Kernel)?;
    rig.load(&EDIT_OWN_TABLES)?;
    rig.start_with(|state| {
        let general = &mut state.general;
        (general.rbx, general.rcx, general.rdx) =
            (WINDOW_ENTRY, TARGETS[1] | OPEN, TARGETS[2] | OPEN);
    })?;
    for expected in 1..=3 {
        let read = rig.result()?;
        ensure_eq!(read, expected, "what the window shows");
    }
    Ok(())
}

guest!(READ_FAR, 64, "mov eax, [rbx]", "out 0xe0, eax");

/// Pages of 2 MiB and 1 GiB, and a root entry that leads back to the root.
pub(crate) fn large_pages_and_recursive_tables_work(subject: &Subject) -> Result {
    /// PS (Intel SDM volume 3, tables 4-16 and 4-18).
    const LARGE: u64 = 1 << 7;
    const GIB: u64 = 1 << 30;
    let mut rig = Rig::new(subject, Mode::User, &READ_FAR)?;
    rig.ram.write_u64(DATA + 0x18, 0x5EED)?;
    // 6 MiB: a large page of the first 2 MiB. 1 GiB: one of the first gigabyte. The last root entry: the root itself.
    rig.ram.write_u64(PD + 3 * 8, OPEN | LARGE)?;
    rig.ram.write_u64(PML4 + PAGE + 8, OPEN | LARGE)?;
    rig.ram.write_u64(PML4 + 100 * 8, PML4 | OPEN)?;
    rig.vm.publish_tables()?;
    // Four times the recursive entry: the root as a page.
    let root = 100 << 39 | 100 << 30 | 100 << 21 | 100 << 12;
    let mut cases = vec![
        ((6 << 20) + DATA + 0x18, 0x5EED),
        (root + 100 * 8, PML4 | OPEN),
    ];
    // Where the profile offers them (Intel SDM volume 2, `CPUID`, leaf 8000_0001).
    let has_gib_pages = |leaf: &CpuidLeaf| leaf.leaf == 0x8000_0001 && leaf.edx & 1 << 26 != 0;
    if subject.model().leaves.iter().any(has_gib_pages) {
        cases.push((GIB + DATA + 0x18, 0x5EED));
    }
    for (address, expected) in cases {
        rig.start_with(|state| state.general.rbx = address)?;
        let read = rig
            .result()
            .map_err(|failure| failure.within(format!("{address:#x}")))?;
        ensure_eq!(u64::from(read), expected, "{address:#x}");
    }
    Ok(())
}

guest!(
    TURN_ON_PAGING,
    32,
    "mov eax, cr4",
    "or eax, 0x10",
    "mov cr4, eax",
    "mov eax, 0x5000",
    "mov cr3, eax",
    "mov eax, cr0",
    "or eax, 0x80000000",
    "mov cr0, eax",
    "mov eax, [ebx]",
    "out 0xe0, eax",
);

/// A guest that turns on 2-level paging itself.
pub(crate) fn a_guest_turns_on_two_level_paging(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::Flat, &TURN_ON_PAGING)?;
    // The window of the 2-level table, four bytes an entry.
    let entry = 0x6000 + (WINDOW >> 12) * 4;
    let target = u32::try_from(TARGETS[1] | OPEN).unwrap_or(0);
    rig.ram.write(entry, &target.to_le_bytes())?;
    rig.ram.write_u64(TARGETS[1], 0x77)?;
    rig.start_with(|state| state.general.rbx = WINDOW)?;
    let read = rig.result()?;
    ensure_eq!(read, 0x77, "through the window");
    let state = rig.settled()?;
    ensure!(
        state.special.cr0 & 1 << 31 != 0 && state.special.cr3 == 0x5000,
        "{:x?}",
        state.special
    );
    Ok(())
}

/// A page whose code the host replaces runs the new code.
pub(crate) fn code_that_the_host_replaced_is_the_code_that_runs(subject: &Subject) -> Result {
    for mode in [Mode::User, Mode::Kernel] {
        let mut rig = Rig::new(subject, mode, &READ_FAR)?;
        for value in 1..=5_u8 {
            // mov eax, value; out 0xe0, eax
            rig.ram.write(CODE, &[0xB8, value, 0, 0, 0, 0xE7, 0xE0])?;
            rig.start(&rig.boot_state())?;
            let read = rig.result()?;
            ensure_eq!(read, u32::from(value), "{mode:?}");
        }
    }
    Ok(())
}

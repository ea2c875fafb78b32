//! Which pages the guest wrote: nothing is lost, and nothing that it did not touch is reported.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use vellum_backend::{Exit, IoWidth, Protection, Tracking};

use super::state::checked;
use crate::failure::{Result, ensure, ensure_eq};
use crate::guest::guest;
use crate::rig::{DATA, EXTRA, Mode, OPEN, PAGE, PD, PT, RAM_LEN_BYTES, Rig, STACK_TOP, range};
use crate::subject::{Quirk, Subject};

// Writes a quadword to each address of the list that RBX points to, and ends at the first null. The list is of 32-bit numbers.
guest!(
    WRITE_LIST,
    64,
    "2:",
    "mov edi, [rbx]",
    "test edi, edi",
    "jz 3f",
    "mov [rdi], rbx",
    "add rbx, 4",
    "jmp 2b",
    "3:",
    "out 0xe0, eax",
);
guest!(READ_WORD, 64, "mov rax, [rbx]", "out 0xe0, eax");
guest!(FILL, 64, "rep stosb", "out 0xe0, eax");
guest!(WRITE_FLAT, 32, "mov [ebx], ebx", "out 0xe0, eax",);
guest!(IN_STRING, 64, "insb", "out 0xe0, eax");
guest!(PUSH, 64, "push rax", "out 0xe0, eax");

/// Where the list of addresses lies: apart from all pages that are written.
const LIST: u64 = 0x2_0000;
/// Pages that the guest may write.
const PLAYGROUND: u64 = 0x4_0000;
const PLAYGROUND_PAGES: u64 = 64;

/// The pages reported since the last time.
fn taken(rig: &mut Rig) -> Result<BTreeSet<u64>> {
    let mut pages = BTreeSet::new();
    rig.vm.take_dirty(&mut |page| {
        pages.insert(page.as_u64());
    })?;
    Ok(pages)
}

/// Pages that hold tables, descriptors and stacks change by the processor's own doing: accessed flags and frames.
fn is_data(page: u64) -> bool {
    page >= DATA
}

/// Lets the guest write to each address.
fn write_to(rig: &mut Rig, addresses: &[u64]) -> Result {
    let list: Vec<u8> = addresses
        .iter()
        .chain([&0])
        .flat_map(|address| address.to_le_bytes()[..4].to_owned())
        .collect();
    rig.ram.write(LIST, &list)?;
    rig.start_with(|state| state.general.rbx = LIST)?;
    rig.result()?;
    Ok(())
}

/// The pages of 8-byte writes.
fn pages_of(addresses: &[u64]) -> BTreeSet<u64> {
    addresses
        .iter()
        .flat_map(|address| [*address, address + 7])
        .map(|address| address & !(PAGE - 1))
        .collect()
}

/// Every page of `written` was reported, and of the others none but what the engine is known to add.
fn compare(
    subject: &Subject,
    reported: &BTreeSet<u64>,
    written: &BTreeSet<u64>,
    context: &str,
) -> Result {
    let lost: Vec<_> = written.difference(reported).collect();
    ensure!(lost.is_empty(), "{context}: lost {lost:x?}");
    let touched_only_by_reading = [LIST & !(PAGE - 1)];
    let invented: Vec<_> = reported
        .difference(written)
        .filter(|page| is_data(**page))
        .filter(|page| {
            !(subject.has(Quirk::DirtyMayIncludeReads) && touched_only_by_reading.contains(page))
        })
        .collect();
    ensure!(invented.is_empty(), "{context}: invented {invented:x?}");
    Ok(())
}

fn what_is_written_is_reported(subject: &Subject, tracking: Tracking) -> Result {
    let mut rig = Rig::tracked(subject, Mode::User, &WRITE_LIST, tracking)?;
    taken(&mut rig)?;
    let writes = [
        PLAYGROUND,
        PLAYGROUND + 5 * PAGE + 0x123,
        // Two pages.
        PLAYGROUND + 8 * PAGE - 4,
        PLAYGROUND + 20 * PAGE - 1,
        RAM_LEN_BYTES - 8,
    ];
    write_to(&mut rig, &writes)?;
    let reported = taken(&mut rig)?;
    compare(subject, &reported, &pages_of(&writes), "first writes")?;
    let nothing = taken(&mut rig)?;
    ensure_eq!(
        nothing,
        BTreeSet::new(),
        "what was taken is not reported again"
    );
    rig.vm.rearm_dirty()?;
    write_to(&mut rig, &writes[..2])?;
    let again = taken(&mut rig)?;
    compare(subject, &again, &pages_of(&writes[..2]), "after re-arming")
}

pub(crate) fn first_writes_are_reported(subject: &Subject) -> Result {
    what_is_written_is_reported(subject, Tracking::FirstWrites)
}

pub(crate) fn writes_are_reported_in_a_bitmap(subject: &Subject) -> Result {
    what_is_written_is_reported(subject, Tracking::Bitmap)
}

/// A round of a random history: what is written, and what the host does afterwards.
#[derive(Clone, Debug)]
struct Round {
    offsets: Vec<u64>,
    takes: bool,
    rearms: bool,
}

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let offset = 0..PLAYGROUND_PAGES * PAGE - 8;
    let round =
        (vec(offset, 0..12), any::<bool>(), any::<bool>()).prop_map(|(offsets, takes, rearms)| {
            Round {
                offsets,
                takes,
                rearms,
            }
        });
    vec(round, 1..6)
}

/// Against a model, over random histories: a page is reported if it was written since it was last taken and re-armed.
fn nothing_is_lost(subject: &Subject, tracking: Tracking) -> Result {
    let mut rig = Rig::tracked(subject, Mode::User, &WRITE_LIST, tracking)?;
    checked(24, &rounds(), |history| {
        // Whatever the last history left.
        taken(&mut rig)?;
        rig.vm.rearm_dirty()?;
        taken(&mut rig)?;
        let mut due = BTreeSet::new();
        let mut maybe = BTreeSet::new();
        let mut taken_not_armed = BTreeSet::new();
        for round in &history {
            let writes: Vec<u64> = round.offsets.iter().map(|at| PLAYGROUND + at).collect();
            write_to(&mut rig, &writes)?;
            for page in pages_of(&writes) {
                if taken_not_armed.contains(&page) {
                    maybe.insert(page);
                } else {
                    due.insert(page);
                }
            }
            if round.takes {
                let reported = taken(&mut rig)?;
                let lost: Vec<_> = due.difference(&reported).collect();
                ensure!(lost.is_empty(), "lost {lost:x?} of {history:?}");
                let invented: Vec<_> = reported
                    .iter()
                    .filter(|page| (PLAYGROUND..RAM_LEN_BYTES).contains(*page))
                    .filter(|page| !due.contains(*page) && !maybe.contains(*page))
                    .collect();
                ensure!(invented.is_empty(), "invented {invented:x?} of {history:?}");
                taken_not_armed.extend(due.iter().copied());
                due.clear();
                maybe.clear();
                if round.rearms {
                    rig.vm.rearm_dirty()?;
                    taken_not_armed.clear();
                }
            }
        }
        Ok(())
    })
}

pub(crate) fn no_first_write_of_a_random_history_is_lost(subject: &Subject) -> Result {
    nothing_is_lost(subject, Tracking::FirstWrites)
}

pub(crate) fn no_write_of_a_random_history_is_lost_in_a_bitmap(subject: &Subject) -> Result {
    nothing_is_lost(subject, Tracking::Bitmap)
}

/// Re-arming without taking first forgets nothing.
pub(crate) fn rearming_early_loses_nothing(subject: &Subject) -> Result {
    for tracking in [Tracking::FirstWrites, Tracking::Bitmap] {
        if tracking == Tracking::FirstWrites && subject.capabilities().dirty_ring_pages == 0 {
            continue;
        }
        let mut rig = Rig::tracked(subject, Mode::User, &WRITE_LIST, tracking)?;
        write_to(&mut rig, &[PLAYGROUND])?;
        rig.vm.rearm_dirty()?;
        write_to(&mut rig, &[PLAYGROUND + PAGE])?;
        let reported = taken(&mut rig)?;
        for page in [PLAYGROUND, PLAYGROUND + PAGE] {
            ensure!(
                reported.contains(&page),
                "{tracking:?}: {page:#x} is not in {reported:x?}"
            );
        }
    }
    Ok(())
}

/// Publishing tables touches what tracking is made of on some engines.
pub(crate) fn publishing_tables_loses_nothing(subject: &Subject) -> Result {
    for tracking in [Tracking::FirstWrites, Tracking::Bitmap] {
        if tracking == Tracking::FirstWrites && subject.capabilities().dirty_ring_pages == 0 {
            continue;
        }
        let mut rig = Rig::tracked(subject, Mode::User, &WRITE_LIST, tracking)?;
        for _ in 0..3 {
            write_to(&mut rig, &[PLAYGROUND + PAGE])?;
            rig.vm.publish_tables()?;
            write_to(&mut rig, &[PLAYGROUND + 2 * PAGE])?;
            rig.vm.publish_remap(range(PLAYGROUND, 8 * PAGE))?;
            write_to(&mut rig, &[PLAYGROUND + 3 * PAGE])?;
            let reported = taken(&mut rig)?;
            for index in 1..=3 {
                let page = PLAYGROUND + index * PAGE;
                ensure!(
                    reported.contains(&page),
                    "{tracking:?}: {page:#x} is not in {reported:x?}"
                );
            }
            rig.vm.rearm_dirty()?;
        }
    }
    Ok(())
}

/// Reading is not writing.
pub(crate) fn reads_are_not_reported(subject: &Subject) -> Result {
    let mut rig = Rig::tracked(subject, Mode::User, &READ_WORD, Tracking::Bitmap)?;
    taken(&mut rig)?;
    rig.start_with(|state| state.general.rbx = PLAYGROUND)?;
    rig.result()?;
    let reported = taken(&mut rig)?;
    let unexpected = reported.contains(&PLAYGROUND) && !subject.has(Quirk::DirtyMayIncludeReads);
    ensure!(!unexpected, "{reported:x?}");
    ensure!(!reported.contains(&(PLAYGROUND + PAGE)), "{reported:x?}");
    Ok(())
}

/// A VM that does not track reports nothing, and neither does a range that was mapped without tracking.
pub(crate) fn untracked_memory_is_not_reported(subject: &Subject) -> Result {
    let mut untracked = Rig::tracked(subject, Mode::User, &WRITE_LIST, Tracking::None)?;
    write_to(&mut untracked, &[PLAYGROUND])?;
    let reported = taken(&mut untracked)?;
    ensure_eq!(reported, BTreeSet::new(), "a vm that does not track");
    untracked.vm.rearm_dirty()?;

    let mut mixed = Rig::tracked(subject, Mode::User, &WRITE_LIST, Tracking::Bitmap)?;
    mixed.lend(range(EXTRA, 2 * PAGE), Protection::Write)?;
    taken(&mut mixed)?;
    write_to(&mut mixed, &[EXTRA, PLAYGROUND])?;
    let reported = taken(&mut mixed)?;
    ensure!(
        reported.contains(&PLAYGROUND) && !reported.contains(&EXTRA),
        "{reported:x?}"
    );
    Ok(())
}

/// Several tracked ranges, each named by its own addresses.
pub(crate) fn every_tracked_range_is_reported(subject: &Subject) -> Result {
    let mut rig = Rig::tracked(subject, Mode::User, &WRITE_LIST, Tracking::Bitmap)?;
    rig.lend(range(EXTRA, 4 * PAGE), Protection::TrackedWrite)?;
    rig.lend(range(EXTRA + 0x1_0000, PAGE), Protection::TrackedWrite)?;
    taken(&mut rig)?;
    let writes = [EXTRA + 2 * PAGE, EXTRA + 0x1_0000, PLAYGROUND];
    write_to(&mut rig, &writes)?;
    let reported = taken(&mut rig)?;
    compare(subject, &reported, &pages_of(&writes), "three ranges")
}

/// A range takes its reports along when it goes; what comes in its place starts clean.
pub(crate) fn a_range_that_was_unmapped_is_forgotten(subject: &Subject) -> Result {
    let mut rig = Rig::tracked(subject, Mode::User, &WRITE_LIST, Tracking::Bitmap)?;
    let there = range(EXTRA, 2 * PAGE);
    rig.lend(there, Protection::TrackedWrite)?;
    write_to(&mut rig, &[EXTRA, PLAYGROUND])?;
    rig.vm.unmap(there)?;
    rig.lend(there, Protection::TrackedWrite)?;
    let reported = taken(&mut rig)?;
    ensure!(!reported.contains(&EXTRA), "{reported:x?}");
    ensure!(
        reported.contains(&PLAYGROUND),
        "unmapping one range forgot another: {reported:x?}"
    );
    write_to(&mut rig, &[EXTRA + PAGE])?;
    let reported = taken(&mut rig)?;
    ensure!(
        reported.contains(&(EXTRA + PAGE)) && !reported.contains(&EXTRA),
        "{reported:x?}"
    );
    Ok(())
}

/// A string store over several pages.
pub(crate) fn every_page_of_a_string_store_is_reported(subject: &Subject) -> Result {
    let mut rig = Rig::tracked(subject, Mode::User, &FILL, Tracking::Bitmap)?;
    taken(&mut rig)?;
    rig.start_with(|state| {
        state.general.rdi = PLAYGROUND + 0x800;
        state.general.rcx = 3 * PAGE;
    })?;
    rig.result()?;
    let reported = taken(&mut rig)?;
    let written = (0..4).map(|index| PLAYGROUND + index * PAGE).collect();
    compare(subject, &reported, &written, "a string store")
}

/// Stores without paging, which some hosts emulate.
pub(crate) fn a_write_in_flat_mode_is_reported(subject: &Subject) -> Result {
    let mut rig = Rig::tracked(subject, Mode::Flat, &WRITE_FLAT, Tracking::Bitmap)?;
    taken(&mut rig)?;
    for index in 0..3 {
        rig.start_with(|state| state.general.rbx = PLAYGROUND + index * PAGE)?;
        rig.result()?;
        let reported = taken(&mut rig)?;
        ensure!(
            reported.contains(&(PLAYGROUND + index * PAGE)),
            "{index}: {reported:x?}"
        );
    }
    Ok(())
}

/// The page that a reply goes to: the engine itself may be the one who writes it.
pub(crate) fn the_target_of_a_string_input_is_reported(subject: &Subject) -> Result {
    let mut rig = Rig::tracked(subject, Mode::User, &IN_STRING, Tracking::Bitmap)?;
    taken(&mut rig)?;
    rig.start_with(|state| {
        state.general.rdi = PLAYGROUND;
        state.general.rdx = 0x21;
    })?;
    match rig.run()? {
        Exit::IoString { port: 0x21 } => return Ok(()),
        exit => ensure_eq!(
            exit,
            Exit::IoIn {
                port: 0x21,
                width: IoWidth::Byte
            },
            "exit"
        ),
    }
    rig.vm.complete_io_in(0x77)?;
    rig.result()?;
    let reported = taken(&mut rig)?;
    ensure!(reported.contains(&PLAYGROUND), "{reported:x?}");
    Ok(())
}

/// The processor sets accessed and dirty flags in the guest's tables; that is a write of the guest.
pub(crate) fn flags_that_the_processor_sets_in_tables_are_reported(subject: &Subject) -> Result {
    /// Present, writable, user: not accessed, not dirty.
    const FRESH: u64 = 7;
    let mut rig = Rig::tracked(subject, Mode::User, &PUSH, Tracking::Bitmap)?;
    let window = STACK_TOP - PAGE;
    rig.ram.write_u64(PT + (window >> 12) * 8, window | FRESH)?;
    rig.vm.publish_tables()?;
    taken(&mut rig)?;
    rig.start(&rig.boot_state())?;
    rig.result()?;
    let entry = rig.ram.read_u64(PT + (window >> 12) * 8)?;
    ensure_eq!(
        entry,
        window | OPEN,
        "the entry of the page that was written"
    );
    let reported = taken(&mut rig)?;
    ensure!(
        reported.contains(&PT) && reported.contains(&window),
        "{reported:x?}"
    );
    ensure!(
        subject.has(Quirk::DirtyMayIncludeReads) || !reported.contains(&PD),
        "nothing changed there: {reported:x?}"
    );
    Ok(())
}

/// What the host writes is the host's business.
pub(crate) fn the_hosts_writes_are_not_reported(subject: &Subject) -> Result {
    let mut rig = Rig::tracked(subject, Mode::User, &WRITE_LIST, Tracking::Bitmap)?;
    taken(&mut rig)?;
    rig.ram.write_u64(PLAYGROUND + 9 * PAGE, 1)?;
    write_to(&mut rig, &[PLAYGROUND])?;
    let reported = taken(&mut rig)?;
    compare(subject, &reported, &pages_of(&[PLAYGROUND]), "one write")
}

guest!(
    WRITE_ALL,
    64,
    "2:",
    "mov rdi, rbx",
    "mov ecx, edx",
    "3:",
    "mov [rdi], cl",
    "add rdi, 0x1000",
    "dec ecx",
    "jnz 3b",
    "dec esi",
    "jnz 2b",
    "out 0xe0, eax",
);

/// More first writes than a ring holds: the guest does not notice, and all are reported.
pub(crate) fn more_pages_than_a_ring_holds_are_reported(subject: &Subject) -> Result {
    const PAGES: u64 = 5000;
    const BASE: u64 = 0x100_0000;
    for tracking in [Tracking::FirstWrites, Tracking::Bitmap] {
        if tracking == Tracking::FirstWrites && subject.capabilities().dirty_ring_pages == 0 {
            continue;
        }
        let mut rig = Rig::tracked(subject, Mode::User, &WRITE_ALL, tracking)?;
        rig.lend(range(BASE, 16 << 20), Protection::TrackedWrite)?;
        rig.lend(range(BASE + (16 << 20), 16 << 20), Protection::TrackedWrite)?;
        for large in (BASE >> 21)..(BASE + (32 << 20)) >> 21 {
            // PS: 2 MiB (Intel SDM volume 3, table 4-18).
            rig.ram
                .write_u64(PD + large * 8, large << 21 | OPEN | 1 << 7)?;
        }
        rig.vm.publish_tables()?;
        for round in 0..2 {
            rig.start_with(|state| {
                state.general.rbx = BASE;
                state.general.rdx = PAGES;
                state.general.rsi = 2;
            })?;
            rig.result()?;
            let reported = taken(&mut rig)?;
            let lost = (0..PAGES)
                .map(|index| BASE + index * PAGE)
                .filter(|page| !reported.contains(page))
                .count();
            ensure_eq!(lost, 0, "{tracking:?}, round {round}: pages lost");
            rig.vm.rearm_dirty()?;
        }
    }
    Ok(())
}

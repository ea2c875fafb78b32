//! What may be mapped, what may be unmapped, and what the guest sees of it.
#![expect(unsafe_code, reason = "lends memory in ways that are to be refused")]

use vellum_backend::{Access, Exit, HostMemory, Protection, VmError};
use vellum_layout::{GpaRange, amd64};

use crate::failure::{Result, ensure, ensure_eq};
use crate::guest::guest;
use crate::rig::{EXTRA, Mode, OPEN, PAGE, PT, RAM_LEN_BYTES, Rig, range};
use crate::subject::Subject;

guest!(READ, 32, "2:", "mov eax, [ebx]", "out 0xe0, eax", "jmp 2b");
guest!(READ_LONG, 64, "mov eax, [rbx]", "out 0xe0, eax");

/// Tries to map memory of its own where it must be refused.
fn refused(rig: &mut Rig, gpa: GpaRange, skip: u64) -> Result<VmError> {
    let memory = HostMemory::zeroed(gpa.len_bytes() + PAGE)?;
    let host = memory.hva().checked_add(skip);
    let host = host.ok_or_else(|| crate::failure::Failure::new("no such host address"))?;
    // SAFETY: should the engine accept the range in spite of all, the memory is leaked below and stays.
    let result = unsafe { rig.vm.map(gpa, host, Protection::Write) };
    if let Err(error) = result {
        Ok(error)
    } else {
        std::mem::forget(memory);
        Err(crate::failure::Failure::new(format!("{gpa:x?} was mapped")))
    }
}

/// A range that meets another one, in whichever way, is refused with both named, and what is there stays.
pub(crate) fn overlaps_are_refused(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::Flat, &READ)?;
    let there = range(EXTRA, 4 * PAGE);
    rig.lend(there, Protection::Write)?;
    rig.lent[0].write_u64(0, 0xAB)?;
    let cases = [
        there,
        range(EXTRA - PAGE, 2 * PAGE),
        range(EXTRA + 3 * PAGE, 2 * PAGE),
        range(EXTRA + PAGE, PAGE),
        range(EXTRA - PAGE, 6 * PAGE),
        range(EXTRA, PAGE),
    ];
    for wanted in cases {
        let error = refused(&mut rig, wanted, 0)?;
        ensure!(
            matches!(error, VmError::Overlap { wanted: w, mapped } if w == wanted && mapped == there),
            "{wanted:x?}: {error:?}"
        );
    }
    let error = refused(&mut rig, range(RAM_LEN_BYTES - PAGE, 2 * PAGE), 0)?;
    ensure!(matches!(error, VmError::Overlap { .. }), "{error:?}");
    rig.start_with(|state| state.general.rbx = EXTRA)?;
    let read = rig.result()?;
    ensure_eq!(read, 0xAB, "the memory that was there");
    Ok(())
}

/// Ranges may touch.
pub(crate) fn neighbours_are_accepted(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::Flat, &READ)?;
    for index in [1, 0, 2] {
        rig.lend(range(EXTRA + index * PAGE, PAGE), Protection::Write)?;
        let memory = rig.lent.last().expect("just lent");
        memory.write_u64(0, index + 1)?;
    }
    for index in 0..3 {
        rig.start_with(|state| state.general.rbx = EXTRA + index * PAGE)?;
        let read = rig.result()?;
        ensure_eq!(u64::from(read), index + 1, "page {index}");
    }
    Ok(())
}

/// Host memory begins at a page.
pub(crate) fn unaligned_host_memory_is_refused(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::Flat, &READ)?;
    for skip in [1, 8, 0x800, 0xFFF] {
        let error = refused(&mut rig, range(EXTRA, PAGE), skip)?;
        ensure!(
            matches!(error, VmError::Unaligned { .. }),
            "{skip:#x}: {error:?}"
        );
    }
    rig.lend(range(EXTRA, PAGE), Protection::Write)
}

/// A range is taken back exactly as it was mapped, once.
pub(crate) fn only_exact_ranges_are_unmapped(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::Flat, &READ)?;
    let there = range(EXTRA, 4 * PAGE);
    rig.lend(there, Protection::Write)?;
    let cases = [
        range(EXTRA, PAGE),
        range(EXTRA + PAGE, 3 * PAGE),
        range(EXTRA - PAGE, 5 * PAGE),
        range(EXTRA + 8 * PAGE, PAGE),
    ];
    let refuse_all = |rig: &mut Rig, ranges: &[GpaRange]| -> Result {
        for &wanted in ranges {
            let result = rig.vm.unmap(wanted);
            ensure!(
                matches!(result, Err(VmError::NotMapped { range }) if range == wanted),
                "{wanted:x?}: {result:?}"
            );
        }
        Ok(())
    };
    refuse_all(&mut rig, &cases)?;
    rig.vm.unmap(there)?;
    refuse_all(&mut rig, &[there])
}

/// What was taken back is gone, and something else can take its place, whatever the protection.
pub(crate) fn a_range_can_be_unmapped_and_mapped_anew(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::Flat, &READ)?;
    let absent = Exit::MemoryFault {
        gpa: EXTRA,
        access: Access::Read,
        mapped: false,
    };
    let protections = [
        Protection::Write,
        Protection::TrackedWrite,
        Protection::Write,
    ];
    for (value, protection) in (1..).zip(protections) {
        rig.lend(range(EXTRA, PAGE), protection)?;
        rig.lent.last().expect("just lent").write_u64(0, value)?;
        rig.start_with(|state| state.general.rbx = EXTRA)?;
        let read = rig.result()?;
        ensure_eq!(u64::from(read), value, "{protection:?}");
        rig.vm.unmap(range(EXTRA, PAGE))?;
        rig.expect(absent)?;
    }
    Ok(())
}

/// A guest-virtual page whose memory changed behind its translation shows the new memory.
pub(crate) fn a_cached_translation_does_not_outlive_its_range(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &READ_LONG)?;
    for value in 1..=3 {
        rig.lend(range(EXTRA, PAGE), Protection::Write)?;
        rig.lent.last().expect("just lent").write_u64(0, value)?;
        rig.start_with(|state| state.general.rbx = EXTRA)?;
        let read = rig.result()?;
        ensure_eq!(u64::from(read), value, "what the guest reads");
        rig.vm.unmap(range(EXTRA, PAGE))?;
    }
    rig.start_with(|state| state.general.rbx = EXTRA)?;
    rig.expect(Exit::MemoryFault {
        gpa: EXTRA,
        access: Access::Read,
        mapped: false,
    })
}

/// Dozens of ranges, each its own memory.
pub(crate) fn many_ranges_live_side_by_side(subject: &Subject) -> Result {
    const RANGES: u64 = 48;
    let mut rig = Rig::new(subject, Mode::Flat, &READ)?;
    // Every second page, so that none can be merged with its neighbour.
    let place = |index: u64| EXTRA + index * 2 * PAGE;
    for index in 0..RANGES {
        rig.lend(range(place(index), PAGE), Protection::Write)?;
        rig.lent
            .last()
            .expect("just lent")
            .write_u64(0, 100 + index)?;
    }
    for index in 0..RANGES {
        rig.start_with(|state| state.general.rbx = place(index))?;
        let read = rig.result()?;
        ensure_eq!(u64::from(read), 100 + index, "range {index}");
    }
    for index in (0..RANGES).step_by(3) {
        rig.vm.unmap(range(place(index), PAGE))?;
    }
    for index in 0..RANGES {
        rig.start_with(|state| state.general.rbx = place(index))?;
        if index % 3 == 0 {
            rig.expect(Exit::MemoryFault {
                gpa: place(index),
                access: Access::Read,
                mapped: false,
            })?;
        } else {
            let read = rig.result()?;
            ensure_eq!(
                u64::from(read),
                100 + index,
                "range {index} after the others went"
            );
        }
    }
    Ok(())
}

/// The last page that a guest can have.
pub(crate) fn the_highest_page_can_be_mapped(subject: &Subject) -> Result {
    let highest = amd64::MAX_GPA.as_u64() & !(PAGE - 1);
    let mut rig = Rig::new(subject, Mode::User, &READ_LONG)?;
    rig.lend(range(highest, PAGE), Protection::Write)?;
    rig.lent[0].write_u64(0xFF8, 0x55)?;
    rig.ram.write_u64(PT + (EXTRA >> 12) * 8, highest | OPEN)?;
    rig.start_with(|state| state.general.rbx = EXTRA + 0xFF8)?;
    let read = rig.result()?;
    ensure_eq!(read, 0x55, "what lies at {highest:#x}");
    Ok(())
}

/// Memory can be given after the guest has missed it, and the access made again.
pub(crate) fn a_missing_range_can_be_supplied(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &READ_LONG)?;
    rig.start_with(|state| state.general.rbx = EXTRA)?;
    rig.expect(Exit::MemoryFault {
        gpa: EXTRA,
        access: Access::Read,
        mapped: false,
    })?;
    rig.lend(range(EXTRA, PAGE), Protection::Write)?;
    rig.lent[0].write_u64(0, 0x66)?;
    rig.start_with(|state| state.general.rbx = EXTRA)?;
    let read = rig.result()?;
    ensure_eq!(read, 0x66, "what is there now");
    Ok(())
}

//! Accesses to guest-physical memory that is absent or that does not allow them.

use vellum_backend::{Access, Exit, Protection};

use super::in_modes;
use crate::failure::{Failure, Result, ensure, ensure_eq};
use crate::guest::{Guest, guest};
use crate::rig::{ABSENT, DATA, EXTRA, Mode, OPEN, PAGE, PT, Rig, range, vector_of};
use crate::subject::{Quirk, Subject};

guest!(
    READ16,
    16,
    "mov ax, 0xFFFF",
    "mov fs, ax",
    "mov eax, fs:[0x10]"
);
guest!(
    WRITE16,
    16,
    "mov ax, 0xFFFF",
    "mov fs, ax",
    "mov fs:[0x10], eax"
);
guest!(READ32, 32, "mov eax, [ebx]");
guest!(WRITE32, 32, "mov [ebx], eax");
guest!(READ64, 64, "mov rax, [rbx]");
guest!(WRITE64, 64, "mov [rbx], rax");
guest!(JUMP32, 32, "jmp ebx");
guest!(JUMP64, 64, "jmp rbx");

/// An access to memory that nobody mapped says where and in which direction. FFFF:0010 is the first address above 1 MiB.
fn absent(subject: &Subject, mode: Mode, guest: &Guest) -> Result {
    let access = if guest.name.starts_with("READ") {
        Access::Read
    } else {
        Access::Write
    };
    let gpas = if mode == Mode::Real {
        vec![ABSENT]
    } else {
        vec![ABSENT, ABSENT + 0x128, ABSENT + PAGE + 0xFF0]
    };
    for gpa in gpas {
        let mut rig = Rig::new(subject, mode, guest)?;
        rig.start_with(|state| state.general.rbx = gpa)?;
        rig.expect(Exit::MemoryFault {
            gpa,
            access,
            mapped: false,
        })?;
        rig.expect_usable()?;
    }
    Ok(())
}

in_modes!(absent:
    absent_memory_is_read_in_real_mode = Real READ16,
    absent_memory_is_written_in_real_mode = Real WRITE16,
    absent_memory_is_read_in_flat_mode = Flat READ32,
    absent_memory_is_written_in_flat_mode = Flat WRITE32,
    absent_memory_is_read_in_paged_mode = Paged READ32,
    absent_memory_is_written_in_paged_mode = Paged WRITE32,
    absent_memory_is_read_in_long_mode = Kernel READ64,
    absent_memory_is_written_in_long_mode = Kernel WRITE64,
    absent_memory_is_read_in_long_mode_ring_three = User READ64,
    absent_memory_is_written_in_long_mode_ring_three = User WRITE64,
);

guest!(READ_BYTE, 64, "mov al, [rbx]");
guest!(FAULTS_READ_WORD, 64, "mov ax, [rbx]");
guest!(READ_EXTENDED, 64, "movzx eax, byte ptr [rbx]");
guest!(READ_OWORD, 64, "movdqu xmm0, [rbx]");
guest!(WRITE_BYTE, 64, "mov [rbx], al");
guest!(WRITE_WORD, 64, "mov [rbx], ax");
guest!(WRITE_OWORD, 64, "movdqu [rbx], xmm0");
guest!(FAULTS_PUSH, 64, "mov rsp, rbx", "push rax");
guest!(POP, 64, "mov rsp, rbx", "pop rax");
guest!(COMPARE, 64, "cmp dword ptr [rbx], 1");
guest!(STORE_STRING, 64, "mov rdi, rbx", "stosq");
guest!(MOVE_STRING, 64, "mov rsi, rbx", "mov rdi, 0x10000", "movsb");

/// Accesses of every width and kind, from ring 3.
pub(crate) fn every_kind_of_access_to_absent_memory_faults(subject: &Subject) -> Result {
    let gpa = ABSENT + 0x40;
    let cases = [
        (READ_BYTE, gpa, Access::Read),
        (FAULTS_READ_WORD, gpa, Access::Read),
        (READ_EXTENDED, gpa, Access::Read),
        (READ_OWORD, gpa, Access::Read),
        (WRITE_BYTE, gpa, Access::Write),
        (WRITE_WORD, gpa, Access::Write),
        (WRITE_OWORD, gpa, Access::Write),
        (FAULTS_PUSH, gpa - 8, Access::Write),
        (POP, gpa, Access::Read),
        (COMPARE, gpa, Access::Read),
        (STORE_STRING, gpa, Access::Write),
        (MOVE_STRING, gpa, Access::Read),
    ];
    for (guest, expected, access) in cases {
        let mut rig = Rig::new(subject, Mode::User, &guest)?;
        rig.start_with(|state| state.general.rbx = gpa)?;
        let exit = rig.run()?;
        let fault = Exit::MemoryFault {
            gpa: expected,
            access,
            mapped: false,
        };
        ensure_eq!(exit, fault, "{}", guest.name);
        rig.expect_usable()
            .map_err(|failure| failure.within(guest.name))?;
    }
    Ok(())
}

/// An access that begins in memory and ends where none is names the absent page.
pub(crate) fn an_access_across_the_end_of_memory_faults_behind_it(subject: &Subject) -> Result {
    for (guest, access) in [(READ64, Access::Read), (WRITE64, Access::Write)] {
        let mut rig = Rig::new(subject, Mode::User, &guest)?;
        rig.start_with(|state| state.general.rbx = ABSENT - 4)?;
        let exit = rig.run()?;
        let fault = Exit::MemoryFault {
            gpa: ABSENT,
            access,
            mapped: false,
        };
        ensure_eq!(exit, fault, "{}", guest.name);
        rig.expect_usable()?;
    }
    Ok(())
}

/// A jump to absent memory ends in an exit that says so, as well as the engine can.
fn absent_fetch(subject: &Subject, mode: Mode, guest: &Guest) -> Result {
    let mut rig = Rig::new(subject, mode, guest)?;
    rig.start_with(|state| state.general.rbx = ABSENT)?;
    let exit = rig.run()?;
    let is_right = match exit {
        Exit::MemoryFault {
            gpa: ABSENT,
            access: Access::Execute | Access::Read,
            mapped: false,
        } => true,
        Exit::EmulationFailure => subject.has(Quirk::FetchIsEmulated),
        // Told to ring 3 itself, as an undefined instruction.
        exit => subject.has(Quirk::FetchIsEmulated) && vector_of(exit) == Some(6),
    };
    ensure!(is_right, "{exit:?}");
    rig.expect_usable()
}

in_modes!(absent_fetch:
    absent_memory_is_not_executed_in_flat_mode = Flat JUMP32,
    absent_memory_is_not_executed_in_long_mode = Kernel JUMP64,
    absent_memory_is_not_executed_in_long_mode_ring_three = User JUMP64,
);

guest!(
    USE_READ_ONLY,
    64,
    "mov eax, [rbx]",
    "out 0xe0, eax",
    "call rcx",
    "out 0xe0, eax",
    "mov [rbx], rdx",
);
// What lies in the read-only page: it is read as data and called.
guest!(IN_READ_ONLY, 64, "mov eax, 0x77665544", "ret");
const ROM: u64 = EXTRA;

/// Where a write was refused; `None` when only an interruption ended it, on an engine of which that is known.
fn refused_write(subject: &Subject, rig: &mut Rig) -> Result<Option<u64>> {
    let may_loop = subject.has(Quirk::ViolationsMayLoop);
    let exit = if may_loop {
        rig.run_briefly()?
    } else {
        rig.run()?
    };
    match exit {
        Exit::MemoryFault {
            gpa,
            access: Access::Write,
            mapped: true,
        } => Ok(Some(gpa)),
        Exit::Interrupted if may_loop => Ok(None),
        exit => Err(Failure::new(format!("not a refused write: {exit:x?}"))),
    }
}

fn expect_refused(subject: &Subject, rig: &mut Rig, gpa: u64) -> Result {
    let refused = refused_write(subject, rig)?;
    ensure!(refused.is_none_or(|at| at == gpa), "{refused:x?}");
    Ok(())
}

/// Read-only memory is read and executed, but a write faults, says that memory is there, and changes nothing.
fn read_only(subject: &Subject, mode: Mode, guest: &Guest) -> Result {
    let mut rig = Rig::new(subject, mode, guest)?;
    rig.lend(range(ROM, PAGE), Protection::ReadOnly)?;
    rig.lent[0].write(0, IN_READ_ONLY.code())?;
    let before = rig.lent[0].read_u64(0)?;
    rig.start_with(|state| {
        state.general.rbx = ROM;
        state.general.rcx = ROM;
        state.general.rdx = u64::MAX;
    })?;
    let read = rig.result()?;
    ensure_eq!(u64::from(read), before & 0xFFFF_FFFF, "what is read");
    let called = rig.result()?;
    ensure_eq!(called, 0x7766_5544, "what the code there returns");
    expect_refused(subject, &mut rig, ROM)?;
    rig.expect_usable()?;
    let after = rig.lent[0].read_u64(0)?;
    ensure_eq!(after, before, "read-only memory after the write");
    Ok(())
}

in_modes!(read_only:
    read_only_memory_is_kept_from_ring_zero = Kernel USE_READ_ONLY,
    read_only_memory_is_kept_from_ring_three = User USE_READ_ONLY,
);

guest!(WRITE_READ_ONLY, 32, "mov dword ptr [ebx], 0x12345678");

/// Without paging there is no other protection than this one.
pub(crate) fn read_only_memory_is_kept_from_flat_mode(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::Flat, &WRITE_READ_ONLY)?;
    rig.lend(range(ROM, PAGE), Protection::ReadOnly)?;
    rig.start_with(|state| state.general.rbx = ROM + 8)?;
    expect_refused(subject, &mut rig, ROM + 8)?;
    rig.expect_usable()?;
    let after = rig.lent[0].read_u64(8)?;
    ensure_eq!(after, 0, "read-only memory after the write");
    Ok(())
}

guest!(EXCHANGE, 64, "xchg [rbx], rax");
guest!(ADD_LOCKED, 64, "lock add qword ptr [rbx], 1");
guest!(COPY_STRING, 64, "mov rdi, rbx", "mov rsi, 0x10000", "movsq");
guest!(STORE_VECTOR, 64, "movaps [rbx], xmm0");
guest!(BIT, 64, "bts qword ptr [rbx], 3");

/// Every kind of write to read-only memory faults.
pub(crate) fn every_kind_of_write_to_read_only_memory_faults(subject: &Subject) -> Result {
    for guest in [
        WRITE_BYTE,
        WRITE64,
        FAULTS_PUSH,
        STORE_STRING,
        COPY_STRING,
        EXCHANGE,
        ADD_LOCKED,
        STORE_VECTOR,
        BIT,
    ] {
        let mut rig = Rig::new(subject, Mode::User, &guest)?;
        rig.lend(range(ROM, PAGE), Protection::ReadOnly)?;
        rig.start_with(|state| {
            state.general.rax = u64::MAX;
            state.general.rbx = ROM + 0x80;
        })?;
        let at = refused_write(subject, &mut rig).map_err(|failure| failure.within(guest.name))?;
        let is_right = at.is_none_or(|gpa| gpa & !0xF == ROM + 0x80 || gpa == ROM + 0x78);
        ensure!(is_right, "{}: {at:x?}", guest.name);
        rig.expect_usable()?;
        for offset in [0x78, 0x80] {
            let after = rig.lent[0].read_u64(offset)?;
            ensure_eq!(after, 0, "read-only memory after {}", guest.name);
        }
    }
    Ok(())
}

guest!(
    COPY_WORDS,
    64,
    "mov rax, [rbx]",
    "mov [rcx], rax",
    "out 0xe0, eax",
);

/// Host and guest see each other's writes, also across pages.
pub(crate) fn host_and_guest_see_each_others_writes(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &COPY_WORDS)?;
    for (value, from, to) in [
        (1, DATA, DATA + PAGE),
        (0x1122_3344_5566_7788, DATA + 8, DATA + 2 * PAGE - 4),
        (u64::MAX, DATA + PAGE - 4, DATA + 4 * PAGE),
        (5, DATA, DATA + PAGE),
    ] {
        rig.ram.write(from, &u64::to_le_bytes(value))?;
        rig.start_with(|state| {
            state.general.rbx = from;
            state.general.rcx = to;
        })?;
        rig.result()?;
        let mut copy = [0; 8];
        rig.ram.read(to, &mut copy)?;
        ensure_eq!(u64::from_le_bytes(copy), value, "from {from:#x} to {to:#x}");
    }
    Ok(())
}

/// The guest's own tables may lead one page to another: what counts is the guest-physical address.
pub(crate) fn a_fault_names_the_physical_address(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &READ64)?;
    let window = DATA + 3 * PAGE;
    rig.ram
        .write_u64(PT + (window >> 12) * 8, (ABSENT + 5 * PAGE) | OPEN)?;
    rig.start_with(|state| state.general.rbx = window + 0x30)?;
    rig.expect(Exit::MemoryFault {
        gpa: ABSENT + 5 * PAGE + 0x30,
        access: Access::Read,
        mapped: false,
    })?;
    rig.expect_usable()
}

//! Guests that mean harm, or are merely broken: every one ends in an exit, and its VM takes another guest.

use vellum_backend::{Exit, StateGroup};

use crate::failure::{Result, ensure, ensure_eq};
use crate::guest::{Guest, guest};
use crate::rig::{ABSENT, CODE, DATA, IDT, Mode, OPEN, PAGE, PD, PML4, PT, Rig, UNMAPPED};
use crate::subject::Subject;

/// Any exit will do, and so will none: a guest may loop for ever in many ways, one of them being that its faults cannot be delivered.
/// Then it must be possible to interrupt it.
fn ends_somehow(rig: &mut Rig, what: &str) -> Result {
    let exit = rig
        .run_briefly()
        .map_err(|failure| failure.within(what.to_owned()))?;
    rig.expect_usable()
        .map_err(|failure| failure.within(format!("{what}: {exit:?}")))
}

guest!(HOSTILE_LOAD, 64, "mov rax, [rbx]", "out 0xe0, eax");
guest!(REP_STORE, 64, "rep stosb", "out 0xe0, eax");
guest!(REP_MOVE, 64, "rep movsb", "out 0xe0, eax");
guest!(REP_COMPARE, 64, "repe cmpsb", "out 0xe0, eax");
guest!(REP_SCAN, 64, "repne scasb", "out 0xe0, eax");

/// Repeated instructions over absent memory, with counts that would take for ever.
pub(crate) fn huge_string_instructions_over_absent_memory(subject: &Subject) -> Result {
    for guest in [REP_STORE, REP_MOVE, REP_COMPARE, REP_SCAN] {
        for count in [1, 0x1_0000, 1 << 40, u64::MAX] {
            let mut rig = Rig::new(subject, Mode::User, &guest)?;
            rig.start_with(|state| {
                let general = &mut state.general;
                (general.rsi, general.rdi, general.rcx) = (ABSENT, ABSENT, count);
            })?;
            let exit = rig.run()?;
            ensure!(
                matches!(exit, Exit::MemoryFault { mapped: false, .. }),
                "{count:#x} of {}: {exit:?}",
                guest.name
            );
            rig.expect_usable()
                .map_err(|failure| failure.within(format!("{count:#x} of {}", guest.name)))?;
        }
    }
    Ok(())
}

/// A string store that runs out of memory after some pages.
pub(crate) fn a_string_store_that_leaves_memory(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &REP_STORE)?;
    rig.start_with(|state| {
        state.general.rax = 0x5A;
        state.general.rdi = ABSENT - 2 * PAGE;
        state.general.rcx = u64::MAX;
    })?;
    let exit = rig.run()?;
    ensure!(
        matches!(
            exit,
            Exit::MemoryFault {
                gpa: ABSENT,
                mapped: false,
                ..
            }
        ),
        "{exit:x?}"
    );
    let last = rig.ram.read_u64(ABSENT - 8)?;
    ensure_eq!(last, 0x5A5A_5A5A_5A5A_5A5A, "the last bytes of memory");
    rig.expect_usable()
}

/// Tables that point at themselves, at nothing, at absent memory and at memory that nothing can have.
pub(crate) fn broken_page_tables(subject: &Subject) -> Result {
    // Which entry, and what it becomes. The code's own page is among those that vanish.
    let cases = [
        ("root to itself", PML4, PML4 | OPEN),
        ("root to nothing", PML4, 0),
        ("root to absent memory", PML4, ABSENT | OPEN),
        ("root beyond all memory", PML4, 0x7F_FFFF_F000 | OPEN),
        (
            "root with reserved bits",
            PML4,
            0x000F_FF00_0000_2000 | OPEN,
        ),
        ("third level to absent memory", PD, ABSENT | OPEN),
        ("third level to itself", PD, PD | OPEN),
        (
            "code in absent memory",
            PT + (CODE >> 12) * 8,
            ABSENT | OPEN,
        ),
        (
            "code without execution",
            PT + (CODE >> 12) * 8,
            CODE | OPEN | 1 << 63,
        ),
        ("interrupt table away", PT + (IDT >> 12) * 8, 0),
        ("every page is the root", PT + (DATA >> 12) * 8, PML4 | OPEN),
    ];
    for mode in [Mode::User, Mode::Kernel] {
        for (what, at, entry) in cases {
            let mut rig = Rig::new(subject, mode, &HOSTILE_LOAD)?;
            rig.ram.write_u64(at, entry)?;
            rig.vm.publish_tables()?;
            rig.start_with(|state| state.general.rbx = UNMAPPED)?;
            ends_somehow(&mut rig, &format!("{what} in {mode:?}"))?;
        }
    }
    Ok(())
}

/// CR3 that leads nowhere.
pub(crate) fn a_root_that_is_not_there(subject: &Subject) -> Result {
    for root in [ABSENT, 0xFFFF_F000, 0xF_FFFF_F000] {
        let mut rig = Rig::new(subject, Mode::User, &HOSTILE_LOAD)?;
        let mut state = rig.boot_state();
        state.special.cr3 = root;
        if rig.start(&state).is_ok() {
            ends_somehow(&mut rig, &format!("root at {root:#x}"))?;
        }
    }
    Ok(())
}

// Ring 3 that owns its tables: maps a page, reads it, maps another one there, and goes on, without ever telling anybody.
guest!(
    REMAP_LOOP,
    64,
    "mov ecx, 2000",
    "2:",
    "mov [rbx], rsi",
    "mov eax, [rdx]",
    "mov [rbx], rdi",
    "mov eax, [rdx]",
    "mov qword ptr [rbx], 0",
    "mov [rbx], rsi",
    "dec ecx",
    "jnz 2b",
    "out 0xe0, eax",
);

/// Tables that change all the time under the walker.
pub(crate) fn tables_that_the_guest_edits_all_the_time(subject: &Subject) -> Result {
    let window = DATA + 9 * PAGE;
    let mut rig = Rig::new(subject, Mode::User, &REMAP_LOOP)?;
    rig.ram.write_u64(DATA, 1)?;
    rig.ram.write_u64(DATA + PAGE, 2)?;
    rig.start_with(|state| {
        let general = &mut state.general;
        general.rbx = PT + (window >> 12) * 8;
        general.rdx = window;
        general.rsi = DATA | OPEN;
        general.rdi = (DATA + PAGE) | OPEN;
    })?;
    let read = rig.result()?;
    ensure!(read == 1 || read == 2, "{read}");
    // After a load of CR3 the last edit counts.
    rig.load(&HOSTILE_LOAD)?;
    rig.vm.publish_tables()?;
    rig.start_with(|state| {
        state.general.rbx = window;
        state.special.cr3 |= 1 << 3;
    })?;
    let read = rig.result()?;
    ensure_eq!(read, 1, "the last edit");
    Ok(())
}

guest!(
    REWRITE_SELF,
    64,
    "mov ecx, 200",
    "2:",
    // the immediate of the next instruction but one
    "mov byte ptr [rip + 3f + 1], cl",
    "jmp 3f",
    "3:",
    "mov eax, 0x11",
    "add ebx, eax",
    "dec ecx",
    "jnz 2b",
    "mov eax, ebx",
    "out 0xe0, eax",
);

/// Code that writes itself runs as written (Intel SDM volume 3, section 13.1.3).
pub(crate) fn code_that_writes_itself(subject: &Subject) -> Result {
    for mode in [Mode::User, Mode::Kernel] {
        let mut rig = Rig::new(subject, mode, &REWRITE_SELF)?;
        let sum = rig.result()?;
        ensure_eq!(sum, 200 * 201 / 2, "{mode:?}");
    }
    Ok(())
}

guest!(FAULT, 64, "ud2");
guest!(RETURN, 64, "iretq");
guest!(FAULT_AGAIN, 64, "ud2");

/// A handler that returns to the fault, for ever: the guest runs until it is interrupted, and that works.
pub(crate) fn a_fault_that_is_never_repaired(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &FAULT)?;
    let handler = CODE + 0x800;
    rig.ram.write(handler, RETURN.code())?;
    rig.ram
        .write_u64(IDT + 6 * 16, 0x8E00 << 32 | 8 << 16 | handler)?;
    let exit = rig.run_briefly()?;
    ensure_eq!(exit, Exit::Interrupted, "exit");
    rig.expect_usable()
}

/// A handler that faults itself, on a stack that shrinks with each level: it ends in a double fault, or in nothing left.
pub(crate) fn handlers_that_fault(subject: &Subject) -> Result {
    for mode in [Mode::User, Mode::Kernel] {
        let mut rig = Rig::new(subject, mode, &FAULT)?;
        let handler = CODE + 0x800;
        rig.ram.write(handler, FAULT_AGAIN.code())?;
        for vector in [6, 8, 12, 13, 14] {
            rig.ram
                .write_u64(IDT + vector * 16, 0x8E00 << 32 | 8 << 16 | handler)?;
        }
        // The page below the stack of exceptions is away, so the levels end.
        let below = crate::rig::EXCEPTION_STACK_TOP - 2 * PAGE;
        rig.ram.write_u64(PT + (below >> 12) * 8, 0)?;
        rig.vm.publish_tables()?;
        rig.start(&rig.boot_state())?;
        let exit = rig.run()?;
        ensure!(
            matches!(exit, Exit::TripleFault),
            "{mode:?} ends in {exit:?}"
        );
        rig.expect_usable()?;
    }
    Ok(())
}

/// An instruction that begins in memory and ends where none is.
pub(crate) fn an_instruction_across_the_end_of_memory(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &HOSTILE_LOAD)?;
    // mov eax, imm32, of which two bytes are there.
    rig.ram.write(ABSENT - 2, &[0xB8, 0x11])?;
    rig.start_with(|state| state.general.rip = ABSENT - 2)?;
    ends_somehow(&mut rig, "an instruction that is cut off")?;
    // Sixteen prefixes: longer than any instruction (Intel SDM volume 2, section 2.3.11).
    let mut rig = Rig::new(subject, Mode::User, &HOSTILE_LOAD)?;
    rig.ram.write(CODE, &[0x66; 16])?;
    rig.start(&rig.boot_state())?;
    let exception = rig.exception()?;
    ensure_eq!(exception.vector, 13, "an instruction that is too long");
    Ok(())
}

guest!(PRIVILEGED_LIDT, 64, "lidt [rbx]");
guest!(PRIVILEGED_CR3, 64, "mov cr3, rbx");
guest!(PRIVILEGED_CLI, 64, "wbinvd");
guest!(PRIVILEGED_INVLPG, 64, "invlpg [rbx]");
guest!(PRIVILEGED_SWAPGS, 64, "swapgs");
guest!(PRIVILEGED_DR, 64, "mov dr7, rbx");
guest!(PRIVILEGED_XSETBV, 64, "clts");

/// What belongs to ring 0 is refused to ring 3 (Intel SDM volume 3, section 6.9).
pub(crate) fn privileged_instructions_in_ring_three(subject: &Subject) -> Result {
    let guests: [Guest; 7] = [
        PRIVILEGED_LIDT,
        PRIVILEGED_CR3,
        PRIVILEGED_CLI,
        PRIVILEGED_INVLPG,
        PRIVILEGED_SWAPGS,
        PRIVILEGED_DR,
        PRIVILEGED_XSETBV,
    ];
    for guest in guests {
        let mut rig = Rig::new(subject, Mode::User, &guest)?;
        rig.start_with(|state| state.general.rbx = DATA)?;
        let exception = rig
            .exception()
            .map_err(|failure| failure.within(guest.name))?;
        ensure_eq!(
            (exception.vector, exception.error_code, exception.rip),
            (13, Some(0), CODE),
            "{}",
            guest.name
        );
    }
    Ok(())
}

guest!(VMRUN, 64, "vmrun");
guest!(VMXON, 64, ".byte 0xF3, 0x0F, 0xC7, 0x33");
guest!(MONITOR, 64, "monitor");
guest!(VMCALL, 64, "vmcall", "out 0xe0, eax");
guest!(VMMCALL, 64, "vmmcall", "out 0xe0, eax");

pub(crate) fn virtualization_instructions_of_ring_three(subject: &Subject) -> Result {
    virtualization_instructions(subject, Mode::User)
}

pub(crate) fn virtualization_instructions_of_ring_zero(subject: &Subject) -> Result {
    virtualization_instructions(subject, Mode::Kernel)
}

/// A guest has no hypervisor of its own, and ours offers it no calls.
fn virtualization_instructions(subject: &Subject, mode: Mode) -> Result {
    for guest in [VMRUN, VMXON, MONITOR, VMCALL, VMMCALL] {
        {
            let mut rig = Rig::new(subject, mode, &guest)?;
            rig.start_with(|state| {
                state.general.rax = 1;
                state.general.rbx = DATA;
            })?;
            ends_somehow(&mut rig, &format!("{} in {mode:?}", guest.name))?;
        }
    }
    Ok(())
}

/// Random bytes as code: any exit, but an exit, and then another guest.
pub(crate) fn random_code(subject: &Subject) -> Result {
    use proptest::collection::vec;
    use proptest::prelude::*;
    let mut rig = Rig::new(subject, Mode::User, &HOSTILE_LOAD)?;
    super::state::checked(150, &vec(any::<u8>(), 16..64), |bytes| {
        // Whatever runs off the end meets `ud2`.
        rig.ram.fill_u64(CODE, PAGE / 8, 0x0B0F_0B0F_0B0F_0B0F, 0)?;
        rig.ram.write(CODE, &bytes)?;
        rig.start_with(|state| {
            // A limit on what a loop can do: the trap flag ends the guest after its first instruction.
            state.general.rflags |= 1 << 8;
            (state.general.rsi, state.general.rdi) = (DATA, DATA + PAGE);
            state.general.rcx = 16;
        })?;
        match rig.run()? {
            Exit::IoIn { .. } => rig.vm.complete_io_in(0)?,
            exit => ensure!(exit != Exit::Interrupted, "{bytes:x?}: {exit:?}"),
        }
        rig.vm.settle()?;
        rig.expect_usable()
    })?;
    let mut state = rig.boot_state();
    rig.vm.get_state(StateGroup::General, &mut state)?;
    Ok(())
}

//! Exceptions that the guest handles itself, and what becomes of those that nobody handles.

use vellum_backend::{Exit, IoWidth};

use super::in_modes;
use crate::failure::{Result, ensure, ensure_eq};
use crate::guest::{Guest, guest};
use crate::rig::{CODE, DATA, EXCEPTION_STACK_TOP, IDT, Mode, OPEN, PAGE, PT, Rig, UNMAPPED};
use crate::subject::Subject;

guest!(UNDEFINED, 64, "ud2");
guest!(UNDEFINED32, 32, "ud2");
guest!(DIVIDE, 64, "xor ecx, ecx", "div ecx");
guest!(DIVIDE32, 32, "xor ecx, ecx", "div ecx");
guest!(DIVIDE16, 16, "xor cx, cx", "div cx");
guest!(PRIVILEGED, 64, "mov rax, cr0");
guest!(PRIVILEGED_MSR, 64, "xor ecx, ecx", "rdmsr");
guest!(
    NON_CANONICAL,
    64,
    "mov rax, 0x8000000000000000",
    "mov rax, [rax]"
);
guest!(
    NON_CANONICAL_STACK,
    64,
    "mov rsp, 0x8000000000000000",
    "push rax"
);
guest!(BAD_SELECTOR, 64, "mov eax, 0x50", "mov ds, eax");
guest!(CLOSED_GATE, 64, "int 0x0d");

/// Instructions that fault in ring 3: vector, error code, and how far behind the start the faulting one is.
pub(crate) fn ring_three_faults_are_delivered(subject: &Subject) -> Result {
    let cases: [(Guest, u8, Option<u64>, u64); 6] = [
        (UNDEFINED, 6, None, 0),
        (DIVIDE, 0, None, 2),
        (PRIVILEGED, 13, Some(0), 0),
        (PRIVILEGED_MSR, 13, Some(0), 2),
        (NON_CANONICAL, 13, Some(0), 10),
        (BAD_SELECTOR, 13, Some(0x50), 5),
    ];
    for (guest, vector, error_code, offset) in cases {
        let mut rig = Rig::new(subject, Mode::User, &guest)?;
        let exception = rig
            .exception()
            .map_err(|failure| failure.within(guest.name))?;
        ensure_eq!(
            (exception.vector, exception.error_code, exception.rip),
            (vector, error_code, CODE + offset),
            "{}",
            guest.name
        );
        ensure_eq!(
            exception.cs & 3,
            3,
            "privilege that {} came from",
            guest.name
        );
        let state = rig.settled()?;
        // SS, RSP, RFLAGS, CS, RIP, and the error code.
        let frame_len_bytes = if error_code.is_some() { 48 } else { 40 };
        ensure_eq!(
            state.general.rsp,
            EXCEPTION_STACK_TOP - frame_len_bytes,
            "stack of the handler of {}",
            guest.name
        );
        ensure_eq!(state.special.cs.selector & 3, 0, "privilege of the handler");
    }
    Ok(())
}

fn undefined(subject: &Subject, mode: Mode, guest: &Guest) -> Result {
    let mut rig = Rig::new(subject, mode, guest)?;
    let exception = rig.exception()?;
    ensure_eq!(
        (exception.vector, exception.error_code, exception.rip),
        (6, None, CODE),
        "{mode:?}"
    );
    Ok(())
}

in_modes!(undefined:
    an_undefined_instruction_in_flat_mode = Flat UNDEFINED32,
    an_undefined_instruction_in_flat_mode_ring_three = FlatUser UNDEFINED32,
    an_undefined_instruction_in_paged_mode = Paged UNDEFINED32,
    an_undefined_instruction_in_long_mode = Kernel UNDEFINED,
);

fn divide(subject: &Subject, mode: Mode, guest: &Guest) -> Result {
    let mut rig = Rig::new(subject, mode, guest)?;
    let exception = rig.exception()?;
    ensure_eq!((exception.vector, exception.rip), (0, CODE + 2), "{mode:?}");
    Ok(())
}

in_modes!(divide:
    a_division_by_zero_in_real_mode = Real DIVIDE16,
    a_division_by_zero_in_flat_mode = Flat DIVIDE32,
    a_division_by_zero_in_long_mode = Kernel DIVIDE,
);

guest!(BREAKPOINT, 64, "int3", "nop");
guest!(SOFTWARE_INTERRUPT, 64, "int 5", "nop");

/// Through the stack it is #SS instead of #GP (Intel SDM volume 1, section 3.3.7.1).
pub(crate) fn a_stack_that_is_not_canonical(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &NON_CANONICAL_STACK)?;
    let exception = rig.exception()?;
    ensure_eq!(
        (exception.vector, exception.error_code, exception.rip),
        (12, Some(0), CODE + 10),
        "a push"
    );
    Ok(())
}

/// A gate that is closed to ring 3 is a #GP with the gate's index, and IDT in bit 1 (Intel SDM volume 3, section 7.13).
pub(crate) fn a_closed_gate_refuses_ring_three(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &CLOSED_GATE)?;
    let exception = rig.exception()?;
    ensure_eq!(
        (exception.vector, exception.error_code, exception.rip),
        (13, Some(13 << 3 | 2), CODE),
        "int 13"
    );
    Ok(())
}

pub(crate) fn a_breakpoint_instruction_of_ring_three(subject: &Subject) -> Result {
    software_interrupt(subject, Mode::User, &BREAKPOINT)
}

pub(crate) fn a_breakpoint_instruction_of_ring_zero(subject: &Subject) -> Result {
    software_interrupt(subject, Mode::Kernel, &BREAKPOINT)
}

pub(crate) fn a_software_interrupt_of_ring_three(subject: &Subject) -> Result {
    software_interrupt(subject, Mode::User, &SOFTWARE_INTERRUPT)
}

pub(crate) fn a_software_interrupt_of_ring_zero(subject: &Subject) -> Result {
    software_interrupt(subject, Mode::Kernel, &SOFTWARE_INTERRUPT)
}

/// A trap stands behind its instruction. Its gate must be open for ring 3.
fn software_interrupt(subject: &Subject, mode: Mode, guest: &Guest) -> Result {
    let vector = if guest.name == BREAKPOINT.name { 3 } else { 5 };
    let len_bytes = guest.code().len() as u64 - 1;
    let mut rig = Rig::new(subject, mode, guest)?;
    let gate = IDT + u64::from(vector) * 16;
    // DPL 3 (Intel SDM volume 3, section 7.14.1).
    let open = rig.ram.read_u64(gate)? | 3 << 45;
    rig.ram.write_u64(gate, open)?;
    let exception = rig.exception()?;
    ensure_eq!(
        (exception.vector, exception.rip),
        (vector, CODE + len_bytes),
        "{} in {mode:?}",
        guest.name
    );
    Ok(())
}

guest!(LOAD, 64, "mov rax, [rbx]");
guest!(EXCEPTIONS_STORE, 64, "mov [rbx], rax");
guest!(CALL, 64, "jmp rbx");

/// A page of its own with an entry of its own.
const PLACE: u64 = DATA + 7 * PAGE;
const ENTRY: u64 = PT + (PLACE >> 12) * 8;
/// Bits of entries and of error codes (Intel SDM volume 3, tables 4-20 and figure 4-12).
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const NO_EXECUTE: u64 = 1 << 63;
const FAULT_PRESENT: u64 = 1;
const FAULT_WRITE: u64 = 2;
const FAULT_USER: u64 = 4;
const FAULT_FETCH: u64 = 16;

/// Page faults of ring 3 carry the right error code and address.
pub(crate) fn page_faults_of_ring_three(subject: &Subject) -> Result {
    let closed = PLACE | OPEN;
    let cases = [
        (LOAD, 0, FAULT_USER),
        (EXCEPTIONS_STORE, 0, FAULT_USER | FAULT_WRITE),
        (CALL, 0, FAULT_USER | FAULT_FETCH),
        (LOAD, closed & !USER, FAULT_USER | FAULT_PRESENT),
        (
            EXCEPTIONS_STORE,
            closed & !WRITABLE,
            FAULT_USER | FAULT_PRESENT | FAULT_WRITE,
        ),
        (
            CALL,
            closed | NO_EXECUTE,
            FAULT_USER | FAULT_PRESENT | FAULT_FETCH,
        ),
    ];
    for (guest, entry, error_code) in cases {
        let mut rig = Rig::new(subject, Mode::User, &guest)?;
        page_fault(&mut rig, entry, error_code)
            .map_err(|failure| failure.within(format!("{} of {entry:#x}", guest.name)))?;
    }
    Ok(())
}

/// Those of ring 0, which CR0.WP keeps from read-only pages.
pub(crate) fn page_faults_of_ring_zero(subject: &Subject) -> Result {
    let closed = PLACE | OPEN;
    let cases = [
        (LOAD, 0, 0),
        (EXCEPTIONS_STORE, 0, FAULT_WRITE),
        (
            EXCEPTIONS_STORE,
            closed & !WRITABLE,
            FAULT_PRESENT | FAULT_WRITE,
        ),
        (CALL, closed | NO_EXECUTE, FAULT_PRESENT | FAULT_FETCH),
    ];
    for (guest, entry, error_code) in cases {
        let mut rig = Rig::new(subject, Mode::Kernel, &guest)?;
        page_fault(&mut rig, entry, error_code)
            .map_err(|failure| failure.within(format!("{} of {entry:#x}", guest.name)))?;
    }
    Ok(())
}

fn page_fault(rig: &mut Rig, entry: u64, error_code: u64) -> Result {
    rig.ram.write_u64(ENTRY, entry)?;
    rig.vm.publish_tables()?;
    rig.start_with(|state| state.general.rbx = PLACE + 0x10)?;
    let exception = rig.exception()?;
    ensure_eq!(
        (exception.vector, exception.error_code),
        (14, Some(error_code)),
        "page fault"
    );
    let address = rig.settled()?.special.cr2;
    ensure_eq!(address, PLACE + 0x10, "cr2");
    Ok(())
}

guest!(RETRY, 64, "mov rax, [rbx]", "out 0xe0, eax",);
// The handler of page faults: makes the page present and returns. RDX holds the entry's address, RCX the entry.
guest!(
    REPAIR,
    64,
    "mov [rdx], rcx",
    "mov rax, cr2",
    "invlpg [rax]",
    "add rsp, 8",
    "iretq",
);

/// A handler that repairs the page lets the access succeed, and the guest goes on where it was.
pub(crate) fn a_handler_can_repair_and_return(subject: &Subject) -> Result {
    for mode in [Mode::User, Mode::Kernel] {
        let mut rig = Rig::new(subject, mode, &RETRY)?;
        let handler = CODE + 0x800;
        rig.ram.write(handler, REPAIR.code())?;
        rig.ram
            .write_u64(IDT + 14 * 16, 0x8E00 << 32 | 8 << 16 | handler)?;
        rig.ram.write_u64(PLACE, 0x4321)?;
        rig.ram.write_u64(ENTRY, 0)?;
        rig.vm.publish_tables()?;
        rig.start_with(|state| {
            let general = &mut state.general;
            (general.rbx, general.rcx, general.rdx) = (PLACE, PLACE | OPEN, ENTRY);
        })?;
        let read = rig.result()?;
        ensure_eq!(read, 0x4321, "{mode:?}");
    }
    Ok(())
}

/// A fault whose handler cannot be entered is a double fault, which has a handler of its own (Intel SDM volume 3, section 7.15).
pub(crate) fn a_fault_without_a_handler_is_a_double_fault(subject: &Subject) -> Result {
    for mode in [Mode::User, Mode::Kernel] {
        let mut rig = Rig::new(subject, mode, &LOAD)?;
        rig.ram.write_u64(IDT + 14 * 16, 0)?;
        rig.start_with(|state| state.general.rbx = UNMAPPED)?;
        let exception = rig.exception()?;
        ensure_eq!(
            (exception.vector, exception.error_code),
            (8, Some(0)),
            "{mode:?}"
        );
    }
    Ok(())
}

/// And one whose double fault cannot be handled either ends the guest. An engine that emulates ring 0 may say that it failed to.
fn triple(subject: &Subject, mode: Mode, guest: &Guest) -> Result {
    let mut rig = Rig::new(subject, mode, guest)?;
    rig.start_with(|state| state.special.idtr.limit = 0)?;
    let exit = rig.run()?;
    ensure!(
        matches!(exit, Exit::TripleFault),
        "without an interrupt table: {exit:?}"
    );
    rig.expect_usable()
}

in_modes!(triple:
    a_triple_fault_in_flat_mode = Flat UNDEFINED32,
    a_triple_fault_in_paged_mode = Paged UNDEFINED32,
    a_triple_fault_in_long_mode = Kernel UNDEFINED,
    a_triple_fault_in_long_mode_ring_three = User UNDEFINED,
);

/// A handler's stack that is not there is a double fault, too, which then has no stack either.
pub(crate) fn a_fault_without_a_stack_is_a_triple_fault(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &UNDEFINED)?;
    let nowhere = UNMAPPED + 0x100_0000;
    rig.ram.write(crate::rig::TSS + 4, &nowhere.to_le_bytes())?;
    rig.start(&rig.boot_state())?;
    rig.expect(Exit::TripleFault)?;
    rig.expect_usable()
}

guest!(
    SINGLE,
    64,
    "pushfq",
    "or qword ptr [rsp], 0x100",
    "popfq",
    "nop",
    "nop",
);

/// The trap flag raises a debug exception behind the next instruction (Intel SDM volume 3, section 18.3.1.4).
pub(crate) fn the_trap_flag_traps(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &SINGLE)?;
    let exception = rig.exception()?;
    let nops = SINGLE.code().len() as u64 - 2;
    ensure_eq!(
        (exception.vector, exception.rip),
        (1, CODE + nops + 1),
        "after the first nop"
    );
    let dr6 = rig.settled()?.debug.dr6;
    ensure!(dr6 & 1 << 14 != 0, "dr6 {dr6:#x} lacks BS");
    Ok(())
}

guest!(INTERRUPT16, 16, "int 0x15", "mov al, 0x11", "out 0x21, al");
guest!(RETURN16, 16, "mov bx, 0x55", "iret");

/// Real mode takes its handlers from the table at address 0.
pub(crate) fn a_real_mode_interrupt_returns(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::Real, &INTERRUPT16)?;
    let handler = CODE + 0x100;
    rig.ram.write(handler, RETURN16.code())?;
    let [low, high, ..] = handler.to_le_bytes();
    rig.ram.write(0x15 * 4, &[low, high, 0, 0])?;
    rig.expect(Exit::IoOut {
        port: 0x21,
        width: IoWidth::Byte,
        data: 0x11,
    })?;
    let state = rig.settled()?;
    ensure_eq!(state.general.rbx & 0xFFFF, 0x55, "bx");
    ensure_eq!(state.general.rsp & 0xFFFF, crate::rig::STACK_TOP, "sp");
    Ok(())
}

//! Debug registers: the guest's own.

use vellum_backend::StateGroup;
use vellum_backend::state::DebugRegs;

use crate::failure::{Result, ensure, ensure_eq};
use crate::guest::guest;
use crate::rig::{CODE, DATA, Mode, Rig};
use crate::subject::Subject;

guest!(THREE_NOPS, 64, "nop", "nop", "nop", "out 0xe0, eax");
guest!(STORE, 64, "mov [rbx], eax", "nop", "out 0xe0, eax");
guest!(
    WRITE_THEM,
    64,
    "mov rax, 0x1111",
    "mov dr0, rax",
    "mov rax, 0x2222",
    "mov dr3, rax",
    "mov rax, dr3",
    "out 0xe0, eax",
    "mov rax, dr1",
    "out 0xe0, eax",
);

/// Enables breakpoint 0, for execution or for writes of four bytes (Intel SDM volume 3, section 18.2.4).
const ON_EXECUTION: u64 = 0x402;
const ON_WRITE: u64 = 0x402 | 0xD << 16;

/// A breakpoint on an instruction raises a debug exception in front of it.
pub(crate) fn an_execution_breakpoint_is_hit(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &THREE_NOPS)?;
    rig.start_with(|state| {
        state.debug.dr[0] = CODE + 1;
        state.debug.dr7 = ON_EXECUTION;
    })?;
    let exception = rig.exception()?;
    ensure_eq!(
        (exception.vector, exception.rip),
        (1, CODE + 1),
        "breakpoint"
    );
    let dr6 = rig.settled()?.debug.dr6;
    ensure_eq!(dr6 & 0xF, 1, "which one, in dr6");
    Ok(())
}

/// One on data raises it behind the access.
pub(crate) fn a_data_breakpoint_is_hit(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &STORE)?;
    rig.start_with(|state| {
        state.general.rbx = DATA;
        state.debug.dr[0] = DATA;
        state.debug.dr7 = ON_WRITE;
    })?;
    let exception = rig.exception()?;
    ensure_eq!(
        (exception.vector, exception.rip),
        (1, CODE + 2),
        "breakpoint"
    );
    Ok(())
}

/// A state without breakpoints has none, whatever the vCPU had before.
pub(crate) fn a_restored_guest_hits_no_breakpoint_of_another(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &THREE_NOPS)?;
    let boot = rig.boot_state();
    for _ in 0..2 {
        rig.start_with(|state| {
            state.debug.dr[0] = CODE + 1;
            state.debug.dr7 = ON_EXECUTION;
        })?;
        rig.exception()?;
        rig.start(&boot)?;
        rig.result()?;
        let state = rig.settled()?;
        ensure_eq!(state.debug, DebugRegs::default(), "debug registers");
    }
    Ok(())
}

/// Ring 0 writes and reads them, and the host sees what it wrote.
pub(crate) fn ring_zero_reads_and_writes_them(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::Kernel, &WRITE_THEM)?;
    rig.start_with(|state| state.debug.dr[1] = 0x3333)?;
    let own = rig.result()?;
    ensure_eq!(own, 0x2222, "what the guest wrote to dr3");
    let given = rig.result()?;
    ensure_eq!(given, 0x3333, "what the host wrote to dr1");
    let state = rig.settled()?;
    ensure_eq!(state.debug.dr, [0x1111, 0x3333, 0, 0x2222], "dr0 to dr3");
    Ok(())
}

/// The debug registers of the host's own thread are its own again after a run: a debugger's breakpoint there would be lost else, and
/// the guest's would hit the host. Seen from here only by the host surviving.
pub(crate) fn a_breakpoint_at_a_host_address_does_not_hit_the_host(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &THREE_NOPS)?;
    let own_code = a_breakpoint_at_a_host_address_does_not_hit_the_host as fn(&Subject) -> Result;
    rig.start_with(|state| {
        state.debug.dr = [own_code as usize as u64; 4];
        state.debug.dr7 = 0x4AA;
    })?;
    rig.result()?;
    let mut state = rig.settled()?;
    rig.vm.get_state(StateGroup::Debug, &mut state)?;
    ensure!(state.debug.dr7 == 0x4AA, "dr7 {:#x}", state.debug.dr7);
    Ok(())
}

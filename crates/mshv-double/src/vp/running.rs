//! Running a virtual processor until it has a message.

use std::ffi::c_int;

use kvm_ioctls::VcpuExit;

use super::{State, Vp};
use crate::bytes;
use crate::driver;
use crate::exits::{self, KvmExit, Message, PortAccess, PortInstruction};
use crate::registers::name;
use crate::rules;
use crate::status::Failure;
use crate::strictness::is_strict;
use crate::walk;

/// How often KVM is entered to complete an access before that is given up: a repeated string instruction comes item by item.
const MAX_COMPLETIONS: u32 = 4 * 1024 + 1;

impl Vp {
    pub(super) fn run(&self, argument: u64) -> Result<c_int, Failure> {
        let mut state = self.state();
        let message = self.next_message(&mut state)?;
        state.pull()?;
        state.pages.publish(&state.values);
        let bytes = message.bytes();
        state.pages.show_message(&bytes);
        bytes::write_bytes(argument, &bytes)?;
        Ok(0)
    }

    fn next_message(&self, state: &mut State) -> Result<Message, Failure> {
        state.show_cpuid(&self.partition)?;
        let is_acceptable = self.take_over_page(state)?;
        let lacks_xsave = is_strict() && !state.has_xsave;
        if !is_acceptable || lacks_xsave || !rules::can_enter(&state.values) {
            return Ok(Message::invalid_registers());
        }
        self.partition
            .with_memory(crate::memory::Memory::check_pins)?;
        if state.push().is_err() {
            return Ok(Message::invalid_registers());
        }
        if let Some(message) = self.fetch_violation(state) {
            return violation(message);
        }
        state.values.set(name::EXPLICIT_SUSPEND, 0_u64);
        state.is_stale = true;
        match enter(state) {
            // The register page is left as it was: a driver that does not suspend the virtual processor explicitly leaves it so.
            Err(failure) => {
                state.pull()?;
                Err(failure)
            }
            Ok(exit) => self.translate(state, exit),
        }
    }

    /// What the program wrote to the register page; whether it is acceptable.
    fn take_over_page(&self, state: &mut State) -> Result<bool, Failure> {
        let offered = self.partition.format().components();
        state.pull()?;
        let mut written = Vec::new();
        state.pages.take(|register, value| {
            written.push((register, value));
            Ok(())
        })?;
        Ok(written
            .into_iter()
            .all(|(register, value)| state.set(register, value, offered).is_ok()))
    }

    /// Where a linear address lies, by the guest's own tables.
    fn physical(&self, state: &State, linear: u64) -> Option<u64> {
        let word = |gpa| self.partition.with_memory(|memory| memory.word(gpa));
        walk::physical(&state.values, linear, word)
    }

    /// Where the next instruction lies.
    fn next_instruction(&self, state: &State) -> Option<u64> {
        let base = state.values.segment(name::CS).base;
        self.physical(state, base.wrapping_add(state.values.u64(name::RIP)))
    }

    /// The first fetch from memory that is not executable. KVM cannot tell, so this is asked of the first instruction only.
    fn fetch_violation(&self, state: &mut State) -> Option<Message> {
        if !self
            .partition
            .with_memory(|memory| memory.has_data_only_regions())
        {
            return None;
        }
        let gpa = self.next_instruction(state)?;
        let is_allowed = self
            .partition
            .with_memory(|memory| memory.is_executable(gpa));
        (!is_allowed).then(|| Message::memory(&state.values, gpa, exits::Access::Execute, true))
    }

    /// A fetch from memory that does not exist: KVM fails to emulate what it cannot read.
    fn absent_fetch(&self, state: &State) -> Option<Message> {
        let gpa = self.next_instruction(state)?;
        let is_mapped = self.partition.with_memory(|memory| memory.is_mapped(gpa));
        (!is_mapped).then(|| Message::memory(&state.values, gpa, exits::Access::Execute, false))
    }

    fn translate(&self, state: &mut State, exit: KvmExit) -> Result<Message, Failure> {
        match exit {
            KvmExit::Port(access) => self.port_message(state, access),
            KvmExit::Memory { gpa, access } => {
                // The instruction has not happened, and must not when the guest goes on.
                let before = state.vcpu.get_regs()?;
                complete(state)?;
                state.vcpu.set_regs(&before)?;
                state.pull()?;
                let is_mapped = self.partition.with_memory(|memory| memory.is_mapped(gpa));
                let message = Message::memory(&state.values, gpa, access, is_mapped);
                if is_mapped {
                    violation(message)
                } else {
                    Ok(message)
                }
            }
            KvmExit::Halt if self.partition.has_lapic() => {
                // The virtual processor idles in the hypervisor until an interrupt, of which there are none here.
                Err(wait_for_signal())
            }
            KvmExit::Halt => {
                state.pull()?;
                Ok(Message::halt(&state.values))
            }
            KvmExit::Shutdown => {
                state.pull()?;
                Ok(Message::triple_fault(&state.values))
            }
            KvmExit::InvalidState => Ok(Message::invalid_registers()),
            KvmExit::Other => {
                state.pull()?;
                Ok(self
                    .absent_fetch(state)
                    .unwrap_or_else(|| Message::unsupported(&state.values)))
            }
        }
    }

    /// KVM steps over a port access, now or at the next entry, and reads an input meanwhile; the hypervisor does neither.
    fn port_message(&self, state: &mut State, access: PortAccess) -> Result<Message, Failure> {
        let before = state.vcpu.get_regs()?;
        complete(state)?;
        state.pull()?;
        let mut registers = state.vcpu.get_regs()?;
        let instruction = self.port_instruction(state, (before.rip, registers.rip), access);
        if !instruction.is_string {
            registers.rip = if before.rip == registers.rip {
                registers.rip.wrapping_sub(instruction.len_bytes)
            } else {
                before.rip
            };
        }
        registers.rax = before.rax;
        state.vcpu.set_regs(&registers)?;
        state.is_stale = true;
        state.pull()?;
        Ok(Message::port(&state.values, access, instruction))
    }

    /// The port instruction that KVM stopped at, or, where it had stepped over it already, behind.
    fn port_instruction(
        &self,
        state: &State,
        (before, behind): (u64, u64),
        access: PortAccess,
    ) -> PortInstruction {
        let base = state.values.segment(name::CS).base;
        let byte = |rip: u64| {
            let gpa = self.physical(state, base.wrapping_add(rip))?;
            self.partition.with_memory(|memory| memory.byte(gpa))
        };
        let at_end = || PortInstruction::at_end(access, |back| byte(behind.wrapping_sub(back)));
        let at_start = || PortInstruction::at_start(|index| byte(before.wrapping_add(index)));
        if before != behind {
            return at_start().unwrap_or_else(at_end);
        }
        // A repeated instruction stays where it is until its last item. What lies there may also be just the next instruction.
        let ended = at_end();
        if ended.is_plain_access(access, &state.values) {
            return ended;
        }
        match at_start() {
            Some(instruction) if instruction.is_string => instruction,
            _ => ended,
        }
    }
}

/// Enters KVM until something happens that the program must know.
fn enter(state: &mut State) -> Result<KvmExit, Failure> {
    let exit = match state.vcpu.run() {
        Ok(VcpuExit::IoOut(port, data)) => KvmExit::Port(PortAccess::new(port, data, true)),
        Ok(VcpuExit::IoIn(port, data)) => KvmExit::Port(PortAccess::new(port, data, false)),
        Ok(VcpuExit::MmioRead(gpa, _)) => KvmExit::Memory {
            gpa,
            access: exits::Access::Read,
        },
        Ok(VcpuExit::MmioWrite(gpa, _)) => KvmExit::Memory {
            gpa,
            access: exits::Access::Write,
        },
        Ok(VcpuExit::Hlt) => KvmExit::Halt,
        Ok(VcpuExit::Shutdown) => KvmExit::Shutdown,
        Ok(VcpuExit::FailEntry(..)) => KvmExit::InvalidState,
        Ok(VcpuExit::Intr) => return Err(Failure::Errno(libc::EINTR)),
        Ok(_) => KvmExit::Other,
        Err(error) => return Err(error.into()),
    };
    Ok(match exit {
        KvmExit::Port(access) => KvmExit::Port(access.with_items(state.items())),
        other => other,
    })
}

/// Lets KVM finish what the last exit left half done, without executing anything more.
fn complete(state: &mut State) -> Result<(), Failure> {
    state.vcpu.set_kvm_immediate_exit(1);
    let mut result = Err(Failure::Errno(libc::EIO));
    for _ in 0..MAX_COMPLETIONS {
        match state.vcpu.run() {
            Ok(_) => {}
            Err(error) if error.errno() == libc::EINTR => {
                result = Ok(());
                break;
            }
            Err(error) => {
                result = Err(error.into());
                break;
            }
        }
    }
    state.vcpu.set_kvm_immediate_exit(0);
    state.is_stale = true;
    result
}

/// What comes of an access that a region's flags forbid: a message, or nothing until a signal.
fn violation(message: Message) -> Result<Message, Failure> {
    if driver::loops_on_violations() {
        return Err(wait_for_signal());
    }
    Ok(message)
}

/// Returns when the thread has got a signal, with the failure that this is. One that came before is lost, as it is to the driver.
#[expect(unsafe_code, reason = "waits for a signal")]
fn wait_for_signal() -> Failure {
    // SAFETY: no descriptors are passed, and no time limit.
    unsafe { libc::ppoll(std::ptr::null_mut(), 0, std::ptr::null(), std::ptr::null()) };
    Failure::Errno(libc::EINTR)
}

impl State {
    /// Items of the port access that KVM reported.
    #[expect(unsafe_code, reason = "reads a union")]
    fn items(&mut self) -> u32 {
        // SAFETY: the last exit was a port access, so that member is the one that is set.
        unsafe { self.vcpu.get_kvm_run().__bindgen_anon_1.io.count }
    }
}

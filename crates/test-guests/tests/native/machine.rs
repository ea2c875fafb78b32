//! A machine for guests made of a Linux process.
//!
//! A forked child holds the guest's memory and runs its code. `out` raises #GP in ring 3, which stops the child under
//! ptrace; the parent then plays the host. That checks a guest's code without a hypervisor. It says nothing of page
//! permissions or ports, which are the virtual machine's.

#![expect(
    unsafe_code,
    reason = "forks, maps memory at fixed addresses, traces the child"
)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{Endianness, Object, ObjectSection, elf};
use vellum_abi::peb::Peb;
use vellum_abi::port::Port;

const PEB: u64 = 0x70_0000_0000;
pub(crate) const INPUT: u64 = 0x70_0000_1000;
pub(crate) const OUTPUT: u64 = 0x70_0001_0000;
pub(crate) const BUFFER_LEN_BYTES: u64 = 0x4000;
const IO_LEN_BYTES: u64 = 0x2_0000;
const HEAP: u64 = 0x40_0000_0000;
pub(crate) const HEAP_LEN_BYTES: u64 = 0x400_0000;
const STACK_TOP: u64 = 0x78_0000_0000;
const STACK_LEN_BYTES: u64 = 0x10_0000;

/// A stopped or running guest.
pub(crate) struct Machine {
    child: libc::pid_t,
    memory: File,
}

/// Why the guest stopped.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It left through a port, with this EAX.
    Port(Port, u32),
    /// It raised something that Linux reports as this signal.
    Signal(i32),
}

/// The sections that the host reads from a guest's file.
pub(crate) struct Tables {
    pub(crate) functions: Vec<u8>,
    pub(crate) imports: Vec<u8>,
    pub(crate) notes: Vec<u8>,
}

/// Reads the tables and the notes from an ELF.
pub(crate) fn tables(elf: &[u8]) -> Tables {
    let file = ElfFile64::<Endianness>::parse(elf).expect("a 64-bit ELF");
    let section = |name: &str| {
        file.section_by_name(name)
            .and_then(|section| section.data().ok())
            .unwrap_or_default()
            .to_vec()
    };
    let endian = Endianness::Little;
    let notes = file
        .elf_header()
        .program_headers(endian, elf)
        .expect("program headers")
        .iter()
        .filter(|header| header.p_type(endian) == elf::PT_NOTE)
        .flat_map(|header| header.data(endian, elf).expect("inside the file"))
        .copied()
        .collect();
    Tables {
        functions: section("vellum_functions"),
        imports: section("vellum_imports"),
        notes,
    }
}

impl Machine {
    /// Loads `elf` and stops before its first instruction.
    pub(crate) fn load(elf: &[u8]) -> io::Result<Self> {
        let file = ElfFile64::<Endianness>::parse(elf).expect("a 64-bit ELF");
        let segments = segments(elf, &file);
        // SAFETY: the child calls only system calls, until it stops itself.
        let child = unsafe { libc::fork() };
        if child < 0 {
            return Err(io::Error::last_os_error());
        }
        if child == 0 {
            become_guest(&segments);
        }
        let memory = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/{child}/mem"))?;
        let machine = Self { child, memory };
        let stop = machine.wait()?;
        assert_eq!(stop, libc::SIGSTOP, "the child could not set itself up");
        for (address, data, _) in &segments {
            machine.write(*address, data);
        }
        machine.write_peb();
        machine.enter(file.entry());
        Ok(machine)
    }

    /// Runs until the guest leaves, and steps over the `out` that it left by.
    pub(crate) fn run(&self) -> Stop {
        ptrace(libc::PTRACE_CONT, self.child, std::ptr::null_mut()).expect("the child is stopped");
        self.stop(self.wait().expect("the child is ours"))
    }

    /// As [`run`](Self::run), one instruction at a time; also returns how many were executed, the `out` included.
    pub(crate) fn run_counting(&self) -> (Stop, u64) {
        let mut count = 0;
        loop {
            ptrace(libc::PTRACE_SINGLESTEP, self.child, std::ptr::null_mut())
                .expect("the child is stopped");
            count += 1;
            let signal = self.wait().expect("the child is ours");
            if signal != libc::SIGTRAP {
                return (self.stop(signal), count);
            }
        }
    }

    fn stop(&self, signal: i32) -> Stop {
        let mut registers = self.registers();
        if signal == libc::SIGSEGV
            && let Some((port, len_bytes)) = self.out_at(&registers)
        {
            registers.rip += len_bytes;
            self.set_registers(&registers);
            #[expect(
                clippy::cast_possible_truncation,
                reason = "EAX is the low half of RAX"
            )]
            let eax = registers.rax as u32;
            return Stop::Port(port, eax);
        }
        Stop::Signal(signal)
    }

    /// The ABI port that the next instruction writes to, and the instruction's length, if it is such an `out`.
    fn out_at(&self, registers: &libc::user_regs_struct) -> Option<(Port, u64)> {
        let mut code = [0; 2];
        self.memory.read_exact_at(&mut code, registers.rip).ok()?;
        // OUT imm8, EAX is E7 ib; OUT DX, EAX is EF (Intel SDM volume 2, "OUT").
        let (number, len_bytes) = match code {
            [0xE7, number] => (u16::from(number), 2),
            [0xEF, _] => (u16::try_from(registers.rdx & 0xFFFF).ok()?, 1),
            _ => return None,
        };
        Some((Port::try_from(number).ok()?, len_bytes))
    }

    pub(crate) fn read(&self, address: u64, len_bytes: usize) -> Vec<u8> {
        let mut bytes = vec![0; len_bytes];
        self.memory
            .read_exact_at(&mut bytes, address)
            .expect("guest memory at the address");
        bytes
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_all_at(bytes, address)
            .expect("guest memory at the address");
    }

    fn write_peb(&self) {
        let peb = Peb {
            input_ptr: INPUT,
            input_len_bytes: BUFFER_LEN_BYTES,
            output_ptr: OUTPUT,
            output_len_bytes: BUFFER_LEN_BYTES,
            heap_ptr: HEAP,
            heap_len_bytes: HEAP_LEN_BYTES,
            stack_top: STACK_TOP,
            stack_len_bytes: STACK_LEN_BYTES,
            seed: 0x5EED,
            log_level: 3,
            ..Peb::empty()
        };
        let bytes: [u8; Peb::LEN_BYTES] = zerocopy::transmute!(peb);
        self.write(PEB, &bytes);
    }

    fn enter(&self, entry: u64) {
        let mut registers = self.registers();
        (registers.rip, registers.rsp, registers.rdi) = (entry, STACK_TOP, PEB);
        // Not inside a system call any more, so that Linux does not restart one.
        registers.orig_rax = u64::MAX;
        self.set_registers(&registers);
    }

    /// Waits for the child to stop and returns the signal.
    fn wait(&self) -> io::Result<i32> {
        let mut status = 0;
        // SAFETY: waits for a child of this process and writes to a local.
        if unsafe { libc::waitpid(self.child, &raw mut status, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        assert!(
            libc::WIFSTOPPED(status),
            "the child ended with status {status:#x}"
        );
        Ok(libc::WSTOPSIG(status))
    }

    fn registers(&self) -> libc::user_regs_struct {
        // SAFETY: a structure of integers, for which zero is a value.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        ptrace(
            libc::PTRACE_GETREGS,
            self.child,
            (&raw mut registers).cast(),
        )
        .expect("the child is stopped");
        registers
    }

    fn set_registers(&self, registers: &libc::user_regs_struct) {
        let data = std::ptr::from_ref(registers).cast_mut().cast();
        ptrace(libc::PTRACE_SETREGS, self.child, data).expect("the child is stopped");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: ends and reaps the child that this machine has forked.
        unsafe {
            libc::kill(self.child, libc::SIGKILL);
            libc::waitpid(self.child, std::ptr::null_mut(), 0);
        }
    }
}

/// Address, content and length in memory of each segment that is loaded.
fn segments(elf: &[u8], file: &ElfFile64<'_>) -> Vec<(u64, Vec<u8>, u64)> {
    let endian = Endianness::Little;
    let headers = file
        .elf_header()
        .program_headers(endian, elf)
        .expect("program headers");
    headers
        .iter()
        .filter(|header| header.p_type(endian) == elf::PT_LOAD)
        .map(|header| {
            let data = header.data(endian, elf).expect("inside the file").to_vec();
            (header.p_vaddr(endian), data, header.p_memsz(endian))
        })
        .collect()
}

/// In the child: maps the guest's memory and stops. Makes system calls only, and never returns.
fn become_guest(segments: &[(u64, Vec<u8>, u64)]) -> ! {
    let fixed = [
        (PEB, IO_LEN_BYTES),
        (HEAP, HEAP_LEN_BYTES),
        (STACK_TOP - STACK_LEN_BYTES, STACK_LEN_BYTES),
    ];
    let loaded = segments.iter().map(|(address, _, len_bytes)| {
        let start = address & !0xFFF;
        (
            start,
            (address + len_bytes).next_multiple_of(0x1000) - start,
        )
    });
    for (start, len_bytes) in fixed.into_iter().chain(loaded) {
        if !map(start, len_bytes) {
            // SAFETY: ends the child.
            unsafe { libc::_exit(1) };
        }
    }
    // SAFETY: asks to be traced by the parent and stops; then the parent changes RIP, so nothing below runs.
    unsafe {
        if libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) < 0 {
            libc::_exit(3);
        }
        libc::raise(libc::SIGSTOP);
        libc::_exit(2)
    }
}

fn map(start: u64, len_bytes: u64) -> bool {
    let (Ok(start), Ok(len_bytes)) = (usize::try_from(start), usize::try_from(len_bytes)) else {
        return false;
    };
    let address = std::ptr::without_provenance_mut(start);
    let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: the flags let the call fail rather than replace a mapping.
    unsafe { libc::mmap(address, len_bytes, protection, flags, -1, 0) == address }
}

fn ptrace(request: libc::c_uint, child: libc::pid_t, data: *mut libc::c_void) -> io::Result<()> {
    // SAFETY: `data` is null or points to a structure of the size that the request reads or writes.
    if unsafe { libc::ptrace(request, child, std::ptr::null_mut::<libc::c_void>(), data) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

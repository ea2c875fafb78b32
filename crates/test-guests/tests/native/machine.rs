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

use object::read::elf::{ElfFile, FileHeader, ProgramHeader};
use object::{Endianness, FileKind, Object, ObjectSection, elf};
use vellum_abi::peb::Peb;
use vellum_abi::port::Port;

pub(crate) const BUFFER_LEN_BYTES: u64 = 0x4000;
pub(crate) const HEAP_LEN_BYTES: u64 = 0x400_0000;
/// Bytes of the outbox: little, so that it fills up.
pub(crate) const OUTBOX_LEN_BYTES: u64 = 0x1000;
const IO_LEN_BYTES: u64 = 0x2_0000;
const STACK_LEN_BYTES: u64 = 0x10_0000;

/// Where things are in a guest.
#[derive(Debug)]
pub(crate) struct Places {
    /// The PEB, at the start of the I/O area.
    pub(crate) peb: u64,
    pub(crate) input: u64,
    pub(crate) output: u64,
    pub(crate) outbox: u64,
    /// Room for a table of mappings, between the buffers.
    pub(crate) mappings: u64,
    pub(crate) heap: u64,
    stack_top: u64,
    /// Selector of the code segment that Linux has for such programs (its `arch/x86/include/asm/segment.h`).
    code_selector: u64,
}

const AMD64: Places = Places {
    peb: 0x70_0000_0000,
    input: 0x70_0000_1000,
    output: 0x70_0001_0000,
    outbox: 0x70_0001_8000,
    mappings: 0x70_0000_8000,
    heap: 0x40_0000_0000,
    stack_top: 0x78_0000_0000,
    code_selector: 0x33,
};

const I686: Places = Places {
    peb: 0xB000_0000,
    input: 0xB000_1000,
    output: 0xB001_0000,
    outbox: 0xB001_8000,
    mappings: 0xB000_8000,
    heap: 0xA000_0000,
    stack_top: 0xC000_0000,
    code_selector: 0x23,
};

/// Selector of the data segment of either kind of program.
const DATA_SELECTOR: u64 = 0x2B;

/// A stopped or running guest.
pub(crate) struct Machine {
    child: libc::pid_t,
    memory: File,
    places: &'static Places,
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

/// What is read of a guest's ELF, which may have 32 or 64 bits.
pub(crate) struct Image {
    entry: u64,
    segments: Vec<Segment>,
    tables: Tables,
    places: &'static Places,
}

/// A segment that is loaded.
struct Segment {
    address: u64,
    bytes: Vec<u8>,
    memory_len_bytes: u64,
}

/// Reads the tables and the notes from an ELF.
pub(crate) fn tables(elf: &[u8]) -> Tables {
    Image::read(elf).tables
}

impl Image {
    fn read(elf: &[u8]) -> Self {
        match FileKind::parse(elf) {
            Ok(FileKind::Elf32) => Self::read_as::<elf::FileHeader32<Endianness>>(elf, &I686),
            Ok(FileKind::Elf64) => Self::read_as::<elf::FileHeader64<Endianness>>(elf, &AMD64),
            other => panic!("not an ELF: {other:?}"),
        }
    }

    fn read_as<H: FileHeader<Endian = Endianness>>(elf: &[u8], places: &'static Places) -> Self {
        let file = ElfFile::<H>::parse(elf).expect("a sound ELF");
        let section = |name: &str| {
            file.section_by_name(name)
                .and_then(|section| section.data().ok())
                .unwrap_or_default()
                .to_vec()
        };
        let endian = Endianness::Little;
        let headers = file
            .elf_header()
            .program_headers(endian, elf)
            .expect("program headers");
        let of_type = |wanted| {
            headers
                .iter()
                .filter(move |header| header.p_type(endian) == wanted)
                .map(|header| {
                    let bytes = header.data(endian, elf).expect("inside the file").to_vec();
                    Segment {
                        address: header.p_vaddr(endian).into(),
                        bytes,
                        memory_len_bytes: header.p_memsz(endian).into(),
                    }
                })
        };
        Self {
            entry: file.entry(),
            segments: of_type(elf::PT_LOAD).collect(),
            tables: Tables {
                functions: section("vellum_functions"),
                imports: section("vellum_imports"),
                notes: of_type(elf::PT_NOTE).flat_map(|note| note.bytes).collect(),
            },
            places,
        }
    }

    /// The pages of the guest, as start and length.
    fn areas(&self) -> Vec<(u64, u64)> {
        let places = self.places;
        let mut areas = vec![
            (places.peb, IO_LEN_BYTES),
            (places.heap, HEAP_LEN_BYTES),
            (places.stack_top - STACK_LEN_BYTES, STACK_LEN_BYTES),
        ];
        areas.extend(self.segments.iter().map(|segment| {
            let start = segment.address & !0xFFF;
            let end = segment.address + segment.memory_len_bytes;
            (start, end.next_multiple_of(0x1000) - start)
        }));
        areas
    }
}

impl Machine {
    /// Loads `elf` and stops before its first instruction.
    pub(crate) fn load(elf: &[u8]) -> io::Result<Self> {
        let image = Image::read(elf);
        let areas = image.areas();
        // SAFETY: the child calls only system calls, until it stops itself.
        let child = unsafe { libc::fork() };
        if child < 0 {
            return Err(io::Error::last_os_error());
        }
        if child == 0 {
            become_guest(&areas);
        }
        let memory = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/{child}/mem"))?;
        let machine = Self {
            child,
            memory,
            places: image.places,
        };
        let stop = machine.wait()?;
        assert_eq!(stop, libc::SIGSTOP, "the child could not set itself up");
        for segment in &image.segments {
            machine.write(segment.address, &segment.bytes);
        }
        machine.write_peb();
        machine.enter(image.entry);
        Ok(machine)
    }

    /// Where things are in this guest.
    pub(crate) fn places(&self) -> &'static Places {
        self.places
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
            input_ptr: self.places.input,
            input_len_bytes: BUFFER_LEN_BYTES,
            output_ptr: self.places.output,
            output_len_bytes: BUFFER_LEN_BYTES,
            outbox_ptr: self.places.outbox,
            outbox_len_bytes: OUTBOX_LEN_BYTES,
            heap_ptr: self.places.heap,
            heap_len_bytes: HEAP_LEN_BYTES,
            stack_top: self.places.stack_top,
            stack_len_bytes: STACK_LEN_BYTES,
            seed: 0x5EED,
            log_level: 3,
            ..Peb::empty()
        };
        let bytes: [u8; Peb::LEN_BYTES] = zerocopy::transmute!(peb);
        self.write(self.places.peb, &bytes);
    }

    fn enter(&self, entry: u64) {
        let mut registers = self.registers();
        let Places {
            peb,
            stack_top,
            code_selector,
            ..
        } = *self.places;
        (registers.rip, registers.rsp, registers.rdi) = (entry, stack_top, peb);
        // Linux lets a tracer choose between 32-bit and 64-bit code. Only 32-bit code uses DS and ES.
        registers.cs = code_selector;
        (registers.ds, registers.es, registers.ss) = (DATA_SELECTOR, DATA_SELECTOR, DATA_SELECTOR);
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

/// In the child: maps the guest's memory and stops. Makes system calls only, and never returns.
fn become_guest(areas: &[(u64, u64)]) -> ! {
    for (start, len_bytes) in areas {
        if !map(*start, *len_bytes) {
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

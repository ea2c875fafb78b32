//! The machine around a guest: memory, tables, handlers of exceptions, and a watchdog.
#![expect(unsafe_code, reason = "lends memory to guests")]

mod watchdog;

use vellum_backend::boot::{self, Amd64Machine, EntryPoint};
use vellum_backend::state::{DescriptorTable, Segment, SegmentType, Xcr0, rflags};
use vellum_backend::{Exit, HostMemory, IoWidth, Protection, Tracking, VcpuState, Vm};
use vellum_layout::{Gpa, GpaRange, Gva};

use self::watchdog::Watchdog;
use crate::failure::{Failure, Result, ensure, ensure_eq};
use crate::guest::Guest;
use crate::subject::Subject;

pub(crate) const PAGE: u64 = 0x1000;
/// The task-state segment. Its I/O bitmap follows, allows ports 0 to 255, and ends in a byte of ones.
pub(crate) const TSS: u64 = 0x800;
const TSS_BITMAP: u16 = 0x68;
const TSS_LAST: u16 = TSS_BITMAP + 32;
pub(crate) const GDT: u64 = 0x900;
const GDT_LEN_BYTES: u16 = 7 * 8;
/// 4-level tables, one of each level: an identity map of the first 2 MiB in 4 KiB pages, open to ring 3.
pub(crate) const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
pub(crate) const PD: u64 = 0x3000;
pub(crate) const PT: u64 = 0x4000;
/// 2-level tables of the same map.
pub(crate) const DIRECTORY: u64 = 0x5000;
const TABLE: u64 = 0x6000;
/// Gates of the first 32 vectors.
pub(crate) const IDT: u64 = 0x7000;
/// Where guests start.
pub(crate) const CODE: u64 = 0x8000;
/// The handler of vector v lies 8 v bytes on.
const HANDLERS: u64 = 0xA000;
/// The program's stack grows down from here, that of exceptions from the next page's end.
pub(crate) const STACK_TOP: u64 = 0xC000;
pub(crate) const EXCEPTION_STACK_TOP: u64 = 0xD000;
/// Sixteen pages for whatever a check wants.
pub(crate) const DATA: u64 = 0x1_0000;
/// RAM, from address 0.
pub(crate) const RAM_LEN_BYTES: u64 = 0x10_0000;
/// Behind RAM: tables map it, but no memory is there.
pub(crate) const ABSENT: u64 = RAM_LEN_BYTES;
/// Where checks map memory of their own. Tables map it.
pub(crate) const EXTRA: u64 = 0x18_0000;
/// First address that no table maps.
pub(crate) const UNMAPPED: u64 = 0x20_0000;

/// Present, writable, user, accessed, dirty (Intel SDM volume 3, table 4-20).
pub(crate) const OPEN: u64 = 0x67;

/// The port to which guests send 32-bit results.
pub(crate) const RESULT: u16 = 0xE0;
/// The handler of vector v writes a byte to this port plus v.
const EXCEPTION: u16 = 0x80;
const VECTORS: u16 = 32;

/// How a guest starts: width of its code, paging, privilege.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// 16-bit real mode.
    Real,
    /// 32-bit protected mode without paging, ring 0.
    Flat,
    /// 32-bit protected mode without paging, ring 3.
    FlatUser,
    /// 32-bit protected mode with 2-level paging, ring 0.
    Paged,
    /// Long mode, ring 0.
    Kernel,
    /// Long mode, ring 3.
    User,
}

impl Mode {
    pub(crate) fn is_long(self) -> bool {
        matches!(self, Self::Kernel | Self::User)
    }
}

/// A VM with a guest in it.
pub(crate) struct Rig {
    // Dropped before the memory that it maps.
    pub(crate) vm: Box<dyn Vm>,
    pub(crate) ram: HostMemory,
    /// What [`lend`](Self::lend) mapped.
    pub(crate) lent: Vec<HostMemory>,
    mode: Mode,
    xcr0: Xcr0,
    watchdog: Watchdog,
}

/// An exception that one of the guest's handlers reported, with what the processor pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exception {
    pub(crate) vector: u8,
    pub(crate) error_code: Option<u64>,
    pub(crate) rip: u64,
    pub(crate) cs: u64,
}

impl Rig {
    /// A guest at its boot state, its writes not tracked.
    pub(crate) fn new(subject: &Subject, mode: Mode, guest: &Guest) -> Result<Self> {
        Self::tracked(subject, mode, guest, Tracking::None)
    }

    /// A guest at its boot state.
    pub(crate) fn tracked(
        subject: &Subject,
        mode: Mode,
        guest: &Guest,
        tracking: Tracking,
    ) -> Result<Self> {
        let mut rig = Self::fresh(subject, mode, guest, tracking)?;
        rig.start(&rig.boot_state())?;
        Ok(rig)
    }

    /// A guest on a vCPU to which nobody has written.
    pub(crate) fn fresh(
        subject: &Subject,
        mode: Mode,
        guest: &Guest,
        tracking: Tracking,
    ) -> Result<Self> {
        let ram = HostMemory::zeroed(RAM_LEN_BYTES)?;
        let mut vm = subject.create_vm(tracking)?;
        let protection = match tracking {
            Tracking::None => Protection::Write,
            Tracking::FirstWrites | Tracking::Bitmap => Protection::TrackedWrite,
        };
        // SAFETY: the memory lives in the same struct and is dropped after the VM; nothing borrows its bytes.
        unsafe { vm.map(range(0, RAM_LEN_BYTES), ram.hva(), protection) }?;
        let rig = Self {
            watchdog: Watchdog::new(vm.interrupter()),
            vm,
            ram,
            lent: Vec::new(),
            mode,
            xcr0: subject.model().xcr0,
        };
        rig.write_machine()?;
        rig.load(guest)?;
        Ok(rig)
    }

    /// Replaces the guest's code.
    pub(crate) fn load(&self, guest: &Guest) -> Result {
        self.ram.write(CODE, guest.code())?;
        Ok(())
    }

    /// Lends the guest zeroed memory of its own.
    pub(crate) fn lend(&mut self, gpa: GpaRange, protection: Protection) -> Result {
        let memory = HostMemory::zeroed(gpa.len_bytes())?;
        // SAFETY: the memory is kept until after the VM is dropped, and is never borrowed.
        unsafe { self.vm.map(gpa, memory.hva(), protection) }?;
        self.lent.push(memory);
        Ok(())
    }

    /// The mode's boot state, with tables and stacks of the machine.
    pub(crate) fn boot_state(&self) -> VcpuState {
        let machine = Amd64Machine {
            root: Gpa::literal(PML4),
            gdt: gdt(),
            idt: self.idt(),
            tss: tss(),
            xcr0: self.xcr0,
            cr4_features: 0,
        };
        let start = EntryPoint {
            entry: Gva::literal(CODE),
            stack_top: Gva::literal(STACK_TOP),
            peb: Gva::literal(0),
        };
        let flat = || boot::flat32(Gpa::literal(CODE), Gpa::literal(STACK_TOP), 0, 0);
        let mut state = match self.mode {
            Mode::Kernel => return boot::amd64_kernel(&machine, &start),
            Mode::User => return boot::amd64_user(&machine, &start),
            Mode::Real => {
                let mut state = boot::real_mode(0, 0);
                state.general.rip = CODE;
                state.general.rsp = STACK_TOP;
                return state;
            }
            Mode::Flat | Mode::FlatUser => flat(),
            Mode::Paged => boot::i686_paged(Gpa::literal(DIRECTORY), &start),
        };
        state.special.gdtr = gdt();
        state.special.idtr = self.idt();
        state.special.tr = Segment {
            base: TSS,
            limit: u32::from(TSS_LAST),
            selector: boot::selector::TSS,
            attributes: SegmentType::TSS_BUSY,
        };
        if self.mode == Mode::FlatUser {
            let data = user(boot::selector::USER_DATA, state.special.ds);
            state.special.cs = user(boot::selector::USER_CODE, state.special.cs);
            for segment in [
                &mut state.special.ds,
                &mut state.special.es,
                &mut state.special.fs,
                &mut state.special.gs,
                &mut state.special.ss,
            ] {
                *segment = data;
            }
            state.general.rflags |= rflags::IOPL_3;
        }
        state
    }

    /// Puts the vCPU into a state.
    pub(crate) fn start(&mut self, state: &VcpuState) -> Result {
        Ok(state.restore(self.vm.as_mut())?)
    }

    /// Starts at the boot state, changed by `change`.
    pub(crate) fn start_with(&mut self, change: impl FnOnce(&mut VcpuState)) -> Result {
        let mut state = self.boot_state();
        change(&mut state);
        self.start(&state)
    }

    /// Runs to the next exit, which must come before the watchdog's patience ends.
    pub(crate) fn run(&mut self) -> Result<Exit> {
        let Self { vm, watchdog, .. } = self;
        watchdog.guard(|| vm.run())
    }

    /// Runs for a moment: a guest that does not exit meanwhile is interrupted.
    pub(crate) fn run_briefly(&mut self) -> Result<Exit> {
        let Self { vm, watchdog, .. } = self;
        Ok(watchdog.end_soon(|| vm.run())?)
    }

    /// Runs to the next exit, which must be this one.
    pub(crate) fn expect(&mut self, exit: Exit) -> Result {
        let got = self.run()?;
        ensure_eq!(got, exit, "exit");
        Ok(())
    }

    /// Runs to an output to [`RESULT`], and returns its value.
    pub(crate) fn result(&mut self) -> Result<u32> {
        match self.run()? {
            Exit::IoOut {
                port: RESULT,
                width: IoWidth::Dword,
                data,
            } => Ok(data),
            other => Err(self.unexpected(other, "a result")),
        }
    }

    /// Runs to an exception.
    pub(crate) fn exception(&mut self) -> Result<Exception> {
        let exit = self.run()?;
        self.exception_of(exit)
    }

    /// The exception that a handler reported by `exit`.
    pub(crate) fn exception_of(&mut self, exit: Exit) -> Result<Exception> {
        let vector = vector_of(exit).ok_or_else(|| self.unexpected(exit, "an exception"))?;
        let state = self.settled()?;
        let has_code = self.mode != Mode::Real && pushes_error_code(vector);
        let width = match self.mode {
            Mode::Real => 2,
            Mode::Flat | Mode::FlatUser | Mode::Paged => 4,
            Mode::Kernel | Mode::User => 8,
        };
        let word = |index: u64| -> Result<u64> {
            let mut bytes = [0; 8];
            let at = state.special.ss.base + state.general.rsp + index * width;
            let len_bytes = usize::try_from(width).unwrap_or(8);
            self.ram.read(at, &mut bytes[..len_bytes])?;
            Ok(u64::from_le_bytes(bytes))
        };
        let skip = u64::from(has_code);
        Ok(Exception {
            vector,
            error_code: has_code.then(|| word(0)).transpose()?,
            rip: word(skip)?,
            cs: word(skip + 1)? & 0xFFFF,
        })
    }

    /// A failure that says which exit came, and the exception behind it.
    fn unexpected(&mut self, exit: Exit, expected: &str) -> Failure {
        let detail = match vector_of(exit) {
            Some(vector) if expected != "an exception" => match self.exception_of(exit) {
                Ok(exception) => format!(", which reports {exception:x?}"),
                Err(_) => format!(", which reports exception {vector}"),
            },
            _ => String::new(),
        };
        Failure::new(format!("expected {expected}, got {exit:x?}{detail}"))
    }

    /// The state, once what the last exit left half done is complete.
    pub(crate) fn settled(&mut self) -> Result<VcpuState> {
        Ok(VcpuState::save(self.vm.as_mut())?)
    }

    /// The instruction pointer of the settled vCPU lies this far behind the first instruction.
    pub(crate) fn expect_rip(&mut self, offset: u64) -> Result {
        let rip = self.settled()?.general.rip;
        ensure_eq!(rip, CODE + offset, "instruction pointer");
        Ok(())
    }

    /// The guest is beyond repair or not, but its VM takes the boot state and runs.
    pub(crate) fn expect_usable(&mut self) -> Result {
        self.write_machine()?;
        // out RESULT, eax
        self.ram.write(CODE, &[0xE7, RESULT.to_le_bytes()[0]])?;
        self.start_with(|state| state.general.rax = 0x600D)
            .map_err(|failure| failure.within("starting anew"))?;
        if self.mode == Mode::Real {
            let exit = self.run()?;
            ensure!(
                matches!(exit, Exit::IoOut { data: 0x600D, .. }),
                "after starting anew: {exit:?}"
            );
            return Ok(());
        }
        let result = self
            .result()
            .map_err(|failure| failure.within("after starting anew"))?;
        ensure_eq!(result, 0x600D, "after starting anew");
        Ok(())
    }

    fn idt(&self) -> DescriptorTable {
        let entry_len_bytes = if self.mode.is_long() { 16 } else { 8 };
        DescriptorTable {
            base: IDT,
            limit: VECTORS * entry_len_bytes - 1,
        }
    }

    /// Tables, descriptors and handlers, as they are before the guest changes them.
    fn write_machine(&self) -> Result {
        let write = |at, value| self.ram.write_u64(at, value);
        for (table, next) in [(PML4, PDPT), (PDPT, PD), (PD, PT)] {
            write(table, next | OPEN)?;
        }
        for page in 0..512 {
            write(PT + page * 8, page << 12 | OPEN)?;
        }
        self.write_u32(DIRECTORY, TABLE | OPEN)?;
        for page in 0..512 {
            self.write_u32(TABLE + page * 4, page << 12 | OPEN)?;
        }
        self.write_descriptors()?;
        self.ram.zero(TSS, u64::from(TSS_LAST) + 1)?;
        // The stack of ring 0: RSP0, or ESP0 and SS0 (Intel SDM volume 3, figures 8-2 and 8-11).
        self.ram
            .write(TSS + 4, &EXCEPTION_STACK_TOP.to_le_bytes())?;
        if !self.mode.is_long() {
            self.write_u32(TSS + 8, boot::selector::KERNEL_DATA.into())?;
        }
        self.ram.write(TSS + 0x66, &TSS_BITMAP.to_le_bytes())?;
        self.ram.write(TSS + u64::from(TSS_LAST), &[0xFF])?;
        self.write_handlers()
    }

    /// Code and data of ring 0, data and code of ring 3, task-state segment: the order of [`boot::selector`] (Intel SDM volume 3,
    /// sections 3.4.5 and 8.2.2).
    fn write_descriptors(&self) -> Result {
        /// L instead of D.
        const LONG: u64 = 0x0060_0000_0000_0000;
        let code = |descriptor: u64| {
            if self.mode.is_long() {
                descriptor ^ LONG
            } else {
                descriptor
            }
        };
        let tss = 0x0000_8B00_0000_0000 | u64::from(TSS_LAST) | TSS << 16;
        let descriptors = [
            0,
            code(0x00CF_9B00_0000_FFFF),
            0x00CF_9300_0000_FFFF,
            0x00CF_F300_0000_FFFF,
            code(0x00CF_FB00_0000_FFFF),
            tss,
            0,
        ];
        for (at, descriptor) in (GDT..).step_by(8).zip(descriptors) {
            self.ram.write_u64(at, descriptor)?;
        }
        Ok(())
    }

    /// Each handler is `out EXCEPTION + vector, al; hlt`, which are the same bytes in every mode.
    fn write_handlers(&self) -> Result {
        for vector in 0..VECTORS {
            let [port, _] = (EXCEPTION + vector).to_le_bytes();
            let handler = HANDLERS + u64::from(vector) * 8;
            self.ram.write(handler, &[0xE6, port, 0xF4])?;
            let index = u64::from(vector);
            match self.mode {
                Mode::Real => self.write_u32(index * 4, handler)?,
                // Interrupt gates to ring 0 (Intel SDM volume 3, sections 7.11 and 7.14.1).
                Mode::Flat | Mode::FlatUser | Mode::Paged => {
                    self.ram
                        .write_u64(IDT + index * 8, 0x8E00 << 32 | 8 << 16 | handler)?;
                }
                Mode::Kernel | Mode::User => {
                    self.ram
                        .write_u64(IDT + index * 16, 0x8E00 << 32 | 8 << 16 | handler)?;
                    self.ram.write_u64(IDT + index * 16 + 8, 0)?;
                }
            }
        }
        Ok(())
    }

    fn write_u32(&self, at: u64, value: u64) -> Result {
        let [a, b, c, d, ..] = value.to_le_bytes();
        self.ram.write(at, &[a, b, c, d])?;
        Ok(())
    }
}

/// The vector that an exit of a handler names.
pub(crate) fn vector_of(exit: Exit) -> Option<u8> {
    match exit {
        Exit::IoOut {
            port,
            width: IoWidth::Byte,
            ..
        } => port
            .checked_sub(EXCEPTION)
            .filter(|vector| *vector < VECTORS)
            .and_then(|vector| u8::try_from(vector).ok()),
        _ => None,
    }
}

/// Intel SDM volume 3, table 7-1.
fn pushes_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}

fn user(selector: u16, segment: Segment) -> Segment {
    Segment {
        selector,
        attributes: segment.attributes.with_dpl(3),
        ..segment
    }
}

fn gdt() -> DescriptorTable {
    DescriptorTable {
        base: GDT,
        limit: GDT_LEN_BYTES - 1,
    }
}

fn tss() -> DescriptorTable {
    DescriptorTable {
        base: TSS,
        limit: TSS_LAST,
    }
}

/// A range from addresses that checks write as literals.
pub(crate) fn range(start: u64, len_bytes: u64) -> GpaRange {
    GpaRange::literal(Gpa::literal(start), len_bytes)
}

//! The trait that every hypervisor implements, and its vocabulary.

use std::fmt;
use std::io;
use std::sync::Arc;

use vellum_layout::{Gpa, GpaRange, Hole};

use crate::hyperv::HypervViolation;
use crate::memory::Hva;
use crate::meter::Meter;
use crate::state::{StateGroup, VcpuState};

/// One micro-VM with one vCPU.
///
/// The vCPU runs on the thread that calls [`run`](Vm::run); nothing else touches guest memory meanwhile, except a host that
/// chose to share some of it.
pub trait Vm: Send {
    /// What this VM's hypervisor can do, as probed.
    fn capabilities(&self) -> &Capabilities;

    /// Makes `gpa` backed by the host memory that starts at `host`.
    ///
    /// # Safety
    /// The host memory must stay mapped, and writable for the host whatever the guest may do, for the length of `gpa`, until the range is unmapped or the VM is dropped, and
    /// must not be borrowed as a Rust reference while the guest may write it.
    ///
    /// # Errors
    /// [`VmError::Overlap`] when the range meets an earlier one; [`VmError::Hypervisor`] when the hypervisor refuses.
    #[expect(
        unsafe_code,
        reason = "lending memory to a guest cannot be checked by the compiler"
    )]
    unsafe fn map(
        &mut self,
        gpa: GpaRange,
        host: Hva,
        protection: Protection,
    ) -> Result<(), VmError>;

    /// As [`map`](Self::map), for pages of a file that others may shorten. What the guest does to a page that is gone ends in
    /// [`Exit::MemoryLost`]; only an engine that touches guest memory in this process has to take care of that.
    ///
    /// # Safety
    /// As for [`map`](Self::map), but that pages may vanish. The host does not touch the memory while the guest runs.
    ///
    /// # Errors
    /// As for [`map`](Self::map).
    #[expect(
        unsafe_code,
        reason = "lending memory to a guest cannot be checked by the compiler"
    )]
    unsafe fn map_file(
        &mut self,
        gpa: GpaRange,
        host: Hva,
        protection: Protection,
    ) -> Result<(), VmError> {
        // SAFETY: the caller promises it, and a hypervisor reports pages that vanish.
        unsafe { self.map(gpa, host, protection) }
    }

    /// Takes back a range that was mapped, exactly as it was mapped.
    ///
    /// # Errors
    /// [`VmError::NotMapped`] when no range equals `gpa`.
    fn unmap(&mut self, gpa: GpaRange) -> Result<(), VmError>;

    /// Enters the guest and returns at the next exit.
    ///
    /// After [`Exit::IoOut`] the next `run` continues behind the instruction. After [`Exit::IoIn`] the reply must have been
    /// given by [`complete_io_in`](Vm::complete_io_in).
    ///
    /// # Errors
    /// [`VmError::InputPending`] when the last exit was [`Exit::IoIn`] and has no reply; [`VmError::Hypervisor`] when the
    /// hypervisor itself fails.
    fn run(&mut self) -> Result<Exit, VmError>;

    /// Gives the value that the pending `in` instruction reads.
    ///
    /// # Errors
    /// [`VmError::NoPendingInput`] when the last exit was not [`Exit::IoIn`].
    fn complete_io_in(&mut self, data: u32) -> Result<(), VmError>;

    /// Makes the guest stand still. It does anyway between two calls of [`run`](Vm::run), unless somebody runs it on a thread of its own
    /// and has reported as an exit what was none.
    ///
    /// # Errors
    /// [`VmError::Hypervisor`].
    fn pause(&mut self) -> Result<Paused, VmError> {
        Ok(Paused::AtExit)
    }

    /// Completes whatever the last exit left half done, so that the state read next is the architectural one.
    ///
    /// KVM commits an `out` only on the next entry; this enters and leaves at once.
    ///
    /// # Errors
    /// [`VmError::Hypervisor`].
    fn settle(&mut self) -> Result<(), VmError>;

    /// Reads one state group of the vCPU into `state`.
    ///
    /// # Errors
    /// [`VmError::Hypervisor`].
    fn get_state(&mut self, group: StateGroup, state: &mut VcpuState) -> Result<(), VmError>;

    /// Writes one state group of `state` to the vCPU, at the latest before its next instruction.
    ///
    /// # Errors
    /// [`VmError::InvalidState`] for special registers that Hyper-V would refuse, on every backend;
    /// [`VmError::Hypervisor`].
    fn set_state(&mut self, group: StateGroup, state: &VcpuState) -> Result<(), VmError>;

    /// A handle by which another thread makes `run` return [`Exit::Interrupted`].
    fn interrupter(&self) -> Arc<dyn Interrupter>;

    /// Calls `page` with every page of a [`Protection::TrackedWrite`] range that the guest may have written for the first
    /// time since the range was mapped. A page is reported at least once, possibly again.
    ///
    /// # Errors
    /// [`VmError::Hypervisor`].
    fn take_dirty(&mut self, page: &mut dyn FnMut(Gpa)) -> Result<(), VmError>;

    /// Makes every page that was [taken](Vm::take_dirty) be reported again when it is next written. Costs what was taken since the
    /// last time.
    ///
    /// # Errors
    /// [`VmError::Hypervisor`].
    fn rearm_dirty(&mut self) -> Result<(), VmError>;

    /// Tells the hypervisor that the host edited guest page tables, in any way and anywhere: nothing to do where the processor
    /// walks the guest's tables itself, and a rebuilding of everything derived where the hypervisor shadows them.
    ///
    /// Translations that the vCPU itself cached are another matter: load another CR3 for that.
    ///
    /// # Errors
    /// [`VmError::Hypervisor`].
    fn publish_tables(&mut self) -> Result<(), VmError>;

    /// The cheaper sibling of [`publish_tables`](Vm::publish_tables): tells the hypervisor that entries which pointed into
    /// `targets` point elsewhere now, or nowhere.
    ///
    /// # Errors
    /// [`VmError::NotMapped`] when the targets are not inside one writable mapped range; [`VmError::Hypervisor`].
    fn publish_remap(&mut self, targets: GpaRange) -> Result<(), VmError>;

    /// Counts and limits instructions, where [`Capabilities::instruction_counts`] says so.
    fn meter(&mut self) -> Option<&mut dyn Meter> {
        None
    }
}

/// Makes a running vCPU return to its host, from another thread.
pub trait Interrupter: Send + Sync + fmt::Debug {
    /// Binds the interrupter to the calling thread, which is about to call [`Vm::run`].
    fn enter(&self);

    /// Withdraws an interruption that was not taken. Called by the vCPU's thread when it is done with a call.
    fn leave(&self);

    /// Makes the current or the next [`Vm::run`] return [`Exit::Interrupted`] (once or more often, until
    /// [`leave`](Interrupter::leave)).
    ///
    /// The caller guarantees that the thread that called [`enter`](Interrupter::enter) is alive and has not yet called
    /// `leave`, by a lock that both sides take.
    fn interrupt(&self);
}

/// Where a guest that was made to stand still does so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paused {
    /// At the exit that was reported last.
    AtExit,
    /// Somewhere else: it went on although it had promised to wait.
    Elsewhere,
}

/// Why the guest stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// An `out` instruction. The low `width` bytes of `data` are its value.
    IoOut {
        /// I/O port.
        port: u16,
        /// Width of the access.
        width: IoWidth,
        /// The value, zero-extended.
        data: u32,
    },
    /// An `in` instruction that waits for [`Vm::complete_io_in`].
    IoIn {
        /// I/O port.
        port: u16,
        /// Width of the access.
        width: IoWidth,
    },
    /// A string access to a port of several items at once, which no Vellum guest needs. A hypervisor may report a string
    /// access item by item instead, as plain ones.
    IoString {
        /// I/O port.
        port: u16,
    },
    /// An access to guest-physical memory that is absent, or that does not allow it.
    MemoryFault {
        /// The guest-physical address.
        gpa: u64,
        /// What the guest tried.
        access: Access,
        /// Whether a range is mapped there (which then forbids the access).
        mapped: bool,
    },
    /// An access to guest-physical memory whose host memory cannot be had, such as a page of a file that was truncated.
    MemoryLost {
        /// The guest-physical address, if the hypervisor tells it.
        gpa: Option<u64>,
    },
    /// A `hlt` instruction.
    Halt,
    /// A fault inside a double fault (Intel SDM volume 3, section 7.15, interrupt 8).
    TripleFault,
    /// The hypervisor found the vCPU state inconsistent at entry.
    InvalidState {
        /// The processor's failure reason.
        reason: u64,
    },
    /// The hypervisor could not carry out an instruction.
    EmulationFailure,
    /// [`Interrupter::interrupt`], or a signal to the thread.
    Interrupted,
    /// The run executed as many instructions as it may, on an engine that counts them.
    OutOfFuel,
    /// An exit that no Vellum guest may cause.
    Unhandled {
        /// The hypervisor's number for it.
        reason: u32,
    },
}

/// Width of a port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoWidth {
    /// 1 byte.
    Byte,
    /// 2 bytes.
    Word,
    /// 4 bytes.
    Dword,
}

impl IoWidth {
    /// Bytes of the access.
    pub const fn len_bytes(self) -> usize {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
        }
    }

    /// The width of an access of `len_bytes`, if it is one.
    pub const fn from_len_bytes(len_bytes: usize) -> Option<Self> {
        match len_bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            _ => None,
        }
    }
}

/// What an access tried to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A data read or, where the hypervisor cannot tell, an instruction fetch.
    Read,
    /// A data write.
    Write,
    /// An instruction fetch.
    Execute,
}

/// What the guest may do with a mapped range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Read and execute.
    ReadOnly,
    /// Everything.
    Write,
    /// Everything, and first writes are reported by [`Vm::take_dirty`].
    TrackedWrite,
}

/// What a hypervisor can do on this machine, as probed by running a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, each of which a reader asks for by name"
)]
pub struct Capabilities {
    /// Who walks the guest's page tables.
    pub mmu: Mmu,
    /// How privileged guest code is executed.
    pub ring_zero: RingZero,
    /// Registers can be written through shared memory, without a system call of their own.
    pub sync_regs: bool,
    /// First writes to memory can be logged, in a ring of this many pages; 0 if not.
    pub dirty_ring_pages: u32,
    /// Memory can be mapped so that guest writes exit.
    pub read_only_memory: bool,
    /// Access to model-specific registers can be denied by default.
    pub msr_filter: bool,
    /// Registers that are not denied although [`crate::msr::DECLARED`] does not name them get back their first values whenever group
    /// [`StateGroup::Msrs`] is written.
    pub msr_reset: bool,
    /// Host memory may be discarded (`MADV_DONTNEED`) or mapped anew under a mapped range. Where it may not, the guest would keep the
    /// old pages, which are pinned: unmap the range first, or write.
    pub host_discard: bool,
    /// 2-level (32-bit, not PAE) paging works, entered by the host and turned on by the guest.
    pub two_level_paging: bool,
    /// Instructions are counted, and can be limited ([`Vm::meter`]): guests are interpreted.
    pub instruction_counts: bool,
}

/// Who walks the guest's page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mmu {
    /// The processor (EPT, NPT): an edit by the host is visible after a TLB flush.
    Nested,
    /// The hypervisor keeps a shadow: an edit by the host needs [`Vm::publish_tables`].
    Shadow,
}

/// How privileged guest code is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingZero {
    /// By the processor.
    Native,
    /// By the hypervisor's instruction emulator: slow, and without vector instructions.
    Emulated,
}

/// Why an operation on a VM failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmError {
    /// A system call of the hypervisor failed.
    #[error("{operation} failed")]
    Hypervisor {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A range overlaps one that is mapped.
    #[error("cannot map {wanted:x?}: it overlaps the mapped range {mapped:x?}")]
    Overlap {
        /// The range to be mapped.
        wanted: GpaRange,
        /// The range that is there.
        mapped: GpaRange,
    },
    /// A range covers pages of the hypervisor's own devices.
    #[error("cannot map {wanted:x?}: it covers the {hole}")]
    Hole {
        /// The range to be mapped.
        wanted: GpaRange,
        /// What is there.
        hole: Hole,
    },
    /// No such range is mapped.
    #[error("no range {range:x?} is mapped")]
    NotMapped {
        /// The range.
        range: GpaRange,
    },
    /// The host address is not page-aligned.
    #[error("host address {host:x?} is not aligned to a page")]
    Unaligned {
        /// The host address.
        host: Hva,
    },
    /// `run` before the pending `in` got its value.
    #[error("a port input is pending; give its value with complete_io_in first")]
    InputPending,
    /// `complete_io_in` without a pending `in`.
    #[error("no port input is pending")]
    NoPendingInput,
    /// A vCPU state that a hypervisor would refuse.
    #[error("vcpu state refused")]
    InvalidState(#[source] HypervViolation),
    /// The processor lacks what the chosen CPU profile promises.
    #[error(
        "this processor lacks {missing}, which cpu profile {profile} needs; choose a lower profile"
    )]
    Profile {
        /// The profile's name.
        profile: &'static str,
        /// What is missing.
        missing: &'static str,
    },
    /// Fewer model-specific registers were written than asked.
    #[error("model-specific register {index:#x} was not accepted")]
    Msr {
        /// The first register that was refused.
        index: u32,
    },
}

impl VmError {
    /// The error of a system call, or of what stands in for one.
    pub fn hypervisor(operation: &'static str, source: impl Into<io::Error>) -> Self {
        Self::Hypervisor {
            operation,
            source: source.into(),
        }
    }
}

//! Flat guests: RAM where you want it, a boot state, a hook for each port. Nothing else.
//!
//! This is the backend for programs that need no sandbox: boot stubs, small kernels, test guests. Anything that boots on bare
//! KVM boots on it. `examples/multiboot.rs` boots a 32-bit ELF file in the multiboot way.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use vellum_layout::{Gpa, GpaRange};

use crate::memory::{HostMemory, OutOfBounds};
use crate::state::VcpuState;
use crate::vm::{Exit, Interrupter, IoWidth, Protection, Vm, VmError};

/// A VM with its memory and its ports.
pub struct FlatGuest {
    // Dropped first: the memory must outlive the VM that maps it.
    vm: Box<dyn Vm>,
    memory: Vec<(GpaRange, HostMemory)>,
    outputs: BTreeMap<u16, OutputHook>,
    inputs: BTreeMap<u16, InputHook>,
}

type OutputHook = Box<dyn FnMut(IoWidth, u32) -> Flow + Send>;
type InputHook = Box<dyn FnMut(IoWidth) -> u32 + Send>;

/// Whether the guest goes on after an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// It does.
    Continue,
    /// [`FlatGuest::run`] returns.
    Stop,
}

/// Why [`FlatGuest::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A hook said so.
    Stopped {
        /// The hook's port.
        port: u16,
    },
    /// An exit that is no port access with a hook: a halt, a fault, a port that nobody serves.
    Exit(Exit),
}

/// Why a flat guest could not be set up or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlatError {
    /// The hypervisor or the arrangement of memory.
    #[error("flat guest's vm failed")]
    Vm(#[from] VmError),
    /// No memory on the host.
    #[error("no memory for {range:x?}")]
    Memory {
        /// The range that was to be backed.
        range: GpaRange,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Guest-physical memory that does not exist.
    #[error("no guest memory holds {len_bytes:#x} bytes at {gpa:#x}")]
    Absent {
        /// First address.
        gpa: u64,
        /// Length of the access.
        len_bytes: usize,
    },
    /// An access that leaves its range.
    #[error("guest memory access out of bounds")]
    OutOfBounds(#[from] OutOfBounds),
}

impl FlatGuest {
    /// A guest without memory and ports.
    pub fn new(vm: Box<dyn Vm>) -> Self {
        Self {
            vm,
            memory: Vec::new(),
            outputs: BTreeMap::new(),
            inputs: BTreeMap::new(),
        }
    }

    /// Backs a range with zeroed memory.
    ///
    /// # Errors
    /// [`FlatError::Memory`]; [`FlatError::Vm`] when the range overlaps another one.
    pub fn add_ram(&mut self, range: GpaRange) -> Result<(), FlatError> {
        let memory = HostMemory::zeroed(range.len_bytes())
            .map_err(|source| FlatError::Memory { range, source })?;
        #[expect(unsafe_code, reason = "lends the guest its memory")]
        // SAFETY: the memory is kept beside the VM, is dropped after it, and is never borrowed.
        unsafe {
            self.vm.map(range, memory.hva(), Protection::Write)?;
        }
        self.memory.push((range, memory));
        Ok(())
    }

    /// Copies bytes into guest-physical memory. They must lie in one range.
    ///
    /// # Errors
    /// [`FlatError::Absent`], [`FlatError::OutOfBounds`].
    pub fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), FlatError> {
        let (memory, offset) = self.locate(gpa, bytes.len())?;
        Ok(memory.write(offset, bytes)?)
    }

    /// Copies bytes out of guest-physical memory. They must lie in one range.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), FlatError> {
        let (memory, offset) = self.locate(gpa, into.len())?;
        Ok(memory.read(offset, into)?)
    }

    fn locate(&self, gpa: Gpa, len_bytes: usize) -> Result<(&HostMemory, u64), FlatError> {
        self.memory
            .iter()
            .find_map(|(range, memory)| Some((memory, range.offset_of(gpa)?)))
            .ok_or(FlatError::Absent {
                gpa: gpa.as_u64(),
                len_bytes,
            })
    }

    /// Serves `out` instructions to a port. A hook that was there before is replaced.
    pub fn on_output(
        &mut self,
        port: u16,
        hook: impl FnMut(IoWidth, u32) -> Flow + Send + 'static,
    ) {
        self.outputs.insert(port, Box::new(hook));
    }

    /// Serves `in` instructions from a port. A hook that was there before is replaced.
    pub fn on_input(&mut self, port: u16, hook: impl FnMut(IoWidth) -> u32 + Send + 'static) {
        self.inputs.insert(port, Box::new(hook));
    }

    /// Puts the vCPU into a state: see [`crate::boot`] for some to start from.
    ///
    /// # Errors
    /// [`FlatError::Vm`] with [`VmError::InvalidState`] for a state that no hypervisor takes.
    pub fn boot(&mut self, state: &VcpuState) -> Result<(), FlatError> {
        Ok(state.restore(self.vm.as_mut())?)
    }

    /// The state of the vCPU.
    ///
    /// # Errors
    /// [`FlatError::Vm`].
    pub fn state(&mut self) -> Result<VcpuState, FlatError> {
        Ok(VcpuState::save(self.vm.as_mut())?)
    }

    /// A handle by which another thread makes [`run`](Self::run) return with [`Exit::Interrupted`].
    pub fn interrupter(&self) -> Arc<dyn Interrupter> {
        self.vm.interrupter()
    }

    /// Runs the guest until a hook stops it or an exit comes that no hook serves.
    ///
    /// # Errors
    /// [`FlatError::Vm`].
    pub fn run(&mut self) -> Result<End, FlatError> {
        loop {
            match self.vm.run()? {
                Exit::IoOut { port, width, data } if self.outputs.contains_key(&port) => {
                    if self.output(port, width, data) == Flow::Stop {
                        return Ok(End::Stopped { port });
                    }
                }
                Exit::IoIn { port, width } if self.inputs.contains_key(&port) => {
                    let data = self.inputs.get_mut(&port).map_or(0, |hook| hook(width));
                    self.vm.complete_io_in(data)?;
                }
                exit => return Ok(End::Exit(exit)),
            }
        }
    }

    fn output(&mut self, port: u16, width: IoWidth, data: u32) -> Flow {
        self.outputs
            .get_mut(&port)
            .map_or(Flow::Stop, |hook| hook(width, data))
    }
}

impl fmt::Debug for FlatGuest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<GpaRange> = self.memory.iter().map(|(range, _)| *range).collect();
        f.debug_struct("FlatGuest")
            .field("memory", &ranges)
            .finish_non_exhaustive()
    }
}

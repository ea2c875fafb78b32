//! A VM whose guest need not leave to be served.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vellum_abi::line::State;
use vellum_backend::memory::Hva;
use vellum_backend::state::VcpuState;
use vellum_backend::{
    Capabilities, Exit, Interrupter, IoWidth, Paused, Protection, StateGroup, Vm, VmError,
};
use vellum_layout::{Gpa, GpaRange};

use super::Polling;
use super::interrupter::PollingInterrupter;
use super::line::Line;
use super::runner::Runner;

/// Looks at the line between two looks at the clock.
const LOOKS: u32 = 64;
/// How long a guest that is asked to leave may take; an honest one looks all the time.
const PATIENCE: Duration = Duration::from_millis(100);

/// A VM with a thread that runs its guest.
pub(crate) struct PollingVm {
    // Ends before the memory that the guest uses goes; see `Drop`.
    runner: Runner,
    line: Line,
    /// Here, or with the thread.
    vm: Option<Box<dyn Vm>>,
    /// What the guest waits for without having left.
    posted: Option<Posted>,
    /// The next entry goes on behind an `out`, so that the guest is not in the middle of the line's protocol.
    is_at_port: bool,
    capabilities: Capabilities,
    interrupter: Arc<PollingInterrupter>,
    spin: Duration,
}

/// What a guest posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Posted {
    port: u16,
    eax: u32,
}

impl Posted {
    const fn exit(self) -> Exit {
        Exit::IoOut {
            port: self.port,
            width: IoWidth::Dword,
            data: self.eax,
        }
    }
}

impl PollingVm {
    /// Wraps a VM that stands still, with a guest whose outbox is at `outbox`.
    ///
    /// # Safety
    /// The first page of the outbox stays mapped, readable and writable, as long as the value lives, and no reference to it exists.
    #[expect(unsafe_code, reason = "hands on the promise about the guest's memory")]
    pub(crate) unsafe fn new(
        vm: Box<dyn Vm>,
        outbox: Hva,
        polling: Polling,
    ) -> std::io::Result<Self> {
        let interrupter = Arc::new(PollingInterrupter::new(vm.interrupter()));
        Ok(Self {
            runner: Runner::start(interrupter.clone())?,
            // SAFETY: the caller promises it.
            line: unsafe { Line::new(outbox) },
            capabilities: vm.capabilities().clone(),
            vm: Some(vm),
            posted: None,
            is_at_port: true,
            interrupter,
            spin: polling.spin,
        })
    }

    /// Lets the guest go on. Returns an exit that it has made instead.
    fn resume(&mut self) -> Option<Result<Exit, VmError>> {
        if let Some(posted) = self.posted.take() {
            if self.line.change(State::Taken, State::Open) {
                return None;
            }
            // It does not wait any more: it executes the `out` that was served already.
            let exit = self.wait();
            if !matches!(exit, Ok(exit) if exit == posted.exit()) {
                self.is_at_port = false;
                return Some(exit);
            }
        }
        if let Some(vm) = self.vm.take() {
            if self.is_at_port {
                self.line.set(State::Open);
            }
            self.runner.send(vm);
        }
        None
    }

    /// Looks for what the guest posts, or for its leaving, for a while.
    fn look(&mut self) -> Option<Posted> {
        let end = Instant::now().checked_add(self.spin)?;
        loop {
            for _ in 0..LOOKS {
                if let Some(posted) = self.take() {
                    return Some(posted);
                }
                if self.runner.has_left() {
                    return None;
                }
                std::hint::spin_loop();
            }
            if Instant::now() >= end {
                return None;
            }
        }
    }

    fn take(&self) -> Option<Posted> {
        let (port, eax) = self.line.take()?;
        // A number that no port has is refused like any other.
        let port = u16::try_from(port).unwrap_or(u16::MAX);
        Some(Posted { port, eax })
    }

    /// Waits until the guest has left.
    fn wait(&mut self) -> Result<Exit, VmError> {
        let (vm, exit) = self.runner.wait();
        self.vm = Some(vm);
        self.is_at_port = matches!(exit, Ok(Exit::IoOut { .. }));
        exit
    }

    /// Brings the VM here. Whether its guest stands at the `out` that it had posted.
    fn fetch(&mut self) -> bool {
        let Some(posted) = self.posted.take() else {
            return true;
        };
        self.line.change(State::Taken, State::Leave);
        let end = Instant::now() + PATIENCE;
        while !self.runner.has_left() && Instant::now() < end {
            std::hint::spin_loop();
        }
        if !self.runner.has_left() {
            self.interrupter.kick();
        }
        let exit = self.wait();
        matches!(exit, Ok(exit) if exit == posted.exit())
    }

    /// The VM, brought here.
    fn here(&mut self) -> Result<&mut dyn Vm, VmError> {
        if self.posted.is_some() && !self.fetch() {
            self.is_at_port = false;
        }
        match &mut self.vm {
            Some(vm) => Ok(vm.as_mut()),
            // Only a thread that has panicked keeps it.
            None => Err(VmError::hypervisor(
                "running the guest on a thread of its own",
                std::io::Error::from(std::io::ErrorKind::BrokenPipe),
            )),
        }
    }
}

impl Vm for PollingVm {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    #[expect(unsafe_code, reason = "hands on the promise about the memory")]
    unsafe fn map(
        &mut self,
        gpa: GpaRange,
        host: Hva,
        protection: Protection,
    ) -> Result<(), VmError> {
        // SAFETY: the caller promises it.
        unsafe { self.here()?.map(gpa, host, protection) }
    }

    #[expect(unsafe_code, reason = "hands on the promise about the memory")]
    unsafe fn map_file(
        &mut self,
        gpa: GpaRange,
        host: Hva,
        protection: Protection,
    ) -> Result<(), VmError> {
        // SAFETY: the caller promises it.
        unsafe { self.here()?.map_file(gpa, host, protection) }
    }

    fn unmap(&mut self, gpa: GpaRange) -> Result<(), VmError> {
        self.here()?.unmap(gpa)
    }

    fn run(&mut self) -> Result<Exit, VmError> {
        if let Some(exit) = self.resume() {
            return exit;
        }
        self.posted = self.look();
        if self.posted.is_none()
            && !self.runner.has_left()
            && !self.line.change(State::Open, State::Off)
        {
            // It posts at this moment; or what it does with the line leads nowhere, and it leaves by and by.
            self.posted = self.take();
        }
        match self.posted {
            Some(posted) => Ok(posted.exit()),
            None => self.wait(),
        }
    }

    fn complete_io_in(&mut self, data: u32) -> Result<(), VmError> {
        self.here()?.complete_io_in(data)
    }

    fn pause(&mut self) -> Result<Paused, VmError> {
        if self.posted.is_none() {
            return Ok(Paused::AtExit);
        }
        let stands = self.fetch();
        self.is_at_port &= stands;
        Ok(if stands {
            Paused::AtExit
        } else {
            Paused::Elsewhere
        })
    }

    fn settle(&mut self) -> Result<(), VmError> {
        self.here()?.settle()
    }

    fn get_state(&mut self, group: StateGroup, state: &mut VcpuState) -> Result<(), VmError> {
        self.here()?.get_state(group, state)
    }

    fn set_state(&mut self, group: StateGroup, state: &VcpuState) -> Result<(), VmError> {
        self.here()?.set_state(group, state)
    }

    fn interrupter(&self) -> Arc<dyn Interrupter> {
        self.interrupter.clone()
    }

    fn take_dirty(&mut self, page: &mut dyn FnMut(Gpa)) -> Result<(), VmError> {
        self.here()?.take_dirty(page)
    }

    fn rearm_dirty(&mut self) -> Result<(), VmError> {
        self.here()?.rearm_dirty()
    }

    fn publish_tables(&mut self) -> Result<(), VmError> {
        self.here()?.publish_tables()
    }

    fn publish_remap(&mut self, targets: GpaRange) -> Result<(), VmError> {
        self.here()?.publish_remap(targets)
    }
}

impl Drop for PollingVm {
    /// Whoever owns the guest's memory may give it back behind this.
    fn drop(&mut self) {
        if self.posted.is_some() {
            self.fetch();
        }
    }
}

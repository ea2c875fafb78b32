//! The sandbox: one micro-VM that runs one guest.

mod calls;
mod memory;
mod states;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vellum_backend::{Meter, Paused};

use crate::builder::SandboxBuilder;
use crate::call::{OutboxCounts, Phase, Session};
use crate::checkpoint::{Checkpoint, Checkpoints};
use crate::engine::{Engine, EngineKind};
use crate::error::{Error, Failure};
use crate::host::HostFunctions;
use crate::image::GuestImage;
use crate::instance::{Instance, Leaving};
use crate::polling::Polling;
use crate::snapshot::{Snapshot, SnapshotData, Suspension};

/// One micro-VM: guest memory, one vCPU, and the host functions that its guest may call.
///
/// A sandbox can be sent to another thread between calls. A call takes it by `&mut`, so a host function cannot call back into
/// the sandbox that called it.
///
/// A guest that misbehaves leaves the sandbox *dirty*: it refuses calls and snapshots with
/// [`ErrorKind::NeedsRestore`](crate::ErrorKind::NeedsRestore) until [`restore`](Sandbox::restore) has brought it to a known
/// state.
pub struct Sandbox {
    number: u64,
    engine: Engine,
    /// In a place of its own, so that a sandbox is cheap to move.
    pub(crate) session: Box<Session>,
    /// Whether the guest is polled.
    polling: Option<Polling>,
    health: Health,
}

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);

/// Whether the guest can be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    /// It idles.
    Ready,
    /// It is in the middle of what its snapshot was taken in, and the host has answered it.
    Suspended(Phase),
    /// It was entered and has not come back cleanly.
    Dirty,
    /// A restore failed half-way.
    Dead,
}

impl Health {
    /// How a sandbox stands that was brought to a snapshot.
    fn of(snapshot: &SnapshotData) -> Self {
        match &snapshot.suspended {
            Some(suspended) => Self::Suspended(suspended.phase),
            None => Self::Ready,
        }
    }
}

impl Sandbox {
    /// Begins to make a sandbox of an image.
    pub fn builder(image: &GuestImage) -> SandboxBuilder {
        SandboxBuilder::new(image)
    }

    /// A sandbox in the state of a snapshot, without running any guest code.
    ///
    /// # Errors
    /// [`ErrorKind::MissingHostFunction`](crate::ErrorKind::MissingHostFunction);
    /// [`ErrorKind::Incompatible`](crate::ErrorKind::Incompatible) when the engine shows guests another CPU;
    /// [`ErrorKind::Hypervisor`](crate::ErrorKind::Hypervisor) when the system has no room for one more.
    pub fn from_snapshot(
        engine: &Engine,
        snapshot: &Snapshot,
        host: &HostFunctions,
    ) -> Result<Self, Error> {
        Ok(Self::make(engine, &snapshot.data, host)?)
    }

    pub(crate) fn make(
        engine: &Engine,
        snapshot: &Arc<SnapshotData>,
        host: &HostFunctions,
    ) -> Result<Self, Failure> {
        snapshot.check_runs_on(engine.model())?;
        let host = host.resolve(snapshot.image.imports())?;
        let instance = Instance::obtain(engine, snapshot)?;
        Ok(Self {
            number: NEXT_NUMBER.fetch_add(1, Ordering::Relaxed),
            engine: engine.clone(),
            session: Box::new(Session::new(instance, host, &snapshot.config.sizes)),
            polling: None,
            health: Health::of(snapshot),
        })
    }

    /// From now on the guest runs on a thread of its own, and the thread that makes a call *polls*: calls and host calls pass through
    /// shared memory, and the guest does not leave for them as long as both sides are quick. Two cores are busy during a call, and one
    /// for some tens of microseconds after it; a side that has nothing to do for longer goes to sleep, and the next call or host call costs an
    /// exit and the waking of a thread.
    ///
    /// Nothing else changes: deadlines, cancellation, snapshots and restores work as before. For user guests in Rust; a guest that
    /// does not know how to wait leaves as before. On a machine with one processor, for kernels, and in the interpreter, this does nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Hypervisor`](crate::ErrorKind::Hypervisor) when the system has no thread to give.
    pub fn into_polling(self, polling: Polling) -> Result<Self, Error> {
        let processors = std::thread::available_parallelism();
        // The interpreter is a part of this program, whose accesses to guest memory must not race with the host's.
        let is_interpreted = self.engine.kind() == Some(EngineKind::Emulator);
        if self.polling.is_some() || is_interpreted || processors.is_ok_and(|count| count.get() < 2)
        {
            return Ok(self);
        }
        let mut sandbox = self;
        sandbox.session = Box::new(sandbox.session.into_polled(polling)?);
        sandbox.polling = Some(polling);
        Ok(sandbox)
    }

    /// Makes a polled guest stand still. One that runs although it has promised to wait has spoilt the sandbox.
    fn pause(&mut self) -> Result<(), Failure> {
        if self.polling.is_some() && self.session.instance.pause()? == Paused::Elsewhere {
            self.health = match self.health {
                Health::Dead => Health::Dead,
                _ => Health::Dirty,
            };
        }
        Ok(())
    }

    /// From now on keeps the latest snapshot that the guest asks for. Before, such a request changes nothing, and the guest goes on.
    pub fn keep_checkpoints(&mut self) {
        if self.session.checkpoints.is_declined() {
            self.session.checkpoints = Checkpoints::Keep(None);
        }
    }

    /// Takes out the latest snapshot that the guest has asked for, if there is one that was not taken out yet.
    pub fn take_checkpoint(&mut self) -> Option<Checkpoint> {
        self.session.checkpoints.take()
    }

    /// What the guest is in the middle of, when the sandbox stands on a snapshot that the guest asked for; `None` otherwise.
    pub fn suspension(&self) -> Option<Suspension<'_>> {
        match self.health {
            Health::Suspended(_) => self.session.instance.base().suspension(),
            Health::Ready | Health::Dirty | Health::Dead => None,
        }
    }

    /// The image that the guest was loaded from.
    #[inline]
    pub fn image(&self) -> &GuestImage {
        &self.session.instance.base().image
    }

    /// What its guest has logged, counted and told without leaving, and what of it was lost.
    pub fn outbox_counts(&self) -> OutboxCounts {
        self.session.outbox_counts()
    }

    /// Instructions that its VM has executed, where the engine counts them: the emulator does. The difference of two counts is what happened between them;
    /// the same call on the same state gives the same one each time. A restore may take another VM, whose count begins at zero.
    pub fn executed_instructions(&mut self) -> Option<u64> {
        Some(self.session.instance.vm().meter()?.executed())
    }

    /// Starts to note which blocks of code the guest runs, and forgets what was noted before. `false` where the engine cannot: only the emulator does. A restore
    /// may take another VM, which notes nothing.
    pub fn trace_blocks(&mut self) -> bool {
        let meter = self.session.instance.vm().meter();
        meter.map(Meter::trace_blocks).is_some()
    }

    /// Instruction pointers at which the blocks begin that ran since [`trace_blocks`](Self::trace_blocks), each once, in ascending order: the coverage of
    /// a guest. The monitor's own are among them, in the upper half of the address space.
    pub fn traced_blocks(&mut self) -> Vec<u64> {
        let meter = self.session.instance.vm().meter();
        meter.map_or_else(Vec::new, |meter| meter.traced_blocks())
    }

    /// The engine that runs the sandbox.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Whether a call is possible: the guest idles, and no earlier call has gone wrong.
    pub fn is_ready(&self) -> bool {
        self.health == Health::Ready
    }

    /// How the vCPU stands towards the host.
    fn leaving(&self) -> Leaving {
        match self.health {
            Health::Ready | Health::Suspended(_) => Leaving::Cleanly,
            Health::Dirty | Health::Dead => Leaving::Uncleanly,
        }
    }

    /// Takes from a sandbox that changes hands what a restore leaves with it: mappings, and snapshots that its guest asked for.
    pub(crate) fn clear_for_reuse(&mut self) -> Result<(), Error> {
        self.session.checkpoints = Checkpoints::Decline;
        let labels: Vec<String> = self
            .mappings()
            .map(|it| it.mapping.label().to_owned())
            .collect();
        labels.iter().try_for_each(|label| self.unmap(label))
    }

    /// Whether the last call went wrong and no restore has followed.
    pub(crate) fn is_dirty(&self) -> bool {
        self.health == Health::Dirty
    }

    /// A number that no other sandbox of this process has.
    pub(crate) const fn number(&self) -> u64 {
        self.number
    }

    fn check_alive(&self) -> Result<(), Failure> {
        match self.health {
            Health::Dead => Err(Failure::Unusable),
            Health::Ready | Health::Suspended(_) | Health::Dirty => Ok(()),
        }
    }
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox")
            .field("image", self.image())
            .field("health", &self.health)
            .finish_non_exhaustive()
    }
}

//! The sandbox: one micro-VM that runs one guest.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vellum_abi::function::Signature;
use vellum_abi::value::{ValueRef, ValueType};
use vellum_backend::{Meter, Paused};
use vellum_layout::Gpa;

use crate::builder::SandboxBuilder;
use crate::call::{
    Buffers, CallOptions, Control, Outbox, OutboxCounts, Phase, ReplyBytes, Session,
};
use crate::capture::capture;
use crate::checkpoint::{Checkpoint, Checkpoints};
use crate::engine::{Engine, EngineKind};
use crate::error::{Error, Failure};
use crate::guest_fn::GuestFn;
use crate::host::{HostFunctions, Resolved};
use crate::image::GuestImage;
use crate::instance::{Instance, Leaving, Restored};
use crate::logging::LogSink;
use crate::mapping::{Mapping, MappingInfo};
use crate::polling::Polling;
use crate::snapshot::{Snapshot, SnapshotData, Suspension};
use crate::value::{Arguments, FromValue, Value};

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
    instance: Instance,
    host: Resolved,
    control: Arc<Control>,
    buffers: Buffers,
    outbox: Outbox,
    pub(crate) checkpoints: Checkpoints,
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
        let mut instance = Instance::obtain(engine, snapshot)?;
        let control = Control::new(instance.vm().interrupter());
        let sizes = snapshot.config.sizes;
        Ok(Self {
            number: NEXT_NUMBER.fetch_add(1, Ordering::Relaxed),
            engine: engine.clone(),
            instance,
            host,
            control,
            buffers: Buffers::new(sizes.input_len_bytes, sizes.output_len_bytes),
            outbox: Outbox::default(),
            checkpoints: Checkpoints::default(),
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
        sandbox.instance = sandbox.instance.into_polled(polling)?;
        sandbox.control = Control::new(sandbox.instance.vm().interrupter());
        sandbox.polling = Some(polling);
        Ok(sandbox)
    }

    /// Makes a polled guest stand still. One that runs although it has promised to wait has spoilt the sandbox.
    fn pause(&mut self) -> Result<(), Failure> {
        if self.polling.is_some() && self.instance.pause()? == Paused::Elsewhere {
            self.health = match self.health {
                Health::Dead => Health::Dead,
                _ => Health::Dirty,
            };
        }
        Ok(())
    }

    /// From now on keeps the latest snapshot that the guest asks for. Before, such a request changes nothing, and the guest goes on.
    pub fn keep_checkpoints(&mut self) {
        if self.checkpoints.is_declined() {
            self.checkpoints = Checkpoints::Keep(None);
        }
    }

    /// Takes out the latest snapshot that the guest has asked for, if there is one that was not taken out yet.
    pub fn take_checkpoint(&mut self) -> Option<Checkpoint> {
        self.checkpoints.take()
    }

    /// What the guest is in the middle of, when the sandbox stands on a snapshot that the guest asked for; `None` otherwise.
    pub fn suspension(&self) -> Option<Suspension<'_>> {
        match self.health {
            Health::Suspended(_) => self.instance.base().suspension(),
            Health::Ready | Health::Dirty | Health::Dead => None,
        }
    }

    /// Goes on behind the point at which the guest asked for the snapshot that the sandbox stands on, and returns what the
    /// interrupted call returns; nothing, `()`, for the guest's initialisation.
    ///
    /// A guest may read small arguments of that call as before. Large ones, which it fetches from the host, it must have fetched.
    ///
    /// # Errors
    /// [`ErrorKind::Suspended`](crate::ErrorKind::Suspended) when the guest is not suspended,
    /// [`ErrorKind::TypeMismatch`](crate::ErrorKind::TypeMismatch) when the call returns another type; else as [`GuestFn::call`].
    pub fn resume<Ret: FromValue>(&mut self, options: &CallOptions) -> Result<Ret, Error> {
        let returns = self.suspended_in()?.1;
        if returns != Ret::TYPE {
            return Err(Failure::ResumeType {
                expected: Ret::TYPE,
                actual: returns,
            }
            .into());
        }
        let value = self.resume_dynamic(options)?;
        Ok(Ret::from_value(value)
            .ok_or_else(|| Failure::Protocol("a checked value has another type"))?)
    }

    /// [`resume`](Self::resume) for a call whose type is known at run time only.
    ///
    /// # Errors
    /// As [`resume`](Self::resume), but for types.
    pub fn resume_dynamic(&mut self, options: &CallOptions) -> Result<Value, Error> {
        let (phase, returns) = self.suspended_in()?;
        match phase {
            Phase::Booting => {
                self.boot(options)?;
                Ok(Value::Unit)
            }
            Phase::Calling { function } => {
                Ok(self.enter(phase, options, |session| session.resume(function, returns))?)
            }
        }
    }

    /// What the guest is in the middle of, and what that returns.
    fn suspended_in(&self) -> Result<(Phase, ValueType), Failure> {
        match (self.health, self.suspension()) {
            (Health::Suspended(phase), Some(Suspension::Booting)) => Ok((phase, ValueType::Unit)),
            (Health::Suspended(phase), Some(Suspension::Calling(function))) => {
                Ok((phase, function.signature().ret()))
            }
            (Health::Dirty, _) => Err(Failure::NeedsRestore),
            (Health::Dead, _) => Err(Failure::Unusable),
            _ => Err(Failure::NotSuspended),
        }
    }

    /// Runs the guest's initialisation.
    pub(crate) fn boot(&mut self, options: &CallOptions) -> Result<(), Failure> {
        let _guard = options.begin(&self.control, || self.instance.vm().meter())?;
        self.health = Health::Dirty;
        #[expect(
            clippy::redundant_closure_for_method_calls,
            reason = "the method is not general enough in its lifetime"
        )]
        let booted = self.session(Phase::Booting, |session| session.boot());
        self.unlimit();
        booted?;
        self.health = Health::Ready;
        Ok(())
    }

    /// The image that the guest was loaded from.
    #[inline]
    pub fn image(&self) -> &GuestImage {
        &self.instance.base().image
    }

    /// What its guest has logged, counted and told without leaving, and what of it was lost.
    pub fn outbox_counts(&self) -> OutboxCounts {
        self.outbox.counts
    }

    /// Instructions that its VM has executed, where the engine counts them: the emulator does. The difference of two counts is what happened between them;
    /// the same call on the same state gives the same one each time. A restore may take another VM, whose count begins at zero.
    pub fn executed_instructions(&mut self) -> Option<u64> {
        Some(self.instance.vm().meter()?.executed())
    }

    /// Starts to note which blocks of code the guest runs, and forgets what was noted before. `false` where the engine cannot: only the emulator does. A restore
    /// may take another VM, which notes nothing.
    pub fn trace_blocks(&mut self) -> bool {
        let meter = self.instance.vm().meter();
        meter.map(Meter::trace_blocks).is_some()
    }

    /// Instruction pointers at which the blocks begin that ran since [`trace_blocks`](Self::trace_blocks), each once, in ascending order: the coverage of
    /// a guest. The monitor's own are among them, in the upper half of the address space.
    pub fn traced_blocks(&mut self) -> Vec<u64> {
        let meter = self.instance.vm().meter();
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

    /// Finds an exported function and checks its types.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownFunction`](crate::ErrorKind::UnknownFunction) or
    /// [`ErrorKind::TypeMismatch`](crate::ErrorKind::TypeMismatch).
    pub fn function<Args: Arguments, Ret: FromValue>(
        &self,
        name: &str,
    ) -> Result<GuestFn<Args, Ret>, Error> {
        let index = self.check(name, Args::TYPES, Some(Ret::TYPE))?.0;
        Ok(GuestFn::new(self.image(), index))
    }

    /// Calls a function by its name. A [`GuestFn`] saves the look-up.
    ///
    /// # Errors
    /// As [`function`](Self::function) and [`GuestFn::call`].
    pub fn call<Args: Arguments, Ret: FromValue>(
        &mut self,
        name: &str,
        args: Args,
    ) -> Result<Ret, Error> {
        self.function::<Args, Ret>(name)?.call(self, args)
    }

    /// Calls a function whose types are known at run time only.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn call_dynamic(
        &mut self,
        name: &str,
        args: &[Value],
        options: &CallOptions,
    ) -> Result<Value, Error> {
        let types: Vec<ValueType> = args.iter().map(Value::value_type).collect();
        let (index, signature) = self.check(name, &types, None)?;
        let values: Vec<ValueRef<'_>> = args.iter().map(Value::as_ref).collect();
        Ok(self.invoke(index, &values, signature.ret(), options)?)
    }

    pub(crate) fn check(
        &self,
        name: &str,
        params: &[ValueType],
        ret: Option<ValueType>,
    ) -> Result<(u32, Signature), Failure> {
        let (index, function) =
            self.image()
                .find_export(name)
                .ok_or_else(|| Failure::UnknownFunction {
                    name: name.to_owned(),
                })?;
        let actual = *function.signature();
        if actual.params() == params && ret.is_none_or(|ret| ret == actual.ret()) {
            return Ok((index, actual));
        }
        let asked = Signature::new(params, ret.unwrap_or(actual.ret()));
        Err(Failure::Signature {
            name: name.to_owned(),
            asked: asked.map_or_else(
                || format!("of {} parameters", params.len()),
                |asked| asked.to_string(),
            ),
            actual,
        })
    }

    pub(crate) fn invoke(
        &mut self,
        index: u32,
        values: &[ValueRef<'_>],
        returns: ValueType,
        options: &CallOptions,
    ) -> Result<Value, Failure> {
        self.check_ready()?;
        let request = self.buffers.encode_call(index, values)?;
        let phase = Phase::Calling { function: index };
        self.enter(phase, options, |session| {
            session.call(request, values, returns)
        })
    }

    /// A call that returns bytes, which are read where they lie.
    pub(crate) fn invoke_reading<R>(
        &mut self,
        index: u32,
        values: &[ValueRef<'_>],
        options: &CallOptions,
        read: impl FnOnce(&mut ReplyBytes<'_>) -> R,
    ) -> Result<R, Failure> {
        self.check_ready()?;
        let request = self.buffers.encode_call(index, values)?;
        let phase = Phase::Calling { function: index };
        self.enter(phase, options, |session| {
            session.call_reading(request, values, read)
        })
    }

    /// Enters the guest for a call, from its beginning or from where it is suspended.
    #[inline]
    fn enter<T>(
        &mut self,
        phase: Phase,
        options: &CallOptions,
        run: impl FnOnce(&mut Session<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let guard = options.begin(&self.control, || self.instance.vm().meter())?;
        self.health = Health::Dirty;
        let result = self.session(phase, run);
        if let Some(guard) = guard {
            drop(guard);
            self.unlimit();
        }
        // A guest whose function failed idles again like one whose function returned.
        if matches!(result, Ok(_) | Err(Failure::Guest { .. })) {
            self.health = Health::Ready;
        }
        result
    }

    /// Lets the guest execute as many instructions as it likes again.
    #[cold]
    fn unlimit(&mut self) {
        if let Some(meter) = self.instance.vm().meter() {
            meter.limit(None);
        }
    }

    #[inline]
    fn session<T>(
        &mut self,
        phase: Phase,
        run: impl FnOnce(&mut Session<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut session = Session {
            instance: &mut self.instance,
            host: &self.host,
            control: &self.control,
            buffers: &mut self.buffers,
            outbox: &mut self.outbox,
            checkpoints: &mut self.checkpoints,
            log: LogSink::default(),
            phase,
        };
        run(&mut session)
    }

    #[inline]
    fn check_ready(&self) -> Result<(), Failure> {
        match self.health {
            Health::Ready => Ok(()),
            _ => Err(self.why_not_ready()),
        }
    }

    #[cold]
    fn why_not_ready(&self) -> Failure {
        match self.health {
            Health::Suspended(_) => Failure::Suspended {
                what: match self.suspension() {
                    Some(Suspension::Calling(function)) => format!("call {}", function.name()),
                    _ => "its initialisation".to_owned(),
                },
            },
            Health::Ready | Health::Dirty => Failure::NeedsRestore,
            Health::Dead => Failure::Unusable,
        }
    }

    /// Takes a snapshot of the idle guest. The pages that changed since the last snapshot become a layer of their own; everything
    /// else is shared with it.
    ///
    /// # Errors
    /// [`ErrorKind::NeedsRestore`](crate::ErrorKind::NeedsRestore) after a call that went wrong;
    /// [`ErrorKind::Suspended`](crate::ErrorKind::Suspended) in the middle of a call (the snapshot that the sandbox stands on is
    /// the one wanted); [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) with interrupt controllers;
    /// [`ErrorKind::Hypervisor`](crate::ErrorKind::Hypervisor) when there is no memory for it.
    pub fn snapshot(&mut self) -> Result<Snapshot, Error> {
        self.pause()?;
        self.check_ready()?;
        // What calls left in the buffers is not part of the guest's state.
        self.instance.wipe_buffers()?;
        let data = Arc::new(capture(&mut self.instance, None)?);
        // From here on the sandbox stands on the new snapshot, so that the next one holds only what changes from now.
        if self.instance.can_adopt(&data) {
            self.health = Health::Dead;
            self.instance.adopt(&data)?;
        } else {
            self.instance.check_mappings_beside(&self.engine, &data)?;
            self.health = Health::Dead;
            let generation = self.instance.generation();
            self.load(&data, Leaving::Cleanly)?;
            self.instance.stay(generation)?;
        }
        self.health = Health::Ready;
        Ok(Snapshot { data })
    }

    /// Goes back, or over, to the state of a snapshot. What the guest did since leaves no trace.
    ///
    /// Going back to the snapshot that the sandbox stands on (the last one taken, restored to or made from) costs what changed
    /// since. After a call that went wrong everything is arranged anew, page tables and monitor included. Going over to another one of the same image maps its pages anew.
    ///
    /// # Errors
    /// [`ErrorKind::Incompatible`](crate::ErrorKind::Incompatible) for a snapshot of another image or of other sizes: the
    /// sandbox stays as it was. After any other error it cannot be used any more.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        if self.health == Health::Dead {
            return Err(Failure::Unusable.into());
        }
        let base = self.instance.base();
        let incompatible = |than| Failure::Incompatible {
            what: "snapshot",
            than,
        };
        if !snapshot.data.image.is_same(&base.image) {
            return Err(incompatible("image").into());
        }
        if snapshot.data.config != base.config {
            return Err(incompatible("configuration of sandbox").into());
        }
        let runs = snapshot.data.check_runs_on(self.engine.model());
        runs.map_err(Failure::from)?;
        let is_base = Arc::ptr_eq(&snapshot.data, base);
        self.pause()?;
        let leaving = self.leaving();
        let in_place = is_base && leaving == Leaving::Cleanly;
        if !in_place {
            self.instance
                .check_mappings_beside(&self.engine, &snapshot.data)?;
        }
        self.health = Health::Dead;
        self.instance.reset_mappings()?;
        if !in_place {
            self.load(&snapshot.data, leaving)?;
        } else if self.instance.restore()? == Restored::NotYet {
            // One reason to give up half-way is a guest that has broken its monitor.
            self.load(&snapshot.data, Leaving::Uncleanly)?;
        }
        self.health = Health::of(&snapshot.data);
        Ok(())
    }

    /// Ends the sandbox and leaves its VM with the engine, which makes the next sandbox of the same snapshot, or of another one of the same
    /// image and sizes, of it: without creating a VM, at the cost of a restore. What the guest has written is undone at once; what was
    /// mapped is unmapped. The engine keeps a [few](crate::EngineBuilder::idle_vms) of them and, with each, the snapshot it stands on.
    ///
    /// A sandbox whose last call went wrong is dropped instead, and so is one that the engine has no room for.
    ///
    /// # Errors
    /// [`ErrorKind::Hypervisor`](crate::ErrorKind::Hypervisor) when the restore fails; the VM is gone then.
    pub fn recycle(mut self) -> Result<(), Error> {
        if self.leaving() == Leaving::Uncleanly {
            return Ok(());
        }
        self.clear_for_reuse()?;
        if self.instance.restore()? == Restored::Completely {
            self.engine.keep_idle(self.instance);
        }
        Ok(())
    }

    /// Reads guest memory as a debugger does: what is mapped at a guest-virtual address under the translation that the guest uses now,
    /// whatever rights it has there. Memory that comes into being when it is first touched reads as zeroes. Works also after a call
    /// that went wrong.
    ///
    /// # Errors
    /// [`ErrorKind::GuestMemory`](crate::ErrorKind::GuestMemory) names the first address that is not mapped; what lies before it was
    /// read.
    pub fn read_memory(&mut self, address: u64, into: &mut [u8]) -> Result<(), Error> {
        self.check_alive()?;
        self.pause()?;
        let result = self.instance.peek(address, into);
        Ok(result.map_err(Failure::GuestMemory)?)
    }

    /// Writes guest memory as a debugger does, also where the guest may only read or execute. A restore undoes it, and a snapshot
    /// holds it, like a write of the guest's own. In a user guest it reaches only what the guest itself can see.
    ///
    /// # Errors
    /// [`ErrorKind::GuestMemory`](crate::ErrorKind::GuestMemory) names the first address that is not mapped, or comes into being only
    /// when the guest touches it; nothing was written.
    pub fn write_memory(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        self.check_alive()?;
        self.pause()?;
        let result = self.instance.poke(address, bytes);
        Ok(result.map_err(Failure::GuestMemory)?)
    }

    /// Maps a file or memory of the host at a guest-physical address, page-aligned, which must be clear of the guest's own memory, of
    /// holes and of other mappings; a range that was [reserved](SandboxBuilder::reserve) always is. Works also after a call that went
    /// wrong, and stays until it is [unmapped](Self::unmap): see [`Mapping`] for how long what lasts.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) names both parties of an overlap, or says that the address is
    /// unaligned or too high, the label taken, or the guest full of mappings (it can have 32): nothing has changed.
    /// [`ErrorKind::Hypervisor`](crate::ErrorKind::Hypervisor) when the system refuses.
    pub fn map(&mut self, gpa: Gpa, mapping: &Mapping) -> Result<(), Error> {
        self.check_alive()?;
        self.pause()?;
        let leaving = self.leaving();
        let mapped = self.instance.map(gpa, mapping, leaving);
        self.note_failure();
        Ok(mapped?)
    }

    /// Takes back what is mapped with a label. An access of the guest to where it was faults from then on.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) when nothing has this label: nothing has changed.
    pub fn unmap(&mut self, label: &str) -> Result<(), Error> {
        self.check_alive()?;
        self.pause()?;
        let leaving = self.leaving();
        let unmapped = self.instance.unmap(label, leaving);
        self.note_failure();
        Ok(unmapped?)
    }

    /// A VM that failed between two calls makes the sandbox ask for a restore, which takes another one.
    fn note_failure(&mut self) {
        if self.instance.has_failed() {
            self.health = Health::Dirty;
        }
    }

    /// What is mapped, in the order in which it was.
    pub fn mappings(&self) -> impl Iterator<Item = MappingInfo<'_>> {
        self.instance.mappings()
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
        self.checkpoints = Checkpoints::Decline;
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

    /// Goes over to another snapshot, in the same VM if it has room.
    fn load(&mut self, snapshot: &Arc<SnapshotData>, leaving: Leaving) -> Result<(), Failure> {
        if self.instance.can_load(snapshot) {
            return self.instance.load(snapshot, leaving);
        }
        let mut instance = Instance::new(&self.engine, snapshot)?;
        if let Some(polling) = self.polling {
            instance = instance.into_polled(polling)?;
        }
        instance.take_mappings_of(&mut self.instance)?;
        self.instance = instance;
        self.control = Control::new(self.instance.vm().interrupter());
        Ok(())
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

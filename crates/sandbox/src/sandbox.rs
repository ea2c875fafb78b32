//! The sandbox: one micro-VM that runs one guest.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use vellum_abi::function::Signature;
use vellum_abi::value::{ValueRef, ValueType};

use crate::call::{Buffers, CallOptions, Control, Phase, Session};
use crate::engine::Engine;
use crate::error::{Error, Failure};
use crate::host::{HostFunctions, Resolved};
use crate::image::GuestImage;
use crate::instance::{Instance, Leaving};
use crate::logging::{DropReport, LogSink};
use crate::memory::Config;
use crate::snapshot::{self, Snapshot, SnapshotData};
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
    engine: Engine,
    instance: Instance,
    host: Resolved,
    control: Arc<Control>,
    buffers: Buffers,
    health: Health,
}

/// Whether the guest can be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    /// It idles.
    Ready,
    /// It was entered and has not come back cleanly.
    Dirty,
    /// A restore failed half-way.
    Dead,
}

/// A typed handle to a function of a guest, checked once. It works with every sandbox of the image.
///
/// ```no_run
/// # fn example(sandbox: &mut vellum_sandbox::Sandbox) -> Result<(), vellum_sandbox::Error> {
/// let add = sandbox.function::<(i32, i32), i32>("add")?;
/// assert_eq!(add.call(sandbox, (40, 2))?, 42);
/// # Ok(())
/// # }
/// ```
pub struct GuestFn<Args, Ret> {
    image: GuestImage,
    index: u32,
    types: PhantomData<fn(Args) -> Ret>,
}

impl<Args: Arguments, Ret: FromValue> GuestFn<Args, Ret> {
    /// Calls the function.
    ///
    /// # Errors
    /// [`ErrorKind::GuestError`](crate::ErrorKind::GuestError) when the function returns an error. After any other error that
    /// comes from the guest the sandbox must be restored.
    pub fn call(&self, sandbox: &mut Sandbox, args: Args) -> Result<Ret, Error> {
        self.call_with(sandbox, args, &CallOptions::default())
    }

    /// Calls the function with a deadline, or so that it can be cancelled.
    ///
    /// # Errors
    /// As [`call`](Self::call), and [`ErrorKind::DeadlineExceeded`](crate::ErrorKind::DeadlineExceeded) or
    /// [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled).
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a call takes its arguments like any function"
    )]
    pub fn call_with(
        &self,
        sandbox: &mut Sandbox,
        args: Args,
        options: &CallOptions,
    ) -> Result<Ret, Error> {
        if !sandbox.image().is_same(&self.image) {
            return Err(Failure::Incompatible {
                what: "function handle",
                than: "image",
            }
            .into());
        }
        let value =
            args.with_values(|values| sandbox.invoke(self.index, values, Ret::TYPE, options))?;
        Ok(Ret::from_value(value).ok_or(Failure::Protocol("a checked value has another type"))?)
    }
}

impl<Args, Ret> Clone for GuestFn<Args, Ret> {
    fn clone(&self) -> Self {
        Self {
            image: self.image.clone(),
            index: self.index,
            types: PhantomData,
        }
    }
}

impl<Args, Ret> fmt::Debug for GuestFn<Args, Ret> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestFn({})", self.index)
    }
}

/// What a sandbox is made with.
///
/// ```no_run
/// use vellum_sandbox::{Engine, GuestImage, Sandbox};
///
/// let engine = Engine::new()?;
/// let image = GuestImage::from_file("guest.elf")?;
/// let mut sandbox = Sandbox::builder(&image)
///     .heap_len_bytes(16 << 20)
///     .host_function("host_add", |a: i32, b: i32| a + b)
///     .build(&engine)?;
/// # Ok::<(), vellum_sandbox::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct SandboxBuilder {
    image: GuestImage,
    config: Config,
    host: HostFunctions,
    boot: CallOptions,
}

impl SandboxBuilder {
    /// Bytes of heap, a multiple of 4096. The default is 64 MiB; a page costs memory when it is first touched.
    #[must_use]
    pub const fn heap_len_bytes(mut self, len_bytes: u64) -> Self {
        self.config.sizes.heap_len_bytes = len_bytes;
        self
    }

    /// Bytes of stack, a multiple of 4096. The default is 1 MiB.
    #[must_use]
    pub const fn stack_len_bytes(mut self, len_bytes: u64) -> Self {
        self.config.sizes.stack_len_bytes = len_bytes;
        self
    }

    /// Bytes of scratch, a multiple of 4096: with guest-side copy-on-write, the pages that may be dirty at the same time and the
    /// tables that map them. The default is enough for every page that the guest can write.
    #[must_use]
    pub const fn scratch_len_bytes(mut self, len_bytes: u64) -> Self {
        self.config.sizes.scratch_len_bytes = Some(len_bytes);
        self
    }

    /// Bytes of the buffer for calls and of the buffer for replies, multiples of 4096. The default is 16 KiB each. Larger values
    /// still pass, at one exit more for a large argument.
    #[must_use]
    pub const fn buffer_len_bytes(mut self, input: u64, output: u64) -> Self {
        self.config.sizes.input_len_bytes = input;
        self.config.sizes.output_len_bytes = output;
        self
    }

    /// Adds a host function; see [`HostFunctions::with`].
    #[must_use]
    pub fn host_function<Args, F: crate::host::HostFunction<Args>>(
        mut self,
        name: &str,
        function: F,
    ) -> Self {
        self.host = self.host.with(name, function);
        self
    }

    /// Takes this set of host functions, instead of any given before.
    #[must_use]
    pub fn host_functions(mut self, host: &HostFunctions) -> Self {
        self.host = host.clone();
        self
    }

    /// A deadline or a cancel token for the guest's initialisation, which is guest code like any other.
    #[must_use]
    pub fn boot_options(mut self, options: &CallOptions) -> Self {
        self.boot = options.clone();
        self
    }

    /// Makes the VM and runs the guest's initialisation.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) for sizes that make no guest,
    /// [`ErrorKind::MissingHostFunction`](crate::ErrorKind::MissingHostFunction), or what the guest did in its initialisation.
    pub fn build(self, engine: &Engine) -> Result<Sandbox, Error> {
        let boot = SnapshotData::boot(&self.image, &self.config, engine)?;
        let mut sandbox = Sandbox::make(engine, &Arc::new(boot), &self.host)?;
        sandbox.boot(&self.boot)?;
        Ok(sandbox)
    }
}

impl Sandbox {
    /// Begins to make a sandbox of an image.
    pub fn builder(image: &GuestImage) -> SandboxBuilder {
        SandboxBuilder {
            image: image.clone(),
            config: Config::new(),
            host: HostFunctions::new(),
            boot: CallOptions::new(),
        }
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

    fn make(
        engine: &Engine,
        snapshot: &Arc<SnapshotData>,
        host: &HostFunctions,
    ) -> Result<Self, Failure> {
        if snapshot.profile != engine.cpu_profile() {
            return Err(Failure::Incompatible {
                what: "snapshot",
                than: "cpu profile",
            });
        }
        let host = host.resolve(snapshot.image.imports())?;
        let mut instance = Instance::new(engine, snapshot)?;
        let control = Control::new(instance.vm().interrupter());
        let sizes = snapshot.config.sizes;
        Ok(Self {
            engine: engine.clone(),
            instance,
            host,
            control,
            buffers: Buffers::new(sizes.input_len_bytes, sizes.output_len_bytes),
            health: Health::Ready,
        })
    }

    /// Runs the guest's initialisation.
    fn boot(&mut self, options: &CallOptions) -> Result<(), Failure> {
        let control = self.control.clone();
        let _guard = options.begin(&control)?;
        self.health = Health::Dirty;
        #[expect(
            clippy::redundant_closure_for_method_calls,
            reason = "the method is not general enough in its lifetime"
        )]
        self.session(Phase::Booting, |session| session.boot())?;
        self.health = Health::Ready;
        Ok(())
    }

    /// The image that the guest was loaded from.
    pub fn image(&self) -> &GuestImage {
        &self.instance.base().image
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
        Ok(GuestFn {
            image: self.image().clone(),
            index,
            types: PhantomData,
        })
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

    fn check(
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

    fn invoke(
        &mut self,
        index: u32,
        values: &[ValueRef<'_>],
        returns: ValueType,
        options: &CallOptions,
    ) -> Result<Value, Failure> {
        self.check_ready()?;
        let request = self.buffers.encode_call(index, values)?;
        let control = self.control.clone();
        let guard = options.begin(&control)?;
        self.health = Health::Dirty;
        let result = self.session(Phase::Calling, |session| {
            session.call(request, values, returns)
        });
        drop(guard);
        // A guest whose function failed idles again like one whose function returned.
        if matches!(result, Ok(_) | Err(Failure::Guest { .. })) {
            self.health = Health::Ready;
        }
        result
    }

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
            log: LogSink::default(),
            phase,
        };
        let result = run(&mut session);
        drop(DropReport(&session.log));
        result
    }

    fn check_ready(&self) -> Result<(), Failure> {
        match self.health {
            Health::Ready => Ok(()),
            Health::Dirty => Err(Failure::NeedsRestore),
            Health::Dead => Err(Failure::Unusable),
        }
    }

    /// Takes a snapshot of the idle guest. The pages that changed since the last snapshot become a layer of their own; everything
    /// else is shared with it.
    ///
    /// # Errors
    /// [`ErrorKind::NeedsRestore`](crate::ErrorKind::NeedsRestore) after a call that went wrong;
    /// [`ErrorKind::Hypervisor`](crate::ErrorKind::Hypervisor) when there is no memory for it.
    pub fn snapshot(&mut self) -> Result<Snapshot, Error> {
        self.check_ready()?;
        let data = Arc::new(snapshot::capture(&mut self.instance)?);
        // From here on the sandbox stands on the new snapshot, so that the next one holds only what changes from now.
        self.health = Health::Dead;
        if self.instance.can_load(&data) {
            self.instance.adopt(&data)?;
        } else {
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
        if snapshot.data.profile != base.profile {
            return Err(incompatible("cpu profile").into());
        }
        let is_base = Arc::ptr_eq(&snapshot.data, base);
        let leaving = if self.health == Health::Ready {
            Leaving::Cleanly
        } else {
            Leaving::Uncleanly
        };
        self.health = Health::Dead;
        if is_base && leaving == Leaving::Cleanly {
            self.instance.restore()?;
        } else {
            self.load(&snapshot.data, leaving)?;
        }
        self.health = Health::Ready;
        Ok(())
    }

    /// Goes over to another snapshot, in the same VM if it has room.
    fn load(&mut self, snapshot: &Arc<SnapshotData>, leaving: Leaving) -> Result<(), Failure> {
        if self.instance.can_load(snapshot) {
            return self.instance.load(snapshot, leaving);
        }
        self.instance = Instance::new(&self.engine, snapshot)?;
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

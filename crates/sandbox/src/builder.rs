//! What a sandbox is made with.

use std::sync::Arc;

use vellum_backend::Irqchip;
use vellum_layout::{Gpa, GpaRange, Reserved};

use crate::call::CallOptions;
use crate::checkpoint::Checkpoints;
use crate::engine::Engine;
use crate::error::Error;
use crate::host::HostFunctions;
use crate::image::GuestImage;
use crate::mapping::Mapping;
use crate::memory::{Config, OutboxOverflow};
use crate::metrics::MetricSink;
use crate::sandbox::Sandbox;
use crate::snapshot::SnapshotData;

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
    checkpoints: Checkpoints,
    boot: CallOptions,
    mappings: Vec<(Gpa, Mapping)>,
}

impl SandboxBuilder {
    pub(crate) fn new(image: &GuestImage) -> Self {
        Self {
            image: image.clone(),
            config: Config::new(),
            host: HostFunctions::new(),
            checkpoints: Checkpoints::default(),
            boot: CallOptions::new(),
            mappings: Vec::new(),
        }
    }

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

    /// Bytes of the outbox, a multiple of 4096 up to 16 MiB. The guest writes log records, metrics and one-way host calls to it, and the
    /// host takes them at the guest's next exit. The default is 8 KiB, about a hundred log records. Every restore clears all of it.
    #[must_use]
    pub const fn outbox_len_bytes(mut self, len_bytes: u64) -> Self {
        self.config.sizes.outbox_len_bytes = len_bytes;
        self
    }

    /// What the guest does when the outbox is full. The default is to leave once, to have it emptied.
    #[must_use]
    pub const fn outbox_overflow(mut self, overflow: OutboxOverflow) -> Self {
        self.config.outbox_overflow = overflow;
        self
    }

    /// Hands the numbers that the guest reports to `sink`; see [`HostFunctions::with_metrics`].
    #[must_use]
    pub fn metrics(mut self, sink: impl MetricSink + 'static) -> Self {
        self.host = self.host.with_metrics(sink);
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

    /// Gives the guest interrupt controllers, or none, which is the default. With them `hlt` waits inside the hypervisor for an
    /// interrupt, memory keeps clear of the I/O APIC too, and no snapshot can be taken, because the controllers' state is not
    /// kept.
    #[must_use]
    pub const fn interrupt_controllers(mut self, irqchip: Irqchip) -> Self {
        self.config.irqchip = irqchip;
        self
    }

    /// Keeps all memory of the sandbox clear of a range of guest-physical addresses that the guest, or its embedder, has another use
    /// for: a user stack at a fixed address, a mapping. `name` is for error messages. At most 64 such ranges.
    #[must_use]
    pub fn reserve(mut self, name: &'static str, range: GpaRange) -> Self {
        let reserved = self.config.reserved.iter().copied();
        let all = reserved.chain([Reserved { name, range }]);
        self.config.reserved = all.collect();
        self
    }

    /// Maps a file or memory of the host into the guest, before its initialisation; see [`Sandbox::map`]. What is wrong with it,
    /// [`build`](Self::build) says.
    #[must_use]
    pub fn map(mut self, gpa: Gpa, mapping: &Mapping) -> Self {
        self.mappings.push((gpa, mapping.clone()));
        self
    }

    /// Keeps the latest snapshot that the guest asks for, from its initialisation on; see [`Sandbox::keep_checkpoints`].
    #[must_use]
    pub fn keep_checkpoints(mut self) -> Self {
        self.checkpoints = Checkpoints::Keep(None);
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
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) for sizes that make no guest or a mapping that has no room,
    /// [`ErrorKind::MissingHostFunction`](crate::ErrorKind::MissingHostFunction), or what the guest did in its initialisation.
    pub fn build(self, engine: &Engine) -> Result<Sandbox, Error> {
        let boot = SnapshotData::boot(&self.image, &self.config, engine)?;
        let mut sandbox = Sandbox::make(engine, &Arc::new(boot), &self.host)?;
        sandbox.session.checkpoints = self.checkpoints;
        for (gpa, mapping) in &self.mappings {
            sandbox.map(*gpa, mapping)?;
        }
        sandbox.boot(&self.boot)?;
        Ok(sandbox)
    }
}

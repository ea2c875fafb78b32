//! Runs untrusted functions in micro-VMs without a guest operating system.
//!
//! A host program loads a guest ELF, calls its functions with types, lets it call back, takes snapshots and goes back to them:
//!
//! ```no_run
//! use vellum_sandbox::{Engine, GuestImage, Sandbox};
//!
//! let engine = Engine::new()?;
//! let image = GuestImage::from_file("guest.elf")?;
//! let mut sandbox = Sandbox::builder(&image)
//!     .host_function("host_add", |a: i32, b: i32| a + b)
//!     .build(&engine)?;
//!
//! let ready = sandbox.snapshot()?;
//! let sum: i32 = sandbox.call("add", (40, 2))?;
//! assert_eq!(sum, 42);
//! sandbox.restore(&ready)?;
//! # Ok::<(), vellum_sandbox::Error>(())
//! ```
//!
//! | noun | what it is | cost |
//! |---|---|---|
//! | [`Engine`] | the hypervisor and CPU profile; one per process | a probe of about a millisecond |
//! | [`GuestImage`] | a validated guest ELF | proportional to the file |
//! | [`Sandbox`] | one micro-VM | the hypervisor's VM creation |
//! | [`GuestFn`] | a typed handle to a guest function | a call is one entry into the guest |
//! | [`Snapshot`] | an immutable state of a sandbox | the pages that changed |
//! | [`Pool`] | ready sandboxes of one snapshot | a restore for each use |
//!
//! A guest can do what it likes: fault, loop, exhaust its memory, send nonsense. Each ends in an [`Error`] with a
//! [kind](ErrorKind), and the sandbox asks to be restored. Time is bounded by [`CallOptions`].

mod builder;
mod call;
mod capture;
mod checkpoint;
mod engine;
mod error;
mod fault;
mod guest_fn;
mod host;
mod image;
mod instance;
mod logging;
mod machine;
mod mapping;
mod memory;
mod metrics;
mod polling;
mod pool;
mod sandbox;
mod seed;
mod snapshot;
mod store;
mod value;

pub use builder::SandboxBuilder;
pub use call::{CallOptions, CancelToken, OutboxCounts, ReplyBytes};
pub use checkpoint::Checkpoint;
pub use engine::{CowMode, Engine, EngineBuilder, EngineKind};
pub use error::{Error, ErrorKind};
pub use fault::{Fault, FaultKind};
pub use guest_fn::GuestFn;
pub use host::{HostFunction, HostFunctions, HostResult};
pub use image::{Function, GuestImage, MAX_FILE_LEN_BYTES};
pub use mapping::{Mapping, MappingInfo, SharedMemory};
pub use memory::OutboxOverflow;
pub use metrics::MetricSink;
pub use polling::Polling;
pub use pool::{Pool, PoolBuilder, PoolMetrics, PooledSandbox};
pub use sandbox::Sandbox;
pub use snapshot::{Snapshot, Suspension};
pub use store::{
    Difference, LayerInfo, LoadOptions, SnapshotInfo, SnapshotStore, StoreProgress, StoredSnapshot,
};
pub use value::{Argument, Arguments, FromValue, Value};
pub use vellum_abi::function::Signature;
pub use vellum_abi::metric::{MetricRecord as Metric, MetricValue};
pub use vellum_abi::value::ValueType;
pub use vellum_backend::Irqchip;
pub use vellum_backend::cpuid::CpuProfile;
pub use vellum_backend::memory::OutOfBounds;
pub use vellum_backend::{Capabilities, Hypervisor, Mmu, RingZero};
pub use vellum_layout::{Gpa, GpaRange, GuestKind};

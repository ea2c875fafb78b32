//! Errors: small enums inside, one opaque type with a kind outside.

use std::fmt;
use std::io;
use std::path::PathBuf;

use vellum_abi::function::Signature;
use vellum_abi::message::{ErrorCode, MessageError};
use vellum_abi::outbox::OutboxError;
use vellum_abi::value::ValueType;
use vellum_backend::VmError;
use vellum_backend::memory::OutOfBounds;

use crate::engine::NoEngine;
use crate::fault::Fault;
use crate::image::ImageError;
use crate::instance::ReachError;
use crate::machine::BuildError;
use crate::mapping::MappingError;
use crate::memory::SpaceError;
use crate::snapshot::OtherProcessor;
use crate::store::StoreError;

/// Why an operation failed. [`kind`](Error::kind) tells apart what a program can react to; `Display` tells a person, and
/// [`source`](std::error::Error::source) goes on to the cause.
pub struct Error {
    failure: Box<Failure>,
}

/// What went wrong, as far as a program can do something about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// There is no hypervisor that can be used. The message says what to do.
    NoHypervisor,
    /// The hypervisor failed, or the system refused memory.
    Hypervisor,
    /// This machine's hypervisor cannot run guests of this kind. The message says what it lacks.
    Unsupported,
    /// The guest's ELF file cannot be run.
    InvalidImage,
    /// A file cannot be read or mapped, or a mapped file was truncated. In the latter case the sandbox must be restored.
    Io,
    /// Sizes that make no guest, or a mapping that has no place in it.
    InvalidConfig,
    /// The guest needs a host function that was not given, or given with other types.
    MissingHostFunction,
    /// The guest exports no such function.
    UnknownFunction,
    /// Arguments or result have other types than the function.
    TypeMismatch,
    /// The handle, snapshot or sandbox belong to different images, engines or sizes.
    Incompatible,
    /// An argument is larger than 4 GiB.
    ArgumentTooLarge,
    /// The guest's function returned an error. The sandbox is fine.
    GuestError,
    /// The guest panicked. The sandbox must be restored, as after each of the kinds below.
    GuestPanic,
    /// The guest aborted.
    GuestAbort,
    /// The guest did something that the processor or the monitor refused; see [`Error::fault`].
    Fault,
    /// The guest used a port that is not part of the ABI.
    ForbiddenPort,
    /// The guest halted.
    Halted,
    /// The guest dirtied more memory than its scratch holds.
    ScratchExhausted,
    /// The guest broke the protocol between guest and host.
    Protocol,
    /// The call was cancelled.
    Cancelled,
    /// The call did not end before its deadline, or executed as many instructions as it [may](crate::CallOptions::fuel).
    DeadlineExceeded,
    /// The vCPU cannot go on: triple fault, invalid state, an instruction that the hypervisor cannot carry out.
    Crashed,
    /// The sandbox failed in an earlier call and was not restored.
    NeedsRestore,
    /// The guest is in the middle of a call, where its snapshot was taken, or it is not, and was to be resumed.
    Suspended,
    /// Guest memory that is not mapped, or not for this access.
    GuestMemory,
    /// The sandbox cannot be used any more, not even restored.
    Unusable,
    /// As many sandboxes of a pool are in use as there may be.
    PoolExhausted,
    /// A stored snapshot is damaged, forged, or of a version that this one does not know. The message names file and field.
    InvalidSnapshot,
    /// A store has no snapshot of this tag.
    UnknownSnapshot,
}

/// Everything that can go wrong inside.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("no usable hypervisor")]
    NoHypervisor(#[source] NoEngine),
    #[error("hypervisor failed")]
    Hypervisor(#[from] VmError),
    #[error(
        "this machine's hypervisor does not run guests with 2-level paging, such as i686 paged ones; use one on vmx or svm hardware"
    )]
    TwoLevelPaging,
    #[error(
        "this machine's hypervisor cannot keep guests from model-specific registers, so guests that bring their own kernel are not run; use linux 5.10 or newer"
    )]
    MsrFilter,
    #[error("no memory for the sandbox")]
    Memory(#[source] io::Error),
    #[error("guest memory access out of bounds")]
    OutOfBounds(#[from] OutOfBounds),
    #[error("guest image refused")]
    Image(#[source] ImageError),
    #[error("cannot read guest image {}", path.display())]
    ReadImage {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("sandbox sizes refused")]
    Space(#[from] SpaceError),
    #[error("page tables could not be built")]
    Tables(#[from] BuildError),
    #[error("guest needs host function {name}{wanted}, which was not registered")]
    MissingHostFunction { name: String, wanted: Signature },
    #[error("guest needs host function {name}{wanted}, but {name}{given} was registered")]
    HostFunctionSignature {
        name: String,
        wanted: Signature,
        given: Signature,
    },
    #[error("host function {name:?} was registered twice")]
    DuplicateHostFunction { name: String },
    #[error("one-way host function \"{name}\" returns a value; make it return nothing")]
    OneWayResult { name: String },
    #[error("host function name {name:?} is not 1 to 128 printable ascii characters")]
    HostFunctionName { name: String },
    #[error("guest exports no function {name:?}")]
    UnknownFunction { name: String },
    #[error("function {name} is {name}{actual}, not {name}{asked}")]
    Signature {
        name: String,
        asked: String,
        actual: Signature,
    },
    #[error("{what} belongs to another {than}")]
    Incompatible {
        what: &'static str,
        than: &'static str,
    },
    #[error(transparent)]
    OtherProcessor(#[from] OtherProcessor),
    #[error("argument of {len_bytes} bytes; the limit is 4 GiB - 1")]
    ArgumentTooLarge { len_bytes: usize },
    #[error("guest function failed ({code}): {text}")]
    Guest { code: ErrorCode, text: String },
    #[error("guest panicked at {location}: {message}")]
    Panic { message: String, location: String },
    #[error("guest aborted with code {code:#x}")]
    Abort { code: u32 },
    #[error("guest fault: {0}")]
    Fault(Fault),
    #[error("guest used port {port:#x}, which is not part of the abi")]
    ForbiddenPort { port: u16 },
    #[error("guest halted")]
    Halted,
    #[error(
        "guest dirtied more memory than its scratch holds, at address {address:#x}; give the sandbox more scratch"
    )]
    ScratchExhausted { address: u64 },
    #[error("guest message refused")]
    Message(#[source] MessageError),
    #[error(
        "range of {len_bytes} bytes at {offset:#x} ends behind the {reply_len_bytes} bytes of the reply"
    )]
    ReplyRange {
        offset: u64,
        len_bytes: u64,
        reply_len_bytes: u64,
    },
    #[error("guest outbox refused")]
    Outbox(#[source] OutboxError),
    #[error("guest request for guest memory refused")]
    Reach(#[source] ReachError),
    #[error("guest broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("guest replied with a value of type {actual}, not {expected}")]
    ReplyType {
        expected: ValueType,
        actual: ValueType,
    },
    #[error("call was cancelled")]
    Cancelled,
    #[error("call did not end before its deadline")]
    DeadlineExceeded,
    #[error("vcpu cannot go on: {0}")]
    Crashed(String),
    #[error(
        "guest is suspended in the middle of {what}; resume it first, or restore another snapshot"
    )]
    Suspended { what: String },
    #[error("suspended call returns {actual}, not {expected}")]
    ResumeType {
        expected: ValueType,
        actual: ValueType,
    },
    #[error("guest is not suspended; only a snapshot that it asked for itself is resumed")]
    NotSuspended,
    #[error(
        "sandbox has interrupt controllers, whose state no snapshot keeps; build it without them to take snapshots"
    )]
    InterruptControllers,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Mapping(#[from] MappingError),
    #[error("guest memory cannot be reached")]
    GuestMemory(#[source] ReachError),
    #[error("sandbox failed in an earlier call; restore it to a snapshot first")]
    NeedsRestore,
    #[error(
        "pool of {ready} waiting and {max_live} living sandboxes; 1 to 65536 may wait, and at least as many must be allowed to live"
    )]
    PoolSize { ready: usize, max_live: usize },
    #[error("all {max_live} sandboxes of the pool are in use; give one back, or allow more")]
    PoolExhausted { max_live: usize },
    #[error("sandbox failed while it was being restored; drop it")]
    Unusable,
}

impl Error {
    /// What a program can react to.
    pub fn kind(&self) -> ErrorKind {
        self.failure.kind()
    }

    /// What the guest did, when the kind is [`ErrorKind::Fault`].
    pub fn fault(&self) -> Option<&Fault> {
        match self.failure.as_ref() {
            Failure::Fault(fault) => Some(fault),
            _ => None,
        }
    }
}

impl Failure {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoHypervisor(_) => ErrorKind::NoHypervisor,
            Self::Hypervisor(_) | Self::Memory(_) | Self::OutOfBounds(_) | Self::Tables(_) => {
                ErrorKind::Hypervisor
            }
            Self::TwoLevelPaging | Self::MsrFilter => ErrorKind::Unsupported,
            Self::Image(_) => ErrorKind::InvalidImage,
            Self::ReadImage { .. } => ErrorKind::Io,
            Self::Space(_)
            | Self::DuplicateHostFunction { .. }
            | Self::OneWayResult { .. }
            | Self::HostFunctionName { .. }
            | Self::PoolSize { .. }
            | Self::InterruptControllers => ErrorKind::InvalidConfig,
            Self::MissingHostFunction { .. } | Self::HostFunctionSignature { .. } => {
                ErrorKind::MissingHostFunction
            }
            Self::UnknownFunction { .. } => ErrorKind::UnknownFunction,
            Self::Signature { .. } | Self::ResumeType { .. } => ErrorKind::TypeMismatch,
            Self::Incompatible { .. } | Self::OtherProcessor(_) => ErrorKind::Incompatible,
            Self::ArgumentTooLarge { .. } => ErrorKind::ArgumentTooLarge,
            Self::Guest { .. } => ErrorKind::GuestError,
            Self::Panic { .. } => ErrorKind::GuestPanic,
            Self::Abort { .. } => ErrorKind::GuestAbort,
            Self::Fault(_) => ErrorKind::Fault,
            Self::ForbiddenPort { .. } => ErrorKind::ForbiddenPort,
            Self::Halted => ErrorKind::Halted,
            Self::ScratchExhausted { .. } => ErrorKind::ScratchExhausted,
            Self::Message(_)
            | Self::Outbox(_)
            | Self::Reach(_)
            | Self::Protocol(_)
            | Self::ReplyType { .. } => ErrorKind::Protocol,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::DeadlineExceeded => ErrorKind::DeadlineExceeded,
            Self::Crashed(_) => ErrorKind::Crashed,
            Self::Store(error) => error.kind(),
            Self::Mapping(error) => error.kind(),
            Self::NeedsRestore => ErrorKind::NeedsRestore,
            Self::Suspended { .. } | Self::NotSuspended => ErrorKind::Suspended,
            Self::GuestMemory(_) | Self::ReplyRange { .. } => ErrorKind::GuestMemory,
            Self::Unusable => ErrorKind::Unusable,
            Self::PoolExhausted { .. } => ErrorKind::PoolExhausted,
        }
    }
}

impl Error {
    /// Whether a guest function returned an error, which leaves the sandbox as it is.
    #[cold]
    pub(crate) fn is_of_function(&self) -> bool {
        matches!(*self.failure, Failure::Guest { .. })
    }
}

impl From<Failure> for Error {
    #[cold]
    fn from(failure: Failure) -> Self {
        Self {
            failure: Box::new(failure),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.failure, f)
    }
}

impl fmt::Debug for Error {
    /// The whole chain, so that `fn main() -> Result<(), Error>` says what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(self.failure.as_ref())
    }
}

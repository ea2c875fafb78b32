//! Why snapshots cannot be written or read.

use std::io;
use std::path::PathBuf;

use vellum_backend::hyperv::HypervViolation;

use crate::error::{Error, ErrorKind, Failure};
use crate::image::ImageError;
use crate::memory::SpaceError;

use super::Digest;

/// Why a snapshot cannot be saved, found or loaded. Files are named relative to the store.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{0:?} is no tag; use at most 128 ascii letters and digits, separated by one of -._:@/+"
    )]
    Tag(String),
    #[error("no snapshot is tagged {tag}")]
    UnknownTag { tag: String },
    #[error("snapshots for the cpu profile \"host\" fit this machine only; use a named profile")]
    HostProfile,
    #[error("snapshots of different guest kinds cannot be compared")]
    DifferentKinds,
    #[error("{file} has {len_bytes:#x} bytes, more than the {limit:#x} that are allowed")]
    TooLong {
        file: String,
        len_bytes: u64,
        limit: u64,
    },
    #[error("{file} has {actual:#x} bytes where {expected:#x} are expected")]
    Length {
        file: String,
        expected: u64,
        actual: u64,
    },
    #[error("{file} has digest {actual}; it was changed or damaged")]
    Digest { file: String, actual: Digest },
    #[error("{file} cannot be parsed")]
    Json {
        file: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{file}: {field} is {found}, this version of vellum knows {known}")]
    Version {
        file: String,
        field: &'static str,
        found: String,
        known: String,
    },
    #[error("{file}: field {field} {problem}")]
    Field {
        file: String,
        field: &'static str,
        problem: String,
    },
    #[error("{file}: guest image refused")]
    Image {
        file: String,
        #[source]
        source: ImageError,
    },
    #[error("{file}: sizes refused")]
    Space {
        file: String,
        #[source]
        source: SpaceError,
    },
    #[error("{file}: registers refused")]
    Registers {
        file: String,
        #[source]
        source: HypervViolation,
    },
}

impl StoreError {
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } => ErrorKind::Io,
            Self::Tag(_) | Self::HostProfile => ErrorKind::InvalidConfig,
            Self::UnknownTag { .. } => ErrorKind::UnknownSnapshot,
            Self::DifferentKinds => ErrorKind::Incompatible,
            Self::TooLong { .. }
            | Self::Length { .. }
            | Self::Digest { .. }
            | Self::Json { .. }
            | Self::Version { .. }
            | Self::Field { .. }
            | Self::Image { .. }
            | Self::Space { .. }
            | Self::Registers { .. } => ErrorKind::InvalidSnapshot,
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Failure::Store(error).into()
    }
}

/// What is wrong with a part of a file, before the file is named.
#[derive(Debug)]
pub(super) enum Invalid {
    Field(&'static str, String),
    Version {
        field: &'static str,
        found: String,
        known: String,
    },
    Image(ImageError),
    Space(SpaceError),
    Registers(HypervViolation),
}

impl Invalid {
    pub(super) fn field(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Field(field, problem.into())
    }

    /// Names the file.
    pub(super) fn in_file(self, file: &str) -> StoreError {
        let file = file.to_owned();
        match self {
            Self::Field(field, problem) => StoreError::Field {
                file,
                field,
                problem,
            },
            Self::Version {
                field,
                found,
                known,
            } => StoreError::Version {
                file,
                field,
                found,
                known,
            },
            Self::Image(source) => StoreError::Image { file, source },
            Self::Space(source) => StoreError::Space { file, source },
            Self::Registers(source) => StoreError::Registers { file, source },
        }
    }
}

impl From<ImageError> for Invalid {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

impl From<SpaceError> for Invalid {
    fn from(error: SpaceError) -> Self {
        Self::Space(error)
    }
}

impl From<HypervViolation> for Invalid {
    fn from(error: HypervViolation) -> Self {
        Self::Registers(error)
    }
}

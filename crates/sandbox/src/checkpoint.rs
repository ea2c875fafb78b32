//! Snapshots that a guest asks for itself.

use std::sync::Arc;

use crate::snapshot::{Snapshot, SnapshotData};

/// A snapshot that the guest itself asked for, at a point of its choosing: in the middle of a call or of its initialisation.
///
/// A sandbox that is made from it or restored to it is *suspended*: [`Sandbox::resume`](crate::Sandbox::resume) goes on behind the
/// point. The guest tells the original from a copy by its generation, which the original keeps.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    tag: u32,
    snapshot: Snapshot,
}

impl Checkpoint {
    /// The number that the guest gave it.
    pub const fn tag(&self) -> u32 {
        self.tag
    }

    /// The snapshot.
    pub const fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }
}

/// What a sandbox does when its guest asks for a snapshot.
#[derive(Clone, Debug, Default)]
pub(crate) enum Checkpoints {
    /// Nothing: the guest goes on.
    #[default]
    Decline,
    /// It keeps the latest, so that a guest that asks again and again cannot fill the host's memory.
    Keep(Option<Checkpoint>),
}

impl Checkpoints {
    pub(crate) const fn is_declined(&self) -> bool {
        matches!(self, Self::Decline)
    }

    /// Keeps a snapshot in place of an earlier one.
    pub(crate) fn keep(&mut self, tag: u32, data: SnapshotData) {
        if let Self::Keep(latest) = self {
            let snapshot = Snapshot {
                data: Arc::new(data),
            };
            *latest = Some(Checkpoint { tag, snapshot });
        }
    }

    pub(crate) fn take(&mut self) -> Option<Checkpoint> {
        match self {
            Self::Keep(latest) => latest.take(),
            Self::Decline => None,
        }
    }
}

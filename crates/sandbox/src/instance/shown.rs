//! What the image slot of a user guest shows: the base snapshot, or an older one.

use std::cell::OnceCell;
use std::sync::Arc;

use crate::error::Failure;
use crate::memory::{AddressIndex, Contents, Geometry};
use crate::snapshot::SnapshotData;

/// Which snapshot's layers and tables the slot shows.
///
/// As a rule those of the base. After a snapshot was taken in place the slot still shows the older one, below private copies that make
/// it the base: nothing is mapped and no table is built for going on.
#[derive(Debug, Default)]
pub(super) struct Shown {
    older: Option<Arc<SnapshotData>>,
    /// From pages of the slot to addresses, made when it is first needed.
    index: OnceCell<AddressIndex>,
}

impl Shown {
    /// The snapshot that the slot shows, where the base is `base`.
    pub(super) fn snapshot<'a>(&'a self, base: &'a Arc<SnapshotData>) -> &'a Arc<SnapshotData> {
        self.older.as_ref().unwrap_or(base)
    }

    /// Whether private copies are all that makes the slot the base.
    pub(super) fn is_older(&self) -> bool {
        self.older.is_some()
    }

    /// The base gives way to a snapshot that was taken in place; the slot stays.
    pub(super) fn go_on(&mut self, base: &Arc<SnapshotData>) {
        if self.older.is_none() {
            self.older = Some(base.clone());
        }
    }

    /// The slot is about to show the base itself.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// What the slot holds where nothing was written since `base`.
    pub(super) fn contents<'a>(
        &'a self,
        geometry: &'a Geometry,
        base: &'a SnapshotData,
    ) -> Result<Contents<'a>, Failure> {
        let space = base.user_space()?;
        let shown = match &self.older {
            Some(older) => older.user_space()?,
            None => space,
        };
        let index = self
            .index
            .get_or_init(|| AddressIndex::new(shown.extents()));
        let contents = Contents::new(geometry, &base.layers, space, index)?;
        Ok(if self.is_older() {
            contents.with_moved_pages()
        } else {
            contents
        })
    }
}

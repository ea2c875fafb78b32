//! Snapshots of a sandbox, and ways back to them.

use std::sync::Arc;

use super::{Health, Sandbox};
use crate::capture::capture;
use crate::error::{Error, Failure};
use crate::instance::{Instance, Leaving, Restored};
use crate::snapshot::{Snapshot, SnapshotData};

impl Sandbox {
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
        self.session.instance.wipe_buffers()?;
        let data = Arc::new(capture(&mut self.session.instance, None)?);
        // From here on the sandbox stands on the new snapshot, so that the next one holds only what changes from now.
        if self.session.instance.can_adopt(&data) {
            self.health = Health::Dead;
            self.session.instance.adopt(&data)?;
        } else {
            self.session
                .instance
                .check_mappings_beside(&self.engine, &data)?;
            self.health = Health::Dead;
            let generation = self.session.instance.generation();
            self.load(&data, Leaving::Cleanly)?;
            self.session.instance.stay(generation)?;
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
        let base = self.session.instance.base();
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
        // As a rule it has ended; not if its caller panicked over a reply.
        self.session.end();
        let leaving = self.leaving();
        let in_place = is_base && leaving == Leaving::Cleanly;
        if !in_place {
            self.session
                .instance
                .check_mappings_beside(&self.engine, &snapshot.data)?;
        }
        self.health = Health::Dead;
        self.session.instance.reset_mappings()?;
        if !in_place {
            self.load(&snapshot.data, leaving)?;
        } else if self.session.instance.restore()? == Restored::NotYet {
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
        if self.session.instance.restore()? == Restored::Completely {
            self.engine.keep_idle(self.session.instance);
        }
        Ok(())
    }

    /// Goes over to another snapshot, in the same VM if it has room.
    fn load(&mut self, snapshot: &Arc<SnapshotData>, leaving: Leaving) -> Result<(), Failure> {
        if self.session.instance.can_load(snapshot) {
            return self.session.instance.load(snapshot, leaving);
        }
        let mut instance = Instance::new(&self.engine, snapshot)?;
        if let Some(polling) = self.polling {
            instance = instance.into_polled(polling)?;
        }
        instance.take_mappings_of(&mut self.session.instance)?;
        self.session.set_instance(instance);
        Ok(())
    }
}

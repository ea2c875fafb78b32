//! VMs of sandboxes that have ended, kept for those to come.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::instance::Instance;
use crate::snapshot::SnapshotData;

/// How many VMs an engine keeps if nothing else is said.
pub(super) const DEFAULT_IDLE_VMS: usize = 16;

/// VMs that stand on their base snapshots, the one that was left last at the back.
pub(super) struct IdleVms {
    most: usize,
    vms: Mutex<VecDeque<Instance>>,
}

impl IdleVms {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            vms: Mutex::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.change(|vms| vms.len())
    }

    /// Keeps one more; when there is no room, the one that has been idle for longest goes.
    pub(super) fn keep(&self, instance: Instance) {
        if self.most == 0 {
            return;
        }
        let displaced = self.change(|vms| {
            let full = vms.len() >= self.most;
            let displaced = if full { vms.pop_front() } else { None };
            vms.push_back(instance);
            displaced
        });
        // Outside of the lock: a VM takes a while to go.
        drop(displaced);
    }

    /// Takes out one that stands on `snapshot`, or else one that can be brought there.
    pub(super) fn take(&self, snapshot: &Arc<SnapshotData>) -> Option<Instance> {
        self.change(|vms| {
            let index = vms
                .iter()
                .rposition(|vm| Arc::ptr_eq(vm.base(), snapshot))
                .or_else(|| vms.iter().rposition(|vm| vm.can_load(snapshot)))?;
            vms.remove(index)
        })
    }

    /// A panic while the lock is held leaves whole VMs in the list.
    fn change<T>(&self, change: impl FnOnce(&mut VecDeque<Instance>) -> T) -> T {
        change(&mut self.vms.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for IdleVms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} idle VMs", self.len(), self.most)
    }
}

//! The mapped ranges of a VM. The trait names them by range; KVM, which wants numbers, gets the lowest free one for each.

use vellum_layout::{Gpa, GpaRange, Hole};

use crate::memory::Hva;
use crate::vm::{Protection, VmError};

/// One mapped range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) number: u32,
    pub(crate) gpa: GpaRange,
    pub(crate) host: Hva,
    pub(crate) protection: Protection,
}

/// The mapped ranges of a VM.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    slots: Vec<Slot>,
    /// Pages of the hypervisor's own devices, which no memory may cover. Some kernels refuse it themselves, some do not.
    holes: &'static [Hole],
}

impl Slots {
    /// No ranges yet, and some that never can be.
    pub(crate) fn with_holes(holes: &'static [Hole]) -> Self {
        Self {
            slots: Vec::new(),
            holes,
        }
    }

    /// Finds a number for a new range.
    pub(crate) fn plan(
        &self,
        gpa: GpaRange,
        host: Hva,
        protection: Protection,
    ) -> Result<Slot, VmError> {
        if !host.is_page_aligned() {
            return Err(VmError::Unaligned { host });
        }
        if let Some(hole) = self.holes.iter().find(|hole| hole.range.overlaps(&gpa)) {
            return Err(VmError::Hole {
                wanted: gpa,
                hole: *hole,
            });
        }
        if let Some(slot) = self.slots.iter().find(|slot| slot.gpa.overlaps(&gpa)) {
            return Err(VmError::Overlap {
                wanted: gpa,
                mapped: slot.gpa,
            });
        }
        let number = (0..u32::MAX)
            .find(|&number| self.by_number(number).is_none())
            .unwrap_or(u32::MAX);
        Ok(Slot {
            number,
            gpa,
            host,
            protection,
        })
    }

    pub(crate) fn insert(&mut self, slot: Slot) {
        self.slots.push(slot);
    }

    /// The slot that is exactly `gpa`.
    pub(crate) fn exact(&self, gpa: GpaRange) -> Result<Slot, VmError> {
        self.slots
            .iter()
            .find(|slot| slot.gpa == gpa)
            .copied()
            .ok_or(VmError::NotMapped { range: gpa })
    }

    pub(crate) fn smallest(&self) -> Option<Slot> {
        self.slots
            .iter()
            .min_by_key(|slot| slot.gpa.len_bytes())
            .copied()
    }

    /// The slots of which written pages are reported.
    pub(crate) fn tracked(&self) -> Vec<Slot> {
        let slots = self.slots.iter().copied();
        slots
            .filter(|slot| slot.protection == Protection::TrackedWrite)
            .collect()
    }

    pub(crate) fn remove(&mut self, number: u32) {
        self.slots.retain(|slot| slot.number != number);
    }

    pub(crate) fn by_number(&self, number: u32) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.number == number)
    }

    pub(crate) fn is_mapped(&self, gpa: u64) -> bool {
        Gpa::new(gpa).is_ok_and(|gpa| self.slots.iter().any(|slot| slot.gpa.contains(gpa)))
    }

    /// The host address of a range that lies inside one writable slot.
    pub(crate) fn host_of(&self, range: GpaRange) -> Result<Hva, VmError> {
        self.slots
            .iter()
            .find(|slot| slot.gpa.contains_range(&range) && slot.protection != Protection::ReadOnly)
            .and_then(|slot| slot.host.checked_add(slot.gpa.offset_of(range.start())?))
            .ok_or(VmError::NotMapped { range })
    }

    /// The guest-physical page that a dirty-ring entry names.
    pub(crate) fn page(&self, number: u32, page: u64) -> Option<Gpa> {
        let offset = page.checked_mul(vellum_layout::PAGE_SIZE)?;
        self.by_number(number)?.gpa.at(offset)
    }
}

#[cfg(test)]
mod tests;

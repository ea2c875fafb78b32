//! Guest memory as a debugger sees it, and what of the host's is mapped there.

use vellum_layout::Gpa;

use super::{Health, Sandbox};
use crate::error::{Error, Failure};
use crate::mapping::{Mapping, MappingInfo};

impl Sandbox {
    /// Reads guest memory as a debugger does: what is mapped at a guest-virtual address under the translation that the guest uses now,
    /// whatever rights it has there. Memory that comes into being when it is first touched reads as zeroes. Works also after a call
    /// that went wrong.
    ///
    /// # Errors
    /// [`ErrorKind::GuestMemory`](crate::ErrorKind::GuestMemory) names the first address that is not mapped; what lies before it was
    /// read.
    pub fn read_memory(&mut self, address: u64, into: &mut [u8]) -> Result<(), Error> {
        self.check_alive()?;
        self.pause()?;
        let result = self.session.instance.peek(address, into);
        Ok(result.map_err(Failure::GuestMemory)?)
    }

    /// Writes guest memory as a debugger does, also where the guest may only read or execute. A restore undoes it, and a snapshot
    /// holds it, like a write of the guest's own. In a user guest it reaches only what the guest itself can see.
    ///
    /// # Errors
    /// [`ErrorKind::GuestMemory`](crate::ErrorKind::GuestMemory) names the first address that is not mapped, or comes into being only
    /// when the guest touches it; nothing was written.
    pub fn write_memory(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        self.check_alive()?;
        self.pause()?;
        let result = self.session.instance.poke(address, bytes);
        Ok(result.map_err(Failure::GuestMemory)?)
    }

    /// Maps a file or memory of the host at a guest-physical address, page-aligned, which must be clear of the guest's own memory, of
    /// holes and of other mappings; a range that was [reserved](crate::SandboxBuilder::reserve) always is. Works also after a call that went
    /// wrong, and stays until it is [unmapped](Self::unmap): see [`Mapping`] for how long what lasts.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) names both parties of an overlap, or says that the address is
    /// unaligned or too high, the label taken, or the guest full of mappings (it can have 32): nothing has changed.
    /// [`ErrorKind::Hypervisor`](crate::ErrorKind::Hypervisor) when the system refuses.
    pub fn map(&mut self, gpa: Gpa, mapping: &Mapping) -> Result<(), Error> {
        self.check_alive()?;
        self.pause()?;
        let leaving = self.leaving();
        let mapped = self.session.instance.map(gpa, mapping, leaving);
        self.note_failure();
        Ok(mapped?)
    }

    /// Takes back what is mapped with a label. An access of the guest to where it was faults from then on.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) when nothing has this label: nothing has changed.
    pub fn unmap(&mut self, label: &str) -> Result<(), Error> {
        self.check_alive()?;
        self.pause()?;
        let leaving = self.leaving();
        let unmapped = self.session.instance.unmap(label, leaving);
        self.note_failure();
        Ok(unmapped?)
    }

    /// A VM that failed between two calls makes the sandbox ask for a restore, which takes another one.
    fn note_failure(&mut self) {
        if self.session.instance.has_failed() {
            self.health = Health::Dirty;
        }
    }

    /// What is mapped, in the order in which it was.
    pub fn mappings(&self) -> impl Iterator<Item = MappingInfo<'_>> {
        self.session.instance.mappings()
    }
}

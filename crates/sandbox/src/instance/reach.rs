//! Reaching guest memory by guest-virtual address, with the guest's own rights: large arguments and results.
//!
//! What the guest names is checked against its areas and its page tables, page run by page run; the copy is one for the bytes.

use vellum_layout::{Gpa, Gva, PAGE_SIZE};
use vellum_vmem::{Attrs, Mapping, TranslateError};

use super::{CowState, Instance};
use crate::error::Failure;
use crate::memory::{Area, PAGE_LEN_BYTES, identity};

/// Why guest memory could not be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReachError {
    #[error("guest range {address:#x} with {len_bytes:#x} bytes is not in one of its areas")]
    OutsideAreas { address: u64, len_bytes: u64 },
    #[error("guest range {address:#x} with {len_bytes:#x} bytes is not writable to the guest")]
    NotWritable { address: u64, len_bytes: u64 },
    #[error("guest address {address:#x} is not mapped for this access")]
    NotMapped { address: u64 },
    #[error("host failure")]
    Host(#[source] Box<Failure>),
}

impl From<Failure> for ReachError {
    fn from(failure: Failure) -> Self {
        Self::Host(Box::new(failure))
    }
}

/// Some bytes that are contiguous in guest-physical memory.
struct Run {
    gpa: Gpa,
    len_bytes: u64,
}

impl Instance {
    /// Copies `bytes` to a range that the guest itself could write.
    pub(crate) fn write_guest(&mut self, address: u64, bytes: &[u8]) -> Result<(), ReachError> {
        let area = self.area(address, bytes.len() as u64)?;
        if !area.is_writable() {
            return Err(ReachError::NotWritable {
                address,
                len_bytes: bytes.len() as u64,
            });
        }
        let mut rest = bytes;
        let mut at = address;
        while !rest.is_empty() {
            let run = self.writable_run(at, rest.len() as u64)?;
            let len_bytes = usize::try_from(run.len_bytes)
                .unwrap_or(rest.len())
                .min(rest.len());
            let (now, later) = rest.split_at(len_bytes);
            self.memory.write(run.gpa, now).map_err(Failure::from)?;
            self.mark_written(&run);
            rest = later;
            at += len_bytes as u64;
        }
        Ok(())
    }

    /// Copies `len_bytes` from a range that the guest itself could read.
    pub(crate) fn read_guest(&self, address: u64, len_bytes: u64) -> Result<Vec<u8>, ReachError> {
        self.area(address, len_bytes)?;
        let mut bytes = Vec::new();
        let end = address + len_bytes;
        let mut at = address;
        while at < end {
            let gva = Gva::new(at).map_err(|_| ReachError::NotMapped { address: at })?;
            match self.translate(gva) {
                Ok(mapping) => {
                    let run = run_of(&mapping, end - at);
                    self.append(&run, &mut bytes)?;
                    at += run.len_bytes;
                }
                // A page of heap or stack that was never touched reads as zero.
                Err(TranslateError::NotMapped { .. }) => {
                    let len_bytes = (PAGE_SIZE - at % PAGE_SIZE).min(end - at);
                    bytes.resize(
                        bytes.len() + usize::try_from(len_bytes).unwrap_or(PAGE_LEN_BYTES),
                        0,
                    );
                    at += len_bytes;
                }
                Err(_) => return Err(ReachError::NotMapped { address: at }),
            }
        }
        Ok(bytes)
    }

    fn append(&self, run: &Run, into: &mut Vec<u8>) -> Result<(), ReachError> {
        let not_mapped = ReachError::NotMapped {
            address: run.gpa.as_u64(),
        };
        let (Some((memory, offset)), Ok(len_bytes)) =
            (self.memory.locate(run.gpa), usize::try_from(run.len_bytes))
        else {
            return Err(not_mapped);
        };
        Ok(memory
            .append_to(offset, len_bytes, into)
            .map_err(Failure::from)?)
    }

    /// The area that holds the whole range.
    fn area(&self, address: u64, len_bytes: u64) -> Result<Area, ReachError> {
        let outside = ReachError::OutsideAreas { address, len_bytes };
        let Some(last) = address.checked_add(len_bytes.saturating_sub(1)) else {
            return Err(outside);
        };
        let (Ok(first), Ok(last)) = (Gva::new(address), Gva::new(last)) else {
            return Err(outside);
        };
        self.base
            .space
            .area_of(first)
            .filter(|area| area.range.contains(last))
            .copied()
            .ok_or(outside)
    }

    /// The guest-physical memory behind `at`. It must be private to the sandbox already: where the monitor copies pages, the
    /// guest library touches each page before it asks for a fill.
    fn writable_run(&self, at: u64, len_bytes: u64) -> Result<Run, ReachError> {
        let not_mapped = ReachError::NotMapped { address: at };
        let gva = Gva::new(at).map_err(|_| ReachError::NotMapped { address: at })?;
        match self.translate(gva) {
            Ok(mapping) if mapping.effective.contains(Attrs::WRITE | Attrs::USER) => {
                Ok(run_of(&mapping, len_bytes))
            }
            _ => Err(not_mapped),
        }
    }

    /// Translates as the guest would: through its tables, or not at all.
    fn translate(&self, gva: Gva) -> Result<Mapping, TranslateError> {
        match &self.geometry.user {
            Some(user) => self.memory.translate(user.tables.start(), gva),
            None => identity::mapping(gva),
        }
    }

    fn mark_written(&mut self, run: &Run) {
        let CowState::Host(host) = &mut self.cow else {
            return;
        };
        let Some(first) = self.geometry.plan.image().offset_of(run.gpa) else {
            return;
        };
        for offset in (first - first % PAGE_SIZE..first + run.len_bytes).step_by(PAGE_LEN_BYTES) {
            host.mark(offset);
        }
    }
}

/// The part of a page from the translated byte on, at most `len_bytes` long.
fn run_of(mapping: &Mapping, len_bytes: u64) -> Run {
    let size = mapping.size.bytes();
    let left_in_page = size - (mapping.gpa.as_u64() & (size - 1));
    Run {
        gpa: mapping.gpa,
        len_bytes: left_in_page.min(len_bytes),
    }
}

//! Reaching guest memory by guest-virtual address, through the guest's own translation.
//!
//! Two kinds of callers: the call path, for large arguments and results, with the rights that the guest itself has; and the embedder's
//! debugger, who may read and write whatever is mapped. Each page run takes one bounded translation, and the length is the caller's.

use vellum_backend::state::{SpecialRegs, VcpuState, cr0, cr4, efer};
use vellum_backend::{HostMemory, Paused, StateGroup, VmError};
use vellum_layout::{Gpa, Gva, PAGE_SIZE};
use vellum_vmem::{Attrs, Format, Mapping, TranslateError, translate};

use super::{CowState, Instance};
use crate::error::Failure;
use crate::memory::{Area, Backing, PAGE_LEN_BYTES, Parts, TableAccess};

/// Why guest memory could not be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReachError {
    #[error("guest range {address:#x} with {len_bytes:#x} bytes is not in one of its areas")]
    OutsideAreas { address: u64, len_bytes: u64 },
    #[error("guest range {address:#x} with {len_bytes:#x} bytes is not writable to the guest")]
    NotWritable { address: u64, len_bytes: u64 },
    #[error("guest address {address:#x} is not mapped for this access")]
    NotMapped { address: u64 },
    #[error("guest address {address:#x} is mapped to {gpa:#x}, where the guest has no memory")]
    NoMemory { address: u64, gpa: Gpa },
    #[error("guest address {address:#x} cannot be translated")]
    Tables {
        address: u64,
        #[source]
        source: TranslateError,
    },
    #[error("guest uses {mode}, which this host cannot walk")]
    Mode { mode: &'static str },
    #[error("host failure")]
    Host(#[source] Box<Failure>),
}

impl From<Failure> for ReachError {
    fn from(failure: Failure) -> Self {
        Self::Host(Box::new(failure))
    }
}

impl From<VmError> for ReachError {
    fn from(error: VmError) -> Self {
        Failure::from(error).into()
    }
}

/// How the guest's addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Paging {
    /// Not at all.
    Off,
    /// Through these tables, which lie in scratch.
    Host { root: Gpa },
    /// Through these tables, which lie anywhere.
    Guest { root: Gpa, format: Format },
}

/// Some bytes that lie behind one another both for the guest and in its physical memory.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// `None` for zeroes that have no memory yet.
    gpa: Option<Gpa>,
    len_bytes: u64,
}

impl Instance {
    /// Copies `bytes` to a range that the guest itself could write.
    ///
    /// It must be private to the sandbox already: where the guest copies pages, the guest library touches each page before it asks
    /// for a fill.
    pub(crate) fn write_guest(&mut self, address: u64, bytes: &[u8]) -> Result<(), ReachError> {
        self.check_area(address, bytes.len() as u64, Attrs::WRITE)?;
        self.stand_still()?;
        let paging = self.paging()?;
        self.write_runs(paging, address, bytes, self.guest_rights() | Attrs::WRITE)
    }

    /// Copies `len_bytes` from a range that the guest itself could read.
    pub(crate) fn read_guest(
        &mut self,
        address: u64,
        len_bytes: u64,
    ) -> Result<Vec<u8>, ReachError> {
        self.check_readable(address, len_bytes)?;
        self.stand_still()?;
        let paging = self.paging()?;
        // A range can name more than there is: then the loop ends early.
        let room = len_bytes.min(self.memory_len_bytes());
        let mut bytes = Vec::with_capacity(usize::try_from(room).unwrap_or(0));
        let (mut at, mut rest) = (address, len_bytes);
        while rest > 0 {
            let run = self.run_at(paging, at, rest, self.guest_rights())?;
            let len = usize::try_from(run.len_bytes).unwrap_or(usize::MAX);
            match run.gpa {
                Some(gpa) => {
                    let (memory, offset) = self.locate(at, gpa)?;
                    memory
                        .append_to(offset, len, &mut bytes)
                        .map_err(Failure::from)?;
                }
                None => bytes.resize(bytes.len() + len, 0),
            }
            (at, rest) = (at + run.len_bytes, rest - run.len_bytes);
        }
        Ok(bytes)
    }

    /// Large values are copied while the guest does not run.
    fn stand_still(&mut self) -> Result<(), ReachError> {
        match self.pause()? {
            Paused::AtExit => Ok(()),
            Paused::Elsewhere => {
                Err(Failure::Protocol("the guest goes on while it waits for its host").into())
            }
        }
    }

    /// Whether the guest itself may read from a range, as far as that can be said without looking at every page.
    pub(crate) fn check_readable(&self, address: u64, len_bytes: u64) -> Result<(), ReachError> {
        self.check_area(address, len_bytes, Attrs::empty())?;
        check_end(address, len_bytes)
    }

    /// Copies from a range that the guest itself could read.
    pub(crate) fn read_guest_into(
        &mut self,
        address: u64,
        into: &mut [u8],
    ) -> Result<(), ReachError> {
        self.check_readable(address, into.len() as u64)?;
        self.stand_still()?;
        let rights = self.guest_rights();
        self.read_runs(address, into, rights)
    }

    /// Copies what is mapped from `address` on, whatever rights the guest has there.
    pub(crate) fn peek(&mut self, address: u64, into: &mut [u8]) -> Result<(), ReachError> {
        check_end(address, into.len() as u64)?;
        self.read_runs(address, into, Attrs::empty())
    }

    fn read_runs(
        &mut self,
        address: u64,
        into: &mut [u8],
        wanted: Attrs,
    ) -> Result<(), ReachError> {
        let paging = self.paging()?;
        let (mut at, mut rest) = (address, into);
        while !rest.is_empty() {
            let run = self.run_at(paging, at, rest.len() as u64, wanted)?;
            let (now, later) = rest.split_at_mut(part(run, rest.len()));
            match run.gpa {
                Some(gpa) => {
                    let (memory, offset) = self.locate(at, gpa)?;
                    memory.read(offset, now).map_err(Failure::from)?;
                }
                None => now.fill(0),
            }
            (at, rest) = (at + run.len_bytes, later);
        }
        Ok(())
    }

    /// Copies `bytes` over what is mapped from `address` on, also where the guest may not write; but in a user guest only where it may
    /// read, because what is hidden from it is the host's. Nothing is written unless everything can be.
    pub(crate) fn poke(&mut self, address: u64, bytes: &[u8]) -> Result<(), ReachError> {
        check_end(address, bytes.len() as u64)?;
        let paging = self.paging()?;
        let wanted = self.guest_rights();
        let (mut at, mut rest) = (address, bytes.len() as u64);
        while rest > 0 {
            let run = self.run_at(paging, at, rest, wanted)?;
            let gpa = run.gpa.ok_or(ReachError::NotMapped { address: at })?;
            self.locate(at, gpa)?;
            (at, rest) = (at + run.len_bytes, rest - run.len_bytes);
        }
        self.write_runs(paging, address, bytes, wanted)
    }

    fn write_runs(
        &mut self,
        paging: Paging,
        address: u64,
        bytes: &[u8],
        wanted: Attrs,
    ) -> Result<(), ReachError> {
        check_end(address, bytes.len() as u64)?;
        let (mut at, mut rest) = (address, bytes);
        while !rest.is_empty() {
            let run = self.run_at(paging, at, rest.len() as u64, wanted)?;
            let gpa = run.gpa.ok_or(ReachError::NotMapped { address: at })?;
            let (now, later) = rest.split_at(part(run, rest.len()));
            let (memory, offset) = self.locate(at, gpa)?;
            memory.write(offset, now).map_err(Failure::from)?;
            self.mark_written(gpa, run.len_bytes)?;
            (at, rest) = (at + run.len_bytes, later);
        }
        Ok(())
    }

    /// What lies behind `at`, up to `len_bytes`: to the end of a page or, without paging, of the memory.
    fn run_at(
        &self,
        paging: Paging,
        at: u64,
        len_bytes: u64,
        wanted: Attrs,
    ) -> Result<Run, ReachError> {
        let not_mapped = ReachError::NotMapped { address: at };
        let gva = Gva::new(at).map_err(|_| ReachError::NotMapped { address: at })?;
        let left_in = |size: u64| (size - at % size).min(len_bytes);
        match self.translate(paging, gva) {
            Ok(None) => {
                let gpa = Gpa::new(at).map_err(|_| not_mapped)?;
                let (memory, offset) = self.locate(at, gpa)?;
                Ok(Run {
                    gpa: Some(gpa),
                    len_bytes: len_bytes.min(memory.len_bytes() - offset),
                })
            }
            Ok(Some(mapping)) if mapping.effective.contains(wanted) => {
                // A large page may reach past the end of the memory.
                let (memory, offset) = self.locate(at, mapping.gpa)?;
                let left_in_memory = memory.len_bytes() - offset;
                Ok(Run {
                    gpa: Some(mapping.gpa),
                    len_bytes: left_in(mapping.size.bytes()).min(left_in_memory),
                })
            }
            Err(TranslateError::NotMapped { .. })
                if !wanted.contains(Attrs::WRITE) && self.is_zero_on_demand(gva) =>
            {
                Ok(Run {
                    gpa: None,
                    len_bytes: left_in(PAGE_SIZE),
                })
            }
            Ok(Some(_)) | Err(TranslateError::NotMapped { .. }) => Err(not_mapped),
            Err(source) => Err(ReachError::Tables {
                address: at,
                source,
            }),
        }
    }

    /// Bytes of all memory that the guest has.
    pub(crate) fn memory_len_bytes(&self) -> u64 {
        self.memory.image.len_bytes() + self.memory.scratch.len_bytes()
    }

    fn locate(&self, address: u64, gpa: Gpa) -> Result<(&HostMemory, u64), ReachError> {
        self.memory
            .locate(gpa)
            .ok_or(ReachError::NoMemory { address, gpa })
    }

    /// What a page must allow for the guest to use it: in ring 3, that it is not the monitor's.
    fn guest_rights(&self) -> Attrs {
        match self.geometry.parts {
            Parts::User(_) => Attrs::USER,
            Parts::Kernel(_) => Attrs::empty(),
        }
    }

    /// Checks that a user guest has an area which holds the whole range. A kernel has no such thing, but it has no more memory than it
    /// has: a longer range shows some page twice.
    fn check_area(&self, address: u64, len_bytes: u64, rights: Attrs) -> Result<(), ReachError> {
        let outside = || ReachError::OutsideAreas { address, len_bytes };
        let Ok(space) = self.base.user_space() else {
            return if len_bytes > self.memory_len_bytes() {
                Err(outside())
            } else {
                Ok(())
            };
        };
        let last = address
            .checked_add(len_bytes.saturating_sub(1))
            .ok_or_else(outside)?;
        let (Ok(first), Ok(last)) = (Gva::new(address), Gva::new(last)) else {
            return Err(outside());
        };
        let area: &Area = space
            .area_of(first)
            .filter(|area| area.range.contains(last))
            .ok_or_else(outside)?;
        if area.rights.contains(rights) {
            Ok(())
        } else {
            Err(ReachError::NotWritable { address, len_bytes })
        }
    }

    /// Whether the guest would find a page of zeroes here that is only made when it is first touched.
    fn is_zero_on_demand(&self, gva: Gva) -> bool {
        match self.base.user_space() {
            Ok(space) => space
                .area_of(gva)
                .is_some_and(|area| matches!(area.backing, Backing::Zero { .. })),
            Err(_) => self.geometry.view.heap.contains(gva),
        }
    }

    /// Translates as the guest would; `None` without paging.
    fn translate(&self, paging: Paging, gva: Gva) -> Result<Option<Mapping>, TranslateError> {
        let (store, root, format) = match paging {
            Paging::Off => return Ok(None),
            Paging::Host { root } => {
                let store = TableAccess::in_scratch(&self.memory);
                (store, root, Format::FOUR_LEVEL)
            }
            Paging::Guest { root, format } => (TableAccess::anywhere(&self.memory), root, format),
        };
        translate(&store, root, gva, format).map(Some)
    }

    /// How the guest's addresses are translated now: a kernel decides that itself.
    fn paging(&mut self) -> Result<Paging, ReachError> {
        if let Parts::User(user) = &self.geometry.parts {
            let root = user.tables.start();
            return Ok(Paging::Host { root });
        }
        let mut state = VcpuState::default();
        self.vm.0.get_state(StateGroup::Special, &mut state)?;
        paging_of(&state.special)
    }

    fn mark_written(&mut self, gpa: Gpa, len_bytes: u64) -> Result<(), Failure> {
        let Some(first) = self.geometry.plan.image().offset_of(gpa) else {
            return match &mut self.cow {
                CowState::Kernel(physical) => {
                    physical.mark(gpa, len_bytes);
                    Ok(())
                }
                CowState::Guest(guest) => guest.mark_frame(&self.memory, gpa),
                CowState::Host(_) => Ok(()),
            };
        };
        for offset in (first - first % PAGE_SIZE..first + len_bytes).step_by(PAGE_LEN_BYTES) {
            match &mut self.cow {
                CowState::Host(host) => host.mark(offset),
                CowState::Guest(guest) => guest.mark(offset),
                CowState::Kernel(physical) => physical.mark(gpa, len_bytes),
            }
        }
        Ok(())
    }
}

/// Checks that a range ends below the end of the address space, so that no address in it wraps around.
fn check_end(address: u64, len_bytes: u64) -> Result<(), ReachError> {
    match address.checked_add(len_bytes) {
        Some(_) => Ok(()),
        None => Err(ReachError::OutsideAreas { address, len_bytes }),
    }
}

/// How many of the next `len` bytes a run holds.
fn part(run: Run, len: usize) -> usize {
    usize::try_from(run.len_bytes).unwrap_or(len).min(len)
}

/// What the control registers say about translation (Intel SDM volume 3, section 4.1.1, table 4-1).
fn paging_of(special: &SpecialRegs) -> Result<Paging, ReachError> {
    const CR4_LA57: u64 = 1 << 12;
    const ROOT_OF_LONG_MODE: u64 = 0x000F_FFFF_FFFF_F000;
    const ROOT_OF_TWO_LEVELS: u64 = 0xFFFF_F000;
    if special.cr0 & cr0::PG == 0 {
        return Ok(Paging::Off);
    }
    let (format, mask) = match (special.efer & efer::LMA != 0, special.cr4) {
        (true, cr4) if cr4 & CR4_LA57 != 0 => {
            return Err(ReachError::Mode {
                mode: "5-level paging",
            });
        }
        (true, _) => (Format::FOUR_LEVEL, ROOT_OF_LONG_MODE),
        (false, cr4) if cr4 & cr4::PAE != 0 => {
            return Err(ReachError::Mode {
                mode: "paging with 32-bit physical address extension",
            });
        }
        (false, cr4) if cr4 & cr4::PSE != 0 => (Format::TWO_LEVEL_PSE, ROOT_OF_TWO_LEVELS),
        (false, _) => (Format::TWO_LEVEL, ROOT_OF_TWO_LEVELS),
    };
    let root = Gpa::new(special.cr3 & mask).map_err(|_| ReachError::Mode {
        mode: "a page-table root beyond every address",
    })?;
    Ok(Paging::Guest { root, format })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn special(cr0: u64, cr3: u64, cr4: u64, efer: u64) -> SpecialRegs {
        SpecialRegs {
            cr0,
            cr3,
            cr4,
            efer,
            ..SpecialRegs::default()
        }
    }

    fn guest(root: u64, format: Format) -> Paging {
        let root = Gpa::new(root).expect("an address");
        Paging::Guest { root, format }
    }

    #[test]
    fn the_control_registers_decide_how_addresses_are_translated() {
        let on = cr0::PE | cr0::PG;
        let cases = [
            (special(cr0::PE, 0x5000, cr4::PSE, 0), Paging::Off),
            (special(on, 0x5018, 0, 0), guest(0x5000, Format::TWO_LEVEL)),
            (
                special(on, 0x5000, cr4::PSE, 0),
                guest(0x5000, Format::TWO_LEVEL_PSE),
            ),
            (
                special(on, 0xF_0000_5008, cr4::PAE, efer::LMA | efer::LME),
                guest(0xF_0000_5000, Format::FOUR_LEVEL),
            ),
        ];
        for (registers, expected) in cases {
            let found = paging_of(&registers).expect("a known mode");
            assert_eq!(found, expected, "{registers:x?}");
        }
    }

    #[test]
    fn modes_that_are_not_walked_are_named() {
        let on = cr0::PE | cr0::PG;
        let cases = [
            special(on, 0, cr4::PAE, 0),
            special(on, 0, cr4::PAE | 1 << 12, efer::LMA),
        ];
        for registers in cases {
            let error = paging_of(&registers).expect_err("not walked");
            assert!(matches!(error, ReachError::Mode { .. }), "{error}");
        }
    }
}

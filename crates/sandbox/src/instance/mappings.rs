//! What the embedder has mapped into a guest: memory slots, page tables of user guests, and the table that tells the guest.

use std::io;
use std::sync::Arc;

use vellum_abi::mapping::{FLAG_WRITABLE, MAX_MAPPINGS, MappingEntry, encode_label};
use vellum_abi::peb::Peb;
use vellum_backend::memory::SharedMemory;
use vellum_backend::{Exit, FileMemory, Hva, Protection, Vm, VmError};
use vellum_layout::amd64::user::mapping_gva;
use vellum_layout::{Gpa, GpaRange, PAGE_SIZE, Translation};
use zerocopy::{FromZeros, IntoBytes};

use super::{Instance, Leaving};
use crate::engine::Engine;
use crate::error::Failure;
use crate::machine::{ROOT_ENTRY_OFFSET, build_mappings};
use crate::mapping::{GuestAccess, Mapping, MappingError, MappingInfo, Places, Source};
use crate::memory::Parts;
use crate::snapshot::SnapshotData;

/// Where in the page of the PEB the table begins: it ends with the page.
pub(super) const TABLE_OFFSET: u64 = PAGE_SIZE - (MAX_MAPPINGS * size_of::<MappingEntry>()) as u64;

const _: () = assert!(Peb::LEN_BYTES as u64 <= TABLE_OFFSET);

/// What is mapped in an instance, in the order in which it was.
#[derive(Debug, Default)]
pub(super) struct Mappings {
    attached: Vec<Attached>,
    /// Whether the tables of a user guest were ever linked into its root.
    has_tables: bool,
}

/// One mapping, and the host memory that the VM was lent for it.
#[derive(Debug)]
struct Attached {
    mapping: Mapping,
    range: GpaRange,
    memory: Lent,
}

#[derive(Debug)]
enum Lent {
    File(FileMemory),
    Region(Arc<SharedMemory>),
}

impl Attached {
    fn new(mapping: &Mapping, range: GpaRange) -> Result<Self, MappingError> {
        let unmappable = |source: io::Error| MappingError::Unmappable {
            label: mapping.shared_label().clone(),
            source,
        };
        let memory = match mapping.source() {
            Source::File(file) => {
                let memory = FileMemory::map(file.file(), file.len_bytes());
                Lent::File(memory.map_err(unmappable)?)
            }
            Source::Region(memory) => Lent::Region(memory.inner().clone()),
        };
        Ok(Self {
            mapping: mapping.clone(),
            range,
            memory,
        })
    }

    fn hva(&self) -> Hva {
        match &self.memory {
            Lent::File(memory) => memory.hva(),
            Lent::Region(memory) => memory.hva(),
        }
    }

    fn protection(&self) -> Protection {
        match self.mapping.access() {
            GuestAccess::Read => Protection::ReadOnly,
            GuestAccess::ReadWrite => Protection::Write,
        }
    }

    /// That a page of a file is gone, at a guest-physical address if that is known.
    fn truncated(&self, gpa: Option<u64>) -> Option<MappingError> {
        let Source::File(file) = self.mapping.source() else {
            return None;
        };
        let offset = match gpa {
            Some(gpa) => self.range.offset_of(Gpa::new(gpa).ok()?)?,
            None => file.len_bytes() - 1,
        };
        file.has_lost(offset).then(|| MappingError::Truncated {
            label: self.mapping.shared_label().clone(),
            offset,
        })
    }
}

impl Instance {
    /// Maps something at a guest-physical address of the embedder's choice. After an error that is the embedder's nothing has changed.
    pub(crate) fn map(
        &mut self,
        gpa: Gpa,
        mapping: &Mapping,
        leaving: Leaving,
    ) -> Result<(), Failure> {
        let range = mapping.range_at(gpa)?;
        let attached = &self.mappings.attached;
        let others = attached
            .iter()
            .map(|it| (it.mapping.shared_label(), it.range));
        Places::new(&self.geometry, &self.base.config).check(
            mapping.shared_label(),
            range,
            others,
        )?;
        let attached = Attached::new(mapping, range)?;
        self.attach(attached)?;
        self.show_mappings(leaving)
    }

    /// Takes back what is mapped with a label.
    pub(crate) fn unmap(&mut self, label: &str, leaving: Leaving) -> Result<(), Failure> {
        let attached = &self.mappings.attached;
        let index = attached.iter().position(|it| it.mapping.label() == label);
        let index = index.ok_or_else(|| MappingError::Unknown {
            label: label.to_owned(),
        })?;
        // The slot goes first: an error leaves the memory in the list, where it outlives the slot.
        self.vm.0.unmap(self.mappings.attached[index].range)?;
        self.mappings.attached.remove(index);
        self.show_mappings(leaving)
    }

    /// What is mapped, in the order in which it was.
    pub(crate) fn mappings(&self) -> impl Iterator<Item = MappingInfo<'_>> {
        self.mappings.attached.iter().map(|it| MappingInfo {
            mapping: &it.mapping,
            range: it.range,
            address: self.address_of(it.range),
        })
    }

    /// Whether everything that is mapped would have room beside the memories of a sandbox of `snapshot`.
    pub(crate) fn check_mappings_beside(
        &self,
        engine: &Engine,
        snapshot: &SnapshotData,
    ) -> Result<(), Failure> {
        if self.mappings.attached.is_empty() || self.can_load(snapshot) {
            return Ok(());
        }
        let geometry = snapshot.geometry(engine)?;
        let places = Places::new(&geometry, &snapshot.config);
        for it in &self.mappings.attached {
            places.check_plan(it.mapping.shared_label(), it.range)?;
        }
        Ok(())
    }

    /// Takes over everything that is mapped in another VM of the same sandbox.
    pub(crate) fn take_mappings_of(&mut self, other: &mut Self) -> Result<(), Failure> {
        if other.mappings.attached.is_empty() {
            return Ok(());
        }
        while let Some(first) = other.mappings.attached.first() {
            other.vm.0.unmap(first.range)?;
            let first = other.mappings.attached.remove(0);
            self.attach(first)?;
        }
        self.show_mappings(Leaving::Cleanly)
    }

    /// Drops what the guest wrote to its private copies of files.
    pub(crate) fn reset_mappings(&mut self) -> Result<(), Failure> {
        let vm = self.vm.0.as_mut();
        let is_pinned = !vm.capabilities().host_discard;
        for it in &self.mappings.attached {
            let (Lent::File(memory), GuestAccess::ReadWrite) = (&it.memory, it.mapping.access())
            else {
                continue;
            };
            if is_pinned {
                vm.unmap(it.range)?;
            }
            memory.discard_copies().map_err(Failure::Memory)?;
            if is_pinned {
                lend(vm, it)?;
            }
        }
        Ok(())
    }

    /// Names the mapped file that an exit is about, if it is about one.
    #[inline]
    pub(crate) fn check_mapped_files(&self, exit: &Exit) -> Result<(), MappingError> {
        let gpa = match exit {
            Exit::MemoryLost { gpa } => *gpa,
            // Where the hypervisor carries out an instruction itself, it takes lost memory for a device.
            Exit::MemoryFault {
                gpa, mapped: true, ..
            } => Some(*gpa),
            _ => return Ok(()),
        };
        let mut attached = self.mappings.attached.iter();
        attached
            .find_map(|it| it.truncated(gpa))
            .map_or(Ok(()), Err)
    }

    fn attach(&mut self, attached: Attached) -> Result<(), Failure> {
        lend(self.vm.0.as_mut(), &attached)?;
        self.mappings.attached.push(attached);
        Ok(())
    }

    /// Makes the guest see what is mapped by now. After an error that may be half done, so the guest is not entered in this VM again.
    fn show_mappings(&mut self, leaving: Leaving) -> Result<(), Failure> {
        let shown = self.try_show_mappings(leaving);
        self.has_failed |= shown.is_err();
        shown
    }

    fn try_show_mappings(&mut self, leaving: Leaving) -> Result<(), Failure> {
        if !self.is_kernel() {
            self.link_mappings()?;
            self.vm.0.publish_tables()?;
            // After an unclean exit the guest is not entered before a restore, which loads another root.
            if leaving == Leaving::Cleanly {
                self.forget_translations()?;
            }
        }
        self.tell_mappings()
    }

    /// Builds the tables of what is mapped and links them into the root of a user guest. Nothing in the guest is trusted for it.
    pub(super) fn link_mappings(&mut self) -> Result<(), Failure> {
        let geometry = self.geometry.clone();
        let Parts::User(user) = &geometry.parts else {
            return Ok(());
        };
        if self.mappings.attached.is_empty() && !self.mappings.has_tables {
            return Ok(());
        }
        self.mappings.has_tables = true;
        let root_entry = self.memory.scratch_offset(user.tables) + ROOT_ENTRY_OFFSET;
        self.memory.scratch.write_u64(root_entry, 0)?;
        let room = self.memory.scratch_offset(user.mapping_tables);
        let len_bytes = user.mapping_tables.len_bytes();
        if self.vm.0.capabilities().host_discard {
            self.memory
                .scratch
                .overlay_zeroed(room, len_bytes)
                .map_err(Failure::Memory)?;
        } else {
            self.memory.scratch.zero(room, len_bytes)?;
        }
        let attached = self.mappings.attached.iter();
        let mapped = attached.map(|it| (it.range, it.mapping.access()));
        build_mappings(&self.memory, user, mapped)?;
        Ok(())
    }

    /// Writes the table that the PEB leads to, and how many of its entries are in use.
    pub(super) fn tell_mappings(&self) -> Result<(), Failure> {
        let mut table = [MappingEntry::new_zeroed(); MAX_MAPPINGS];
        for (entry, info) in table.iter_mut().zip(self.mappings()) {
            *entry = entry_of(&info)?;
        }
        let peb = self.geometry.peb_frame()?;
        let at = peb
            .at(TABLE_OFFSET)
            .ok_or(Failure::Protocol("no room for the table of mappings"))?;
        self.memory.write(at, table.as_bytes())?;
        let count = self.mappings.attached.len() as u64;
        let offset = std::mem::offset_of!(Peb, mappings_count) as u64;
        let peb = self.memory.scratch_offset(peb);
        Ok(self.memory.scratch.write_u64(peb + offset, count)?)
    }

    /// Where the guest finds a range under the translation that the host set up.
    fn address_of(&self, range: GpaRange) -> Option<u64> {
        match (
            &self.geometry.parts,
            self.geometry.plan.kind().translation(),
        ) {
            (Parts::User(_), _) => mapping_gva(range).ok().map(|gva| gva.start().as_u64()),
            (Parts::Kernel(_), Translation::Identity) => Some(range.start().as_u64()),
            (Parts::Kernel(_), _) => None,
        }
    }
}

/// Maps what is attached, or will be at once.
#[expect(unsafe_code, reason = "lends host memory to the VM")]
fn lend(vm: &mut dyn Vm, attached: &Attached) -> Result<(), VmError> {
    // SAFETY: the memory lives in the list of the `Instance`, which drops it behind the VM; it leaves the list only when its slot is gone.
    // No reference into it is ever formed: a file's memory is out of the host's reach, a region is reached by atomic accesses.
    unsafe {
        match attached.memory {
            Lent::File(_) => vm.map_file(attached.range, attached.hva(), attached.protection()),
            Lent::Region(_) => vm.map(attached.range, attached.hva(), attached.protection()),
        }
    }
}

fn entry_of(info: &MappingInfo<'_>) -> Result<MappingEntry, MappingError> {
    let mapping = info.mapping;
    Ok(MappingEntry {
        gpa: info.range.start().as_u64(),
        ptr: info.address.unwrap_or(0),
        len_bytes: mapping.len_bytes(),
        flags: if mapping.is_writable() {
            FLAG_WRITABLE
        } else {
            0
        },
        label_len_bytes: u32::try_from(mapping.label().len()).unwrap_or(0),
        label: encode_label(mapping.label())?,
    })
}

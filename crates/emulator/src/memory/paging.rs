//! Translation of linear addresses (Intel SDM volume 3, chapter 5), by the codecs of `vellum-vmem`.

use vellum_backend::state::{SpecialRegs, cr0, cr4, efer};
use vellum_backend::{Access, Exit};
use vellum_layout::Gva;
use vellum_vmem::{Attrs, Entry, EntryWidth, Format, Level};

use super::{Cell, PAGE_LEN_BYTES};
use crate::cpu::Cpu;
use crate::flags;
use crate::trap::{Exception, Trap, vector};

/// Physical address bits, as the CPU profiles tell guests.
const PHYSICAL_BITS: u32 = 39;

/// What an access wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    Read,
    Write,
    Execute,
}

impl Intent {
    fn as_access(self) -> Access {
        match self {
            Self::Read => Access::Read,
            Self::Write => Access::Write,
            Self::Execute => Access::Execute,
        }
    }
}

/// With whose rights an access is made (Intel SDM volume 3, section 5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rights {
    User,
    Supervisor,
    /// By the processor itself, to a descriptor table or a TSS: RFLAGS.AC does not help.
    Implicit,
}

/// What control registers say about translation.
#[derive(Clone, Copy, Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent bits of control registers"
)]
pub(crate) struct Paging {
    /// `None` without paging.
    format: Option<Format>,
    root: u64,
    write_protect: bool,
    smep: bool,
    smap: bool,
    /// Whether a page-fault code tells fetches from reads.
    fetch_flag: bool,
    /// 2-level paging without CR4.PSE, which ignores bit 7 of a directory entry.
    ignores_page_size: bool,
}

/// Where a page of linear addresses lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Translated {
    pub(crate) gpa: u64,
    /// Whether the translation depends on nothing but tables and control registers, so that it may be kept.
    pub(crate) lasting: bool,
}

/// Bits of a page-fault code (Intel SDM volume 3, section 5.7).
mod code {
    pub(super) const PRESENT: u32 = 1;
    pub(super) const WRITE: u32 = 2;
    pub(super) const USER: u32 = 4;
    pub(super) const RESERVED: u32 = 8;
    pub(super) const FETCH: u32 = 16;
}

impl Paging {
    /// What these registers mean; `None` for a kind of paging that is not emulated (PAE and 5-level).
    pub(crate) fn from_registers(special: &SpecialRegs) -> Option<Self> {
        let paged = special.cr0 & cr0::PG != 0;
        let format = if paged {
            let format = Format::from_registers(special.cr0, special.cr4, special.efer).ok()?;
            Some(format.with_physical_bits(PHYSICAL_BITS).unwrap_or(format))
        } else {
            None
        };
        let long = special.efer & efer::LMA != 0;
        let smep = special.cr4 & cr4::SMEP != 0;
        Some(Self {
            format,
            root: special.cr3 & 0x000F_FFFF_FFFF_F000 & if long { u64::MAX } else { 0xFFFF_FFFF },
            write_protect: special.cr0 & cr0::WP != 0,
            smep,
            smap: special.cr4 & cr4::SMAP != 0,
            fetch_flag: smep || special.efer & efer::NXE != 0 && special.cr4 & cr4::PAE != 0,
            ignores_page_size: !long && special.cr4 & cr4::PSE == 0,
        })
    }

    fn error_code(&self, intent: Intent, rights: Rights, reason: u32) -> u32 {
        let intent = match intent {
            Intent::Write => code::WRITE,
            Intent::Execute if self.fetch_flag => code::FETCH,
            Intent::Read | Intent::Execute => 0,
        };
        let user = if rights == Rights::User {
            code::USER
        } else {
            0
        };
        intent | user | reason
    }

    /// Whether the rights of all levels together forbid the access.
    fn forbids(&self, attrs: Attrs, intent: Intent, rights: Rights, override_smap: bool) -> bool {
        let user_page = attrs.contains(Attrs::USER);
        let writable = attrs.contains(Attrs::WRITE);
        let not_executable = intent == Intent::Execute && attrs.contains(Attrs::NO_EXECUTE);
        if not_executable || rights == Rights::User && !user_page {
            return true;
        }
        match (rights, intent) {
            (Rights::User, intent) => intent == Intent::Write && !writable,
            (_, Intent::Execute) => self.smep && user_page,
            (_, intent) => {
                let guarded = self.smap && user_page && !override_smap;
                guarded || intent == Intent::Write && self.write_protect && !writable
            }
        }
    }
}

/// An entry that a walk went through.
#[derive(Clone, Copy, Default)]
struct Visited {
    gpa: u64,
    raw: u64,
}

impl Cpu {
    /// Translates one linear address and marks the entries on the way as accessed.
    pub(crate) fn translate(
        &mut self,
        linear: u64,
        intent: Intent,
        rights: Rights,
    ) -> Result<Translated, Trap> {
        let Some(format) = self.paging.format else {
            return Ok(Translated {
                gpa: linear,
                lasting: true,
            });
        };
        if self.is_long_mode() && !is_canonical(linear) {
            return Err(self.raise(Exception {
                vector: vector::GP,
                error: Some(0),
                address: NOT_CANONICAL,
            }));
        }
        let mut level = format.root_level();
        let mut table = self.paging.root;
        let mut effective = Attrs::WRITE | Attrs::USER;
        let mut visited = [Visited::default(); 4];
        let mut count = 0;
        loop {
            let index = format.index(level, Gva::sign_extend(linear));
            let entry = table + index * format.entry_width().bytes();
            let raw = self.read_entry(entry, format)?;
            visited[count] = Visited { gpa: entry, raw };
            count += 1;
            let decoded = format.decode(level, self.paging.readable_entry(level, raw));
            match decoded {
                Ok(Entry::Absent { .. }) => {
                    return Err(self.page_fault(linear, intent, rights, 0));
                }
                Err(_) => {
                    let reason = code::PRESENT | code::RESERVED;
                    return Err(self.page_fault(linear, intent, rights, reason));
                }
                Ok(Entry::Table { table: next, attrs }) => {
                    effective = effective.restricted_by(attrs);
                    table = next.as_u64();
                    let Some(below) = level.below() else {
                        return Err(self.page_fault(linear, intent, rights, code::RESERVED));
                    };
                    level = below;
                }
                Ok(Entry::Leaf(leaf)) => {
                    effective = leaf.attrs.restricted_by(effective);
                    let ac = rights == Rights::Supervisor && self.flags.has(flags::AC);
                    if self.paging.forbids(effective, intent, rights, ac) {
                        return Err(self.page_fault(linear, intent, rights, code::PRESENT));
                    }
                    self.mark(&visited[..count], intent, format);
                    let offset = linear & (leaf.size.bytes() - 1);
                    let user_page = effective.contains(Attrs::USER);
                    let smap = self.paging.smap && user_page && rights != Rights::User;
                    return Ok(Translated {
                        gpa: leaf.frame.as_u64() + offset,
                        lasting: !smap || intent == Intent::Execute,
                    });
                }
            }
        }
    }

    /// Sets the accessed flag of every entry and, for a write, the dirty flag of the last. In memory that the guest may not write they stay
    /// as they are.
    fn mark(&mut self, visited: &[Visited], intent: Intent, format: Format) {
        let last = visited.len() - 1;
        for (index, entry) in visited.iter().enumerate() {
            let mut wanted = Attrs::ACCESSED.bits();
            if index == last && intent == Intent::Write {
                wanted |= Attrs::DIRTY.bits();
            }
            if entry.raw & wanted == wanted {
                continue;
            }
            let Some(page) = self.physical.writable(entry.gpa) else {
                continue;
            };
            let at = page.at(entry.gpa);
            let _ = match format.entry_width() {
                EntryWidth::Bytes8 => u64::compare_exchange(at, entry.raw, entry.raw | wanted),
                EntryWidth::Bytes4 => u32::compare_exchange(at, entry.raw, entry.raw | wanted),
            };
        }
    }

    fn read_entry(&mut self, gpa: u64, format: Format) -> Result<u64, Trap> {
        let Some(page) = self.physical.readable(gpa) else {
            return Err(self.memory_fault(gpa, Intent::Read, false));
        };
        let at = page.host.at(gpa);
        Ok(match format.entry_width() {
            EntryWidth::Bytes8 => u64::load(at),
            EntryWidth::Bytes4 => u32::load(at),
        }
        .unwrap_or(0))
    }

    #[cold]
    fn page_fault(&mut self, linear: u64, intent: Intent, rights: Rights, reason: u32) -> Trap {
        self.raise(Exception {
            vector: vector::PF,
            error: Some(self.paging.error_code(intent, rights, reason)),
            address: linear,
        })
    }

    #[cold]
    pub(super) fn memory_fault(&mut self, gpa: u64, intent: Intent, mapped: bool) -> Trap {
        if let Some(gpa) = self.physical.take_lost() {
            return self.exit(Exit::MemoryLost { gpa: Some(gpa) });
        }
        self.exit(Exit::MemoryFault {
            gpa,
            access: intent.as_access(),
            mapped,
        })
    }
}

impl Paging {
    /// An entry without what this kind of paging ignores.
    fn readable_entry(&self, level: Level, raw: u64) -> u64 {
        if self.ignores_page_size && level == Level::L2 {
            raw & !Attrs::PAT.bits()
        } else {
            raw
        }
    }
}

/// Stands in [`Exception::address`] of a #GP that would be a #SS, were the access one to the stack.
pub(crate) const NOT_CANONICAL: u64 = 1;

/// Whether bits 47 to 63 are equal.
#[inline]
pub(crate) fn is_canonical(address: u64) -> bool {
    matches!(address >> 47, 0 | 0x1_FFFF)
}

/// The first address of the page behind the one of `linear`.
pub(crate) fn next_page(linear: u64) -> u64 {
    (linear & !(PAGE_LEN_BYTES - 1)).wrapping_add(PAGE_LEN_BYTES)
}

//! Regions of guest memory: the driver's checks, pinned pages, and access bitmaps.
#![expect(unsafe_code, reason = "asks the kernel about the program's memory")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt as _;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use mshv_bindings::{mshv_gpap_access_bitmap, mshv_user_mem_region};

use crate::bytes;
use crate::device::last_error;
use crate::status::{Failure, Status};

const PAGE_LEN_BYTES: u64 = 4096;
const WRITABLE: u8 = 1;
const EXECUTABLE: u8 = 1 << 1;
const UNMAP: u8 = 1 << 2;
const KNOWN_FLAGS: u8 = WRITABLE | EXECUTABLE | UNMAP;
/// Larger regions are not populated, and so not watched: the double should not need the memory that a real machine would.
const MAX_WATCHED_LEN_BYTES: u64 = 256 << 20;
/// Pages that one request for access states may cover.
const MAX_BITMAP_PAGES: u64 = 0x1_0000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Clear,
    Set,
}

#[derive(Debug)]
struct Region {
    first_page: u64,
    pages: u64,
    host: u64,
    flags: u8,
    slot: u32,
    /// One bit for each page.
    accessed: Vec<u64>,
}

impl Region {
    const fn len_bytes(&self) -> u64 {
        self.pages * PAGE_LEN_BYTES
    }
}

/// The memory of one partition.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    regions: Vec<Region>,
    is_tracking: bool,
    pagemap: Option<File>,
}

impl Memory {
    pub(crate) fn set_region(&mut self, vm: &VmFd, argument: u64) -> Result<(), Failure> {
        let wanted: mshv_user_mem_region = bytes::read(argument)?;
        let is_wrong = wanted.size == 0
            || !wanted.size.is_multiple_of(PAGE_LEN_BYTES)
            || !wanted.userspace_addr.is_multiple_of(PAGE_LEN_BYTES)
            || wanted.flags & !KNOWN_FLAGS != 0
            || wanted.rsvd != [0; 7];
        if is_wrong {
            return Err(Failure::EINVAL);
        }
        if wanted.flags & UNMAP != 0 {
            return self.unmap(vm, &wanted);
        }
        self.map(vm, &wanted)
    }

    fn map(&mut self, vm: &VmFd, wanted: &mshv_user_mem_region) -> Result<(), Failure> {
        let pages = wanted.size / PAGE_LEN_BYTES;
        let overlap = self.regions.iter().any(|region| {
            let in_guest = overlaps(region.first_page, region.pages, wanted.guest_pfn, pages);
            let in_host = overlaps(
                region.host,
                region.len_bytes(),
                wanted.userspace_addr,
                wanted.size,
            );
            in_guest || in_host
        });
        if overlap {
            return Err(Failure::Errno(libc::EEXIST));
        }
        pin(wanted.userspace_addr, wanted.size)?;
        let slot = (0..u32::MAX)
            .find(|slot| self.regions.iter().all(|region| region.slot != *slot))
            .unwrap_or(0);
        let words = usize::try_from(pages.div_ceil(64)).map_err(|_| Failure::EINVAL)?;
        let region = Region {
            first_page: wanted.guest_pfn,
            pages,
            host: wanted.userspace_addr,
            flags: wanted.flags,
            slot,
            accessed: vec![u64::MAX; words],
        };
        set_slot(vm, &region, region.len_bytes(), self.is_tracking)?;
        self.regions.push(region);
        Ok(())
    }

    /// A region is taken away as it was given, or not at all.
    fn unmap(&mut self, vm: &VmFd, wanted: &mshv_user_mem_region) -> Result<(), Failure> {
        let at = self
            .regions
            .iter()
            .position(|region| {
                region.first_page == wanted.guest_pfn
                    && region.host == wanted.userspace_addr
                    && region.len_bytes() == wanted.size
            })
            .ok_or(Failure::EINVAL)?;
        set_slot(vm, &self.regions[at], 0, false)?;
        self.regions.remove(at);
        Ok(())
    }

    pub(crate) fn is_mapped(&self, gpa: u64) -> bool {
        self.region_at(gpa).is_some()
    }

    fn region_at(&self, gpa: u64) -> Option<&Region> {
        let page = gpa / PAGE_LEN_BYTES;
        self.regions
            .iter()
            .find(|region| (region.first_page..region.first_page + region.pages).contains(&page))
    }

    /// Whether code may be fetched from an address. KVM does not know; it is asked before each entry only.
    pub(crate) fn is_executable(&self, gpa: u64) -> bool {
        self.region_at(gpa)
            .is_none_or(|region| region.flags & EXECUTABLE != 0)
    }

    pub(crate) fn has_data_only_regions(&self) -> bool {
        self.regions
            .iter()
            .any(|region| region.flags & EXECUTABLE == 0)
    }

    /// One byte of guest memory.
    pub(crate) fn byte(&self, gpa: u64) -> Option<u8> {
        bytes::read(self.host_of(gpa)?).ok()
    }

    /// An aligned word of 64 bits.
    pub(crate) fn word(&self, gpa: u64) -> Option<u64> {
        bytes::read(self.host_of(gpa)?).ok()
    }

    fn host_of(&self, gpa: u64) -> Option<u64> {
        let region = self.region_at(gpa)?;
        Some(region.host + (gpa - region.first_page * PAGE_LEN_BYTES))
    }

    /// Turns access tracking on or off. Off it goes only when every bit is set again.
    pub(crate) fn track(&mut self, vm: &VmFd, is_wanted: bool) -> Result<(), Failure> {
        if self.is_tracking && !is_wanted {
            self.collect(vm)?;
            let is_all_set = self
                .regions
                .iter()
                .all(|region| (0..region.pages).all(|page| bit(&region.accessed, page)));
            if !is_all_set {
                return Err(Status::OPERATION_DENIED.into());
            }
        }
        self.is_tracking = is_wanted;
        for region in &mut self.regions {
            region.accessed.fill(u64::MAX);
            set_slot(vm, region, region.len_bytes(), is_wanted)?;
        }
        Ok(())
    }

    fn collect(&mut self, vm: &VmFd) -> Result<(), Failure> {
        for region in &mut self.regions {
            let len = usize::try_from(region.len_bytes()).map_err(|_| Failure::EINVAL)?;
            let log = vm.get_dirty_log(region.slot, len)?;
            for (word, new) in region.accessed.iter_mut().zip(log) {
                *word |= new;
            }
        }
        Ok(())
    }

    pub(crate) fn access_bitmap(&mut self, vm: &VmFd, argument: u64) -> Result<(), Failure> {
        let request: mshv_gpap_access_bitmap = bytes::read(argument)?;
        let (first, pages) = (request.gpap_base, request.page_count);
        let is_wrong = request.rsvd != [0; 6]
            || request.access_type > 1
            || request.access_op > 2
            || pages == 0
            || pages > MAX_BITMAP_PAGES
            || request.bitmap_ptr == 0;
        if is_wrong || !self.is_tracking {
            return Err(Failure::EINVAL);
        }
        // The driver of Linux 6.15 has no branch for "no operation" and sets.
        let operation = if request.access_op == 1 {
            Operation::Clear
        } else {
            Operation::Set
        };
        self.collect(vm)?;
        let region = self
            .regions
            .iter_mut()
            .find(|region| {
                region.first_page <= first && first + pages <= region.first_page + region.pages
            })
            .ok_or(Failure::EINVAL)?;
        let mut answer = vec![0_u64; usize::try_from(pages.div_ceil(64)).unwrap_or(0)];
        for page in 0..pages {
            let index = first - region.first_page + page;
            if bit(&region.accessed, index) {
                set_bit(&mut answer, page, true);
            }
            set_bit(&mut region.accessed, index, operation == Operation::Set);
        }
        let bytes: Vec<u8> = answer.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes::write_bytes(request.bitmap_ptr, &bytes)
    }

    /// Notices when pages have vanished from a mapped range: the guest of a real machine would keep the pinned ones, and host and guest would go
    /// different ways from then on.
    pub(crate) fn check_pins(&mut self) -> Result<(), Failure> {
        if self.pagemap.is_none() {
            self.pagemap = Some(File::open("/proc/self/pagemap")?);
        }
        let Some(pagemap) = &self.pagemap else {
            return Ok(());
        };
        let watched = self
            .regions
            .iter()
            .filter(|region| region.len_bytes() <= MAX_WATCHED_LEN_BYTES);
        for region in watched {
            if let Some(address) = first_absent(pagemap, region.host, region.len_bytes()) {
                let gpa = region.first_page * PAGE_LEN_BYTES + (address - region.host);
                eprintln!(
                    "mshv-double: the page at {address:#x} was taken from under the guest's {gpa:#x}, which is mapped and pinned"
                );
                return Err(Failure::Errno(libc::EFAULT));
            }
        }
        Ok(())
    }
}

fn overlaps(start: u64, len: u64, other_start: u64, other_len: u64) -> bool {
    start < other_start.saturating_add(other_len) && other_start < start.saturating_add(len)
}

fn bit(words: &[u64], index: u64) -> bool {
    let word = usize::try_from(index / 64).unwrap_or(usize::MAX);
    words
        .get(word)
        .is_some_and(|word| word >> (index % 64) & 1 != 0)
}

fn set_bit(words: &mut [u64], index: u64, value: bool) {
    let word = usize::try_from(index / 64).unwrap_or(usize::MAX);
    if let Some(word) = words.get_mut(word) {
        *word = *word & !(1 << (index % 64)) | u64::from(value) << (index % 64);
    }
}

fn set_slot(vm: &VmFd, region: &Region, len_bytes: u64, is_tracking: bool) -> Result<(), Failure> {
    let read_only = if region.flags & WRITABLE == 0 {
        KVM_MEM_READONLY
    } else {
        0
    };
    let logged = if is_tracking {
        KVM_MEM_LOG_DIRTY_PAGES
    } else {
        0
    };
    let slot = kvm_userspace_memory_region {
        slot: region.slot,
        flags: read_only | logged,
        guest_phys_addr: region.first_page * PAGE_LEN_BYTES,
        memory_size: len_bytes,
        userspace_addr: region.host,
    };
    // SAFETY: the program promises that the memory stays mapped as long as the region is; a range that goes earlier faults in the kernel, which
    // KVM reports.
    Ok(unsafe { vm.set_user_memory_region(slot) }?)
}

/// Pages are pinned for writing, whatever the guest may do: every page comes into being, private ones as copies, and a mapping that is not
/// writable is refused.
fn pin(host: u64, len_bytes: u64) -> Result<(), Failure> {
    let populated = len_bytes.min(MAX_WATCHED_LEN_BYTES);
    let address = usize::try_from(host).map_err(|_| Failure::EINVAL)?;
    let len = usize::try_from(populated).map_err(|_| Failure::EINVAL)?;
    // SAFETY: populating changes no content; the range is the program's own, and where it is not mapped the call fails.
    let result = unsafe {
        libc::madvise(
            std::ptr::with_exposed_provenance_mut(address),
            len,
            libc::MADV_POPULATE_WRITE,
        )
    };
    if result == 0 {
        return Ok(());
    }
    Err(match last_error() {
        Failure::Errno(libc::ENOMEM) if !is_mapped(address) => Failure::EINVAL,
        _ => Failure::Errno(libc::EFAULT),
    })
}

fn is_mapped(address: usize) -> bool {
    let mut resident = 0;
    // SAFETY: one page is asked about, one byte is written.
    let result = unsafe {
        libc::mincore(
            std::ptr::with_exposed_provenance_mut(address),
            4096,
            &raw mut resident,
        )
    };
    result == 0
}

/// `struct pm_scan_arg` and `struct page_region` (Linux `include/uapi/linux/fs.h`, since 6.7).
#[repr(C)]
#[derive(Default)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

#[repr(C)]
#[derive(Default)]
struct ScannedRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// The first page that is neither present nor swapped out. Kernels before Linux 6.7 are asked page by page.
fn first_absent(pagemap: &File, start: u64, len_bytes: u64) -> Option<u64> {
    const PAGEMAP_SCAN: u64 = 0xC060_6610;
    const PRESENT_OR_SWAPPED: u64 = 1 << 3 | 1 << 4;
    let mut found = ScannedRegion::default();
    let arguments = ScanArguments {
        size: size_of::<ScanArguments>() as u64,
        start,
        end: start + len_bytes,
        vec: (&raw mut found).expose_provenance() as u64,
        vec_len: 1,
        max_pages: 1,
        category_inverted: PRESENT_OR_SWAPPED,
        category_mask: PRESENT_OR_SWAPPED,
        return_mask: PRESENT_OR_SWAPPED,
        ..ScanArguments::default()
    };
    // SAFETY: both structures are laid out as the request says and live until it returns.
    let count = unsafe {
        libc::syscall(
            libc::SYS_ioctl,
            pagemap.as_raw_fd(),
            PAGEMAP_SCAN,
            &raw const arguments,
        )
    };
    if count < 0 {
        return first_absent_entry(pagemap, start, len_bytes);
    }
    (count > 0).then_some(found.start)
}

/// As `first_absent`, from the entries of the page map: a number of 64 bits for each page, of which bit 63 says present and bit 62 swapped out
/// (Linux `Documentation/admin-guide/mm/pagemap.rst`). Entries that cannot be read say nothing.
fn first_absent_entry(pagemap: &File, start: u64, len_bytes: u64) -> Option<u64> {
    const ENTRY_LEN_BYTES: usize = 8;
    const PRESENT_OR_SWAPPED: u64 = 0b11 << 62;
    let pages = usize::try_from(len_bytes / PAGE_LEN_BYTES).ok()?;
    let mut entries = vec![0; pages * ENTRY_LEN_BYTES];
    let offset = start / PAGE_LEN_BYTES * ENTRY_LEN_BYTES as u64;
    pagemap.read_exact_at(&mut entries, offset).ok()?;
    let absent = entries
        .chunks_exact(ENTRY_LEN_BYTES)
        .position(|entry| bytes::u64_at(entry, 0) & PRESENT_OR_SWAPPED == 0)?;
    Some(start + absent as u64 * PAGE_LEN_BYTES)
}

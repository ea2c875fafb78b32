//! The floor: KVM used directly, with nothing of Vellum in between.
#![expect(unsafe_code, reason = "gives memory to a bare KVM virtual machine")]

use std::marker::PhantomData;

use kvm_bindings::{KVM_MEM_READONLY, kvm_dtable, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vellum_backend::HostMemory;

use crate::ioctls::Slot;

const MEMORY_LEN_BYTES: u64 = 0x1_0000;
/// A program that does nothing but `out`.
const IDLER: u64 = 0x5000;
/// A program that writes a word into each of some pages before it does `out`.
const WRITER: u64 = 0x5100;
/// Where the writer finds how many pages it is to write.
const COUNT: u64 = 0x8000;
/// Where they lie: in the second to the fourth of the large pages.
const PAGES: u64 = 0x20_0000;
const PAGES_LEN_BYTES: u64 = 0x60_0000;
const PAGE_LEN_BYTES: u64 = 0x1000;
/// Present, writable, user, accessed, dirty.
const ENTRY: u64 = 0x67;
/// The same for a page of 2 MiB.
const LARGE_ENTRY: u64 = 0xE7;

/// A vCPU in ring 3 of long mode that does nothing but `out`, for ever.
pub(crate) struct BareVm {
    vcpu: VcpuFd,
    _vm: VmFd,
    memory: HostMemory,
}

impl BareVm {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Self::at(IDLER, MEMORY_LEN_BYTES)
    }

    fn at(code: u64, len_bytes: u64) -> anyhow::Result<Self> {
        let memory = HostMemory::zeroed(len_bytes)?;
        for (table, next) in [(0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000)] {
            memory.write_u64(table, next | ENTRY)?;
        }
        for page in 0..MEMORY_LEN_BYTES >> 12 {
            memory.write_u64(0x4000 + page * 8, page << 12 | ENTRY)?;
        }
        for large in 1..4 {
            memory.write_u64(0x3000 + large * 8, large << 21 | LARGE_ENTRY)?;
        }
        // A TSS whose bitmap allows ports 0 to 255, then: again: out 0xe0, eax; jmp again.
        memory.write(0x66, &0x68_u16.to_le_bytes())?;
        memory.write(0x68 + 32, &[0xFF])?;
        memory.write(IDLER, &[0xE7, 0xE0, 0xEB, 0xFC])?;
        memory.write(WRITER, &writer())?;
        let kvm = Kvm::new()?;
        let vm = kvm.create_vm()?;
        // SAFETY: the memory is kept beside the VM and dropped after it.
        unsafe { vm.set_user_memory_region(region(0, 0, len_bytes, &memory)) }?;
        let vcpu = vm.create_vcpu(0)?;
        vcpu.set_cpuid2(&kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?)?;
        enter_ring_three(&vcpu, code)?;
        Ok(Self {
            vcpu,
            _vm: vm,
            memory,
        })
    }

    /// One entry and exit.
    pub(crate) fn run(&mut self) -> anyhow::Result<()> {
        match self.vcpu.run()? {
            VcpuExit::IoOut(0xE0, _) => Ok(()),
            other => anyhow::bail!("the bare guest left with {other:?}"),
        }
    }
}

/// The writer's instructions.
fn writer() -> Vec<u8> {
    let program: [&[u8]; 8] = [
        &[0x8B, 0x0C, 0x25, 0x00, 0x80, 0x00, 0x00], // again: mov ecx, [COUNT]
        &[0xBF, 0x00, 0x00, 0x20, 0x00],             // mov edi, PAGES
        &[0x48, 0x89, 0x0F],                         // next: mov [rdi], rcx
        &[0x48, 0x81, 0xC7, 0x00, 0x10, 0x00, 0x00], // add rdi, PAGE_LEN_BYTES
        &[0xFF, 0xC9],                               // dec ecx
        &[0x75, 0xF2],                               // jnz next
        &[0xE7, 0xE0],                               // out 0xe0, eax
        &[0xEB, 0xE2],                               // jmp again
    ];
    program.concat()
}

/// A guest that writes pages, and a host that copies them back: what a cycle of restore and call cannot do without where the host puts
/// memory back.
pub(crate) struct BareWriter {
    vm: BareVm,
    pristine: HostMemory,
    pages: u64,
}

impl BareWriter {
    pub(crate) fn new(pages: u64) -> anyhow::Result<Self> {
        let vm = BareVm::at(WRITER, PAGES + PAGES_LEN_BYTES)?;
        vm.memory.write_u64(COUNT, pages)?;
        let pristine = HostMemory::zeroed(pages * PAGE_LEN_BYTES)?;
        // So that every page of it exists.
        for page in 0..pages {
            pristine.write_u64(page * PAGE_LEN_BYTES, 1)?;
        }
        Ok(Self {
            vm,
            pristine,
            pages,
        })
    }

    /// One that has not run yet, whose pages nobody has touched.
    pub(crate) fn untouched(pages: u64) -> anyhow::Result<Self> {
        let mut writer = Self::new(pages)?;
        writer.vm.memory.keep_pages_small()?;
        Ok(writer)
    }

    /// One entry.
    pub(crate) fn run(&mut self) -> anyhow::Result<()> {
        self.vm.run()
    }

    /// One entry, and the copies.
    pub(crate) fn cycle(&mut self) -> anyhow::Result<()> {
        self.vm.run()?;
        for page in 0..self.pages {
            let at = page * PAGE_LEN_BYTES;
            (self.vm.memory).copy_from(PAGES + at, &self.pristine, at, PAGE_LEN_BYTES)?;
        }
        Ok(())
    }
}

pub(crate) fn region(
    number: u32,
    gpa: u64,
    len_bytes: u64,
    memory: &HostMemory,
) -> kvm_userspace_memory_region {
    kvm_userspace_memory_region {
        slot: number,
        flags: 0,
        guest_phys_addr: gpa,
        memory_size: len_bytes,
        userspace_addr: memory.hva().as_u64(),
    }
}

fn enter_ring_three(vcpu: &VcpuFd, code: u64) -> anyhow::Result<()> {
    let mut sregs = vcpu.get_sregs()?;
    let segment = |selector, type_, long| kvm_segment {
        limit: 0xFFFF_FFFF,
        selector,
        type_,
        present: 1,
        dpl: 3,
        s: 1,
        g: 1,
        l: long,
        db: 1 - long,
        ..kvm_segment::default()
    };
    sregs.cs = segment(0x23, 11, 1);
    let data = segment(0x1B, 3, 0);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        limit: 0x68 + 32,
        type_: 11,
        present: 1,
        ..kvm_segment::default()
    };
    sregs.gdt = kvm_dtable::default();
    sregs.idt = kvm_dtable::default();
    sregs.cr0 = 0x8001_0033;
    sregs.cr3 = 0x1000;
    sregs.cr4 = 0x620;
    sregs.efer = 0xD00;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    regs.rip = code;
    regs.rsp = 0x9000;
    regs.rflags = 0x3002;
    Ok(vcpu.set_regs(&regs)?)
}

/// Memory for slots like those that a sandbox was seen to set.
pub(crate) struct BareSlots {
    slots: Vec<(Slot, HostMemory)>,
}

/// A VM with one vCPU and slots, and nothing in them. It lives as long as their memory.
pub(crate) struct Created<'a> {
    _vcpu: VcpuFd,
    _vm: VmFd,
    _memory: PhantomData<&'a BareSlots>,
}

impl BareSlots {
    pub(crate) fn new(slots: &[Slot]) -> anyhow::Result<Self> {
        let with_memory = |&slot: &Slot| Ok((slot, HostMemory::zeroed(slot.len_bytes)?));
        // A slot of no length is one that was removed.
        let slots = slots.iter().filter(|slot| slot.len_bytes > 0);
        Ok(Self {
            slots: slots.map(with_memory).collect::<anyhow::Result<_>>()?,
        })
    }

    /// Makes the VM, its vCPU and its slots: three kinds of request to KVM and no more.
    pub(crate) fn create(&self) -> anyhow::Result<Created<'_>> {
        let kvm = Kvm::new()?;
        let vm = kvm.create_vm()?;
        let mut gpa = 0x1000;
        for (number, (slot, memory)) in (0..).zip(&self.slots) {
            let mut region = region(number, gpa, slot.len_bytes, memory);
            region.flags = slot.flags & KVM_MEM_READONLY;
            // SAFETY: the memory outlives what is returned.
            unsafe { vm.set_user_memory_region(region) }?;
            gpa += slot.len_bytes;
        }
        Ok(Created {
            _vcpu: vm.create_vcpu(0)?,
            _vm: vm,
            _memory: PhantomData,
        })
    }
}

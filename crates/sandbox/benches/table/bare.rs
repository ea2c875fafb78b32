//! The floor: KVM used directly, with nothing of Vellum in between.
#![expect(unsafe_code, reason = "gives memory to a bare KVM virtual machine")]

use std::marker::PhantomData;

use kvm_bindings::{KVM_MEM_READONLY, kvm_dtable, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vellum_backend::HostMemory;

use crate::ioctls::Slot;

const MEMORY_LEN_BYTES: u64 = 0x1_0000;
const CODE: u64 = 0x5000;
/// Present, writable, user, accessed, dirty.
const ENTRY: u64 = 0x67;

/// A vCPU in ring 3 of long mode that does nothing but `out`, for ever.
pub(crate) struct BareVm {
    vcpu: VcpuFd,
    _vm: VmFd,
    _memory: HostMemory,
}

impl BareVm {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let memory = HostMemory::zeroed(MEMORY_LEN_BYTES)?;
        for (table, next) in [(0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000)] {
            memory.write_u64(table, next | ENTRY)?;
        }
        for page in 0..MEMORY_LEN_BYTES >> 12 {
            memory.write_u64(0x4000 + page * 8, page << 12 | ENTRY)?;
        }
        // A TSS whose bitmap allows ports 0 to 255, then: again: out 0xe0, eax; jmp again.
        memory.write(0x66, &0x68_u16.to_le_bytes())?;
        memory.write(0x68 + 32, &[0xFF])?;
        memory.write(CODE, &[0xE7, 0xE0, 0xEB, 0xFC])?;
        let kvm = Kvm::new()?;
        let vm = kvm.create_vm()?;
        // SAFETY: the memory is kept beside the VM and dropped after it.
        unsafe { vm.set_user_memory_region(region(0, 0, MEMORY_LEN_BYTES, &memory)) }?;
        let vcpu = vm.create_vcpu(0)?;
        vcpu.set_cpuid2(&kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?)?;
        enter_ring_three(&vcpu)?;
        Ok(Self {
            vcpu,
            _vm: vm,
            _memory: memory,
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

fn region(
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

fn enter_ring_three(vcpu: &VcpuFd) -> anyhow::Result<()> {
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
    regs.rip = CODE;
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

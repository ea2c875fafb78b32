//! What a sandbox of a snapshot asks the kernel for, asked for by hand: the least that any sandbox with these parts can cost.
#![expect(unsafe_code, reason = "gives memory to a bare KVM virtual machine")]

use anyhow::Context;
use kvm_bindings::{
    CpuId, KVM_CAP_X86_USER_SPACE_MSR, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, kvm_enable_cap,
    kvm_xcrs,
};
use kvm_ioctls::{Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};
use vellum_backend::{HostMemory, Piece, SealedMemory, SealedWriter};

use crate::bare::region;
use crate::ioctls::Slot;

const PAGE_LEN_BYTES: u64 = 0x1000;
/// Pages of the test guest's image, of what a call or two have written, of page tables with the frames around them.
const IMAGE_PAGES: u64 = 37;
const WRITTEN_PAGES: u64 = 2;
const TEMPLATE_PAGES: u64 = 18;
/// Where the last of these begins in scratch: behind input and output buffer.
const TEMPLATE_OFFSET: u64 = 0x2_2000;

/// What exists before the first sandbox.
pub(crate) struct BareSandboxes {
    kvm: Kvm,
    cpuid: CpuId,
    /// XCR0 of a guest that has AVX.
    xcrs: Option<kvm_xcrs>,
    slots: [Slot; 2],
    image: SealedMemory,
    written: SealedMemory,
    template: SealedMemory,
}

/// A VM that could run a guest. The memory goes last.
pub(crate) struct BareSandbox {
    _vcpu: VcpuFd,
    _vm: VmFd,
    _memory: HostMemory,
}

impl BareSandboxes {
    /// For slots like those that a sandbox was seen to set: image, then scratch.
    pub(crate) fn new(slots: &[Slot]) -> anyhow::Result<Self> {
        let &[image, scratch] = slots else {
            anyhow::bail!("a sandbox set {} slots and not two", slots.len());
        };
        let kvm = Kvm::new()?;
        let cpuid = described(&kvm)?;
        Ok(Self {
            xcrs: xcrs(&cpuid),
            cpuid,
            kvm,
            slots: [image, scratch],
            image: sealed(IMAGE_PAGES)?,
            written: sealed(WRITTEN_PAGES)?,
            template: sealed(TEMPLATE_PAGES)?,
        })
    }

    pub(crate) fn create(&self) -> anyhow::Result<BareSandbox> {
        let vm = self.kvm.create_vm()?;
        let mut vcpu = vm.create_vcpu(0)?;
        deny_msrs(&vm)?;
        vcpu.set_cpuid2(&self.cpuid)?;
        if let Some(xcrs) = &self.xcrs {
            vcpu.set_xcrs(xcrs)?;
        }
        let memory = self.map()?;
        let [image, scratch] = self.slots;
        // What the host writes: flags of the run page, a seed for the guest in a frame of the template, and the monitor's data.
        vcpu.set_kvm_immediate_exit(0);
        memory.write_u64(image.len_bytes + TEMPLATE_OFFSET, 1)?;
        memory.write_u64(memory.len_bytes() - 8, 1)?;
        let mut offset = 0;
        for (number, slot) in [(0, image), (1, scratch)] {
            let mut region = region(number, PAGE_LEN_BYTES + offset, slot.len_bytes, &memory);
            region.userspace_addr += offset;
            region.flags = slot.flags & KVM_MEM_READONLY;
            // SAFETY: the slots are parts of the memory, which is dropped after the VM.
            unsafe { vm.set_user_memory_region(region) }?;
            offset += slot.len_bytes;
        }
        Ok(BareSandbox {
            _vcpu: vcpu,
            _vm: vm,
            _memory: memory,
        })
    }

    fn map(&self) -> anyhow::Result<HostMemory> {
        let [image, scratch] = self.slots.map(|slot| slot.len_bytes);
        let layers = (IMAGE_PAGES + WRITTEN_PAGES) * PAGE_LEN_BYTES;
        let rest = scratch - TEMPLATE_OFFSET - self.template.len_bytes();
        Ok(HostMemory::of_pieces(&[
            whole(&self.image),
            whole(&self.written),
            Piece::Zeroes(image - layers + TEMPLATE_OFFSET),
            whole(&self.template),
            Piece::Zeroes(rest),
        ])?)
    }
}

/// The processor in as few leaves as guests are told: without a hypervisor's signature, for example, which KVM then looks for at 256 places.
fn described(kvm: &Kvm) -> anyhow::Result<CpuId> {
    const LEAVES: [(u32, u32); 8] = [
        (0, 0),
        (1, 0),
        (7, 0),
        (0xD, 0),
        (0xD, 2),
        (0x8000_0000, 0),
        (0x8000_0001, 0),
        (0x8000_0008, 0),
    ];
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    cpuid.retain(|leaf| LEAVES.contains(&(leaf.function, leaf.index)));
    Ok(cpuid)
}

/// With x87, SSE and AVX switched on, where CPUID leaf 1 announces AVX (Intel SDM volume 1, sections 13.3 and 14.3).
fn xcrs(cpuid: &CpuId) -> Option<kvm_xcrs> {
    let has_avx =
        (cpuid.as_slice().iter()).any(|leaf| leaf.function == 1 && leaf.ecx & 1 << 28 != 0);
    has_avx.then(|| {
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..kvm_xcrs::default()
        };
        xcrs.xcrs[0].value = 0b111;
        xcrs
    })
}

/// An image of the test guest's size, written to sealed memory and mapped: what loading one costs whatever its bytes say.
pub(crate) fn load_image() -> anyhow::Result<HostMemory> {
    Ok(sealed(IMAGE_PAGES)?.map()?)
}

fn sealed(pages: u64) -> anyhow::Result<SealedMemory> {
    const LARGEST_LEN: usize = 37 << 12;
    static BYTES: [u8; LARGEST_LEN] = [1; LARGEST_LEN];
    let len_bytes = pages * PAGE_LEN_BYTES;
    let bytes = BYTES.get(..usize::try_from(len_bytes)?);
    let bytes = bytes.context("more than the largest")?;
    let write = |writer: &mut SealedWriter<'_>| writer.write(0, bytes);
    Ok(SealedMemory::create("bare", len_bytes, write)?)
}

fn whole(memory: &SealedMemory) -> Piece<'_> {
    Piece::Sealed(memory, 0..memory.len_bytes())
}

/// Denies a guest all registers but a few.
fn deny_msrs(vm: &VmFd) -> anyhow::Result<()> {
    vm.enable_cap(&kvm_enable_cap {
        cap: KVM_CAP_X86_USER_SPACE_MSR,
        ..kvm_enable_cap::default()
    })?;
    let allow = |base| MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base,
        msr_count: 3,
        bitmap: &[0b111],
    };
    // SYSENTER, EFER and the registers behind it, FS and GS.
    let ranges = [allow(0x174), allow(0xC000_0080), allow(0xC000_0100)];
    Ok(vm.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges)?)
}

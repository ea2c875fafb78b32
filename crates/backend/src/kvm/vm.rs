//! One KVM VM with one vCPU.
#![expect(
    unsafe_code,
    reason = "gives host memory to the kernel and reads the kvm_run page"
)]

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_CAP_DIRTY_LOG_RING, KVM_CAP_X86_USER_SPACE_MSR, KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY, kvm_enable_cap, kvm_msr_entry, kvm_sregs, kvm_userspace_memory_region,
    kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{
    MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, SyncReg, VcpuFd, VmFd,
};
use vellum_layout::{Gpa, GpaRange};
use vmm_sys_util::{errno, ioctl_io_nr};

use super::DIRTY_RING_ENTRY_LEN_BYTES;
use super::dirty::DirtyRing;
use super::interrupt::KvmInterrupter;
use super::vcpu::{Decoded, decode, decode_io, decode_out, item_of};
use super::{registers, shadow};
use crate::collected::Collected;
use crate::hyperv::validate_for_hyperv;
use crate::hypervisor::{IRQCHIP_HOLES, Irqchip, KVM_TSS_PAGES, Tracking, VmConfig};
use crate::memory::Hva;
use crate::msr;
use crate::slots::{Slot, Slots};
use crate::state::{Msrs, SpecialRegs, StateGroup, VcpuState, XSAVE_LEN_BYTES, Xcr0, XsaveArea};
use crate::vm::{Capabilities, Exit, Interrupter, IoWidth, Mmu, Protection, Vm, VmError};

ioctl_io_nr!(KVM_RUN, kvm_bindings::KVMIO, 0x80);
ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, kvm_bindings::KVMIO, 0xC7);

/// A VM of [`super::Kvm`].
#[derive(Debug)]
pub struct KvmVm {
    // The order of the fields is the order of dropping: ring and vCPU before the VM.
    ring: Option<DirtyRing>,
    vcpu: VcpuFd,
    vm: VmFd,
    capabilities: Capabilities,
    slots: Slots,
    interrupter: Arc<KvmInterrupter>,
    pending: Pending,
    tracking: Tracking,
    /// Entries of the ring that were collected since it was last reset.
    unreset: u32,
    /// Pages collected from a ring that was full, or from a bitmap that was about to vanish, until somebody takes them.
    collected: Collected,
    /// The special registers that were set last, and what KVM was given for them.
    last_special: Option<Box<(SpecialRegs, kvm_sregs)>>,
}

/// How many exits one instruction can cause until KVM goes on without a further one: its emulator pauses a repeated string
/// instruction after 1024 items, each of which may read and write in two parts (Linux `arch/x86/kvm/emulate.c`,
/// `x86_emulate_insn`).
const MAX_COMPLETIONS: u32 = 4 * 1024 + 1;

/// What the last exit left for the next entry to complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    Nothing,
    /// The kernel may still have to step over an instruction.
    Completion,
    /// An `in` waits for its value.
    Input(IoWidth),
}

impl KvmVm {
    pub(super) fn create(
        device: &kvm_ioctls::Kvm,
        capabilities: &Capabilities,
        cpuid: &CpuId,
        config: &VmConfig,
    ) -> Result<Self, VmError> {
        let vm = retry(|| device.create_vm())
            .map_err(|error| VmError::hypervisor("KVM_CREATE_VM", error))?;
        let ring_pages = match config.tracking {
            Tracking::FirstWrites if capabilities.dirty_ring_pages == 0 => {
                return Err(VmError::hypervisor(
                    "tracking first writes, which needs KVM_CAP_DIRTY_LOG_RING (linux 5.11),",
                    io::ErrorKind::Unsupported,
                ));
            }
            Tracking::FirstWrites => capabilities.dirty_ring_pages,
            Tracking::Bitmap | Tracking::None => 0,
        };
        enable_dirty_ring(&vm, ring_pages)?;
        if config.irqchip == Irqchip::InKernel {
            create_irqchip(&vm)?;
        }
        let vcpu = vm
            .create_vcpu(0)
            .map_err(|error| VmError::hypervisor("KVM_CREATE_VCPU", error))?;
        if capabilities.msr_filter {
            // Behind the vCPU, whose creation takes ten times as long in a VM that has a filter (measured on AMD; Linux
            // `arch/x86/kvm/svm/svm.c` asks the filter about each register while it resets the vCPU).
            deny_undeclared_msrs(&vm)?;
        }
        vcpu.set_cpuid2(cpuid)
            .map_err(|error| VmError::hypervisor("KVM_SET_CPUID2", error))?;
        let file = borrowed_file(&vcpu);
        let interrupter = KvmInterrupter::new(&file)
            .map_err(|error| VmError::hypervisor("mapping the kvm_run page", error))?;
        let ring = match ring_pages {
            0 => None,
            pages => Some(
                DirtyRing::map(&file, pages)
                    .map_err(|error| VmError::hypervisor("mapping the dirty ring", error))?,
            ),
        };
        Ok(Self {
            ring,
            vcpu,
            vm,
            capabilities: capabilities.clone(),
            slots: Slots::with_holes(match config.irqchip {
                Irqchip::None => &[],
                Irqchip::InKernel => &IRQCHIP_HOLES,
            }),
            interrupter: Arc::new(interrupter),
            pending: Pending::Nothing,
            tracking: config.tracking,
            unreset: 0,
            collected: Collected::new(),
            last_special: None,
        })
    }

    fn set_slot(&self, slot: &Slot, len_bytes: u64) -> Result<(), VmError> {
        let flags = match (slot.protection, self.tracking) {
            (Protection::ReadOnly, _) => KVM_MEM_READONLY,
            (Protection::Write, _) | (Protection::TrackedWrite, Tracking::None) => 0,
            (Protection::TrackedWrite, Tracking::FirstWrites | Tracking::Bitmap) => {
                KVM_MEM_LOG_DIRTY_PAGES
            }
        };
        let region = kvm_userspace_memory_region {
            slot: slot.number,
            flags,
            guest_phys_addr: slot.gpa.start().as_u64(),
            memory_size: len_bytes,
            userspace_addr: slot.host.as_u64(),
        };
        // SAFETY: by the contract of `Vm::map` the host memory outlives the slot; slots do not overlap (`Slots::plan`).
        unsafe { self.vm.set_user_memory_region(region) }
            .map_err(|error| VmError::hypervisor("KVM_SET_USER_MEMORY_REGION", error))
    }

    /// Collects what was reported since the last time.
    fn collect(&mut self) -> Result<(), VmError> {
        match self.tracking {
            Tracking::FirstWrites => self.collect_ring(),
            Tracking::Bitmap => self.collect_bitmaps(),
            Tracking::None => Ok(()),
        }
    }

    /// The kernel stops a guest before its ring is full. Where every entry is new, the ring was overrun, and what the kernel wrote
    /// over is lost.
    fn collect_ring(&mut self) -> Result<(), VmError> {
        let Some(ring) = &mut self.ring else {
            return Ok(());
        };
        let mut count = 0;
        while let Some((slot, page)) = ring.pop() {
            count += 1;
            if let Some(page) = self.slots.page(slot, page) {
                self.collected.push(page);
            }
        }
        if count >= self.capabilities.dirty_ring_pages {
            return Err(ring_overrun());
        }
        self.unreset = self.unreset.saturating_add(count);
        Ok(())
    }

    fn collect_bitmaps(&mut self) -> Result<(), VmError> {
        for slot in self.slots.tracked() {
            let len = usize::try_from(slot.gpa.len_bytes()).unwrap_or(usize::MAX);
            let words = self
                .vm
                .get_dirty_log(slot.number, len)
                .map_err(|error| VmError::hypervisor("KVM_GET_DIRTY_LOG", error))?;
            self.collected.push_bits(slot.gpa, words);
        }
        Ok(())
    }

    /// Empties a ring that is full, so that the guest can go on. One that is full of nothing that was collected since it was last reset
    /// was overrun earlier.
    #[cold]
    fn reset_full_ring(&mut self) -> Result<(), VmError> {
        self.collect_ring()?;
        if self.unreset == 0 {
            return Err(ring_overrun());
        }
        self.reset_ring()
    }

    /// Write-protects the pages again that were collected.
    fn reset_ring(&mut self) -> Result<(), VmError> {
        // SAFETY: the request takes no argument and touches no memory but the ring, which is collected.
        let result = unsafe { vmm_sys_util::ioctl::ioctl(&self.vm, KVM_RESET_DIRTY_RINGS()) };
        if result < 0 {
            return Err(VmError::hypervisor(
                "KVM_RESET_DIRTY_RINGS",
                io::Error::last_os_error(),
            ));
        }
        self.unreset = 0;
        Ok(())
    }

    fn get_xsave(&self) -> Result<XsaveArea, VmError> {
        let area = self
            .vcpu
            .get_xsave()
            .map_err(|error| VmError::hypervisor("KVM_GET_XSAVE", error))?;
        let mut bytes = [0; XSAVE_LEN_BYTES];
        for (target, word) in bytes.chunks_exact_mut(4).zip(area.region) {
            target.copy_from_slice(&word.to_ne_bytes());
        }
        Ok(XsaveArea::from_bytes(bytes))
    }

    fn set_xsave(&self, xsave: &XsaveArea) -> Result<(), VmError> {
        let mut area = kvm_xsave::default();
        for (word, source) in area.region.iter_mut().zip(xsave.as_bytes().chunks_exact(4)) {
            *word = u32::from_ne_bytes([source[0], source[1], source[2], source[3]]);
        }
        registers::write_out_legacy_state(&mut area.region);
        // SAFETY: the kernel reads 4096 bytes, the size of `region`, as long as no component beyond them was requested for
        // this process with `arch_prctl`, which nothing here does.
        unsafe { self.vcpu.set_xsave(&area) }
            .map_err(|error| VmError::hypervisor("KVM_SET_XSAVE", error))
    }

    fn get_msrs(&self) -> Result<Msrs, VmError> {
        let mut values = Msrs::default();
        let mut list = msr_list(&values)?;
        let read = self
            .vcpu
            .get_msrs(&mut list)
            .map_err(|error| VmError::hypervisor("KVM_GET_MSRS", error))?;
        if let Some(&index) = msr::DECLARED.get(read) {
            return Err(VmError::Msr { index });
        }
        for entry in list.as_slice() {
            values.set(entry.index, entry.data);
        }
        Ok(values)
    }

    fn set_msrs(&self, values: &Msrs) -> Result<(), VmError> {
        let list = msr_list(values)?;
        let written = self
            .vcpu
            .set_msrs(&list)
            .map_err(|error| VmError::hypervisor("KVM_SET_MSRS", error))?;
        match msr::DECLARED.get(written) {
            Some(&index) => Err(VmError::Msr { index }),
            None => Ok(()),
        }
    }

    fn set_special(&mut self, state: &VcpuState) -> Result<(), VmError> {
        let sregs = self.checked_special(&state.special)?;
        // Without a local APIC of its own KVM takes CR8 from here at each entry, after the special registers.
        self.vcpu.get_kvm_run().cr8 = state.special.cr8;
        if self.capabilities.sync_regs {
            self.vcpu.sync_regs_mut().sregs = sregs;
            self.vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
            return Ok(());
        }
        self.vcpu
            .set_sregs(&sregs)
            .map_err(|error| VmError::hypervisor("KVM_SET_SREGS", error))
    }

    /// The special registers as KVM takes them, checked. As a rule they are those that were set the last time.
    fn checked_special(&mut self, special: &SpecialRegs) -> Result<kvm_sregs, VmError> {
        if let Some((known, sregs)) = self.last_special.as_deref()
            && known == special
        {
            return Ok(*sregs);
        }
        validate_for_hyperv(special).map_err(VmError::InvalidState)?;
        let sregs = registers::special_to_kvm(special);
        self.last_special = Some(Box::new((*special, sregs)));
        Ok(sregs)
    }

    fn set_general(&mut self, state: &VcpuState) -> Result<(), VmError> {
        let regs = registers::gprs_to_kvm(&state.general);
        if self.capabilities.sync_regs {
            self.vcpu.sync_regs_mut().regs = regs;
            self.vcpu.set_sync_dirty_reg(SyncReg::Register);
            return Ok(());
        }
        self.vcpu
            .set_regs(&regs)
            .map_err(|error| VmError::hypervisor("KVM_SET_REGS", error))
    }

    /// Decodes the exit of a guest that leaves as Vellum's do.
    #[inline]
    fn decode_out(&mut self) -> Option<Exit> {
        let run = self.vcpu.get_kvm_run();
        decode_out(run, item_of(run))
    }

    /// Goes on behind an entry that ended in any other way, until an exit that is the caller's.
    #[inline(never)]
    fn run_on(&mut self, mut entered: Result<(), i32>) -> Result<Exit, VmError> {
        let exit = loop {
            let run = self.vcpu.get_kvm_run();
            if entered.is_ok()
                && let Some(exit) = decode_io(run, item_of(run))
            {
                break exit;
            }
            if let Some(exit) = self.other_exit(entered)? {
                break exit;
            }
            entered = enter(&self.vcpu);
        };
        self.pending = match exit {
            Exit::IoIn { width, .. } => Pending::Input(width),
            Exit::Interrupted => Pending::Nothing,
            _ => Pending::Completion,
        };
        Ok(exit)
    }

    /// What an entry ended with that did not end with a port access; `None` when the guest is to be entered again.
    #[cold]
    fn other_exit(&mut self, entered: Result<(), i32>) -> Result<Option<Exit>, VmError> {
        match entered {
            Ok(()) => match decode(self.vcpu.get_kvm_run(), |gpa| self.slots.is_mapped(gpa)) {
                Decoded::Exit(exit) => return Ok(Some(exit)),
                Decoded::DirtyRingFull => self.reset_full_ring()?,
            },
            Err(libc::EAGAIN) => {}
            Err(libc::EINTR) => return Ok(Some(Exit::Interrupted)),
            Err(libc::EFAULT) => return Ok(Some(self.lost_memory())),
            Err(errno) => {
                let error = io::Error::from_raw_os_error(errno);
                return Err(VmError::hypervisor("KVM_RUN", error));
            }
        }
        Ok(None)
    }

    /// The host has no memory behind what the guest accessed. Kernels before KVM_EXIT_MEMORY_FAULT (Linux 6.8) say no more.
    fn lost_memory(&mut self) -> Exit {
        match decode(self.vcpu.get_kvm_run(), |_| false) {
            Decoded::Exit(exit @ Exit::MemoryLost { .. }) => exit,
            _ => Exit::MemoryLost { gpa: None },
        }
    }

    /// Whether `register` was written to the shared page and not yet taken from there by the kernel.
    fn is_staged(&mut self, register: SyncReg) -> bool {
        self.vcpu.get_kvm_run().kvm_dirty_regs & register as u64 != 0
    }
}

impl Vm for KvmVm {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    unsafe fn map(
        &mut self,
        gpa: GpaRange,
        host: Hva,
        protection: Protection,
    ) -> Result<(), VmError> {
        let slot = self.slots.plan(gpa, host, protection)?;
        self.set_slot(&slot, gpa.len_bytes())?;
        self.slots.insert(slot);
        Ok(())
    }

    fn unmap(&mut self, gpa: GpaRange) -> Result<(), VmError> {
        let slot = self.slots.exact(gpa)?;
        self.collect()?;
        self.collected.forget(gpa);
        self.set_slot(&slot, 0)?;
        self.slots.remove(slot.number);
        Ok(())
    }

    fn run(&mut self) -> Result<Exit, VmError> {
        if let Pending::Input(_) = self.pending {
            return Err(VmError::InputPending);
        }
        let entered = enter(&self.vcpu);
        if entered.is_ok()
            && let Some(exit) = self.decode_out()
        {
            self.pending = Pending::Completion;
            return Ok(exit);
        }
        self.run_on(entered)
    }

    fn complete_io_in(&mut self, data: u32) -> Result<(), VmError> {
        let Pending::Input(width) = self.pending else {
            return Err(VmError::NoPendingInput);
        };
        let len_bytes = width.len_bytes();
        let run = self.vcpu.get_kvm_run();
        // SAFETY: the last exit was KVM_EXIT_IO, so that member of the union is the one that is set.
        let offset = unsafe { run.__bindgen_anon_1.io.data_offset };
        let base = std::ptr::from_mut(run).cast::<u8>();
        let bytes = data.to_le_bytes();
        // SAFETY: the kernel placed the data at this offset of the mapped kvm_run area, with room for `width`.
        unsafe {
            let target = base.add(usize::try_from(offset).unwrap_or(0));
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, len_bytes);
        }
        self.pending = Pending::Completion;
        Ok(())
    }

    fn settle(&mut self) -> Result<(), VmError> {
        if let Pending::Input(_) = self.pending {
            self.complete_io_in(0)?;
        }
        if self.pending == Pending::Nothing
            && !self.is_staged(SyncReg::Register)
            && !self.is_staged(SyncReg::SystemRegister)
        {
            return Ok(());
        }
        for _ in 0..MAX_COMPLETIONS {
            let Self {
                interrupter, vcpu, ..
            } = self;
            match interrupter.with_immediate_exit(|| enter(vcpu)) {
                // Another part of the same instruction.
                Ok(()) => {}
                Err(libc::EINTR) => {
                    self.pending = Pending::Nothing;
                    return Ok(());
                }
                Err(errno) => {
                    let error = io::Error::from_raw_os_error(errno);
                    return Err(VmError::hypervisor("KVM_RUN to settle", error));
                }
            }
        }
        Err(VmError::hypervisor(
            "KVM_RUN to settle",
            io::ErrorKind::Unsupported,
        ))
    }

    fn get_state(&mut self, group: StateGroup, state: &mut VcpuState) -> Result<(), VmError> {
        match group {
            StateGroup::General if self.is_staged(SyncReg::Register) => {
                state.general = registers::gprs_from_kvm(&self.vcpu.sync_regs_mut().regs);
            }
            StateGroup::General => {
                let regs = self
                    .vcpu
                    .get_regs()
                    .map_err(|error| VmError::hypervisor("KVM_GET_REGS", error))?;
                state.general = registers::gprs_from_kvm(&regs);
            }
            StateGroup::Special if self.is_staged(SyncReg::SystemRegister) => {
                state.special = registers::special_from_kvm(&self.vcpu.sync_regs_mut().sregs);
            }
            StateGroup::Special => {
                let sregs = self
                    .vcpu
                    .get_sregs()
                    .map_err(|error| VmError::hypervisor("KVM_GET_SREGS", error))?;
                state.special = registers::special_from_kvm(&sregs);
            }
            StateGroup::Xsave => state.xsave = self.get_xsave()?,
            StateGroup::Xcr0 => {
                let xcrs = self
                    .vcpu
                    .get_xcrs()
                    .map_err(|error| VmError::hypervisor("KVM_GET_XCRS", error))?;
                state.xcr0 = xcrs.xcrs.first().map_or(Xcr0::RESET, |xcr| Xcr0(xcr.value));
            }
            StateGroup::Debug => {
                let debug = self
                    .vcpu
                    .get_debug_regs()
                    .map_err(|error| VmError::hypervisor("KVM_GET_DEBUGREGS", error))?;
                state.debug = registers::debug_from_kvm(&debug);
            }
            StateGroup::Msrs => state.msrs = self.get_msrs()?,
            StateGroup::Events => {
                let events = self
                    .vcpu
                    .get_vcpu_events()
                    .map_err(|error| VmError::hypervisor("KVM_GET_VCPU_EVENTS", error))?;
                state.events = registers::events_from_kvm(&events);
            }
        }
        Ok(())
    }

    fn set_state(&mut self, group: StateGroup, state: &VcpuState) -> Result<(), VmError> {
        match group {
            StateGroup::General => self.set_general(state),
            StateGroup::Special => self.set_special(state),
            StateGroup::Xsave => self.set_xsave(&state.xsave),
            StateGroup::Xcr0 => {
                let mut xcrs = kvm_xcrs {
                    nr_xcrs: 1,
                    ..kvm_xcrs::default()
                };
                xcrs.xcrs[0].value = state.xcr0.0;
                self.vcpu
                    .set_xcrs(&xcrs)
                    .map_err(|error| VmError::hypervisor("KVM_SET_XCRS", error))
            }
            StateGroup::Debug => self
                .vcpu
                .set_debug_regs(&registers::debug_to_kvm(&state.debug))
                .map_err(|error| VmError::hypervisor("KVM_SET_DEBUGREGS", error)),
            StateGroup::Msrs => self.set_msrs(&state.msrs),
            StateGroup::Events => self
                .vcpu
                .set_vcpu_events(&registers::events_to_kvm(&state.events))
                .map_err(|error| VmError::hypervisor("KVM_SET_VCPU_EVENTS", error)),
        }
    }

    fn interrupter(&self) -> Arc<dyn Interrupter> {
        self.interrupter.clone()
    }

    fn take_dirty(&mut self, page: &mut dyn FnMut(Gpa)) -> Result<(), VmError> {
        self.collect()?;
        self.collected.take().for_each(page);
        Ok(())
    }

    /// Reading a bitmap re-arms it.
    fn rearm_dirty(&mut self) -> Result<(), VmError> {
        if self.ring.is_none() {
            return Ok(());
        }
        self.collect_ring()?;
        self.reset_ring()
    }

    /// KVM derives nothing from a slot's absence: taking one away drops the whole shadow (Linux
    /// `arch/x86/kvm/mmu/mmu.c`, `kvm_mmu_zap_all_fast`). The smallest slot costs least.
    fn publish_tables(&mut self) -> Result<(), VmError> {
        if self.capabilities.mmu == Mmu::Nested {
            return Ok(());
        }
        let Some(slot) = self.slots.smallest() else {
            return Ok(());
        };
        // A slot takes its bitmap along.
        self.collect()?;
        self.set_slot(&slot, 0)?;
        self.set_slot(&slot, slot.gpa.len_bytes())
    }

    /// The shadow's translations to a page are dropped when the host changes its own mapping of the page; the next access then
    /// walks the guest's tables anew.
    fn publish_remap(&mut self, targets: GpaRange) -> Result<(), VmError> {
        let host = self.slots.host_of(targets)?;
        match self.capabilities.mmu {
            Mmu::Nested => Ok(()),
            Mmu::Shadow => shadow::forget_derived(host, targets.len_bytes())
                .map_err(|error| VmError::hypervisor("publishing page tables", error)),
        }
    }
}

/// Enters the guest until it leaves, or says by which error number it did not.
#[inline]
fn enter(vcpu: &VcpuFd) -> Result<(), i32> {
    // SAFETY: the request takes no argument; the memory that the guest uses is lent to the VM for as long as it has it.
    if unsafe { vmm_sys_util::ioctl::ioctl(vcpu, KVM_RUN()) } == 0 {
        return Ok(());
    }
    // A system call that failed has set it.
    Err(io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

fn enable_dirty_ring(vm: &VmFd, ring_pages: u32) -> Result<(), VmError> {
    if ring_pages == 0 {
        return Ok(());
    }
    enable(
        vm,
        KVM_CAP_DIRTY_LOG_RING,
        u64::from(ring_pages * DIRTY_RING_ENTRY_LEN_BYTES),
    )
    .map_err(|error| VmError::hypervisor("enabling the dirty ring", error))
}

/// Must come before the vCPU, which gets a local APIC with it.
fn create_irqchip(vm: &VmFd) -> Result<(), VmError> {
    let tss = usize::try_from(KVM_TSS_PAGES.range.start().as_u64()).unwrap_or(0);
    vm.set_tss_address(tss)
        .map_err(|error| VmError::hypervisor("KVM_SET_TSS_ADDR", error))?;
    vm.create_irq_chip()
        .map_err(|error| VmError::hypervisor("KVM_CREATE_IRQCHIP", error))
}

/// Denies every MSR that is not declared: the guest gets #GP (Linux `Documentation/virt/kvm/api.rst`, section 4.97).
fn deny_undeclared_msrs(vm: &VmFd) -> Result<(), VmError> {
    // One bit a register, from the first of a range on; each range costs an allocation in the kernel.
    const ALLOW_THREE: [u8; 1] = [0b111];
    const ALLOW_FIVE: [u8; 1] = [0b1_1111];
    // Without this the kernel would answer denied accesses itself in the same way; it is stated for older kernels.
    enable(vm, KVM_CAP_X86_USER_SPACE_MSR, 0)
        .map_err(|error| VmError::hypervisor("denying user-space msr exits", error))?;
    let range = |base, msr_count, bitmap| MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base,
        msr_count,
        bitmap,
    };
    vm.set_msr_filter(
        MsrFilterDefaultAction::DENY,
        &[
            range(msr::IA32_SYSENTER_CS, 3, &ALLOW_THREE),
            // With STAR, LSTAR, CSTAR and FMASK, which follow it.
            range(msr::IA32_EFER, 5, &ALLOW_FIVE),
            range(msr::IA32_FS_BASE, 3, &ALLOW_THREE),
        ],
    )
    .map_err(|error| VmError::hypervisor("KVM_X86_SET_MSR_FILTER", error))
}

fn ring_overrun() -> VmError {
    VmError::hypervisor(
        "tracking first writes in a ring, which was overrun,",
        io::ErrorKind::QuotaExceeded,
    )
}

fn enable(vm: &VmFd, cap: u32, argument: u64) -> Result<(), errno::Error> {
    let mut request = kvm_enable_cap {
        cap,
        ..kvm_enable_cap::default()
    };
    request.args[0] = argument;
    vm.enable_cap(&request)
}

fn msr_list(values: &Msrs) -> Result<kvm_bindings::Msrs, VmError> {
    let entries: Vec<kvm_msr_entry> = values
        .iter()
        .map(|msr| kvm_msr_entry {
            index: msr.index,
            data: msr.value,
            ..kvm_msr_entry::default()
        })
        .collect();
    kvm_bindings::Msrs::from_entries(&entries)
        .map_err(|_| VmError::hypervisor("building the msr list", io::ErrorKind::InvalidInput))
}

/// `KVM_CREATE_VM` may be interrupted by a signal.
fn retry<T>(mut create: impl FnMut() -> Result<T, errno::Error>) -> Result<T, errno::Error> {
    loop {
        match create() {
            Err(error) if error.errno() == libc::EINTR => {}
            other => return other,
        }
    }
}

/// The vCPU's descriptor as a file that does not close it.
fn borrowed_file(vcpu: &VcpuFd) -> ManuallyDrop<File> {
    // SAFETY: the descriptor is open as long as `vcpu`, which outlives the returned value in `create`; `ManuallyDrop` keeps
    // the file from closing it.
    ManuallyDrop::new(unsafe { File::from_raw_fd(vcpu.as_raw_fd()) })
}

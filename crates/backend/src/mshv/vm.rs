//! One partition with one virtual processor.
#![expect(unsafe_code, reason = "maps the register page")]

use std::io;
use std::sync::Arc;

use mshv_bindings::{
    MSHV_GPAP_ACCESS_OP_CLEAR, MSHV_SET_MEM_BIT_EXECUTABLE, MSHV_SET_MEM_BIT_WRITABLE,
    MSHV_VP_STATE_XSAVE,
    hv_partition_property_code_HV_PARTITION_PROPERTY_GPA_PAGE_ACCESS_TRACKING as PAGE_ACCESS_TRACKING,
    hv_partition_property_code_HV_PARTITION_PROPERTY_MAX_XSAVE_DATA_SIZE as MAX_XSAVE_DATA_SIZE,
    hv_partition_property_code_HV_PARTITION_PROPERTY_SYNTHETIC_PROC_FEATURES as SYNTHETIC_PROC_FEATURES,
    mshv_create_partition_v2, mshv_get_set_vp_state, mshv_user_mem_region,
};
use mshv_ioctls::{VcpuFd, VmFd};
use vellum_layout::{Gpa, GpaRange, PAGE_SIZE};

use super::hypercall::{failed, get_registers, retry, set_registers};
use super::interrupt::MshvInterrupter;
use super::message::{self, Message};
use super::page::SharedPage;
use super::registers::{self, Register};
use super::xsave::XsaveFormat;
use super::{Machine, assumed_capabilities, cpuid, msrs};
use crate::collected::Collected;
use crate::cpuid::CpuidLeaf;
use crate::hyperv::validate_for_hyperv;
use crate::hypervisor::{Irqchip, Tracking, VmConfig};
use crate::memory::Hva;
use crate::slots::{Slot, Slots};
use crate::state::{StateGroup, VcpuState, Xcr0, XsaveArea};
use crate::vm::{Capabilities, Exit, Interrupter, IoWidth, Mmu, Protection, Vm, VmError};

const PAGE_LEN: usize = 4096;

/// A page of a buffer that the kernel wants to be aligned.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_LEN]);

/// A VM of [`super::Mshv`].
#[derive(Debug)]
pub struct MshvVm {
    // The order of the fields is the order of dropping: the register page is used by nobody once the vCPU is gone, and the vCPU goes
    // before the partition.
    page: Option<SharedPage>,
    vcpu: VcpuFd,
    partition: VmFd,
    capabilities: Capabilities,
    slots: Slots,
    interrupter: Arc<MshvInterrupter>,
    /// An `in` that waits for its value: its width, and RAX before it.
    input: Option<(IoWidth, u64)>,
    /// Whether the last entry ended with a message, after which the register page is known to hold what the vCPU holds.
    has_message: bool,
    xsave: XsaveFormat,
    buffer: Vec<Page>,
    resettable: Vec<Register>,
    tracking: Tracking,
    /// Pages of a range that was taken away for a moment, until somebody takes them.
    collected: Collected,
    translations: Translations,
}

/// What the vCPU may have cached of the guest's page tables. Writing CR3 from outside does not flush it
/// (Top-Level Functional Specification, `HvCallSetVpRegisters`: side effects are not performed).
#[derive(Debug, Default)]
struct Translations {
    /// CR3 as it was last written.
    root: Option<u64>,
    has_run: bool,
    are_stale: bool,
}

impl Translations {
    fn set_root(&mut self, root: u64) {
        let is_other = self.root.replace(root).is_some_and(|old| old != root);
        self.are_stale |= is_other && self.has_run;
    }
}

/// Makes a partition and its virtual processor, in the order that the driver wants.
fn create_pair(device: &mshv_ioctls::Mshv) -> Result<(VmFd, VcpuFd), VmError> {
    // No local APIC, so that `hlt` leaves the guest, and nothing that only newer kernels know. The crate's own defaults are not asked for:
    // they need a hypercall that some kernels lack, and panic.
    let arguments = mshv_create_partition_v2::default();
    let partition = retry("MSHV_CREATE_PARTITION", || {
        device.create_vm_with_args(&arguments)
    })?;
    // Without this the guest would have hypercalls and synthetic registers. It is refused once the partition is initialised.
    retry("HVCALL_SET_PARTITION_PROPERTY", || {
        partition.set_partition_property(SYNTHETIC_PROC_FEATURES, 0)
    })?;
    retry("MSHV_INITIALIZE_PARTITION", || partition.initialize())?;
    let vcpu = retry("MSHV_CREATE_VP", || partition.create_vcpu(0))?;
    Ok((partition, vcpu))
}

/// Looks at a fresh virtual processor.
pub(super) fn inspect(device: &mshv_ioctls::Mshv) -> Result<Machine, VmError> {
    let (_partition, vcpu) = create_pair(device)?;
    Ok(Machine {
        offered: cpuid::offered(&vcpu)?,
        resettable: msrs::resettable(&vcpu),
    })
}

impl MshvVm {
    pub(super) fn create(
        device: &mshv_ioctls::Mshv,
        machine: &Machine,
        config: &VmConfig,
    ) -> Result<Self, VmError> {
        if config.irqchip == Irqchip::InKernel {
            return Err(VmError::hypervisor(
                "making interrupt controllers, which mshv does not have,",
                io::ErrorKind::Unsupported,
            ));
        }
        let interrupter = MshvInterrupter::new()
            .map_err(|error| VmError::hypervisor("installing a signal handler", error))?;
        let (partition, vcpu) = create_pair(device)?;
        if config.tracking != Tracking::None {
            retry("turning on page access tracking", || {
                partition.set_partition_property(PAGE_ACCESS_TRACKING, 1)
            })?;
        }
        let area_len_bytes = retry("HVCALL_GET_PARTITION_PROPERTY", || {
            partition.get_partition_property(MAX_XSAVE_DATA_SIZE)
        })?;
        let pages = usize::try_from(area_len_bytes.div_ceil(PAGE_SIZE)).unwrap_or(usize::MAX);
        // Three pages hold every component of today, the tiles of AMX included.
        let mut buffer = vec![Page([0; PAGE_LEN]); pages.clamp(1, 16)];
        read_xsave(&vcpu, &mut buffer)?;
        let component = |index| cpuid::xstate_component(&machine.offered, index);
        let xsave = XsaveFormat::of(buffer.as_flattened_bytes(), component).map_err(|error| {
            VmError::hypervisor("reading the xsave area", io::Error::other(error))
        })?;
        // SAFETY: the crate mapped the page with the vCPU and unmaps it when the vCPU is dropped, behind this value.
        let page = vcpu
            .get_vp_reg_page()
            .and_then(|page| unsafe { SharedPage::at(page.0) });
        let mut vm = Self {
            page,
            vcpu,
            partition,
            capabilities: assumed_capabilities(),
            slots: Slots::with_holes(&[]),
            interrupter: Arc::new(interrupter),
            input: None,
            has_message: false,
            xsave,
            buffer,
            resettable: machine.resettable.clone(),
            tracking: config.tracking,
            collected: Collected::new(),
            translations: Translations::default(),
        };
        vm.reset_extended_state()?;
        Ok(vm)
    }

    /// A new virtual processor has no sane x87 and SSE state. XCR0 comes last, as its reset value.
    fn reset_extended_state(&mut self) -> Result<(), VmError> {
        self.set_xsave(&XsaveArea::reset())?;
        self.set([Register::new(registers::XCR0, Xcr0::RESET.0)])
    }

    /// Fixes what `cpuid` shows.
    pub(super) fn show(&self, leaves: &[CpuidLeaf]) -> Result<(), VmError> {
        leaves
            .iter()
            .try_for_each(|leaf| cpuid::register(&self.partition, leaf))
    }

    pub(super) fn set_capabilities(&mut self, capabilities: &Capabilities) {
        self.capabilities = Capabilities {
            sync_regs: self.page.is_some(),
            ..capabilities.clone()
        };
    }

    fn set(&self, registers: impl IntoIterator<Item = Register>) -> Result<(), VmError> {
        set_registers(&self.vcpu, registers)
    }

    /// The register page, when it holds what the vCPU holds: after a message, or as long as something written to it waits for an entry.
    /// After an entry that a signal ended only a hypercall is sure to tell the truth.
    fn fresh_page(&self) -> Option<SharedPage> {
        self.page
            .filter(|page| page.is_valid() && (self.has_message || page.dirty() != 0))
    }

    fn step_over_port_access(&self, next_rip: u64) -> Result<(), VmError> {
        match self.fresh_page() {
            Some(page) => {
                page.set_rip(next_rip);
                Ok(())
            }
            None => self.set([Register::new(registers::GENERAL_RIP, next_rip)]),
        }
    }

    fn set_region(&self, slot: &Slot) -> Result<(), VmError> {
        let region = region_of(slot);
        retry("MSHV_SET_GUEST_MEMORY", || {
            self.partition.map_user_memory(region)
        })?;
        if slot.protection == Protection::TrackedWrite && self.tracking != Tracking::None {
            // What the hypervisor says at first is that every page was accessed.
            let baseline = self.take_accessed(slot);
            if baseline.is_err() {
                self.clear_region(slot)?;
            }
            baseline?;
        }
        Ok(())
    }

    fn clear_region(&self, slot: &Slot) -> Result<(), VmError> {
        let region = region_of(slot);
        retry("MSHV_SET_GUEST_MEMORY to unmap", || {
            self.partition.unmap_user_memory(region)
        })
    }

    /// Reads and clears the bitmap of a range.
    fn take_accessed(&self, slot: &Slot) -> Result<Vec<u64>, VmError> {
        let len_bytes = usize::try_from(slot.gpa.len_bytes()).unwrap_or(usize::MAX);
        let first_page = slot.gpa.start().as_u64() / PAGE_SIZE;
        let operation = u8::try_from(MSHV_GPAP_ACCESS_OP_CLEAR).unwrap_or(0);
        retry("MSHV_GET_GPAP_ACCESS_BITMAP", || {
            self.partition
                .get_dirty_log(first_page, len_bytes, operation)
        })
    }

    fn collect(&mut self, slots: &[Slot]) -> Result<(), VmError> {
        for slot in slots {
            let words = self.take_accessed(slot)?;
            self.collected.push_bits(slot.gpa, words);
        }
        Ok(())
    }

    fn tracked(&self) -> Vec<Slot> {
        match self.tracking {
            Tracking::None => Vec::new(),
            Tracking::FirstWrites | Tracking::Bitmap => self.slots.tracked(),
        }
    }

    /// Makes the hypervisor forget what it derived from the guest's page tables: it must, when memory is taken away. The smallest range
    /// costs least.
    fn flush_translations(&mut self) -> Result<(), VmError> {
        let Some(slot) = self.slots.smallest() else {
            return Ok(());
        };
        if self.tracked().contains(&slot) {
            self.collect(&[slot])?;
        }
        self.clear_region(&slot)?;
        self.set_region(&slot)
    }

    fn set_special(&mut self, state: &VcpuState) -> Result<(), VmError> {
        validate_for_hyperv(&state.special).map_err(VmError::InvalidState)?;
        let values = registers::special_values(&state.special);
        self.set(list(&registers::SPECIAL, &values))?;
        self.translations.set_root(state.special.cr3);
        Ok(())
    }

    fn set_general(&self, state: &VcpuState) -> Result<(), VmError> {
        let values = registers::general_values(&state.general);
        match self.fresh_page() {
            Some(page) => {
                page.set_general(&values);
                Ok(())
            }
            None => self.set(
                registers::general_names()
                    .zip(values)
                    .map(|(name, value)| Register::new(name, value)),
            ),
        }
    }

    fn get_general(&self) -> Result<registers::GeneralValues, VmError> {
        if let Some(page) = self.fresh_page() {
            return Ok(page.general());
        }
        let mut names = [0; registers::GENERAL_COUNT];
        for (name, next) in names.iter_mut().zip(registers::general_names()) {
            *name = next;
        }
        Ok(get_registers(&self.vcpu, names)?.map(registers::low))
    }

    fn set_xsave(&mut self, xsave: &XsaveArea) -> Result<(), VmError> {
        let bytes = self.buffer.as_flattened_bytes_mut();
        self.xsave.fill(xsave, bytes).map_err(|error| {
            VmError::hypervisor("writing the xsave area", io::Error::other(error))
        })?;
        let request = vp_state(bytes);
        retry("MSHV_SET_VP_STATE", || {
            self.vcpu.set_vp_state_ioctl(&request)
        })
    }

    /// The declared registers, and all others that a guest reaches.
    fn set_msrs(&self, state: &VcpuState) -> Result<(), VmError> {
        let declared = registers::MSRS
            .into_iter()
            .zip(state.msrs.iter())
            .map(|(name, msr)| Register::new(name, msr.value));
        self.set(declared.chain(self.resettable.iter().copied()))
    }
}

/// A list of registers of which each has a name and a value.
fn list<'a>(names: &'a [u32], values: &'a [u128]) -> impl Iterator<Item = Register> + 'a {
    names
        .iter()
        .zip(values)
        .map(|(&name, &value)| Register { name, value })
}

trait Flattened {
    fn as_flattened_bytes(&self) -> &[u8];
    fn as_flattened_bytes_mut(&mut self) -> &mut [u8];
}

impl Flattened for Vec<Page> {
    fn as_flattened_bytes(&self) -> &[u8] {
        // SAFETY: a page is nothing but its bytes, without padding.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), size_of_val(self.as_slice())) }
    }

    fn as_flattened_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; the pages are borrowed mutably.
        unsafe {
            std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), size_of_val(self.as_slice()))
        }
    }
}

fn vp_state(bytes: &mut [u8]) -> mshv_get_set_vp_state {
    mshv_get_set_vp_state {
        type_: u8::try_from(MSHV_VP_STATE_XSAVE).unwrap_or(0),
        buf_sz: u32::try_from(bytes.len()).unwrap_or(0),
        buf_ptr: bytes.as_mut_ptr().expose_provenance() as u64,
        ..mshv_get_set_vp_state::default()
    }
}

fn read_xsave(vcpu: &VcpuFd, buffer: &mut Vec<Page>) -> Result<(), VmError> {
    let bytes = buffer.as_flattened_bytes_mut();
    // What the hypervisor leaves out is zero.
    bytes.fill(0);
    let request = vp_state(bytes);
    retry("MSHV_GET_VP_STATE", || {
        let mut request = request;
        vcpu.get_vp_state_ioctl(&mut request)
    })
}

/// Execution is always allowed; what may not be executed is the page tables' business.
fn region_of(slot: &Slot) -> mshv_user_mem_region {
    let writable = match slot.protection {
        Protection::ReadOnly => 0,
        Protection::Write | Protection::TrackedWrite => 1 << MSHV_SET_MEM_BIT_WRITABLE,
    };
    mshv_user_mem_region {
        size: slot.gpa.len_bytes(),
        guest_pfn: slot.gpa.start().as_u64() / PAGE_SIZE,
        userspace_addr: slot.host.as_u64(),
        flags: writable | 1 << MSHV_SET_MEM_BIT_EXECUTABLE,
        ..mshv_user_mem_region::default()
    }
}

impl Vm for MshvVm {
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
        self.set_region(&slot)?;
        self.slots.insert(slot);
        Ok(())
    }

    fn unmap(&mut self, gpa: GpaRange) -> Result<(), VmError> {
        let slot = self.slots.exact(gpa)?;
        self.clear_region(&slot)?;
        self.collected.forget(gpa);
        self.slots.remove(slot.number);
        Ok(())
    }

    fn run(&mut self) -> Result<Exit, VmError> {
        if self.input.is_some() {
            return Err(VmError::InputPending);
        }
        if std::mem::take(&mut self.translations.are_stale) {
            self.flush_translations()?;
        }
        loop {
            let Some(entry) = self.interrupter.entry() else {
                return Ok(Exit::Interrupted);
            };
            let result = self.vcpu.run();
            drop(entry);
            self.translations.has_run = true;
            let decoded = match result {
                Ok(message) => {
                    message::decode(&Message::of(&message), |gpa| self.slots.is_mapped(gpa))
                }
                Err(error) if error.errno() == libc::EINTR => {
                    self.has_message = false;
                    return Ok(Exit::Interrupted);
                }
                Err(error) if error.errno() == libc::EAGAIN => continue,
                Err(error) => return Err(failed("MSHV_RUN_VP", error)),
            };
            self.has_message = true;
            if let Some(next_rip) = decoded.next_rip {
                self.step_over_port_access(next_rip)?;
            }
            if let Exit::IoIn { width, .. } = decoded.exit {
                self.input = Some((width, decoded.rax));
            }
            return Ok(decoded.exit);
        }
    }

    fn complete_io_in(&mut self, data: u32) -> Result<(), VmError> {
        let (width, rax) = self.input.ok_or(VmError::NoPendingInput)?;
        let rax = message::rax_after_input(rax, width, data);
        match self.fresh_page() {
            Some(page) => page.set_rax(rax),
            None => self.set([Register::new(registers::GENERAL_RAX, rax)])?,
        }
        self.input = None;
        Ok(())
    }

    /// A port access was stepped over when it was reported; nothing else is ever half done.
    fn settle(&mut self) -> Result<(), VmError> {
        match self.input {
            Some(_) => self.complete_io_in(0),
            None => Ok(()),
        }
    }

    fn get_state(&mut self, group: StateGroup, state: &mut VcpuState) -> Result<(), VmError> {
        match group {
            StateGroup::General => {
                state.general = registers::general_from_values(&self.get_general()?);
            }
            StateGroup::Special => {
                let values = get_registers(&self.vcpu, registers::SPECIAL)?;
                state.special = registers::special_from_values(&values);
            }
            StateGroup::Xsave => {
                read_xsave(&self.vcpu, &mut self.buffer)?;
                state.xsave = self.xsave.to_standard(self.buffer.as_flattened_bytes());
            }
            StateGroup::Xcr0 => {
                let [value] = get_registers(&self.vcpu, [registers::XCR0])?;
                state.xcr0 = Xcr0(registers::low(value));
            }
            StateGroup::Debug => {
                let values = get_registers(&self.vcpu, registers::DEBUG)?;
                state.debug = registers::debug_from_values(&values);
            }
            StateGroup::Msrs => {
                let values = get_registers(&self.vcpu, registers::MSRS)?;
                for (index, value) in crate::msr::DECLARED.into_iter().zip(values) {
                    state.msrs.set(index, registers::low(value));
                }
            }
            StateGroup::Events => {
                let values = get_registers(&self.vcpu, registers::EVENTS)?;
                state.events = registers::events_from_values(&values);
            }
        }
        Ok(())
    }

    fn set_state(&mut self, group: StateGroup, state: &VcpuState) -> Result<(), VmError> {
        match group {
            StateGroup::General => self.set_general(state),
            StateGroup::Special => self.set_special(state),
            StateGroup::Xsave => self.set_xsave(&state.xsave),
            StateGroup::Xcr0 => self.set([Register::new(registers::XCR0, state.xcr0.0)]),
            StateGroup::Debug => {
                let values = registers::debug_values(&state.debug);
                self.set(list(&registers::DEBUG, &values))
            }
            StateGroup::Msrs => self.set_msrs(state),
            StateGroup::Events => {
                let values = registers::event_values(&state.events);
                self.set(list(&registers::EVENTS, &values))
            }
        }
    }

    fn interrupter(&self) -> Arc<dyn Interrupter> {
        self.interrupter.clone()
    }

    fn take_dirty(&mut self, page: &mut dyn FnMut(Gpa)) -> Result<(), VmError> {
        let tracked = self.tracked();
        self.collect(&tracked)?;
        self.collected.take().for_each(page);
        Ok(())
    }

    /// Reading the bitmap re-arms it.
    fn rearm_dirty(&mut self) -> Result<(), VmError> {
        Ok(())
    }

    fn publish_tables(&mut self) -> Result<(), VmError> {
        match self.capabilities.mmu {
            Mmu::Nested => Ok(()),
            Mmu::Shadow => self.flush_translations(),
        }
    }

    fn publish_remap(&mut self, targets: GpaRange) -> Result<(), VmError> {
        self.slots.host_of(targets)?;
        self.publish_tables()
    }
}

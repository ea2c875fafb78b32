//! A partition's descriptor.

use std::collections::BTreeMap;
use std::ffi::c_int;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use kvm_bindings::{KVM_CAP_EXIT_ON_EMULATION_FAILURE, kvm_enable_cap};
use kvm_ioctls::{Kvm, VmFd};
use mshv_bindings::{
    HVCALL_ASSERT_VIRTUAL_INTERRUPT, HVCALL_GET_PARTITION_PROPERTY,
    HVCALL_GET_PARTITION_PROPERTY_EX, HVCALL_INSTALL_INTERCEPT, HVCALL_SET_PARTITION_PROPERTY,
    hv_partition_property_code_HV_PARTITION_PROPERTY_GPA_PAGE_ACCESS_TRACKING as PAGE_ACCESS_TRACKING,
    hv_partition_property_code_HV_PARTITION_PROPERTY_MAX_XSAVE_DATA_SIZE as MAX_XSAVE_DATA_SIZE,
    hv_partition_property_code_HV_PARTITION_PROPERTY_PRIVILEGE_FLAGS as PRIVILEGE_FLAGS,
    hv_partition_property_code_HV_PARTITION_PROPERTY_PROCESSOR_CLOCK_FREQUENCY as CLOCK_FREQUENCY,
    hv_partition_property_code_HV_PARTITION_PROPERTY_PROCESSOR_FEATURES0 as PROCESSOR_FEATURES0,
    hv_partition_property_code_HV_PARTITION_PROPERTY_PROCESSOR_FEATURES1 as PROCESSOR_FEATURES1,
    hv_partition_property_code_HV_PARTITION_PROPERTY_PROCESSOR_XSAVE_FEATURES as XSAVE_FEATURES,
    hv_partition_property_code_HV_PARTITION_PROPERTY_SYNTHETIC_PROC_FEATURES as SYNTHETIC_PROC_FEATURES,
    hv_partition_property_code_HV_PARTITION_PROPERTY_UNIMPLEMENTED_MSR_ACTION as UNIMPLEMENTED_MSR_ACTION,
};

use crate::bytes;
use crate::cpuid::Leaves;
use crate::hypercall::{Call, ROOT_HVCALL};
use crate::memory::Memory;
use crate::status::{Failure, Status};
use crate::transport::{self, Object};
use crate::vp::Vp;
use crate::xsave::Format;

const INITIALIZE: u64 = 0x0000_B800;
const CREATE_VP: u64 = 0x4004_B801;
const SET_GUEST_MEMORY: u64 = 0x4020_B802;
const IRQFD: u64 = 0x4010_B803;
const IOEVENTFD: u64 = 0x4020_B804;
const SET_MSI_ROUTING: u64 = 0x4008_B805;
const GET_GPAP_ACCESS_BITMAP: u64 = 0xC020_B806;

const MAX_VPS: u32 = 256;
/// The flag of a partition whose virtual processors have local APICs.
const HAS_LAPIC: u64 = 1;

/// One partition.
#[derive(Debug)]
pub(crate) struct Partition {
    vm: VmFd,
    flags: u64,
    format: Format,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    is_initialized: bool,
    properties: BTreeMap<u32, u64>,
    memory: Memory,
    leaves: Leaves,
    vp: Option<Weak<Vp>>,
}

impl Partition {
    pub(crate) fn new(flags: u64) -> Result<Arc<Self>, Failure> {
        let kvm = Kvm::new()?;
        let vm = kvm.create_vm()?;
        report_failed_emulation(&vm);
        let supported = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?;
        let leaves = Leaves::new(&supported);
        let format = Format::new(leaves.as_slice());
        let properties = BTreeMap::from([
            (MAX_XSAVE_DATA_SIZE, format.len_bytes() as u64),
            (XSAVE_FEATURES, 0),
            (CLOCK_FREQUENCY, 2_000_000_000),
            (PROCESSOR_FEATURES0, 0),
            (PROCESSOR_FEATURES1, 0),
            (SYNTHETIC_PROC_FEATURES, 0),
            (UNIMPLEMENTED_MSR_ACTION, 0),
            (PAGE_ACCESS_TRACKING, 0),
            (PRIVILEGE_FLAGS, 0),
        ]);
        Ok(Arc::new(Self {
            vm,
            flags,
            format,
            state: Mutex::new(State {
                is_initialized: false,
                properties,
                memory: Memory::default(),
                leaves,
                vp: None,
            }),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) const fn vm(&self) -> &VmFd {
        &self.vm
    }

    pub(crate) const fn format(&self) -> &Format {
        &self.format
    }

    pub(crate) const fn has_lapic(&self) -> bool {
        self.flags & HAS_LAPIC != 0
    }

    pub(crate) fn with_memory<T>(&self, body: impl FnOnce(&mut Memory) -> T) -> T {
        body(&mut self.state().memory)
    }

    pub(crate) fn with_leaves<T>(&self, body: impl FnOnce(&mut Leaves) -> T) -> T {
        body(&mut self.state().leaves)
    }

    pub(crate) fn request(this: &Arc<Self>, number: u64, argument: u64) -> Result<c_int, Failure> {
        match number {
            INITIALIZE => {
                this.state().is_initialized = true;
                Ok(0)
            }
            CREATE_VP => Self::create_vp(this, argument),
            SET_GUEST_MEMORY => {
                let mut state = this.initialized()?;
                state.memory.set_region(&this.vm, argument).map(|()| 0)
            }
            GET_GPAP_ACCESS_BITMAP => {
                let mut state = this.initialized()?;
                state.memory.access_bitmap(&this.vm, argument).map(|()| 0)
            }
            // Interrupts and notifications are not modelled.
            IRQFD | IOEVENTFD | SET_MSI_ROUTING => Ok(0),
            ROOT_HVCALL => Call::run(argument, |call| this.hypercall(call)),
            _ => Err(Failure::Errno(libc::ENOTTY)),
        }
    }

    fn initialized(&self) -> Result<MutexGuard<'_, State>, Failure> {
        let state = self.state();
        if state.is_initialized {
            Ok(state)
        } else {
            Err(Status::INVALID_PARTITION_STATE.into())
        }
    }

    fn create_vp(this: &Arc<Self>, argument: u64) -> Result<c_int, Failure> {
        let index: u32 = bytes::read(argument)?;
        if index >= MAX_VPS {
            return Err(Failure::EINVAL);
        }
        let mut state = this.initialized()?;
        if state.vp.is_some() {
            return Err(Failure::Errno(libc::EEXIST));
        }
        let (vp, file) = Vp::new(this.clone(), index)?;
        state.vp = Some(Arc::downgrade(&vp));
        let descriptor = transport::publish(file, Object::Vp(vp));
        if descriptor.is_err() {
            state.vp = None;
        }
        descriptor
    }

    /// Hypercalls about the partition, and those about its only virtual processor.
    fn hypercall(&self, call: &mut Call) -> Result<(), Failure> {
        match call.code() {
            HVCALL_GET_PARTITION_PROPERTY => {
                let code = call.input_u32(8)?;
                let value = self.state().properties.get(&code).copied();
                let value = value.ok_or(Status::UNKNOWN_PROPERTY)?;
                call.output(&value.to_le_bytes())
            }
            HVCALL_SET_PARTITION_PROPERTY => {
                self.set_property(call.input_u32(8)?, call.input_u64(16)?)
            }
            HVCALL_GET_PARTITION_PROPERTY_EX => Err(Status::ACCESS_DENIED.into()),
            HVCALL_INSTALL_INTERCEPT | HVCALL_ASSERT_VIRTUAL_INTERRUPT => Ok(()),
            _ => {
                let vp = self.state().vp.as_ref().and_then(Weak::upgrade);
                vp.ok_or(Status::INVALID_VP_INDEX)?.hypercall(call)
            }
        }
    }

    fn set_property(&self, code: u32, value: u64) -> Result<(), Failure> {
        let mut state = self.state();
        let is_early = matches!(code, SYNTHETIC_PROC_FEATURES | PRIVILEGE_FLAGS);
        let is_late = matches!(code, UNIMPLEMENTED_MSR_ACTION | PAGE_ACCESS_TRACKING);
        if (is_early && state.is_initialized) || (is_late && !state.is_initialized) {
            return Err(Status::INVALID_PARTITION_STATE.into());
        }
        if !is_early && !is_late {
            return Err(Status::UNKNOWN_PROPERTY.into());
        }
        if code == PAGE_ACCESS_TRACKING {
            state.memory.track(&self.vm, value != 0)?;
        }
        state.properties.insert(code, value);
        Ok(())
    }
}

/// Asks KVM to report what it cannot emulate, in place of an undefined instruction in ring 3: it emulates a fetch from absent memory, which
/// the hypervisor reports. Kernels before Linux 5.14 cannot, and tell ring 3.
fn report_failed_emulation(vm: &VmFd) {
    let mut capability = kvm_enable_cap {
        cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE,
        ..kvm_enable_cap::default()
    };
    capability.args[0] = 1;
    let _ = vm.enable_cap(&capability);
}

//! A virtual processor's descriptor.

mod page;
mod running;

use std::collections::BTreeSet;
use std::ffi::c_int;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::kvm_xcrs;
use kvm_ioctls::VcpuFd;
use mshv_bindings::{
    HVCALL_GET_VP_CPUID_VALUES, HVCALL_GET_VP_REGISTERS, HVCALL_REGISTER_INTERCEPT_RESULT,
    HVCALL_SET_VP_REGISTERS, mshv_get_set_vp_state,
};

use crate::bytes;
use crate::cpuid::RESULT_LEN_BYTES;
use crate::hypercall::{Call, ROOT_HVCALL, is_asynchronous};
use crate::inject;
use crate::msrs;
use crate::partition::Partition;
use crate::registers::{Group, Values, canonical, group_of, low, name};
use crate::rules;
use crate::status::{Failure, Status};
use crate::transport;

use page::SharedPages;

const RUN_VP: u64 = 0x8100_B800;
const GET_VP_STATE: u64 = 0xC010_B801;
const SET_VP_STATE: u64 = 0xC010_B802;

const PAGE_LEN_BYTES: u32 = 4096;
/// Local APIC, XSAVE, SIMP, SIEFP, STIMERS.
const PARTS: usize = 5;
const PART_XSAVE: usize = 1;

/// One virtual processor. Its lock is held while the guest runs, so that requests on its descriptor wait, as in the driver.
#[derive(Debug)]
pub(crate) struct Vp {
    partition: Arc<Partition>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    vcpu: VcpuFd,
    pages: SharedPages,
    values: Values,
    /// Groups that the program wrote and KVM does not know.
    changed: BTreeSet<Group>,
    /// Whether the values of the groups that KVM keeps must be read from there.
    is_stale: bool,
    /// Whether the program initialised the extended state.
    has_xsave: bool,
    /// The parts of the state that are only kept.
    parts: [Vec<u8>; PARTS],
}

impl Vp {
    /// A new one, and the file behind its descriptor. Takes no lock of the partition.
    pub(crate) fn new(partition: Arc<Partition>, index: u32) -> Result<(Arc<Self>, File), Failure> {
        let file = transport::memfd(2 * u64::from(PAGE_LEN_BYTES))?;
        let pages = SharedPages::map(&file)?;
        let vcpu = partition.vm().create_vcpu(index.into())?;
        let mut state = State {
            vcpu,
            pages,
            values: Values::default(),
            changed: BTreeSet::new(),
            is_stale: true,
            has_xsave: false,
            parts: std::array::from_fn(|_| vec![0; 4096]),
        };
        state.pull()?;
        // Without KVM's interrupt controllers its local APIC has no address, and neither has ours.
        state.values.set(name::APIC_BASE, 0_u64);
        state.changed.insert(Group::Special);
        state.values.set(name::EXPLICIT_SUSPEND, 1_u64);
        state.pages.publish(&state.values);
        let vp = Self {
            partition,
            state: Mutex::new(state),
        };
        Ok((Arc::new(vp), file))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn request(&self, number: u64, argument: u64) -> Result<c_int, Failure> {
        match number {
            RUN_VP => self.run(argument),
            GET_VP_STATE => self.get_part(argument),
            SET_VP_STATE => self.set_part(argument),
            ROOT_HVCALL => Call::run(argument, |call| {
                if is_asynchronous(call.code()) {
                    return Err(Failure::EINVAL);
                }
                self.hypercall(call)
            }),
            _ => Err(Failure::Errno(libc::ENOTTY)),
        }
    }

    pub(crate) fn hypercall(&self, call: &mut Call) -> Result<(), Failure> {
        match call.code() {
            HVCALL_GET_VP_REGISTERS => self.get_registers(call),
            HVCALL_SET_VP_REGISTERS => self.set_registers(call),
            HVCALL_GET_VP_CPUID_VALUES => {
                /// Header; then leaf, subleaf, XCR0 and XSS.
                const LEAF: usize = 24;
                let (leaf, subleaf) = (call.input_u32(LEAF)?, call.input_u32(LEAF + 4)?);
                let values = self
                    .partition
                    .with_leaves(|leaves| leaves.values(leaf, subleaf));
                let output: Vec<u8> = values.iter().flat_map(|word| word.to_le_bytes()).collect();
                call.set_done(1);
                call.output(&output)
            }
            HVCALL_REGISTER_INTERCEPT_RESULT => {
                /// `HV_INTERCEPT_TYPE_X64_CPUID`.
                const CPUID: u32 = 2;
                if call.input_u32(12)? != CPUID {
                    return Err(Status::INVALID_PARAMETER.into());
                }
                let parameters = call.input(16, RESULT_LEN_BYTES)?.to_vec();
                self.partition
                    .with_leaves(|leaves| leaves.register(&parameters));
                Ok(())
            }
            _ => Err(Failure::EINVAL),
        }
    }

    fn get_registers(&self, call: &mut Call) -> Result<(), Failure> {
        const NAMES: usize = 16;
        let mut state = self.state();
        state.show_cpuid(&self.partition)?;
        let mut output = Vec::new();
        for index in 0..call.reps() {
            let register = canonical(call.input_u32(NAMES + 4 * index)?);
            output.extend(state.get(register)?.to_le_bytes());
        }
        call.set_done(call.reps());
        call.output(&output)
    }

    /// Registers are set one by one; those before the first that is refused stay set.
    fn set_registers(&self, call: &mut Call) -> Result<(), Failure> {
        const ELEMENTS: usize = 16;
        const ELEMENT_LEN: usize = 32;
        let mut state = self.state();
        state.show_cpuid(&self.partition)?;
        for index in 0..call.reps() {
            let element = call.input(ELEMENTS + ELEMENT_LEN * index, ELEMENT_LEN)?;
            let register = canonical(bytes::u32_at(element, 0));
            let value = u128::from(bytes::u64_at(element, 16))
                | u128::from(bytes::u64_at(element, 24)) << 64;
            let offered = self.partition.format().components();
            state.set(register, inject::altered(register, value), offered)?;
            call.set_done(index + 1);
        }
        Ok(())
    }

    fn part(argument: u64) -> Result<(usize, mshv_get_set_vp_state), Failure> {
        let request: mshv_get_set_vp_state = bytes::read(argument)?;
        let kind = usize::from(request.type_);
        let page = u64::from(PAGE_LEN_BYTES);
        let is_wrong = kind >= PARTS
            || request.rsvd != [0; 3]
            || request.buf_sz == 0
            || !request.buf_sz.is_multiple_of(PAGE_LEN_BYTES)
            || request.buf_ptr == 0
            || !request.buf_ptr.is_multiple_of(page);
        if is_wrong {
            return Err(Failure::EINVAL);
        }
        Ok((kind, request))
    }

    fn get_part(&self, argument: u64) -> Result<c_int, Failure> {
        let (kind, mut request) = Self::part(argument)?;
        let mut state = self.state();
        state.show_cpuid(&self.partition)?;
        let format = self.partition.format();
        let content = match kind {
            PART_XSAVE if state.has_xsave => format.compact(&state.vcpu.get_xsave()?),
            PART_XSAVE => format.untouched(),
            _ => state.parts[kind].clone(),
        };
        let len_bytes = match kind {
            PART_XSAVE => format.len_bytes(),
            _ => content.len(),
        };
        if len_bytes > request.buf_sz as usize {
            return Err(Failure::EINVAL);
        }
        bytes::write_bytes(request.buf_ptr, &content[..len_bytes])?;
        request.buf_sz = u32::try_from(len_bytes).unwrap_or(0);
        bytes::write(argument, request)?;
        Ok(0)
    }

    fn set_part(&self, argument: u64) -> Result<c_int, Failure> {
        let (kind, request) = Self::part(argument)?;
        let content = bytes::read_bytes(request.buf_ptr, request.buf_sz as usize)?;
        let mut state = self.state();
        state.show_cpuid(&self.partition)?;
        if kind == PART_XSAVE {
            let area = self.partition.format().expand(&content)?;
            state.set_extended_state(&area)?;
        } else {
            state.parts[kind] = content;
        }
        Ok(0)
    }
}

impl State {
    /// Gives KVM the partition's `cpuid`, on which it bases what it accepts.
    fn show_cpuid(&mut self, partition: &Partition) -> Result<(), Failure> {
        match partition.with_leaves(crate::cpuid::Leaves::take_changed)? {
            Some(leaves) => Ok(self.vcpu.set_cpuid2(&leaves)?),
            None => Ok(()),
        }
    }

    #[expect(
        unsafe_code,
        reason = "KVM_SET_XSAVE reads an area whose length it does not say"
    )]
    fn set_extended_state(&mut self, area: &kvm_bindings::kvm_xsave) -> Result<(), Failure> {
        // SAFETY: 4096 bytes are read, the length of the structure, as long as no larger component was requested for this process.
        unsafe { self.vcpu.set_xsave(area) }?;
        self.has_xsave = true;
        Ok(())
    }

    fn get(&mut self, register: u32) -> Result<u128, Failure> {
        if group_of(register).is_some() {
            self.pull()?;
            return Ok(self.values.get(register));
        }
        let of_kvm = msrs::index_of(register).and_then(|index| msrs::read(&self.vcpu, index));
        match of_kvm {
            Some(value) => Ok(value.into()),
            None if is_known(register) => Ok(self.values.get(register)),
            None => Err(Status::INVALID_PARAMETER.into()),
        }
    }

    fn set(&mut self, register: u32, value: u128, xcr0_offered: u64) -> Result<(), Failure> {
        if !is_known(register) {
            return Err(Status::INVALID_PARAMETER.into());
        }
        let value = rules::accept(register, value, xcr0_offered)?;
        let group = group_of(register);
        if group.is_some() {
            self.pull()?;
        }
        if self.pages.is_waiting_for_entry(register) {
            // Which of the two would win is not documented.
            return Err(Status::INVALID_PARAMETER.into());
        }
        self.values.set(register, value);
        if let Some(group) = group {
            self.changed.insert(group);
        } else if let Some(index) = msrs::index_of(register) {
            msrs::write(&self.vcpu, index, low(value));
        }
        Ok(())
    }

    /// Reads what KVM keeps, unless it is known.
    fn pull(&mut self) -> Result<(), Failure> {
        if !std::mem::take(&mut self.is_stale) {
            return Ok(());
        }
        self.values.take_general(&self.vcpu.get_regs()?);
        self.values.take_special(&self.vcpu.get_sregs()?);
        self.values.take_debug(&self.vcpu.get_debug_regs()?);
        self.values.take_events(&self.vcpu.get_vcpu_events()?);
        let xcr0 = self.vcpu.get_xcrs().map_or(1, |xcrs| xcrs.xcrs[0].value);
        self.values.set(name::XFEM, xcr0);
        Ok(())
    }

    /// Writes what the program changed. KVM refuses what does not fit together.
    fn push(&mut self) -> Result<(), Failure> {
        for group in std::mem::take(&mut self.changed) {
            match group {
                Group::General => self.vcpu.set_regs(&self.values.general())?,
                Group::Special => {
                    let special = self.values.special();
                    self.vcpu.get_kvm_run().cr8 = special.cr8;
                    self.vcpu.set_sregs(&special)?;
                }
                Group::Debug => self.vcpu.set_debug_regs(&self.values.debug())?,
                Group::Events => self.vcpu.set_vcpu_events(&self.values.events())?,
                Group::Xcr0 => {
                    let mut xcrs = kvm_xcrs {
                        nr_xcrs: 1,
                        ..kvm_xcrs::default()
                    };
                    xcrs.xcrs[0].value = self.values.u64(name::XFEM);
                    self.vcpu.set_xcrs(&xcrs)?;
                }
            }
        }
        Ok(())
    }
}

/// Registers that exist here: the architectural ones, model-specific ones, events, and those of the hypervisor that programs save.
fn is_known(register: u32) -> bool {
    let has_index = msrs::index_of(register).is_some();
    let is_architectural = group_of(register).is_some() || (0x30000..=0x30019).contains(&register);
    let is_kept = matches!(
        register,
        0..=4 | 0x10004..=0x10007 | 0x8000D..=0x800A0 | 0x90000..=0x900FF | 0xA0000..=0xA00FF
    );
    has_index || is_architectural || is_kept
}

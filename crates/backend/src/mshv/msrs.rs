//! Model-specific registers that a guest reaches although nobody declared them.
//!
//! MSHV has no filter of registers as KVM has one: a kernel may write every register that the hypervisor implements. What can be written
//! by the guest must therefore be put back on a restore. Which registers these are is found out once, on a fresh virtual processor: every
//! candidate that can be read and written there is one, and what was read is what it goes back to.

use mshv_bindings::{
    hv_register_name, hv_register_name_HV_X64_REGISTER_BNDCFGS as BNDCFGS,
    hv_register_name_HV_X64_REGISTER_DEBUG_CTL as DEBUG_CTL,
    hv_register_name_HV_X64_REGISTER_INTERRUPT_SSP_TABLE_ADDR as INTERRUPT_SSP_TABLE_ADDR,
    hv_register_name_HV_X64_REGISTER_MSR_IA32_MISC_ENABLE as MISC_ENABLE,
    hv_register_name_HV_X64_REGISTER_MSR_MTRR_DEF_TYPE as MTRR_DEF_TYPE,
    hv_register_name_HV_X64_REGISTER_MSR_MTRR_FIX4KF8000 as MTRR_LAST_FIXED,
    hv_register_name_HV_X64_REGISTER_MSR_MTRR_FIX64K00000 as MTRR_FIRST_FIXED,
    hv_register_name_HV_X64_REGISTER_MSR_MTRR_PHYS_BASE0 as MTRR_FIRST_BASE,
    hv_register_name_HV_X64_REGISTER_MSR_MTRR_PHYS_BASEF as MTRR_LAST_BASE,
    hv_register_name_HV_X64_REGISTER_MSR_MTRR_PHYS_MASK0 as MTRR_FIRST_MASK,
    hv_register_name_HV_X64_REGISTER_MSR_MTRR_PHYS_MASKF as MTRR_LAST_MASK,
    hv_register_name_HV_X64_REGISTER_PAT as PAT,
    hv_register_name_HV_X64_REGISTER_SPEC_CTRL as SPEC_CTRL,
    hv_register_name_HV_X64_REGISTER_TSC_ADJUST as TSC_ADJUST,
    hv_register_name_HV_X64_REGISTER_TSC_AUX as TSC_AUX,
    hv_register_name_HV_X64_REGISTER_U_XSS as U_XSS,
    hv_register_name_HV_X64_REGISTER_VIRT_SPEC_CTRL as VIRT_SPEC_CTRL,
};
use mshv_ioctls::VcpuFd;

use super::hypercall::{get_registers, set_registers};
use super::registers::Register;

/// Single registers and runs of them whose names follow each other. XSS, two of CET, SSP and its four relatives are one run up to the
/// table of shadow stacks. The time-stamp counter is none of them: it goes on.
const CANDIDATES: [std::ops::RangeInclusive<hv_register_name>; 12] = [
    PAT..=PAT,
    MTRR_DEF_TYPE..=MTRR_DEF_TYPE,
    MTRR_FIRST_BASE..=MTRR_LAST_BASE,
    MTRR_FIRST_MASK..=MTRR_LAST_MASK,
    MTRR_FIRST_FIXED..=MTRR_LAST_FIXED,
    TSC_AUX..=TSC_AUX,
    BNDCFGS..=DEBUG_CTL,
    SPEC_CTRL..=SPEC_CTRL,
    VIRT_SPEC_CTRL..=VIRT_SPEC_CTRL,
    U_XSS..=INTERRUPT_SSP_TABLE_ADDR,
    TSC_ADJUST..=TSC_ADJUST,
    MISC_ENABLE..=MISC_ENABLE,
];

/// The candidates that a fresh virtual processor lets us read and write, with their first values. A register that it refuses does not
/// exist for its guest either.
pub(super) fn resettable(fresh: &VcpuFd) -> Vec<Register> {
    CANDIDATES
        .into_iter()
        .flatten()
        .filter_map(|name| {
            let [value] = get_registers(fresh, [name]).ok()?;
            let register = Register { name, value };
            set_registers(fresh, [register]).ok()?;
            Some(register)
        })
        .collect()
}

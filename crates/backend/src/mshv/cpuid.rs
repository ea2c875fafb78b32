//! What a partition's `cpuid` shows: asked leaf by leaf, and overridden leaf by leaf.

use mshv_bindings::{
    HVCALL_REGISTER_INTERCEPT_RESULT, hv_input_register_intercept_result,
    hv_intercept_type_HV_INTERCEPT_TYPE_X64_CPUID, hv_register_intercept_result_parameters,
    hv_register_x64_cpuid_result_parameters, hv_register_x64_cpuid_result_parameters__bindgen_ty_1,
    hv_register_x64_cpuid_result_parameters__bindgen_ty_2, mshv_root_hvcall,
};
use mshv_ioctls::{VcpuFd, VmFd};

use super::hypercall::retry;
use crate::cpuid::{CpuModel, CpuidLeaf};
use crate::vm::VmError;

/// Leaves that a guest could ask for: the basic ones, the hypervisor's, the extended ones.
const RANGES: [std::ops::RangeInclusive<u32>; 3] = [
    0..=0x1F,
    0x4000_0000..=0x4000_000C,
    0x8000_0000..=0x8000_0021,
];
/// Leaves with subleaves that a model may show, and how many of them.
const SUBLEAVES: [(u32, u32); 3] = [(4, 5), (7, 1), (0xD, 63)];
/// Leaf 0Dh describes components of the extended state.
const XSTATE: u32 = 0xD;
/// Bits that follow the guest's CR4 and XCR0 and must be left to the hypervisor: OSXSAVE in leaf 1 ECX, and the length of the area for
/// the present XCR0 in leaf 0Dh EBX (Intel SDM volume 2, `CPUID`).
const OSXSAVE: u32 = 1 << 27;

/// Everything that a vCPU of this machine could be shown.
pub(super) fn offered(vcpu: &VcpuFd) -> Result<Vec<CpuidLeaf>, VmError> {
    let mut leaves = Vec::new();
    for leaf in RANGES.into_iter().flatten() {
        match SUBLEAVES.iter().find(|(with, _)| *with == leaf) {
            None => leaves.push(ask(vcpu, leaf, None)?),
            Some(&(_, count)) => {
                for subleaf in 0..count {
                    leaves.push(ask(vcpu, leaf, Some(subleaf))?);
                }
            }
        }
    }
    Ok(leaves)
}

/// One component of the extended state.
pub(super) fn xstate_component(offered: &[CpuidLeaf], index: u32) -> CpuidLeaf {
    let found = offered
        .iter()
        .find(|l| l.leaf == XSTATE && l.subleaf == Some(index));
    found.copied().unwrap_or(empty(XSTATE, Some(index)))
}

fn ask(vcpu: &VcpuFd, leaf: u32, subleaf: Option<u32>) -> Result<CpuidLeaf, VmError> {
    let [eax, ebx, ecx, edx] = retry("HVCALL_GET_VP_CPUID_VALUES", || {
        vcpu.get_cpuid_values(leaf, subleaf.unwrap_or(0), 0, 0)
    })?;
    Ok(CpuidLeaf {
        leaf,
        subleaf,
        eax,
        ebx,
        ecx,
        edx,
    })
}

const fn empty(leaf: u32, subleaf: Option<u32>) -> CpuidLeaf {
    CpuidLeaf {
        leaf,
        subleaf,
        eax: 0,
        ebx: 0,
        ecx: 0,
        edx: 0,
    }
}

/// What must be registered so that a guest sees `model` and nothing else: its leaves, and zeroes for what the machine offers besides.
pub(super) fn overrides(model: &CpuModel, offered: &[CpuidLeaf]) -> Vec<CpuidLeaf> {
    let is_shown = |hidden: &CpuidLeaf| {
        model
            .leaves
            .iter()
            .any(|shown| shown.leaf == hidden.leaf && shown.subleaf == hidden.subleaf)
    };
    let hidden = offered
        .iter()
        .filter(|leaf| !is_shown(leaf))
        .filter(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx] != [0; 4])
        .map(|leaf| empty(leaf.leaf, leaf.subleaf));
    model.leaves.iter().copied().chain(hidden).collect()
}

/// Registers one leaf of virtual processor 0, every bit of it but those that are dynamic.
pub(super) fn register(partition: &VmFd, leaf: &CpuidLeaf) -> Result<(), VmError> {
    let input = hv_input_register_intercept_result {
        intercept_type: hv_intercept_type_HV_INTERCEPT_TYPE_X64_CPUID,
        parameters: hv_register_intercept_result_parameters {
            cpuid: result_of(leaf),
        },
        // The driver fills in the partition.
        ..hv_input_register_intercept_result::default()
    };
    let mut call = mshv_root_hvcall {
        code: u16::try_from(HVCALL_REGISTER_INTERCEPT_RESULT).unwrap_or(0),
        in_sz: u16::try_from(size_of_val(&input)).unwrap_or(0),
        in_ptr: (&raw const input).expose_provenance() as u64,
        ..mshv_root_hvcall::default()
    };
    let fresh = call;
    let result = retry("HVCALL_REGISTER_INTERCEPT_RESULT", || {
        call = fresh;
        partition.hvcall(&mut call)
    });
    result.map_err(|error| match error {
        VmError::Hypervisor { source, .. } => VmError::hypervisor("fixing cpuid leaves", source),
        other => other,
    })
}

fn result_of(leaf: &CpuidLeaf) -> hv_register_x64_cpuid_result_parameters {
    let (ebx_mask, ecx_mask) = match (leaf.leaf, leaf.subleaf.unwrap_or(0)) {
        (1, _) => (u32::MAX, !OSXSAVE),
        (XSTATE, 0) => (0, u32::MAX),
        _ => (u32::MAX, u32::MAX),
    };
    hv_register_x64_cpuid_result_parameters {
        input: hv_register_x64_cpuid_result_parameters__bindgen_ty_1 {
            eax: leaf.leaf,
            ecx: leaf.subleaf.unwrap_or(0),
            subleaf_specific: leaf.subleaf.is_some().into(),
            always_override: 1,
            padding: 0,
        },
        result: hv_register_x64_cpuid_result_parameters__bindgen_ty_2 {
            eax: leaf.eax,
            eax_mask: u32::MAX,
            ebx: leaf.ebx,
            ebx_mask,
            ecx: leaf.ecx,
            ecx_mask,
            edx: leaf.edx,
            edx_mask: u32::MAX,
        },
    }
}

#[cfg(test)]
mod tests;

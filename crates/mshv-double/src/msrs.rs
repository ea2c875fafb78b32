//! Model-specific registers: those that KVM has go there, others are only kept.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

/// The index of a register that stands for a model-specific one.
pub(crate) fn index_of(register: u32) -> Option<u32> {
    const FIXED_RANGES: [u32; 11] = [
        0x250, 0x258, 0x259, 0x268, 0x269, 0x26A, 0x26B, 0x26C, 0x26D, 0x26E, 0x26F,
    ];
    Some(match register {
        0x80000 => 0x10,
        0x80002 => 0xC000_0102,
        0x80004 => 0x277,
        0x80005 => 0x174,
        0x80006 => 0x176,
        0x80007 => 0x175,
        0x80008..=0x8000B => 0xC000_0081 + (register - 0x80008),
        0x8000E => 0x2FF,
        0x80010..=0x80017 => 0x200 + 2 * (register - 0x80010),
        0x80040..=0x80047 => 0x201 + 2 * (register - 0x80040),
        0x80070..=0x8007A => FIXED_RANGES[(register - 0x80070) as usize],
        0x8007B => 0xC000_0103,
        0x8007D => 0x1D9,
        0x80084 => 0x48,
        0x8008B => 0xDA0,
        0x80096 => 0x3B,
        0x800A0 => 0x1A0,
        _ => return None,
    })
}

pub(crate) fn read(vcpu: &VcpuFd, index: u32) -> Option<u64> {
    let mut list = list(index, 0)?;
    match vcpu.get_msrs(&mut list) {
        Ok(1) => list.as_slice().first().map(|entry| entry.data),
        _ => None,
    }
}

/// Whether KVM took the value.
pub(crate) fn write(vcpu: &VcpuFd, index: u32, value: u64) -> bool {
    list(index, value).is_some_and(|list| matches!(vcpu.set_msrs(&list), Ok(1)))
}

fn list(index: u32, data: u64) -> Option<Msrs> {
    let entry = kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    };
    Msrs::from_entries(&[entry]).ok()
}

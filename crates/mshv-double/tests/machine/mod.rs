//! A partition with one virtual processor and a page of memory, made with the crate that the backend uses.

use std::io::Write as _;

use mshv_bindings::{
    hv_register_assoc, hv_register_value, hv_u128, mshv_create_partition_v2, mshv_get_set_vp_state,
    mshv_user_mem_region,
};
use mshv_ioctls::{Mshv, MshvError, VcpuFd, VmFd};

const RIP: u32 = 0x20010;
const CS: u32 = 0x60001;
pub(crate) const WRITABLE: u8 = 1;
pub(crate) const EXECUTABLE: u8 = 1 << 1;
const XSAVE: u8 = 1;
/// `out 0x10, al`.
const PROGRAM: [u8; 2] = [0xE6, 0x10];

#[repr(C, align(4096))]
pub(crate) struct Page(pub(crate) [u8; 4096]);

/// A partition with a page of code at GPA 0, in real mode.
pub(crate) struct Machine {
    pub(crate) vcpu: VcpuFd,
    pub(crate) partition: VmFd,
    pub(crate) memory: Box<Page>,
}

/// Opens the double, or says why not.
pub(crate) fn device() -> Option<Mshv> {
    vellum_mshv_double::link();
    match Mshv::new() {
        Ok(device) => Some(device),
        Err(error) => {
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED on mshv-double, which needs /dev/kvm: {error}"
            );
            None
        }
    }
}

pub(crate) fn partition(device: &Mshv) -> VmFd {
    let partition = device
        .create_vm_with_args(&mshv_create_partition_v2::default())
        .expect("a partition");
    partition.initialize().expect("initialised");
    partition
}

pub(crate) fn machine(device: &Mshv, flags: u8) -> Machine {
    let partition = partition(device);
    let vcpu = partition.create_vcpu(0).expect("a virtual processor");
    let mut memory = Box::new(Page([0; 4096]));
    memory.0[..PROGRAM.len()].copy_from_slice(&PROGRAM);
    let machine = Machine {
        vcpu,
        partition,
        memory,
    };
    machine
        .partition
        .map_user_memory(machine.region(flags))
        .expect("mapped");
    // CS of base 0 with the attributes of a reset.
    let code = u128::from(0x009B_u16) << 112 | 0xFFFF << 64;
    machine.set(&[(CS, code), (RIP, 0)]).expect("set");
    machine
}

impl Machine {
    pub(crate) fn region(&self, flags: u8) -> mshv_user_mem_region {
        mshv_user_mem_region {
            size: 4096,
            guest_pfn: 0,
            userspace_addr: (&raw const *self.memory).addr() as u64,
            flags,
            ..mshv_user_mem_region::default()
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the halves are asked for")]
    pub(crate) fn set(&self, registers: &[(u32, u128)]) -> Result<(), MshvError> {
        let list: Vec<_> = registers
            .iter()
            .map(|&(name, value)| hv_register_assoc {
                name,
                value: hv_register_value {
                    reg128: hv_u128 {
                        low_part: value as u64,
                        high_part: (value >> 64) as u64,
                    },
                },
                ..hv_register_assoc::default()
            })
            .collect();
        self.vcpu.set_reg(&list)
    }

    /// What the backend does to the extended state before the first run.
    pub(crate) fn reset_extended_state(&self) {
        self.write_extended_state(|area| {
            area[512..520].copy_from_slice(&3_u64.to_le_bytes());
            area[..2].copy_from_slice(&0x037F_u16.to_le_bytes());
            area[24..28].copy_from_slice(&0x1F80_u32.to_le_bytes());
        })
        .expect("written");
    }

    /// Reads the area, keeps XCOMP_BV and clears the rest, lets `edit` change it, writes it.
    pub(crate) fn write_extended_state(
        &self,
        edit: impl FnOnce(&mut [u8]),
    ) -> Result<(), MshvError> {
        let mut area = Box::new(Page([0; 4096]));
        let mut request = mshv_get_set_vp_state {
            type_: XSAVE,
            buf_sz: 4096,
            buf_ptr: area.0.as_mut_ptr().expose_provenance() as u64,
            ..mshv_get_set_vp_state::default()
        };
        self.vcpu.get_vp_state_ioctl(&mut request)?;
        let mut format = [0; 8];
        format.copy_from_slice(&area.0[520..528]);
        area.0.fill(0);
        area.0[520..528].copy_from_slice(&format);
        edit(&mut area.0);
        request.buf_sz = 4096;
        self.vcpu.set_vp_state_ioctl(&request)
    }
}

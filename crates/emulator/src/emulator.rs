//! The emulator as a hypervisor: what it offers, and the making of VMs.

use std::io;

use vellum_backend::cpuid::{self, CpuModel, CpuProfile, CpuidLeaf};
use vellum_backend::{Capabilities, Hypervisor, Irqchip, Mmu, RingZero, Vm, VmConfig, VmError};

use crate::vm::EmulatedVm;

/// An engine that needs no hypervisor.
#[derive(Clone, Debug)]
pub struct Emulator {
    capabilities: Capabilities,
}

impl Default for Emulator {
    fn default() -> Self {
        Self::new()
    }
}

impl Emulator {
    /// The emulator. There is nothing to open and nothing to probe.
    pub fn new() -> Self {
        Self {
            capabilities: Capabilities {
                mmu: Mmu::Nested,
                ring_zero: RingZero::Native,
                sync_regs: false,
                dirty_ring_pages: 0,
                read_only_memory: true,
                msr_filter: true,
                msr_reset: true,
                host_discard: true,
                two_level_paging: true,
                instruction_counts: true,
            },
        }
    }

    /// A VM, as what it is.
    ///
    /// # Errors
    /// [`VmError::Hypervisor`] when interrupt controllers are asked for: there are none.
    pub fn create_emulated_vm(&self, config: &VmConfig) -> Result<EmulatedVm, VmError> {
        match config.irqchip {
            Irqchip::None => Ok(EmulatedVm::new(config, &self.capabilities)),
            Irqchip::InKernel => Err(VmError::Hypervisor {
                operation: "making interrupt controllers, which the emulator does not have,",
                source: io::ErrorKind::Unsupported.into(),
            }),
        }
    }
}

impl Hypervisor for Emulator {
    fn name(&self) -> &'static str {
        "emulator"
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn cpu_model(&self, profile: CpuProfile) -> Result<CpuModel, VmError> {
        cpuid::model(profile, &LEAVES).map_err(|missing| VmError::Profile {
            profile: profile.name(),
            missing: missing.0,
        })
    }

    fn create_vm(&self, config: &VmConfig) -> Result<Box<dyn Vm>, VmError> {
        Ok(Box::new(self.create_emulated_vm(config)?))
    }
}

const fn leaf(leaf: u32, values: [u32; 4]) -> CpuidLeaf {
    let [eax, ebx, ecx, edx] = values;
    CpuidLeaf {
        leaf,
        subleaf: None,
        eax,
        ebx,
        ecx,
        edx,
    }
}

/// Leaf 1 ECX: SSE3, PCLMULQDQ, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, POPCNT.
const FEATURES_ECX: u32 = 1 | 1 << 1 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 23;
/// Leaf 1 EDX: FPU DE PSE TSC MSR PAE CX8 SEP PGE CMOV PSE36 CLFSH MMX FXSR SSE SSE2.
const FEATURES_EDX: u32 = 0x0788_A97D;
/// Leaf 7 EBX: SMEP, ERMS, SMAP.
const STRUCTURED_EBX: u32 = 1 << 7 | 1 << 9 | 1 << 20;
/// Leaf 8000_0001 ECX: LAHF in 64-bit code.
const EXTENDED_ECX: u32 = 1;
/// Leaf 8000_0001 EDX: SYSCALL, NX, 1 GiB pages, long mode.
const EXTENDED_EDX: u32 = 1 << 11 | 1 << 20 | 1 << 26 | 1 << 29;

/// What the emulated processor offers (Intel SDM volume 2, `CPUID`): x86-64-v2. It names itself as the processors do whose undefined
/// results it reproduces.
const LEAVES: [CpuidLeaf; 6] = [
    // "GenuineIntel"
    leaf(0, [7, 0x756E_6547, 0x6C65_746E, 0x4965_6E69]),
    // Family 6, model 55h: nothing that a guest could depend on.
    leaf(1, [0x0005_0654, 0, FEATURES_ECX, FEATURES_EDX]),
    CpuidLeaf {
        subleaf: Some(0),
        ..leaf(7, [0, STRUCTURED_EBX, 0, 0])
    },
    leaf(0x8000_0000, [0x8000_0008, 0, 0, 0]),
    leaf(0x8000_0001, [0, 0, EXTENDED_ECX, EXTENDED_EDX]),
    leaf(0x8000_0008, [0, 0, 0, 0]),
];

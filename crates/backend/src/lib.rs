//! Hypervisor backends of Vellum behind one trait.
//!
//! A [`Vm`] is one micro-VM: guest-physical memory, one vCPU, exits. The trait speaks the vocabulary of virtual
//! machines (guest-physical ranges, state groups, exits, interruption) and leaks no ioctl type. A [`Hypervisor`] makes them;
//! [`mshv::Mshv`] is one, and [`kvm::Kvm`] another, on Linux KVM, whatever kind of KVM it is: [`Capabilities`] says what was *probed* (nested or shadow MMU,
//! native or emulated ring 0), and the layers above choose by it.
//!
//! The crate is useful alone: give a [`Vm`] some memory, a [boot state](boot) and run it. `examples/flat_guest.rs` boots a
//! few bytes of 32-bit code this way.
//!
//! | module | what it holds |
//! |---|---|
//! | [`state`] | vCPU state as plain data, and the one list of state groups that drives save, restore, reset and compare |
//! | [`boot`] | one function per guest kind that returns its full boot state |
//! | [`hyperv`] | the rules by which Hyper-V refuses a vCPU state, checked on every backend |
//! | [`flat`] | guests with nothing but memory, a boot state and a hook for each port |
//! | [`cpuid`] | CPU profiles: what the guest's CPUID shows |
//! | [`memory`] | host memory lent to a guest, copied in and out, never borrowed |
//! | [`kvm`] | the KVM backend |
//! | [`mshv`] | the MSHV backend, for Linux as the root partition of Microsoft's hypervisor; no machine of that kind has run it yet |

pub mod boot;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod collected;
pub mod cpuid;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod derived;
pub mod flat;
pub mod hyperv;
mod hypervisor;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod kvm;
pub mod memory;
mod meter;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod mshv;
pub mod msr;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod probe;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod refusal;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod signal;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod slots;
pub mod state;
mod vm;

pub use hypervisor::{Hypervisor, IRQCHIP_HOLES, Irqchip, KVM_TSS_PAGES, Tracking, VmConfig};
pub use memory::{FileMemory, HostMemory, Hva, Piece, SealedMemory, SealedWriter, SharedMemory};
pub use meter::Meter;
pub use state::{StateGroup, VcpuState};
pub use vm::{
    Access, Capabilities, Exit, Interrupter, IoWidth, Mmu, Paused, Protection, RingZero, Vm,
    VmError,
};

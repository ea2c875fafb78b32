//! Model-specific registers.
//!
//! Access is denied by default: a guest reaches only what [`DECLARED`] names, and what it names is saved, restored and
//! compared like any other state.

/// The registers that a guest in ring 0 may read and write, all of them part of every snapshot.
///
/// `IA32_EFER`, `IA32_FS_BASE` and `IA32_GS_BASE` are reachable too but travel with the special registers.
pub const DECLARED: [u32; 8] = [
    IA32_SYSENTER_CS,
    IA32_SYSENTER_ESP,
    IA32_SYSENTER_EIP,
    IA32_STAR,
    IA32_LSTAR,
    IA32_CSTAR,
    IA32_FMASK,
    IA32_KERNEL_GS_BASE,
];

/// Registers that are reachable but saved with [`crate::state::StateGroup::Special`].
pub const WITH_SPECIAL: [u32; 3] = [IA32_EFER, IA32_FS_BASE, IA32_GS_BASE];

/// `sysenter` code segment (Intel SDM volume 4, table 2-2, as all below).
pub const IA32_SYSENTER_CS: u32 = 0x174;
/// `sysenter` stack pointer.
pub const IA32_SYSENTER_ESP: u32 = 0x175;
/// `sysenter` entry point.
pub const IA32_SYSENTER_EIP: u32 = 0x176;
/// Extended features.
pub const IA32_EFER: u32 = 0xC000_0080;
/// `syscall` segments.
pub const IA32_STAR: u32 = 0xC000_0081;
/// `syscall` entry point in long mode.
pub const IA32_LSTAR: u32 = 0xC000_0082;
/// `syscall` entry point in compatibility mode.
pub const IA32_CSTAR: u32 = 0xC000_0083;
/// `syscall` flag mask.
pub const IA32_FMASK: u32 = 0xC000_0084;
/// Base of FS.
pub const IA32_FS_BASE: u32 = 0xC000_0100;
/// Base of GS.
pub const IA32_GS_BASE: u32 = 0xC000_0101;
/// The other base of GS, for `swapgs`.
pub const IA32_KERNEL_GS_BASE: u32 = 0xC000_0102;

//! Boot states: what a vCPU holds before its first instruction, one function per guest kind.
//!
//! Boot state is data. Nothing here needs a hypervisor; every backend applies the same values, and
//! [`crate::hyperv::validate_for_hyperv`] holds for each of them.

use vellum_layout::{Gpa, Gva};

use crate::state::{
    DescriptorTable, Gprs, Segment, SegmentType, SpecialRegs, VcpuState, Xcr0, cr0, cr4, efer,
    rflags,
};

/// Selectors of the amd64 descriptor table, as [`Amd64Machine::gdt`] must hold them.
pub mod selector {
    /// Ring-0 64-bit code.
    pub const KERNEL_CODE: u16 = 0x08;
    /// Ring-0 data.
    pub const KERNEL_DATA: u16 = 0x10;
    /// Ring-3 data.
    pub const USER_DATA: u16 = 0x18 | 3;
    /// Ring-3 64-bit code.
    pub const USER_CODE: u16 = 0x20 | 3;
    /// The task-state segment (two entries).
    pub const TSS: u16 = 0x28;
}

/// What the host built for an amd64 guest before it boots.
#[derive(Clone, Copy, Debug)]
pub struct Amd64Machine {
    /// Root of the page tables: the value of CR3.
    pub root: Gpa,
    /// Global descriptor table.
    pub gdt: DescriptorTable,
    /// Interrupt descriptor table.
    pub idt: DescriptorTable,
    /// Task-state segment.
    pub tss: DescriptorTable,
    /// Vector state that the CPU profile offers: [`Xcr0::RESET`] where it offers no `XSAVE`.
    pub xcr0: Xcr0,
    /// Further bits of CR4 that the processor has: SMEP, SMAP.
    pub cr4_features: u64,
}

impl Amd64Machine {
    /// Page tables and nothing else, for a kernel that brings its own descriptor tables: until it has loaded them, any exception
    /// shuts the vCPU down.
    pub fn bare(root: Gpa, xcr0: Xcr0) -> Self {
        Self {
            root,
            gdt: DescriptorTable::default(),
            idt: DescriptorTable::default(),
            tss: DescriptorTable::default(),
            xcr0,
            cr4_features: 0,
        }
    }
}

/// Where a guest starts.
#[derive(Clone, Copy, Debug)]
pub struct EntryPoint {
    /// First instruction.
    pub entry: Gva,
    /// Initial stack pointer, aligned to 16 bytes.
    pub stack_top: Gva,
    /// Address of the PEB, the first argument.
    pub peb: Gva,
}

/// An amd64 *user* guest: ring 3, 4-level paging, ports by IOPL (hardware) and by the TSS bitmap (where IOPL is ignored).
pub fn amd64_user(machine: &Amd64Machine, start: &EntryPoint) -> VcpuState {
    let data = flat(selector::USER_DATA, SegmentType::DATA.with_dpl(3));
    VcpuState {
        general: Gprs {
            rip: start.entry.as_u64(),
            rsp: start.stack_top.as_u64(),
            rdi: start.peb.as_u64(),
            rflags: rflags::FIXED | rflags::IOPL_3,
            ..Gprs::default()
        },
        special: SpecialRegs {
            cs: flat(selector::USER_CODE, SegmentType::CODE64.with_dpl(3)),
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            ..long_mode(machine)
        },
        xcr0: machine.xcr0,
        ..VcpuState::default()
    }
}

/// An amd64 *kernel* guest: ring 0, 4-level paging.
pub fn amd64_kernel(machine: &Amd64Machine, start: &EntryPoint) -> VcpuState {
    let data = flat(selector::KERNEL_DATA, SegmentType::DATA);
    VcpuState {
        general: Gprs {
            rip: start.entry.as_u64(),
            rsp: start.stack_top.as_u64(),
            rdi: start.peb.as_u64(),
            ..Gprs::default()
        },
        special: SpecialRegs {
            cs: flat(selector::KERNEL_CODE, SegmentType::CODE64),
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            ..long_mode(machine)
        },
        xcr0: machine.xcr0,
        ..VcpuState::default()
    }
}

/// An i686 *identity* guest: ring 0, flat 32-bit protected mode without paging. Its PEB arrives in EDI. Every address is
/// guest-physical, and the types say so.
pub fn i686_identity(entry: Gpa, stack_top: Gpa, peb: Gpa) -> VcpuState {
    let mut state = flat32(entry, stack_top, 0, 0);
    state.general.rdi = peb.as_u64();
    state
}

/// An i686 *paged* guest: ring 0, flat 32-bit protected mode on 2-level page tables whose root is `root`. CR4.PSE allows their 4 MiB
/// pages, and CR0.WP makes ring 0 respect read-only ones, without which there is no copy-on-write (Intel SDM volume 3, sections
/// 4.1.3 and 4.3). Like any kernel it brings its own descriptor tables.
pub fn i686_paged(root: Gpa, start: &EntryPoint) -> VcpuState {
    let mut state = flat32(Gpa::literal(0), Gpa::literal(0), 0, 0);
    state.general.rip = start.entry.as_u64();
    state.general.rsp = start.stack_top.as_u64();
    state.general.rdi = start.peb.as_u64();
    state.special.cr0 |= cr0::WP | cr0::PG;
    state.special.cr3 = root.as_u64();
    state.special.cr4 |= cr4::PSE;
    state
}

/// A 32-bit flat protected-mode guest without paging: CR0 = PE | ET. `eax` and `ebx` are what a boot protocol wants.
pub fn flat32(entry: Gpa, stack_top: Gpa, eax: u32, ebx: u32) -> VcpuState {
    let data = flat(selector::KERNEL_DATA, SegmentType::DATA);
    VcpuState {
        general: Gprs {
            rip: entry.as_u64(),
            rsp: stack_top.as_u64(),
            rax: u64::from(eax),
            rbx: u64::from(ebx),
            ..Gprs::default()
        },
        special: SpecialRegs {
            cs: flat(selector::KERNEL_CODE, SegmentType::CODE32),
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            cr0: cr0::PE | cr0::ET,
            ..SpecialRegs::default()
        },
        ..VcpuState::default()
    }
}

/// A 16-bit real-mode guest that starts at `segment:offset`.
pub fn real_mode(segment: u16, offset: u16) -> VcpuState {
    let real = |selector: u16, attributes| Segment {
        base: u64::from(selector) << 4,
        limit: 0xFFFF,
        selector,
        attributes,
    };
    let data = real(0, SegmentType::DATA16);
    VcpuState {
        general: Gprs {
            rip: u64::from(offset),
            ..Gprs::default()
        },
        special: SpecialRegs {
            cs: real(segment, SegmentType::CODE16),
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            idtr: DescriptorTable {
                base: 0,
                limit: 0x3FF,
            },
            ..SpecialRegs::default()
        },
        ..VcpuState::default()
    }
}

/// CR4 of every long-mode guest: PAE, and SSE switched on.
const CR4_LONG_MODE: u64 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;

fn long_mode(machine: &Amd64Machine) -> SpecialRegs {
    let osxsave = if machine.xcr0 == Xcr0::RESET {
        0
    } else {
        cr4::OSXSAVE
    };
    SpecialRegs {
        tr: Segment {
            base: machine.tss.base,
            limit: u32::from(machine.tss.limit),
            selector: selector::TSS,
            attributes: SegmentType::TSS_BUSY,
        },
        gdtr: machine.gdt,
        idtr: machine.idt,
        cr0: cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::PG,
        cr3: machine.root.as_u64(),
        cr4: CR4_LONG_MODE | osxsave | machine.cr4_features,
        efer: efer::LME | efer::LMA | efer::NXE,
        ..SpecialRegs::default()
    }
}

/// A segment from 0 to 4 GiB; long mode ignores base and limit.
fn flat(selector: u16, attributes: SegmentType) -> Segment {
    Segment {
        base: 0,
        limit: 0xFFFF_FFFF,
        selector,
        attributes,
    }
}

#[cfg(test)]
mod tests;

//! Random states that every processor takes, and what it means that two of them are equal.

use std::fmt::Debug;

use proptest::collection::vec;
use proptest::prelude::*;
use vellum_backend::state::{
    DebugRegs, DescriptorTable, Gprs, Msrs, Segment, SpecialRegs, XSAVE_LEN_BYTES, Xcr0, XsaveArea,
    cr0, cr4, efer, rflags,
};
use vellum_backend::{StateGroup, VcpuState, msr};

/// Offsets in an `XSAVE` area (Intel SDM volume 1, sections 10.5.1 and 13.4).
const FSW: usize = 2;
const FTW: usize = 4;
const MXCSR: usize = 24;
const MXCSR_MASK: usize = 28;
const ST: usize = 32;
const XMM: usize = 160;
const RESERVED: usize = 416;
const XSTATE_BV: usize = 512;
const YMM_HIGH: usize = 576;
const YMM_END: usize = 832;

/// States to write and read back. What the base state fixes (mode, privilege, tables) stays.
pub(super) fn states(base: VcpuState, widest: Xcr0) -> impl Strategy<Value = VcpuState> {
    let is_long = base.special.efer & efer::LMA != 0;
    let parts = (
        gprs(),
        special(base.special, is_long),
        vector_state(widest),
        debug_registers(),
        msrs(),
    );
    parts.prop_map(
        move |(general, special, (xcr0, xsave), debug, msrs)| VcpuState {
            general,
            special,
            xsave,
            xcr0,
            debug,
            msrs,
            ..base.clone()
        },
    )
}

/// States in which the guest also runs: memory and code are where the base state says, and nothing traps.
pub(super) fn runnable_states(base: VcpuState, widest: Xcr0) -> impl Strategy<Value = VcpuState> {
    let is_long = base.special.efer & efer::LMA != 0;
    let parts = (gprs(), vector_state(widest), msrs(), vec(any::<u64>(), 3));
    parts.prop_map(move |(random, (xcr0, xsave), msrs, numbers)| {
        let mut state = VcpuState {
            xsave,
            xcr0,
            msrs,
            ..base.clone()
        };
        state.general = Gprs {
            rip: base.general.rip,
            rflags: base.general.rflags | random.rflags & STATUS_FLAGS,
            ..random
        };
        if !is_long {
            truncate(&mut state.general);
        }
        state.special.cr2 = if is_long {
            numbers[0]
        } else {
            numbers[0] & 0xFFFF_FFFF
        };
        if is_long {
            state.special.fs.base = canonical(numbers[1]);
            state.special.gs.base = canonical(numbers[2]);
        }
        state.debug.dr = [canonical(numbers[1]), numbers[2] & 0xFFFF_F000, 0, 7];
        if !is_long {
            state.debug.dr[0] &= 0xFFFF_FFFF;
        }
        state
    })
}

/// CF, PF, AF, ZF, SF, DF, OF (Intel SDM volume 1, section 3.4.3).
const STATUS_FLAGS: u64 = 0x0CD5;
/// The same, and IF, IOPL, NT, AC, ID.
const STORABLE_FLAGS: u64 = STATUS_FLAGS | 1 << 9 | rflags::IOPL_3 | 1 << 14 | 1 << 18 | 1 << 21;

fn gprs() -> impl Strategy<Value = Gprs> {
    any::<[u64; 18]>().prop_map(|[general @ .., rip, flags]| {
        let flags = rflags::FIXED | flags & STORABLE_FLAGS;
        Gprs::from_encoding_order(general, canonical(rip), flags)
    })
}

/// Registers as 32-bit code leaves them.
fn truncate(general: &mut Gprs) {
    let Gprs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        ..
    } = general;
    for register in [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp] {
        *register &= 0xFFFF_FFFF;
    }
}

fn canonical(address: u64) -> u64 {
    (address << 16)
        .cast_signed()
        .wrapping_shr(16)
        .cast_unsigned()
}

fn special(base: SpecialRegs, is_long: bool) -> impl Strategy<Value = SpecialRegs> {
    /// NE, TS, AM, WP, MP (Intel SDM volume 3, section 2.5).
    const CR0_FREE: u64 = cr0::NE | 1 << 3 | 1 << 18 | cr0::WP | cr0::MP;
    /// PSE, PGE, TSD, DE, OSFXSR, OSXMMEXCPT.
    const CR4_FREE: u64 = cr4::PSE | cr4::PGE | 1 << 2 | 1 << 3 | cr4::OSFXSR | cr4::OSXMMEXCPT;
    let address = move |address: u64| {
        if is_long {
            canonical(address)
        } else {
            address & 0xFFFF_FFFF
        }
    };
    (vec(any::<u64>(), 12), vec(segment(), 2)).prop_map(move |(n, segments)| {
        let mut special = base;
        special.cr0 |= n[0] & CR0_FREE;
        special.cr4 |= n[1] & CR4_FREE;
        special.cr2 = address(n[2]);
        special.cr8 = n[3] & 0xF;
        // Inside of what every processor can address, with PWT and PCD.
        special.cr3 = n[4] & 0xF_FFFF_F018;
        special.fs.base = address(n[5]);
        special.gs.base = address(n[6]);
        special.gdtr = table(address(n[7]), n[8]);
        special.idtr = table(address(n[9]), n[10]);
        if is_long {
            special.efer |= n[11] & efer::SCE;
        } else if special.cr0 & cr0::PE != 0 {
            (special.fs, special.gs) = (segments[0], segments[1]);
        }
        special
    })
}

fn table(base: u64, limit: u64) -> DescriptorTable {
    let [low, high, ..] = limit.to_le_bytes();
    DescriptorTable {
        base,
        limit: u16::from_le_bytes([low, high]),
    }
}

/// A data segment of ring 0 or 3 in 32-bit code.
fn segment() -> impl Strategy<Value = Segment> {
    use vellum_backend::state::SegmentType;
    (any::<u32>(), any::<u32>(), any::<u16>(), any::<bool>()).prop_map(
        |(base, limit, selector, in_pages)| {
            // Present, data, writable, accessed, 32-bit; with or without G (Intel SDM volume 3, section 3.4.5).
            let (bits, limit) = if in_pages {
                (0xC093, limit | 0xFFF)
            } else {
                (0x4093, limit & 0xF_FFFF)
            };
            Segment {
                base: base.into(),
                limit,
                selector: selector & !3,
                attributes: SegmentType::from_bits(bits),
            }
        },
    )
}

fn debug_registers() -> impl Strategy<Value = DebugRegs> {
    /// What a breakpoint or a single step leaves (Intel SDM volume 3, section 18.2.3).
    const DR6_FREE: u64 = 0xF | 1 << 14;
    /// Enable bits, and execution breakpoints of one byte only (section 18.2.4).
    const DR7_FREE: u64 = 0xFF;
    (vec(any::<u64>(), 4), any::<u64>(), any::<u64>()).prop_map(|(dr, dr6, dr7)| DebugRegs {
        dr: [dr[0], dr[1], dr[2], dr[3]].map(canonical),
        dr6: DebugRegs::default().dr6 | dr6 & DR6_FREE,
        dr7: DebugRegs::default().dr7 | dr7 & DR7_FREE,
    })
}

fn msrs() -> impl Strategy<Value = Msrs> {
    vec(any::<u64>(), msr::DECLARED.len()).prop_map(|numbers| {
        let mut msrs = Msrs::default();
        for (index, number) in msr::DECLARED.into_iter().zip(numbers) {
            let value = match index {
                msr::IA32_SYSENTER_CS => number & 0xFFFF,
                // AMD processors keep 32 bits of the two (AMD APM volume 2, section 6.1.2).
                msr::IA32_FMASK | msr::IA32_SYSENTER_ESP | msr::IA32_SYSENTER_EIP => {
                    number & 0xFFFF_FFFF
                }
                msr::IA32_STAR => number,
                _ => canonical(number),
            };
            msrs.set(index, value);
        }
        msrs
    })
}

/// XCR0, and a save area that holds the components that it enables, some of them in their initial configuration.
fn vector_state(widest: Xcr0) -> impl Strategy<Value = (Xcr0, XsaveArea)> {
    let narrower: Vec<Xcr0> = [1, 3, 7]
        .into_iter()
        .filter(|bits| bits & !widest.0 == 0)
        .map(Xcr0)
        .collect();
    let bytes = vec(any::<u8>(), YMM_END);
    (prop::sample::select(narrower), bytes, 0_u64..8).prop_map(move |(xcr0, random, present)| {
        let mut area = [0; XSAVE_LEN_BYTES];
        area[..YMM_END].copy_from_slice(&random);
        // FCW: masks, precision and rounding; bit 6 is 1, bit 7 is 0 (Intel SDM volume 1, section 8.1.5). FSW without pending exceptions.
        area[0] = 0x7F;
        area[1] &= 0x0F;
        area[FSW] = 0;
        area[FSW + 1] &= 0x47;
        // Tags as they are; opcode and pointers of the last instruction, which some processors drop, are zero.
        area[FTW + 1..MXCSR].fill(0);
        area[MXCSR + 2..MXCSR_MASK + 4].fill(0);
        for register in 0..8 {
            area[ST + register * 16 + 10..ST + register * 16 + 16].fill(0);
        }
        area[RESERVED..YMM_HIGH].fill(0);
        // x87 and SSE state exist also where XCR0 does not let them be switched off.
        let allowed = if widest == Xcr0::RESET { 3 } else { xcr0.0 | 3 };
        let present = present & allowed;
        // A processor marks SSE as present whenever MXCSR is not at its reset value (Intel SDM volume 1, section 13.7); what an engine
        // makes of an area that no processor writes is not told.
        if present & Xcr0::SSE == 0 {
            area[MXCSR..MXCSR + 4].copy_from_slice(&0x1F80_u32.to_le_bytes());
        }
        area[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&present.to_le_bytes());
        if allowed & Xcr0::AVX == 0 {
            area[YMM_HIGH..YMM_END].fill(0);
        }
        (xcr0, XsaveArea::from_bytes(area))
    })
}

/// The registers that a save area stands for: a component that is absent from `XSTATE_BV` is in its initial configuration, whatever its
/// bytes are.
pub(super) fn effective(area: &XsaveArea) -> Vec<u8> {
    let bytes = area.as_bytes();
    let present = area.xstate_bv();
    let reset = XsaveArea::reset();
    let pick = |component: u64| {
        if present & component == 0 {
            reset.as_bytes()
        } else {
            bytes
        }
    };
    let (x87, sse, avx) = (pick(Xcr0::X87), pick(Xcr0::SSE), pick(Xcr0::AVX));
    let mut registers = Vec::new();
    // FCW, FSW, FTW; the pointers behind them are lost by some processors.
    registers.extend_from_slice(&x87[..=FTW]);
    for register in 0..8 {
        registers.extend_from_slice(&x87[ST + register * 16..ST + register * 16 + 10]);
    }
    // MXCSR belongs to both (Intel SDM volume 1, section 13.8.1).
    let mxcsr = if present & (Xcr0::SSE | Xcr0::AVX) == 0 {
        reset.as_bytes()
    } else {
        bytes
    };
    registers.extend_from_slice(&mxcsr[MXCSR..MXCSR + 4]);
    registers.extend_from_slice(&sse[XMM..RESERVED]);
    registers.extend_from_slice(&avx[YMM_HIGH..YMM_END]);
    registers
}

/// In what a group differs, as text.
pub(super) fn group_difference(
    group: StateGroup,
    read: &VcpuState,
    wanted: &VcpuState,
) -> Option<String> {
    match group {
        StateGroup::General => difference(group, &read.general, &wanted.general),
        StateGroup::Special => difference(group, &read.special, &wanted.special),
        StateGroup::Xcr0 => difference(group, &read.xcr0, &wanted.xcr0),
        StateGroup::Debug => difference(group, &read.debug, &wanted.debug),
        StateGroup::Msrs => difference(group, &read.msrs, &wanted.msrs),
        StateGroup::Events => difference(group, &read.events, &wanted.events),
        StateGroup::Xsave => difference(group, &effective(&read.xsave), &effective(&wanted.xsave)),
    }
}

/// Only the lines that differ: a state group has dozens.
fn difference<T: Debug + PartialEq>(group: StateGroup, read: &T, wanted: &T) -> Option<String> {
    if read == wanted {
        return None;
    }
    let (read, wanted) = (format!("{read:#x?}"), format!("{wanted:#x?}"));
    let lines: Vec<String> = read
        .lines()
        .zip(wanted.lines())
        .enumerate()
        .filter(|(_, (read, wanted))| read != wanted)
        .map(|(line, (read, wanted))| {
            format!("line {line}: {} instead of {}", read.trim(), wanted.trim())
        })
        .collect();
    Some(format!("{group:?} differs: {}", lines.join("; ")))
}

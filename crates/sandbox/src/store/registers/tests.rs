use vellum_backend::boot::{self, Amd64Machine, EntryPoint};
use vellum_backend::msr;
use vellum_layout::{Gpa, Gva};

use super::*;

/// A change of a state, and what it is.
type Change = (&'static str, fn(&mut VcpuState));

fn user() -> VcpuState {
    let machine = Amd64Machine::bare(Gpa::literal(0), Xcr0(Xcr0::X87 | Xcr0::SSE | Xcr0::AVX));
    boot::amd64_user(&machine, &start())
}

fn start() -> EntryPoint {
    EntryPoint {
        entry: Gva::literal(0x40_0000),
        stack_top: Gva::literal(0x50_0000),
        peb: Gva::literal(0x60_0000),
    }
}

fn kernels() -> [(GuestKind, VcpuState); 3] {
    let machine = Amd64Machine::bare(Gpa::literal(0x1000), Xcr0(Xcr0::X87 | Xcr0::SSE));
    let flat = |address| Gpa::literal(address);
    [
        (
            GuestKind::Amd64Kernel,
            boot::amd64_kernel(&machine, &start()),
        ),
        (
            GuestKind::I686Identity,
            boot::i686_identity(flat(0x1000), flat(0x8000), flat(0x9000)),
        ),
        (
            GuestKind::I686Paged,
            boot::i686_paged(flat(0x1000), &start()),
        ),
    ]
}

#[test]
fn every_boot_state_is_valid_and_comes_back_from_json() {
    let states = kernels().map(|(_, state)| state).into_iter();
    for mut state in states.chain([user()]) {
        state.general.r15 = u64::MAX;
        state.msrs.set(msr::IA32_STAR, 5);
        state.events.exception = Some((13, Some(8)));
        let json = serde_json::to_string(&StateRecord(state.clone())).expect("serialised");
        let back: StateRecord = serde_json::from_str(&json).expect("parsed");
        assert_eq!(back.0, state);
    }
    check_user(&user(), &user()).expect("valid");
    for (kind, state) in kernels() {
        check_kernel(&state, kind).expect("valid");
    }
}

#[test]
fn what_ring_three_can_change_is_accepted() {
    let flat_from_table = |attributes| Segment {
        base: 0,
        limit: 0,
        selector: 0x1B,
        attributes: SegmentType::from_bits(attributes),
    };
    let cases: &[Change] = &[
        ("cr2", |state| state.special.cr2 = 0xDEAD_0000),
        ("cr3", |state| state.special.cr3 = 0xF_0000_0008),
        ("general", |state| state.general.rax = u64::MAX),
        ("flags", |state| state.general.rflags = 0x25_7FD7),
        ("null", |state| state.special.gs = Segment::default()),
        ("code", |state| {
            // As the descriptor table has it.
            state.special.cs.limit = 0;
            state.special.cs.attributes = SegmentType::from_bits(0x20FB);
        }),
        ("vectors", |state| {
            let mut bytes = *state.xsave.as_bytes();
            bytes[160] = 1;
            bytes[512] = 7;
            state.xsave = XsaveArea::from_bytes(bytes);
        }),
    ];
    for (name, change) in cases {
        let mut state = user();
        change(&mut state);
        assert!(check_user(&state, &user()).is_ok(), "{name}");
    }
    let mut state = user();
    state.special.ss = flat_from_table(0x00F3);
    state.special.ds = flat_from_table(0x00F3);
    assert!(check_user(&state, &user()).is_ok());
}

#[test]
fn what_no_kernel_can_have_is_refused() {
    let cases: &[Change] = &[
        ("cr4 with virtual machines", |state| {
            state.special.cr4 |= cr4::VMXE;
        }),
        ("cr4 with 5-level paging", |state| {
            state.special.cr4 |= 1 << 12;
        }),
        ("cr4 with fsgsbase", |state| state.special.cr4 |= 1 << 16),
        ("cr4 with pcid", |state| state.special.cr4 |= 1 << 17),
        ("cr8", |state| state.special.cr8 = 16),
        ("apic base", |state| state.special.apic_base = 0x1000),
        ("x2apic", |state| state.special.apic_base = 0xFEE0_0C00),
        ("efer", |state| state.special.efer |= 1 << 12),
        ("cr0", |state| state.special.cr0 |= 1 << 63),
        ("cr3", |state| state.special.cr3 = 1 << 60),
        ("dr6", |state| state.debug.dr6 |= 1 << 32),
        ("dr7", |state| state.debug.dr7 |= 1 << 40),
        ("rip", |state| state.general.rip = 1 << 50),
        ("flags without bit 1", |state| state.general.rflags = 0),
        ("virtual-8086 mode", |state| state.general.rflags |= 1 << 17),
        ("ldtr", |state| state.special.ldtr.base = 1 << 60),
        ("gdtr", |state| state.special.gdtr.base = 1 << 60),
        ("sysenter", |state| {
            state.msrs.set(msr::IA32_SYSENTER_EIP, 1 << 60);
        }),
        ("flag mask", |state| {
            state.msrs.set(msr::IA32_FMASK, 1 << 32);
        }),
        ("vector", |state| state.events.exception = Some((32, None))),
        ("shadow", |state| state.events.interrupt_shadow = 4),
        ("xcr0 without x87", |state| state.xcr0 = Xcr0(6)),
        ("xcr0 with avx-512", |state| state.xcr0 = Xcr0(0xE7)),
        ("mxcsr", |state| {
            let mut bytes = *state.xsave.as_bytes();
            bytes[26] = 1;
            state.xsave = XsaveArea::from_bytes(bytes);
        }),
        ("compacted area", |state| {
            let mut bytes = *state.xsave.as_bytes();
            bytes[527] = 0x80;
            state.xsave = XsaveArea::from_bytes(bytes);
        }),
        ("component", |state| {
            let mut bytes = *state.xsave.as_bytes();
            bytes[513] = 2;
            state.xsave = XsaveArea::from_bytes(bytes);
        }),
    ];
    for (kind, state) in kernels() {
        for (name, change) in cases {
            let mut state = state.clone();
            change(&mut state);
            assert!(check_kernel(&state, kind).is_err(), "{kind}: {name}");
        }
    }
}

#[test]
fn a_32_bit_guest_is_not_in_long_mode() {
    let [(_, state), ..] = kernels();
    assert!(check_kernel(&state, GuestKind::I686Paged).is_err());
}

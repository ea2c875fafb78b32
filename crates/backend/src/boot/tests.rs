use super::*;
use crate::hyperv::{HypervViolation, validate_for_hyperv};
use crate::state::{DebugRegs, PendingEvents, XsaveArea};

fn machine(xcr0: Xcr0, cr4_features: u64) -> Amd64Machine {
    Amd64Machine {
        root: Gpa::literal(0x1000),
        gdt: DescriptorTable {
            base: 0x2000,
            limit: 0x37,
        },
        idt: DescriptorTable {
            base: 0xFFFF_FFFF_8000_0000,
            limit: 0xFFF,
        },
        tss: DescriptorTable {
            base: 0x3000,
            limit: 0x2068,
        },
        xcr0,
        cr4_features,
    }
}

fn start() -> EntryPoint {
    EntryPoint {
        entry: Gva::literal(0x40_1000),
        stack_top: Gva::literal(0x7FFF_F000),
        peb: Gva::literal(0x5000),
    }
}

const AVX: Xcr0 = Xcr0(Xcr0::X87 | Xcr0::SSE | Xcr0::AVX);

fn every_boot_state() -> Vec<(&'static str, VcpuState)> {
    let mut states = vec![
        (
            "flat32",
            flat32(Gpa::literal(0x10_0000), Gpa::literal(0x8000), 1, 2),
        ),
        ("i686 paged", i686_paged(Gpa::literal(0x7000), &start())),
        ("real mode at 0:7c00", real_mode(0, 0x7C00)),
        ("real mode at ffff:0", real_mode(0xFFFF, 0)),
    ];
    for xcr0 in [Xcr0::RESET, AVX] {
        for cr4_features in [0, cr4::SMEP, cr4::SMEP | cr4::SMAP] {
            let machine = machine(xcr0, cr4_features);
            states.push(("amd64 user", amd64_user(&machine, &start())));
            states.push(("amd64 kernel", amd64_kernel(&machine, &start())));
            let bare = Amd64Machine::bare(Gpa::literal(0x7000), xcr0);
            states.push(("bare amd64 kernel", amd64_kernel(&bare, &start())));
        }
    }
    states
}

#[test]
fn hyper_v_accepts_every_boot_state() {
    for (name, state) in every_boot_state() {
        assert_eq!(validate_for_hyperv(&state.special), Ok(()), "{name}");
    }
}

#[test]
fn without_extension_type_no_boot_state_is_accepted() {
    for (name, mut state) in every_boot_state() {
        state.special.cr0 &= !cr0::ET;
        let refusal = validate_for_hyperv(&state.special);
        assert_eq!(
            refusal,
            Err(HypervViolation::ExtensionTypeClear(state.special.cr0)),
            "{name}"
        );
    }
}

#[test]
fn what_a_boot_does_not_set_is_as_after_a_reset() {
    for (name, state) in every_boot_state() {
        assert_eq!(state.xsave, XsaveArea::reset(), "{name}");
        assert_eq!(state.debug, DebugRegs::default(), "{name}");
        assert_eq!(state.events, PendingEvents::default(), "{name}");
        assert_eq!(state.msrs, VcpuState::default().msrs, "{name}");
        assert_eq!(state.special.cr2, 0, "{name}");
        assert_ne!(state.general.rflags & rflags::FIXED, 0, "{name}");
    }
}

#[test]
fn a_user_guest_starts_in_ring_three_with_ports_and_its_peb() {
    let state = amd64_user(&machine(AVX, cr4::SMEP), &start());
    for segment in [state.special.cs, state.special.ss, state.special.ds] {
        assert_eq!((segment.attributes.dpl(), segment.selector & 3), (3, 3));
    }
    assert!(state.special.cs.attributes.is_long());
    assert_eq!(state.general.rip, 0x40_1000);
    assert_eq!(state.general.rsp, 0x7FFF_F000);
    assert_eq!(state.general.rdi, 0x5000);
    assert_eq!(state.general.rflags, rflags::FIXED | rflags::IOPL_3);
}

#[test]
fn a_kernel_guest_starts_in_ring_zero() {
    let state = amd64_kernel(&machine(AVX, 0), &start());
    for segment in [state.special.cs, state.special.ss, state.special.ds] {
        assert_eq!((segment.attributes.dpl(), segment.selector & 3), (0, 0));
    }
    assert!(state.special.cs.attributes.is_long());
    assert_eq!(state.general.rdi, 0x5000);
    assert_eq!(state.general.rflags, rflags::FIXED);
}

#[test]
fn long_mode_has_the_machine_that_the_host_built() {
    let machine = machine(AVX, cr4::SMEP | cr4::SMAP);
    for state in [
        amd64_user(&machine, &start()),
        amd64_kernel(&machine, &start()),
    ] {
        let special = state.special;
        assert_eq!(special.cr3, 0x1000);
        assert_eq!((special.gdtr, special.idtr), (machine.gdt, machine.idt));
        assert_eq!((special.tr.base, special.tr.limit), (0x3000, 0x2068));
        assert_eq!(special.tr.selector, selector::TSS);
        assert_eq!(special.efer, efer::LME | efer::LMA | efer::NXE);
        let wanted = cr0::PE | cr0::PG | cr0::WP;
        assert_eq!(special.cr0 & wanted, wanted);
        assert_eq!(special.cr4 & machine.cr4_features, machine.cr4_features);
        assert_eq!(state.xcr0, AVX);
    }
}

#[test]
fn xsave_is_switched_on_only_where_the_profile_offers_it() {
    for (xcr0, osxsave) in [
        (Xcr0::RESET, 0),
        (AVX, cr4::OSXSAVE),
        (Xcr0(3), cr4::OSXSAVE),
    ] {
        let state = amd64_user(&machine(xcr0, 0), &start());
        assert_eq!(state.special.cr4 & cr4::OSXSAVE, osxsave, "{xcr0:?}");
        let sse = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;
        assert_eq!(state.special.cr4 & sse, sse, "{xcr0:?}");
    }
}

#[test]
fn a_flat_guest_starts_in_protected_mode_without_paging() {
    let state = flat32(
        Gpa::literal(0x10_0000),
        Gpa::literal(0x8000),
        0x2BAD_B002,
        0x9000,
    );
    assert_eq!(state.special.cr0, cr0::PE | cr0::ET);
    assert_eq!((state.special.cr4, state.special.efer), (0, 0));
    assert!(state.special.cs.attributes.is_default_32());
    assert_eq!(
        (state.special.cs.base, state.special.cs.limit),
        (0, u32::MAX)
    );
    assert_eq!((state.general.rip, state.general.rsp), (0x10_0000, 0x8000));
    assert_eq!(
        (state.general.rax, state.general.rbx),
        (0x2BAD_B002, 0x9000)
    );
}

#[test]
fn a_paged_32_bit_guest_starts_on_its_tables_with_write_protection() {
    let state = i686_paged(Gpa::literal(0x7000), &start());
    assert_eq!(
        state.special.cr0,
        cr0::PE | cr0::ET | cr0::WP | cr0::PG,
        "{:#x}",
        state.special.cr0
    );
    assert_eq!((state.special.cr3, state.special.cr4), (0x7000, cr4::PSE));
    assert_eq!(state.special.efer, 0);
    assert!(state.special.cs.attributes.is_default_32());
    assert_eq!((state.general.rip, state.general.rdi), (0x40_1000, 0x5000));
}

#[test]
fn real_mode_code_starts_at_segment_times_sixteen_plus_offset() {
    for (segment, offset, base) in [
        (0, 0x7C00, 0),
        (0xF000, 0xFFF0, 0xF_0000),
        (0xFFFF, 0, 0xF_FFF0),
    ] {
        let state = real_mode(segment, offset);
        assert_eq!(state.special.cs.selector, segment);
        assert_eq!(state.special.cs.base, base);
        assert_eq!(state.general.rip, u64::from(offset));
        assert_eq!(state.special.cr0, cr0::ET);
        assert_eq!(state.special.idtr.limit, 0x3FF);
    }
}

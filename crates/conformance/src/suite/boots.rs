//! Boot states: what a guest finds at its first instruction.

use vellum_backend::boot;
use vellum_backend::state::{cr0, rflags};
use vellum_backend::{Exit, IoWidth, VcpuState};
use vellum_layout::Gpa;

use crate::failure::{Result, ensure, ensure_eq};
use crate::guest::guest;
use crate::rig::{CODE, DATA, Mode, Rig, STACK_TOP};
use crate::subject::{Quirk, Subject};

guest!(
    REAL,
    16,
    "mov ax, cs",
    "out 0x21, ax",
    "mov al, 'A'",
    "out 0x21, al",
    "hlt"
);
guest!(
    FLAT,
    32,
    "out 0xe0, eax",
    "mov eax, ebx",
    "out 0xe0, eax",
    "mov eax, edi",
    "out 0xe0, eax",
    "mov eax, esp",
    "out 0xe0, eax"
);
guest!(
    CONTROL32,
    32,
    "mov eax, cr0",
    "out 0xe0, eax",
    "mov eax, cr4",
    "out 0xe0, eax"
);
guest!(
    CONTROL64,
    64,
    "mov rax, cr0",
    "out 0xe0, eax",
    "mov rax, cr4",
    "out 0xe0, eax",
    "mov rax, cr3",
    "out 0xe0, eax"
);
guest!(
    USER,
    64,
    "out 0xe0, eax",
    "mov eax, cs",
    "out 0xe0, eax",
    "mov eax, edi",
    "out 0xe0, eax",
    "mov eax, esp",
    "out 0xe0, eax",
    "pushfq",
    "pop rax",
    "out 0xe0, eax"
);

/// A real-mode guest runs at its segment and offset.
pub(crate) fn a_real_mode_guest_runs_at_its_segment_and_offset(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::Real, &REAL)?;
    rig.ram.write(0x07C0 * 16 + 0x10, REAL.code())?;
    rig.start(&boot::real_mode(0x07C0, 0x10))?;
    let out = |width, data| Exit::IoOut {
        port: 0x21,
        width,
        data,
    };
    rig.expect(out(IoWidth::Word, 0x07C0))?;
    rig.expect(out(IoWidth::Byte, u32::from(b'A')))?;
    rig.expect(Exit::Halt)
}

/// Flat guests find what their boot protocol puts into registers.
pub(crate) fn a_flat_guest_finds_its_registers(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::Flat, &FLAT)?;
    let (entry, stack) = (Gpa::literal(CODE), Gpa::literal(STACK_TOP));
    let multiboot = boot::flat32(entry, stack, 0x2BAD_B002, 0x9000);
    let identity = boot::i686_identity(entry, stack, Gpa::literal(DATA));
    let cases: [(VcpuState, [u64; 4]); 2] = [
        (multiboot, [0x2BAD_B002, 0x9000, 0, STACK_TOP]),
        (identity, [0, 0, DATA, STACK_TOP]),
    ];
    for (state, expected) in cases {
        rig.start(&state)?;
        for value in expected {
            let got = rig.result()?;
            ensure_eq!(u64::from(got), value, "a register");
        }
    }
    Ok(())
}

/// CR0 and CR4 of a guest in ring 0. CR0.ET is always there.
pub(crate) fn control_registers_are_those_of_the_boot_state(subject: &Subject) -> Result {
    for mode in [Mode::Flat, Mode::Kernel] {
        let guest = if mode.is_long() { CONTROL64 } else { CONTROL32 };
        let mut rig = Rig::new(subject, mode, &guest)?;
        let boot = rig.boot_state().special;
        let got = rig.result()?;
        ensure_eq!(u64::from(got), boot.cr0, "cr0 in {mode:?}");
        ensure!(u64::from(got) & cr0::ET != 0, "cr0 lacks ET");
        let got = rig.result()?;
        ensure_eq!(u64::from(got), boot.cr4, "cr4 in {mode:?}");
        if mode.is_long() {
            let got = rig.result()?;
            ensure_eq!(u64::from(got), boot.cr3, "cr3");
        }
    }
    Ok(())
}

/// The same of a paged guest.
pub(crate) fn control_registers_of_a_paged_guest(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::Paged, &CONTROL32)?;
    let boot = rig.boot_state().special;
    let got = rig.result()?;
    ensure_eq!(u64::from(got), boot.cr0, "cr0");
    let got = rig.result()?;
    ensure_eq!(u64::from(got), boot.cr4, "cr4");
    Ok(())
}

/// A user guest begins in ring 3 with its PEB, its stack and clean flags.
pub(crate) fn a_user_guest_begins_in_ring_three(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &USER)?;
    rig.start_with(|state| state.general.rdi = DATA)?;
    let first = rig.result()?;
    ensure_eq!(first, 0, "eax");
    let selector = rig.result()?;
    ensure_eq!(selector & 3, 3, "privilege");
    if !subject.has(Quirk::RingThreeSeesTheHost) {
        ensure_eq!(
            u64::from(selector),
            u64::from(boot::selector::USER_CODE),
            "code segment"
        );
    }
    for value in [DATA, STACK_TOP] {
        let got = rig.result()?;
        ensure_eq!(u64::from(got), value, "a register");
    }
    let flags = rig.result()?;
    if !subject.has(Quirk::RingThreeSeesTheHost) {
        ensure_eq!(
            u64::from(flags),
            rflags::FIXED | rflags::IOPL_3,
            "the flags"
        );
    }
    Ok(())
}

/// One vCPU takes boot states of different kinds, one after the other.
pub(crate) fn a_fresh_vcpu_boots_every_kind_in_turn(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::Flat, &FLAT)?;
    let flat = rig.boot_state();
    for _ in 0..3 {
        rig.load(&FLAT)?;
        rig.start(&flat)?;
        rig.result()?;
        rig.load(&REAL)?;
        let mut real = boot::real_mode(0, 0);
        real.general.rip = CODE;
        rig.start(&real)?;
        let exit = rig.run()?;
        ensure!(
            matches!(
                exit,
                Exit::IoOut {
                    width: IoWidth::Word,
                    data: 0,
                    ..
                }
            ),
            "{exit:?}"
        );
    }
    Ok(())
}

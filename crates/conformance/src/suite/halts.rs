//! `hlt`, without interrupt controllers.

use vellum_backend::Exit;
use vellum_backend::state::rflags;

use super::in_modes;
use crate::failure::{Result, ensure_eq};
use crate::guest::{Guest, guest};
use crate::rig::{CODE, Mode, Rig};
use crate::subject::Subject;

macro_rules! halts {
    ($name:ident, $bits:literal) => {
        guest!($name, $bits, "hlt", "hlt", "mov al, 0x11", "out 0x21, al");
    };
}
halts!(HALTS16, 16);
halts!(HALTS32, 32);
halts!(HALTS64, 64);

/// A halted guest stands behind its `hlt` and can go on, with interrupts off and on.
fn halts(subject: &Subject, mode: Mode, guest: &Guest) -> Result {
    /// IF (Intel SDM volume 1, section 3.4.3.3).
    const INTERRUPTS_ON: u64 = 1 << 9;
    for flags in [rflags::FIXED, rflags::FIXED | INTERRUPTS_ON] {
        let mut rig = Rig::new(subject, mode, guest)?;
        rig.start_with(|state| state.general.rflags = flags)?;
        for halts in 1..=2 {
            rig.expect(Exit::Halt)?;
            rig.expect_rip(halts)?;
        }
        rig.expect(Exit::IoOut {
            port: 0x21,
            width: vellum_backend::IoWidth::Byte,
            data: 0x11,
        })?;
    }
    Ok(())
}

in_modes!(halts:
    halts_in_real_mode = Real HALTS16,
    halts_in_flat_mode = Flat HALTS32,
    halts_in_paged_mode = Paged HALTS32,
    halts_in_long_mode = Kernel HALTS64,
);

/// `hlt` is privileged (Intel SDM volume 2, `HLT`).
fn refused(subject: &Subject, mode: Mode, guest: &Guest) -> Result {
    let mut rig = Rig::new(subject, mode, guest)?;
    let exception = rig.exception()?;
    ensure_eq!(
        (exception.vector, exception.error_code, exception.rip),
        (13, Some(0), CODE),
        "{mode:?}"
    );
    Ok(())
}

in_modes!(refused:
    ring_three_may_not_halt = User HALTS64,
    ring_three_may_not_halt_in_flat_mode = FlatUser HALTS32,
);

/// A halted vCPU takes another state like any other.
pub(crate) fn a_halted_guest_can_be_restored(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::Flat, &HALTS32)?;
    let boot = rig.boot_state();
    for _ in 0..3 {
        rig.expect(Exit::Halt)?;
        rig.start(&boot)?;
    }
    rig.expect(Exit::Halt)?;
    rig.expect_rip(1)
}

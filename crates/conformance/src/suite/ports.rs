//! Plain port accesses: what exits, with what, and where the guest stands afterwards.

use vellum_backend::state::rflags;
use vellum_backend::{Exit, IoWidth, VmError};

use super::in_modes;
use crate::failure::{Failure, Result, ensure, ensure_eq};
use crate::guest::{Guest, guest};
use crate::rig::{CODE, Mode, Rig, TSS};
use crate::subject::{Quirk, Subject};

/// The port of the immediate forms, and that of the forms with DX.
const IMMEDIATE: u16 = 0x21;
const IN_DX: u16 = 0xD3;
/// General-protection exception.
const GP: u8 = 13;

macro_rules! outputs {
    ($name:ident, $bits:literal) => {
        guest!(
            $name,
            $bits,
            "out 0x21, al",
            "out 0x21, ax",
            "out 0x21, eax",
            "out dx, al",
            "out dx, ax",
            "out dx, eax",
        );
    };
}
outputs!(OUTPUTS16, 16);
outputs!(OUTPUTS32, 32);
outputs!(OUTPUTS64, 64);

macro_rules! inputs {
    ($name:ident, $bits:literal) => {
        guest!(
            $name,
            $bits,
            "in al, 0x21",
            "in ax, 0x21",
            "in eax, 0x21",
            "in al, dx",
            "in ax, dx",
            "in eax, dx",
        );
    };
}
inputs!(INPUTS16, 16);
inputs!(INPUTS32, 32);
inputs!(INPUTS64, 64);

/// The accesses of the guests above, in order: port, width, bytes of the instruction in 16-bit code and in other code, where the
/// operand-size prefix stands at the other width.
const ACCESSES: [(u16, IoWidth, u64, u64); 6] = [
    (IMMEDIATE, IoWidth::Byte, 2, 2),
    (IMMEDIATE, IoWidth::Word, 2, 3),
    (IMMEDIATE, IoWidth::Dword, 3, 2),
    (IN_DX, IoWidth::Byte, 1, 1),
    (IN_DX, IoWidth::Word, 1, 2),
    (IN_DX, IoWidth::Dword, 2, 1),
];

fn instruction_len(mode: Mode, lengths: (u64, u64)) -> u64 {
    match mode {
        Mode::Real => lengths.0,
        _ => lengths.1,
    }
}

/// RAX before the first access; only long mode has an upper half.
fn initial_rax(mode: Mode) -> u64 {
    if mode.is_long() {
        0xDEAD_BEEF_8081_8283
    } else {
        0x8081_8283
    }
}

fn low_bytes(value: u64, width: IoWidth) -> u64 {
    match width {
        IoWidth::Byte => value & 0xFF,
        IoWidth::Word => value & 0xFFFF,
        IoWidth::Dword => value & 0xFFFF_FFFF,
    }
}

/// An `in` changes the low bytes of RAX, but one of 32 bits clears the upper half (Intel SDM volume 1, section 3.4.1.1).
fn merged(rax: u64, reply: u64, width: IoWidth) -> u64 {
    match width {
        IoWidth::Byte => rax & !0xFF | low_bytes(reply, width),
        IoWidth::Word => rax & !0xFFFF | low_bytes(reply, width),
        IoWidth::Dword => low_bytes(reply, width),
    }
}

fn outputs(subject: &Subject, mode: Mode, guest: &Guest) -> Result {
    for settles in [true, false] {
        let mut rig = Rig::new(subject, mode, guest)?;
        let rax = initial_rax(mode);
        rig.start_with(|state| {
            state.general.rax = rax;
            state.general.rdx = IN_DX.into();
        })?;
        let mut behind = 0;
        for (port, width, len16, len32) in ACCESSES {
            let data = u32::try_from(low_bytes(rax, width)).unwrap_or(0);
            rig.expect(Exit::IoOut { port, width, data })?;
            behind += instruction_len(mode, (len16, len32));
            if settles {
                rig.expect_rip(behind)?;
                rig.expect_rip(behind)
                    .map_err(|failure| failure.within("settled twice"))?;
            }
        }
    }
    Ok(())
}

in_modes!(outputs:
    outputs_in_real_mode = Real OUTPUTS16,
    outputs_in_flat_mode = Flat OUTPUTS32,
    outputs_in_flat_mode_ring_three = FlatUser OUTPUTS32,
    outputs_in_paged_mode = Paged OUTPUTS32,
    outputs_in_long_mode = Kernel OUTPUTS64,
    outputs_in_long_mode_ring_three = User OUTPUTS64,
);

fn inputs(subject: &Subject, mode: Mode, guest: &Guest) -> Result {
    for settles in [true, false] {
        let mut rig = Rig::new(subject, mode, guest)?;
        let mut rax = initial_rax(mode);
        rig.start_with(|state| {
            state.general.rax = rax;
            state.general.rdx = IN_DX.into();
        })?;
        let mut behind = 0;
        for (round, (port, width, len16, len32)) in (0..).zip(ACCESSES) {
            rig.expect(Exit::IoIn { port, width })?;
            // Wider than some of the widths: the rest must not arrive.
            let reply = 0xA1B2_C3D4_u32.rotate_left(round * 4);
            rig.vm.complete_io_in(reply)?;
            rax = merged(rax, reply.into(), width);
            behind += instruction_len(mode, (len16, len32));
            if settles {
                let state = rig.settled()?;
                ensure_eq!(state.general.rax, rax, "rax after {width:?} from {port:#x}");
                ensure_eq!(state.general.rip, CODE + behind, "instruction pointer");
            }
        }
        // Whatever follows the last one, it has read its value.
        let state = rig.settled()?;
        ensure_eq!(state.general.rax, rax, "rax at the end");
    }
    Ok(())
}

in_modes!(inputs:
    inputs_in_real_mode = Real INPUTS16,
    inputs_in_flat_mode = Flat INPUTS32,
    inputs_in_flat_mode_ring_three = FlatUser INPUTS32,
    inputs_in_paged_mode = Paged INPUTS32,
    inputs_in_long_mode = Kernel INPUTS64,
    inputs_in_long_mode_ring_three = User INPUTS64,
);

guest!(
    PORTS_ECHO,
    64,
    "2:",
    "in eax, 0x21",
    "out 0xe0, eax",
    "jmp 2b"
);

/// The guest goes on with the value that it was given, again and again.
pub(crate) fn a_value_given_is_the_value_read(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &PORTS_ECHO)?;
    for value in [0, 1, 0x7FFF_FFFF, 0x8000_0000, u32::MAX, 0x1234_5678] {
        rig.expect(Exit::IoIn {
            port: IMMEDIATE,
            width: IoWidth::Dword,
        })?;
        rig.vm.complete_io_in(value)?;
        let echoed = rig.result()?;
        ensure_eq!(echoed, value, "echo");
    }
    Ok(())
}

/// Replies are wanted once, and only where they are wanted.
pub(crate) fn a_reply_is_due_exactly_once(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &PORTS_ECHO)?;
    let early = rig.vm.complete_io_in(1);
    ensure!(
        matches!(early, Err(VmError::NoPendingInput)),
        "before the first run: {early:?}"
    );
    rig.expect(Exit::IoIn {
        port: IMMEDIATE,
        width: IoWidth::Dword,
    })?;
    for _ in 0..2 {
        let missing = rig.vm.run();
        ensure!(
            matches!(missing, Err(VmError::InputPending)),
            "without a reply: {missing:?}"
        );
    }
    rig.vm.complete_io_in(7)?;
    let twice = rig.vm.complete_io_in(8);
    ensure!(
        matches!(twice, Err(VmError::NoPendingInput)),
        "a second reply: {twice:?}"
    );
    let echoed = rig.result()?;
    ensure_eq!(echoed, 7, "the first reply counts");
    let late = rig.vm.complete_io_in(9);
    ensure!(
        matches!(late, Err(VmError::NoPendingInput)),
        "after an output: {late:?}"
    );
    Ok(())
}

guest!(LOOK_BEHIND_INPUT, 64, "in eax, 0x21", "out 0xe0, eax");

/// An input that is settled without a reply is over, and so is one whose vCPU gets another state.
pub(crate) fn an_input_without_a_reply_can_be_abandoned(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &LOOK_BEHIND_INPUT)?;
    let input = Exit::IoIn {
        port: IMMEDIATE,
        width: IoWidth::Dword,
    };
    rig.expect(input)?;
    rig.expect_rip(2)?;
    rig.result()?;
    rig.start(&rig.boot_state())?;
    rig.expect(input)?;
    rig.start(&rig.boot_state())?;
    rig.expect_rip(0)?;
    rig.expect(input)?;
    rig.vm.complete_io_in(5)?;
    let read = rig.result()?;
    ensure_eq!(read, 5, "the reply after the second start");
    Ok(())
}

guest!(OUT_DX, 32, "out dx, al", "in al, dx", "out 0xe0, eax");

/// No port leads to a device of the hypervisor: not those of timers, interrupt controllers, keyboard, clock or PCI either.
pub(crate) fn no_port_is_served_behind_the_hosts_back(subject: &Subject) -> Result {
    let known = [
        0x00, 0x20, 0x21, 0x40, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x80, 0x92, 0xA0, 0xB2, 0xCF8,
        0xCFC, 0x3F8, 0x402, 0x4D0, 0x5658, 0x8000, 0xFFFF,
    ];
    let mut rig = Rig::new(subject, Mode::Flat, &OUT_DX)?;
    for port in known.into_iter().chain((0x100..0xFF00).step_by(0x8F1)) {
        rig.start_with(|state| {
            state.general.rax = 0x5A;
            state.general.rdx = port.into();
        })?;
        let width = IoWidth::Byte;
        rig.expect(Exit::IoOut {
            port,
            width,
            data: 0x5A,
        })?;
        rig.expect(Exit::IoIn { port, width })?;
        rig.vm.complete_io_in(0xC3)?;
        let read = rig.result()?;
        ensure_eq!(read, 0xC3, "port {port:#x}");
    }
    Ok(())
}

/// Where the I/O bitmap allows a port, ring 3 reaches it; where it does not and IOPL does not either, it gets #GP.
pub(crate) fn ring_three_needs_the_bitmap_or_iopl(subject: &Subject) -> Result {
    /// Ports 0x20 to 0x27 in the bitmap, which follows the 104 bytes of the segment.
    const BITMAP_BYTE: u64 = TSS + 0x68 + 4;
    let mut rig = Rig::new(subject, Mode::User, &OUTPUTS64)?;
    for (iopl, bitmap) in [(0, 0x00), (3, 0x00), (3, 0xFF), (0, 0xFF)] {
        rig.ram.write(BITMAP_BYTE, &[bitmap])?;
        rig.start_with(|state| {
            state.general.rax = 0x11;
            state.general.rflags &= !rflags::IOPL_3;
            state.general.rflags |= iopl << 12;
        })?;
        let exit = rig.run()?;
        let is_allowed = (bitmap == 0 && !subject.has(Quirk::BitmapIgnored))
            || (iopl == 3 && !subject.has(Quirk::IoplIgnored));
        if is_allowed {
            ensure!(
                matches!(
                    exit,
                    Exit::IoOut {
                        port: IMMEDIATE,
                        ..
                    }
                ),
                "IOPL {iopl}, bitmap {bitmap:#x}: {exit:?}"
            );
        } else {
            let exception = rig.exception_of(exit)?;
            ensure_eq!(
                (exception.vector, exception.error_code, exception.rip),
                (GP, Some(0), CODE),
                "IOPL {iopl}, bitmap {bitmap:#x}"
            );
        }
    }
    Ok(())
}

guest!(PORTS_COUNT, 64, "2:", "out 0xe0, eax", "inc eax", "jmp 2b",);

/// After an output the host may place the guest elsewhere without settling it first: the output is neither repeated nor stepped over
/// twice. This is how a call is made.
pub(crate) fn a_state_written_after_an_output_begins_where_it_says(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &PORTS_COUNT)?;
    let first = rig.result()?;
    ensure_eq!(first, 0, "first output");
    // Behind the output: the increment.
    let mut state = rig.boot_state();
    for value in [10, 20, 30] {
        state.general.rip = CODE + 2;
        state.general.rax = value;
        state.restore_groups(rig.vm.as_mut(), [vellum_backend::StateGroup::General])?;
        let next = rig.result()?;
        ensure_eq!(u64::from(next), value + 1, "output after a new state");
    }
    Ok(())
}

/// An output that no state was written after goes on behind it.
pub(crate) fn thousands_of_outputs_are_neither_lost_nor_repeated(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &PORTS_COUNT)?;
    for expected in 0..2000 {
        let got = rig.result()?;
        if got != expected {
            return Err(Failure::new(format!("output {got}, expected {expected}")));
        }
    }
    Ok(())
}

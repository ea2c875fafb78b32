//! String port accesses. An engine may report one item by item, as plain accesses, or at once, as [`Exit::IoString`]; nothing else, and
//! nothing out of order.

use vellum_backend::state::rflags;
use vellum_backend::{Exit, IoWidth};

use crate::failure::{Result, ensure, ensure_eq};
use crate::guest::{Guest, guest};
use crate::rig::{CODE, DATA, Mode, Rig};
use crate::subject::Subject;

const PORT: u16 = 0x21;

guest!(OUT_ONE_BYTE, 64, "outsb");
guest!(OUT_ONE_WORD, 64, "outsw");
guest!(OUT_ONE_DWORD, 64, "outsd");
guest!(IN_ONE_BYTE, 64, "insb");
guest!(IN_ONE_WORD, 64, "insw");
guest!(IN_ONE_DWORD, 64, "insd");
guest!(OUT_BYTES, 64, "rep outsb", "out 0xe0, eax");
guest!(IN_BYTES, 64, "rep insb", "out 0xe0, eax");
guest!(OUT_DWORDS, 64, "rep outsd", "out 0xe0, eax");

fn rig_with(subject: &Subject, guest: &Guest, count: u64) -> Result<Rig> {
    let mut rig = Rig::new(subject, Mode::User, guest)?;
    rig.ram.write(DATA, b"abcdefgh")?;
    rig.start_with(|state| {
        let general = &mut state.general;
        (general.rsi, general.rdi) = (DATA, DATA + 0x100);
        (general.rcx, general.rdx) = (count, PORT.into());
    })?;
    Ok(rig)
}

/// One item looks like a plain output, and RSI moves on.
pub(crate) fn one_item_goes_out(subject: &Subject) -> Result {
    let cases = [
        (OUT_ONE_BYTE, IoWidth::Byte, 0x61, 1),
        (OUT_ONE_WORD, IoWidth::Word, 0x6261, 2),
        (OUT_ONE_DWORD, IoWidth::Dword, 0x6463_6261, 4),
    ];
    for (guest, width, data, len_bytes) in cases {
        let mut rig = rig_with(subject, &guest, 7)?;
        let exit = rig.run()?;
        if exit == (Exit::IoString { port: PORT }) {
            continue;
        }
        let port = PORT;
        ensure_eq!(exit, Exit::IoOut { port, width, data }, "{}", guest.name);
        let state = rig.settled()?;
        let code_len_bytes = guest.code().len() as u64;
        ensure_eq!(
            (state.general.rip, state.general.rsi, state.general.rcx),
            (CODE + code_len_bytes, DATA + len_bytes, 7),
            "rip, rsi, rcx after {}",
            guest.name
        );
    }
    Ok(())
}

/// One item looks like a plain input; its reply goes to memory, and RDI moves on.
pub(crate) fn one_item_comes_in(subject: &Subject) -> Result {
    let cases = [
        (IN_ONE_BYTE, IoWidth::Byte, 1),
        (IN_ONE_WORD, IoWidth::Word, 2),
        (IN_ONE_DWORD, IoWidth::Dword, 4),
    ];
    for (guest, width, len_bytes) in cases {
        let mut rig = rig_with(subject, &guest, 7)?;
        rig.ram.write_u64(DATA + 0x100, u64::MAX)?;
        let exit = rig.run()?;
        if exit == (Exit::IoString { port: PORT }) {
            continue;
        }
        ensure_eq!(exit, Exit::IoIn { port: PORT, width }, "{}", guest.name);
        rig.vm.complete_io_in(0x4433_2211)?;
        let state = rig.settled()?;
        let code_len_bytes = guest.code().len() as u64;
        ensure_eq!(
            (state.general.rip, state.general.rdi, state.general.rax),
            (CODE + code_len_bytes, DATA + 0x100 + len_bytes, 0),
            "rip, rdi, rax after {}",
            guest.name
        );
        let mask = (1 << (len_bytes * 8)) - 1;
        let memory = rig.ram.read_u64(DATA + 0x100)?;
        ensure_eq!(
            memory,
            !mask | 0x4433_2211 & mask,
            "memory after {}",
            guest.name
        );
    }
    Ok(())
}

/// The items of a repeated output come in order, each once, if they come one by one.
pub(crate) fn repeated_outputs_come_in_order(subject: &Subject) -> Result {
    for (direction, expected) in [(0, *b"cdef"), (rflags::DF, *b"cba\0")] {
        let mut rig = Rig::new(subject, Mode::User, &OUT_BYTES)?;
        rig.ram.write(DATA - 1, b"\0abcdefgh")?;
        rig.start_with(|state| {
            let general = &mut state.general;
            general.rflags |= direction;
            (general.rsi, general.rcx, general.rdx) = (DATA + 2, 4, PORT.into());
        })?;
        let first = rig.run()?;
        if first == (Exit::IoString { port: PORT }) {
            continue;
        }
        for (index, byte) in expected.into_iter().enumerate() {
            let exit = if index == 0 { first } else { rig.run()? };
            let item = Exit::IoOut {
                port: PORT,
                width: IoWidth::Byte,
                data: byte.into(),
            };
            ensure_eq!(exit, item, "item {index}");
        }
        let after = rig.settled()?;
        ensure_eq!(after.general.rcx, 0, "rcx after the last item");
        rig.result()?;
    }
    Ok(())
}

/// Items of several widths that add up to a plain width are not taken for one.
pub(crate) fn a_repeated_access_is_not_taken_for_a_wide_one(subject: &Subject) -> Result {
    for (guest, count, item) in [
        (IN_BYTES, 2, IoWidth::Byte),
        (IN_BYTES, 4, IoWidth::Byte),
        (OUT_BYTES, 2, IoWidth::Byte),
        (OUT_BYTES, 4, IoWidth::Byte),
        (OUT_DWORDS, 3, IoWidth::Dword),
    ] {
        let mut rig = rig_with(subject, &guest, count)?;
        let exit = rig.run()?;
        let is_right = match exit {
            Exit::IoString { port: PORT } => true,
            Exit::IoOut {
                port: PORT, width, ..
            }
            | Exit::IoIn { port: PORT, width } => width == item,
            _ => false,
        };
        ensure!(is_right, "{count} items of {}: {exit:?}", guest.name);
    }
    Ok(())
}

/// A count of zero is no access at all.
pub(crate) fn no_item_is_no_exit(subject: &Subject) -> Result {
    for guest in [OUT_BYTES, IN_BYTES, OUT_DWORDS] {
        let mut rig = rig_with(subject, &guest, 0)?;
        rig.result().map_err(|failure| failure.within(guest.name))?;
    }
    Ok(())
}

/// Counts that no guest could mean end in an exit, leave the VM usable, and are settled in bounded time.
pub(crate) fn huge_counts_are_survived(subject: &Subject) -> Result {
    for guest in [OUT_BYTES, IN_BYTES, OUT_DWORDS] {
        for count in [1 << 20, u64::from(u32::MAX), 1 << 40, u64::MAX] {
            let mut rig = rig_with(subject, &guest, count)?;
            for _ in 0..8 {
                let exit = rig.run()?;
                match exit {
                    Exit::IoIn { port: PORT, .. } => rig.vm.complete_io_in(0)?,
                    Exit::IoOut { port: PORT, .. } => {}
                    // What follows such an exit is not defined, but a fresh state is.
                    Exit::IoString { port: PORT } => break,
                    other => {
                        ensure!(false, "{count:#x} of {}: {other:?}", guest.name);
                    }
                }
            }
            rig.expect_usable()
                .map_err(|failure| failure.within(format!("{count:#x} of {}", guest.name)))?;
        }
    }
    Ok(())
}

//! Interruption from another thread: before, during and after a run; never lost, never more than asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vellum_backend::{Exit, IoWidth, VmError};

use super::in_modes;
use crate::failure::{Result, ensure, ensure_eq};
use crate::guest::{Guest, guest};
use crate::rig::{Mode, Rig};
use crate::subject::Subject;

guest!(LOOP16, 16, "2:", "jmp 2b");
guest!(LOOP32, 32, "2:", "jmp 2b");
guest!(LOOP64, 64, "2:", "jmp 2b");
guest!(COUNT, 64, "2:", "out 0xe0, eax", "inc eax", "jmp 2b");
guest!(
    ECHO,
    64,
    "2:",
    "in eax, 0x21",
    "inc eax",
    "out 0xe0, eax",
    "jmp 2b"
);

/// Runs `host` while another thread interrupts now and then. The vCPU's thread stays in the call until the other has ended.
fn while_interrupted<T>(rig: &mut Rig, pause: Duration, host: impl FnOnce(&mut Rig) -> T) -> T {
    let interrupter = rig.vm.interrupter();
    let done = Arc::new(AtomicBool::new(false));
    let other = std::thread::spawn({
        let (interrupter, done) = (interrupter.clone(), done.clone());
        move || {
            while !done.load(Ordering::Acquire) {
                interrupter.interrupt();
                std::thread::sleep(pause);
            }
        }
    });
    interrupter.enter();
    let result = host(rig);
    done.store(true, Ordering::Release);
    // It does nothing that could panic.
    let _ = other.join();
    interrupter.leave();
    result
}

/// A guest that never exits is interrupted, and goes on afterwards.
fn endless(subject: &Subject, mode: Mode, guest: &Guest) -> Result {
    let mut rig = Rig::new(subject, mode, guest)?;
    for _ in 0..3 {
        let exit = while_interrupted(&mut rig, Duration::from_millis(1), |rig| rig.vm.run())?;
        ensure_eq!(exit, Exit::Interrupted, "exit of an endless loop");
    }
    rig.expect_rip(0)?;
    rig.expect_usable()
}

in_modes!(endless:
    an_endless_loop_in_real_mode = Real LOOP16,
    an_endless_loop_in_flat_mode = Flat LOOP32,
    an_endless_loop_in_long_mode = Kernel LOOP64,
    an_endless_loop_in_long_mode_ring_three = User LOOP64,
);

/// An interruption that comes before the run counts, and lasts until it is withdrawn.
pub(crate) fn one_that_comes_before_the_run_counts(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &COUNT)?;
    let interrupter = rig.vm.interrupter();
    for expected in 0..4 {
        interrupter.enter();
        interrupter.interrupt();
        let exit = rig.vm.run()?;
        ensure_eq!(exit, Exit::Interrupted, "interrupted before");
        interrupter.leave();
        let got = rig.result()?;
        ensure_eq!(got, expected, "the next run is not hit");
    }
    Ok(())
}

/// One that comes between two runs hits the second, also when the state is read or written in between.
pub(crate) fn one_that_comes_between_runs_counts(subject: &Subject) -> Result {
    type Between = fn(&mut Rig) -> Result;
    let betweens: [(&str, Between); 4] = [
        ("nothing", |_| Ok(())),
        ("settling", |rig| Ok(rig.vm.settle()?)),
        ("saving", |rig| rig.settled().map(|_| ())),
        ("restoring", |rig| {
            let state = rig.settled()?;
            rig.start(&state)
        }),
    ];
    for (name, between) in betweens {
        let mut rig = Rig::new(subject, Mode::User, &COUNT)?;
        let interrupter = rig.vm.interrupter();
        interrupter.enter();
        rig.vm.run()?;
        interrupter.interrupt();
        between(&mut rig)?;
        let exit = rig.vm.run()?;
        interrupter.leave();
        ensure_eq!(exit, Exit::Interrupted, "after {name}");
        let got = rig.result()?;
        ensure_eq!(got, 1, "output after {name}");
    }
    Ok(())
}

/// One that was withdrawn does not count, whenever it came.
pub(crate) fn one_that_was_withdrawn_does_not_count(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &COUNT)?;
    let interrupter = rig.vm.interrupter();
    for expected in 0..50 {
        interrupter.enter();
        interrupter.interrupt();
        interrupter.leave();
        let got = rig.result()?;
        ensure_eq!(got, expected, "output");
    }
    Ok(())
}

/// Any number of interruptions is one.
pub(crate) fn repeated_ones_are_one(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &COUNT)?;
    let interrupter = rig.vm.interrupter();
    interrupter.enter();
    for _ in 0..1000 {
        interrupter.interrupt();
    }
    let exit = rig.vm.run()?;
    interrupter.leave();
    ensure_eq!(exit, Exit::Interrupted, "exit");
    for expected in 0..10 {
        let got = rig.result()?;
        ensure_eq!(got, expected, "output");
    }
    Ok(())
}

/// Interruptions at any moment neither lose nor repeat an output.
pub(crate) fn outputs_are_neither_lost_nor_repeated(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &COUNT)?;
    let mut expected = 0;
    let mut interruptions = 0;
    while expected < 600 {
        let batch = while_interrupted(&mut rig, Duration::from_micros(50), |rig| -> Result {
            loop {
                match rig.vm.run()? {
                    Exit::Interrupted => {
                        interruptions += 1;
                        return Ok(());
                    }
                    Exit::IoOut { data, .. } => {
                        ensure_eq!(data, expected, "output");
                        expected += 1;
                    }
                    other => ensure!(false, "{other:?}"),
                }
            }
        });
        batch?;
        // A few without a thread that interrupts, so that the test ends on slow machines as well.
        for _ in 0..20 {
            let got = rig.result()?;
            ensure_eq!(got, expected, "output");
            expected += 1;
        }
    }
    ensure!(interruptions > 0, "nothing was interrupted");
    Ok(())
}

/// Nor do they an input: its reply is read exactly once.
pub(crate) fn inputs_are_neither_lost_nor_repeated(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &ECHO)?;
    let (mut asked, mut answered) = (0, 0);
    for _ in 0..20 {
        let batch = while_interrupted(&mut rig, Duration::from_micros(50), |rig| -> Result {
            for _ in 0..40 {
                match rig.vm.run()? {
                    Exit::Interrupted => return Ok(()),
                    Exit::IoIn {
                        port: 0x21,
                        width: IoWidth::Dword,
                    } => {
                        ensure_eq!(asked, answered, "inputs before the output");
                        rig.vm.complete_io_in(asked * 2)?;
                        asked += 1;
                    }
                    Exit::IoOut { data, .. } => {
                        answered += 1;
                        ensure_eq!(data, (asked - 1) * 2 + 1, "output");
                        ensure_eq!(asked, answered, "inputs at the output");
                    }
                    other => ensure!(false, "{other:?}"),
                }
            }
            Ok(())
        });
        batch?;
    }
    // In the end it still answers.
    loop {
        match rig.run()? {
            Exit::IoIn { .. } => rig.vm.complete_io_in(40)?,
            Exit::IoOut { data, .. } => {
                ensure!(data == 41 || data == (asked - 1) * 2 + 1, "{data}");
                return Ok(());
            }
            other => ensure!(false, "{other:?}"),
        }
    }
}

/// An interruption while an input waits for its reply does not spoil it.
pub(crate) fn one_that_comes_while_an_input_waits(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &ECHO)?;
    rig.run()?;
    let interrupter = rig.vm.interrupter();
    interrupter.enter();
    interrupter.interrupt();
    let missing = rig.vm.run();
    ensure!(
        matches!(missing, Err(VmError::InputPending)),
        "without a reply: {missing:?}"
    );
    rig.vm.complete_io_in(7)?;
    let exit = rig.vm.run()?;
    interrupter.leave();
    ensure_eq!(exit, Exit::Interrupted, "exit");
    let got = rig.result()?;
    ensure_eq!(got, 8, "the reply and one");
    Ok(())
}

/// The handle may be used when the VM is long gone.
pub(crate) fn the_handle_outlives_the_vm(subject: &Subject) -> Result {
    let rig = Rig::new(subject, Mode::User, &COUNT)?;
    let interrupter = rig.vm.interrupter();
    drop(rig);
    interrupter.enter();
    interrupter.interrupt();
    interrupter.leave();
    Ok(())
}

/// A VM may change threads between runs; the thread that enters is the one that is interrupted.
pub(crate) fn a_vm_may_move_to_another_thread(subject: &Subject) -> Result {
    let mut rig = Rig::new(subject, Mode::User, &LOOP64)?;
    for _ in 0..3 {
        rig = std::thread::scope(|scope| {
            let moved = scope.spawn(move || -> Result<Rig> {
                let exit =
                    while_interrupted(&mut rig, Duration::from_millis(1), |rig| rig.vm.run())?;
                ensure_eq!(exit, Exit::Interrupted, "exit on another thread");
                Ok(rig)
            });
            match moved.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })?;
    }
    rig.expect_usable()
}

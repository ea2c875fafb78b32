//! New sandboxes, beside a bare VM with the same slots.

use vellum_sandbox::{Engine, GuestImage, HostFunctions, Sandbox, Snapshot};

use super::meter::{Meter, Repeat};
use crate::bare::{BareSlots, BareWriter, Created};
use crate::bare_sandbox::{self, BareSandbox, BareSandboxes};
use crate::ioctls::{self, Slot};
use crate::sandboxes::{self, MIB};

/// What both kinds of creation may cost above the bare VM.
const FROM_SNAPSHOT: f64 = 30_000.0;
const FROM_IMAGE: f64 = 200_000.0;
/// What a sandbox of a VM that another one has left may cost.
const FROM_IDLE_VM: f64 = 20_000.0;
/// With the seven pages that hold its code and tables as many as a sandbox's guest meets in its first call.
const FIRST_RUN_PAGES: u64 = 23;
const LARGE_HEAP_LEN_BYTES: u64 = 256 * MIB;

pub(super) fn creation(engine: &Engine, meter: &mut Meter) -> anyhow::Result<()> {
    from_snapshot(engine, meter)?;
    from_image(engine, meter)
}

struct FromSnapshot {
    snapshot: Snapshot,
    host: HostFunctions,
    /// Dropped before the next one is made, which is not measured.
    last: Option<Sandbox>,
}

fn from_snapshot(engine: &Engine, meter: &mut Meter) -> anyhow::Result<()> {
    let (_, snapshot) = sandboxes::with_arena(engine, 8 * MIB)?;
    let mut state = FromSnapshot {
        snapshot,
        host: sandboxes::host_functions(),
        last: None,
    };
    let make = |state: &mut FromSnapshot| {
        state.last = Some(Sandbox::from_snapshot(
            engine,
            &state.snapshot,
            &state.host,
        )?);
        Ok(())
    };
    let slots = ioctls::watch(|| make(&mut state))?.slots;
    let floor = floor(meter, "bare_vm_8mib", &slots)?;
    bare_sandbox(meter, &slots)?;
    let drop_last = |state: &mut FromSnapshot| {
        state.last = None;
        Ok(())
    };
    meter
        .measure(
            "sandbox_from_snapshot",
            Repeat::default(),
            &mut state,
            drop_last,
            make,
        )?
        .aim(floor + FROM_SNAPSHOT);
    meter.measure(
        "sandbox_first_call",
        Repeat::default(),
        &mut state,
        |state| {
            drop_last(state)?;
            make(state)
        },
        |state| first_call(state.last.as_mut()),
    )?;
    let recycle_last = |state: &mut FromSnapshot| {
        // Where the last operation has left no sandbox there is no VM to leave behind either.
        if state.last.is_none() {
            make(state)?;
        }
        Ok(state.last.take().map_or(Ok(()), Sandbox::recycle)?)
    };
    meter
        .measure(
            "sandbox_from_idle_vm",
            Repeat::default(),
            &mut state,
            recycle_last,
            make,
        )?
        .aim(FROM_IDLE_VM);
    Ok(())
}

/// A bare VM with these slots; returns its instructions.
fn floor(meter: &mut Meter, name: &str, slots: &[Slot]) -> anyhow::Result<f64> {
    let slots = BareSlots::new(slots)?;
    let mut last: Option<Created<'_>> = None;
    let row = meter.measure(
        name,
        Repeat::default(),
        &mut last,
        |last| {
            *last = None;
            Ok(())
        },
        |last| {
            *last = Some(slots.create()?);
            Ok(())
        },
    )?;
    Ok(row.instructions)
}

/// The same with everything else that a sandbox cannot do without.
fn bare_sandbox(meter: &mut Meter, slots: &[Slot]) -> anyhow::Result<()> {
    let parts = BareSandboxes::new(slots)?;
    let mut last: Option<BareSandbox> = None;
    meter.measure(
        "bare_sandbox_8mib",
        Repeat::default(),
        &mut last,
        |last| {
            *last = None;
            Ok(())
        },
        |last| {
            *last = Some(parts.create()?);
            Ok(())
        },
    )?;
    Ok(())
}

/// What an image costs beside the bare sandbox: its pages, written once, and those that the first run meets.
fn bare_image(meter: &mut Meter) -> anyhow::Result<()> {
    let mut image = None;
    meter.measure(
        "bare_image_load",
        Repeat::default(),
        &mut image,
        |image| {
            *image = None;
            Ok(())
        },
        |image| {
            *image = Some(bare_sandbox::load_image()?);
            Ok(())
        },
    )?;
    let mut writer = BareWriter::untouched(FIRST_RUN_PAGES)?;
    meter.measure(
        "bare_first_run",
        Repeat::default(),
        &mut writer,
        |writer| {
            *writer = BareWriter::untouched(FIRST_RUN_PAGES)?;
            Ok(())
        },
        BareWriter::run,
    )?;
    Ok(())
}

fn first_call(sandbox: Option<&mut Sandbox>) -> anyhow::Result<()> {
    let sandbox = sandbox.ok_or_else(|| anyhow::anyhow!("no sandbox was made"))?;
    Ok(sandbox.call::<_, ()>("null", ())?)
}

/// From the bytes of an ELF file to the result of the first call.
fn from_image(engine: &Engine, meter: &mut Meter) -> anyhow::Result<()> {
    let host = sandboxes::host_functions();
    let elf = vellum_test_guests::rust_user();
    let mut last = None;
    let boot = |last: &mut Option<Sandbox>| {
        let image = GuestImage::from_bytes(elf)?;
        let sandbox = Sandbox::builder(&image)
            .heap_len_bytes(LARGE_HEAP_LEN_BYTES)
            .host_functions(&host)
            .build(engine)?;
        first_call(Some(last.insert(sandbox)))
    };
    let floor = floor(
        meter,
        "bare_vm_256mib",
        &ioctls::watch(|| boot(&mut last))?.slots,
    )?;
    bare_image(meter)?;
    let drop_last = |last: &mut Option<Sandbox>| {
        *last = None;
        Ok(())
    };
    meter
        .measure(
            "image_to_first_call",
            Repeat::default(),
            &mut last,
            drop_last,
            boot,
        )?
        .aim(floor + FROM_IMAGE);
    meter.measure(
        "image_parse",
        Repeat::default(),
        &mut None,
        |image| {
            *image = None;
            Ok(())
        },
        |image| {
            *image = Some(GuestImage::from_bytes(elf)?);
            Ok(())
        },
    )?;
    Ok(())
}

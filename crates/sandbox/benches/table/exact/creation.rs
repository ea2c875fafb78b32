//! New sandboxes, beside a bare VM with the same slots.

use vellum_sandbox::{Engine, GuestImage, HostFunctions, Sandbox, Snapshot};

use super::meter::{Meter, Repeat, Row};
use crate::bare::{BareSlots, BareWriter};
use crate::bare_sandbox::{self, BareSandboxes};
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

/// Measures making something. What was made before is dropped first, which is not measured.
fn making<'m, T>(
    meter: &'m mut Meter,
    name: &str,
    mut make: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<&'m mut Row> {
    let drop_last = |last: &mut Option<T>| {
        *last = None;
        Ok(())
    };
    let make = |last: &mut Option<T>| {
        *last = Some(make()?);
        Ok(())
    };
    meter.measure(name, Repeat::default(), &mut None, drop_last, make)
}

/// A bare VM with these slots; returns its instructions.
fn floor(meter: &mut Meter, name: &str, slots: &[Slot]) -> anyhow::Result<f64> {
    let slots = BareSlots::new(slots)?;
    Ok(making(meter, name, || slots.create())?.instructions)
}

/// The same with everything else that a sandbox cannot do without.
fn bare_sandbox(meter: &mut Meter, slots: &[Slot]) -> anyhow::Result<()> {
    let parts = BareSandboxes::new(slots)?;
    making(meter, "bare_sandbox_8mib", || parts.create())?;
    Ok(())
}

/// What an image costs beside the bare sandbox: its pages, written once, and those that the first run meets.
fn bare_image(meter: &mut Meter) -> anyhow::Result<()> {
    making(meter, "bare_image_load", bare_sandbox::load_image)?;
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
    let boot = || {
        let image = GuestImage::from_bytes(elf)?;
        let mut sandbox = Sandbox::builder(&image)
            .heap_len_bytes(LARGE_HEAP_LEN_BYTES)
            .host_functions(&host)
            .build(engine)?;
        first_call(Some(&mut sandbox))?;
        Ok(sandbox)
    };
    let slots = ioctls::watch(|| boot().map(drop))?.slots;
    let floor = floor(meter, "bare_vm_256mib", &slots)?;
    bare_image(meter)?;
    making(meter, "image_to_first_call", boot)?.aim(floor + FROM_IMAGE);
    making(meter, "image_parse", || Ok(GuestImage::from_bytes(elf)?))?;
    Ok(())
}

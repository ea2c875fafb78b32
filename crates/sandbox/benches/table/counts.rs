//! Counts that do not depend on the machine's speed: exits for a call, page faults for a page written.

use vellum_sandbox::{CowMode, Engine, GuestImage, HostFunctions, Sandbox};

use crate::figures::Figures;
use crate::sandboxes::{self, MIB};
use crate::statistics::Statistics;

/// Calls, host calls and pages that are counted at a time.
const COUNTED: u32 = 256;
/// How often it is counted. The least counts: what is more comes from the host (a page that it took back, say).
const TIMES: u32 = 5;

/// Adds the counts, or says why there are none.
pub(crate) fn counts(engine: &Engine, figures: &mut Figures) -> anyhow::Result<()> {
    let mut sandbox = sandboxes::sandbox(engine, 8 * MIB)?;
    sandbox.call::<_, ()>("null", ())?;
    match Statistics::of_last_entered() {
        Ok(statistics) => {
            calls(&mut sandbox, &statistics, figures)?;
            user_faults(engine, figures)?;
            kernel_faults(engine, figures)
        }
        Err(error) => {
            eprintln!("SKIPPED exact counts: {error:#}");
            Ok(())
        }
    }
}

fn calls(
    sandbox: &mut Sandbox,
    statistics: &Statistics,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let null = sandbox.function::<(), ()>("null")?;
    let call_host = sandbox.function::<(u32,), i32>("call_host_add_loop")?;
    let call = least(
        || statistics.exits(),
        || (0..COUNTED).try_for_each(|_| Ok(null.call(sandbox, ())?)),
    )?;
    figures.add_count("exits_per_call", each(call));
    let host_call = least(
        || statistics.exits(),
        || Ok(call_host.call(sandbox, (COUNTED,)).map(drop)?),
    )?;
    // The call around them has its own.
    figures.add_count(
        "exits_per_host_call",
        each(host_call) - each(call) / f64::from(COUNTED),
    );
    Ok(())
}

/// A user guest that has been restored and writes pages again: faults that KVM serves.
fn user_faults(engine: &Engine, figures: &mut Figures) -> anyhow::Result<()> {
    let (mut sandbox, snapshot) = sandboxes::with_arena(engine, 8 * MIB)?;
    let touch = sandbox.function::<(u64,), u64>("touch_pages")?;
    touch.call(&mut sandbox, (u64::from(COUNTED),))?;
    let statistics = Statistics::of_last_entered()?;
    let faults = least(
        || statistics.faults(),
        || {
            sandbox.restore(&snapshot)?;
            Ok(touch.call(&mut sandbox, (u64::from(COUNTED),)).map(drop)?)
        },
    )?;
    figures.add_count("kvm_faults_per_dirty_page", each(faults));
    Ok(())
}

/// A kernel that has been restored and writes to pages of its heap for the first time: faults that KVM serves and those that the
/// kernel serves itself, which it counts.
fn kernel_faults(engine: &Engine, figures: &mut Figures) -> anyhow::Result<()> {
    let Some(elf) = vellum_test_guests::amd64_kernel() else {
        eprintln!("SKIPPED faults_per_dirty_page: no toolchain for kernels");
        return Ok(());
    };
    let image = GuestImage::from_bytes(elf)?;
    let mut sandbox = Sandbox::builder(&image)
        .heap_len_bytes(8 * MIB)
        .host_functions(&HostFunctions::new().with("host_add", |a: i32, b: i32| a + b))
        .build(engine)?;
    let write = sandbox.function::<(u64, u64), ()>("set_heap_word")?;
    let count = sandbox.function::<(), u64>("fault_count")?;
    let snapshot = sandbox.snapshot()?;
    count.call(&mut sandbox, ())?;
    let statistics = Statistics::of_last_entered()?;
    // In the upper half of the heap, where nothing is allocated.
    let word = |page: u32| (4 * MIB + u64::from(page) * 4096) / 8;
    let (mut own, mut hosts) = (u64::MAX, u64::MAX);
    for _ in 0..TIMES {
        sandbox.restore(&snapshot)?;
        let own_before = count.call(&mut sandbox, ())?;
        let before = statistics.faults()?;
        for page in 0..COUNTED {
            write.call(&mut sandbox, (word(page), 1))?;
        }
        hosts = hosts.min(statistics.faults()? - before);
        own = own.min(count.call(&mut sandbox, ())? - own_before);
    }
    figures.add_count("guest_faults_per_dirty_page", each(own));
    figures.add_count("faults_per_dirty_page", each(own + hosts));
    if engine.cow_mode() == CowMode::HostSide {
        anyhow::ensure!(
            own == 0,
            "the kernel served {own} faults where the host copies"
        );
    }
    Ok(())
}

/// The least that `counter` grows by while `work` is done.
fn least(
    counter: impl Fn() -> anyhow::Result<u64>,
    mut work: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    let mut least = u64::MAX;
    for _ in 0..TIMES {
        let before = counter()?;
        work()?;
        least = least.min(counter()? - before);
    }
    Ok(least)
}

fn each(count: u64) -> f64 {
    // A benchmark counts far below 2^32 events.
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / f64::from(COUNTED)
}

//! What sandboxes cost.

use std::fs;
use std::time::Duration;

use anyhow::{Context, bail};
use vellum_sandbox::{CowMode, Engine, GuestImage, HostFunctions, Polling, Sandbox, Snapshot};

use crate::bare::{BareSlots, BareVm};
use crate::figures::Figures;
use crate::ioctls;
use crate::measure::{Effort, median, pair};
use crate::restores::restore_dirty;
use crate::tsc;

/// Host calls in one call when they are timed: the call around them is then small, and is subtracted.
const CALLS: u32 = 50;
/// Calls and host calls when system calls are counted.
const COUNTED: u32 = 1000;
pub(crate) const FLOOR: &str = "floor_kvm_run_ns";
pub(crate) const MIB: u64 = 1 << 20;

pub(crate) fn engine(cow: Option<&str>) -> anyhow::Result<Engine> {
    let builder = match cow {
        None => Engine::builder(),
        Some("guest") => Engine::builder().cow_mode(CowMode::GuestSide),
        Some("host") => Engine::builder().cow_mode(CowMode::HostSide),
        Some(other) => bail!("--cow takes guest or host, not {other}"),
    };
    Ok(builder.require_hardware().build()?)
}

pub(crate) fn host_functions() -> HostFunctions {
    HostFunctions::new()
        .with("host_add", |a: i32, b: i32| a + b)
        .with("host_echo", |bytes: Vec<u8>| bytes)
        .with("host_fail", |text: String| -> Result<(), String> {
            Err(text)
        })
}

pub(crate) fn sandbox(engine: &Engine, heap_len_bytes: u64) -> anyhow::Result<Sandbox> {
    let image = GuestImage::from_bytes(vellum_test_guests::rust_user())?;
    Ok(Sandbox::builder(&image)
        .heap_len_bytes(heap_len_bytes)
        .host_functions(&host_functions())
        .build(engine)?)
}

/// A sandbox that has an arena of `arena_len_bytes`, every page of it written, and its snapshot.
pub(crate) fn with_arena(
    engine: &Engine,
    arena_len_bytes: u64,
) -> anyhow::Result<(Sandbox, Snapshot)> {
    let heap_len_bytes = arena_len_bytes + (arena_len_bytes / 8).max(4 * MIB);
    let mut sandbox = sandbox(engine, heap_len_bytes)?;
    sandbox.call::<_, u64>("reserve", (arena_len_bytes,))?;
    let snapshot = sandbox.snapshot()?;
    Ok((sandbox, snapshot))
}

/// Memory that programs can still have.
pub(crate) fn available_mib() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kib.context("no MemAvailable")?.parse::<u64>()? / 1024)
}

/// Null call and host call, each in turn with the bare round trip.
pub(crate) fn calls(engine: &Engine, effort: Effort, figures: &mut Figures) -> anyhow::Result<()> {
    let mut bare = BareVm::new()?;
    let mut sandbox = sandbox(engine, 8 * MIB)?;
    let null = sandbox.function::<(), ()>("null")?;
    let call_host = sandbox.function::<(u32,), i32>("call_host_add_loop")?;
    for _ in 0..100 {
        bare.run()?;
        null.call(&mut sandbox, ())?;
    }
    let samples = effort.samples(1000);
    let call = pair(samples, || bare.run(), || Ok(null.call(&mut sandbox, ())?))?;
    figures.add(FLOOR, call.floor);
    figures.add_beside("call_null_ns", call.figure, FLOOR);
    figures.add("call_null_ratio", call.ratio);

    let host = pair(
        samples / 10 + 1,
        || bare.run(),
        || Ok(call_host.call(&mut sandbox, (CALLS,)).map(drop)?),
    )?;
    let host_call = (host.figure - call.figure) / f64::from(CALLS);
    figures.add_beside("host_call_ns", host_call, FLOOR);
    figures.add(
        "host_call_ratio",
        (host.ratio - call.ratio) / f64::from(CALLS),
    );

    log_records(&mut sandbox, effort, figures)?;
    polled(engine, effort, figures)?;
    let per_call = ioctls::count_per(COUNTED, || {
        (0..COUNTED).try_for_each(|_| Ok(null.call(&mut sandbox, ())?))
    })?;
    figures.add("ioctls_per_call", per_call);
    let with_host_calls = ioctls::count_per(1, || {
        Ok(call_host.call(&mut sandbox, (COUNTED,)).map(drop)?)
    })?;
    figures.add(
        "ioctls_per_host_call",
        (with_host_calls - per_call) / f64::from(COUNTED),
    );
    Ok(())
}

/// What a host call adds to a call where the host polls. On a machine with one processor nothing is polled, and there is no figure.
fn polled(engine: &Engine, effort: Effort, figures: &mut Figures) -> anyhow::Result<()> {
    if std::thread::available_parallelism()?.get() < 2 {
        return Ok(());
    }
    let polling = Polling::new().spin(Duration::from_millis(10));
    let mut sandbox = sandbox(engine, 8 * MIB)?.into_polling(polling)?;
    let call_host = sandbox.function::<(u32,), i32>("call_host_add_loop")?;
    let cell = std::cell::RefCell::new(&mut sandbox);
    let calls = |count: u32| Ok(call_host.call(&mut cell.borrow_mut(), (count,)).map(drop)?);
    let times = pair(effort.samples(200), || calls(0), || calls(CALLS))?;
    let host_call = (times.figure - times.floor) / f64::from(CALLS);
    figures.add("host_call_polling_ns", host_call);
    figures.add("call_polling_ns", times.floor);
    Ok(())
}

/// What a log record adds to a call, when nobody listens.
fn log_records(sandbox: &mut Sandbox, effort: Effort, figures: &mut Figures) -> anyhow::Result<()> {
    const RECORDS: u32 = 64;
    let log = sandbox.function::<(u32,), ()>("log_lines")?;
    let cell = std::cell::RefCell::new(sandbox);
    let lines = |count: u32| Ok(log.call(&mut cell.borrow_mut(), (count,))?);
    let times = pair(effort.samples(200), || lines(0), || lines(RECORDS))?;
    let record = (times.figure - times.floor) / f64::from(RECORDS);
    figures.add_beside("log_record_ns", record, FLOOR);
    Ok(())
}

/// New sandboxes, beside a bare VM with the same slots and beside the requests to KVM that a new sandbox makes.
pub(crate) fn creation(
    engine: &Engine,
    effort: Effort,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let (_, snapshot) = with_arena(engine, 8 * MIB)?;
    let host = host_functions();
    let slots = ioctls::watch(|| Ok(Sandbox::from_snapshot(engine, &snapshot, &host).map(drop)?))?;
    let slots = BareSlots::new(&slots.slots)?;
    let bare = std::cell::RefCell::new(None);
    let floor = median(
        effort.samples(200),
        || {
            bare.borrow_mut().take();
            Ok(())
        },
        |()| {
            *bare.borrow_mut() = Some(slots.create()?);
            Ok(())
        },
    )?;
    figures.add("create_floor_ns", floor);
    // The sandbox of the sample before is dropped in the untimed part.
    let last = std::cell::RefCell::new(None);
    let time = median(
        effort.samples(200),
        || {
            last.borrow_mut().take();
            Ok(())
        },
        |()| {
            *last.borrow_mut() = Some(Sandbox::from_snapshot(engine, &snapshot, &host)?);
            Ok(())
        },
    )?;
    figures.add_beside("create_from_snapshot_ns", time, "create_floor_ns");
    let ioctls = ioctl_times(engine, effort, &snapshot)?;
    figures.add_beside("create_ioctls_ns", ioctls, "create_floor_ns");
    Ok(())
}

/// How long the requests to KVM take that a new sandbox makes.
fn ioctl_times(engine: &Engine, effort: Effort, snapshot: &Snapshot) -> anyhow::Result<f64> {
    let host = host_functions();
    let tick_ns = tsc::tick_ns();
    let mut times = Vec::new();
    for _ in 0..effort.samples(200) {
        let mut made = None;
        let watched = ioctls::watch(|| {
            made = Some(Sandbox::from_snapshot(engine, snapshot, &host)?);
            Ok(())
        })?;
        times.push(watched.other_ticks);
    }
    times.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let ticks = times[times.len() / 2] as f64;
    Ok(ticks * tick_ns)
}

/// 50 MB of bytes as an argument.
pub(crate) fn large_bytes(
    engine: &Engine,
    effort: Effort,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    const LEN_BYTES: usize = 50_000_000;
    let mut sandbox = sandbox(engine, 128 * MIB)?;
    let bytes = vec![0x5A_u8; LEN_BYTES];
    let take = sandbox.function::<(&[u8],), u64>("len_bytes")?;
    let mut target = vec![0_u8; LEN_BYTES];
    let samples = effort.samples(150);
    let copy = median(
        samples,
        || Ok(()),
        |()| {
            target.copy_from_slice(std::hint::black_box(&bytes));
            std::hint::black_box(&mut target);
            Ok(())
        },
    )?;
    figures.add("memcpy_50mb_ns", copy);
    take.call(&mut sandbox, (&bytes,))?;
    let time = median(
        samples,
        || Ok(()),
        |()| {
            let len_bytes = take.call(&mut sandbox, (&bytes,))?;
            anyhow::ensure!(
                len_bytes == LEN_BYTES as u64,
                "the guest saw {len_bytes} bytes"
            );
            Ok(())
        },
    )?;
    figures.add_beside("bytes_50mb_ns", time, "memcpy_50mb_ns");
    Ok(())
}

/// Kernels, 32-bit without paging and 64-bit: a call, and a restore of every register and 16 pages.
pub(crate) fn kernels(
    engine: &Engine,
    effort: Effort,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    for (name, elf) in [
        ("i686", vellum_test_guests::i686_c()),
        ("amd64_kernel", vellum_test_guests::amd64_kernel()),
    ] {
        match elf {
            Some(elf) => kernel(engine, effort, figures, (name, elf))?,
            None => eprintln!("SKIPPED {name} figures: no compiler for this guest"),
        }
    }
    Ok(())
}

fn kernel(
    engine: &Engine,
    effort: Effort,
    figures: &mut Figures,
    (name, elf): (&str, &[u8]),
) -> anyhow::Result<()> {
    let image = GuestImage::from_bytes(elf)?;
    let host = HostFunctions::new().with("host_add", |a: i32, b: i32| a + b);
    let mut sandbox = Sandbox::builder(&image)
        .heap_len_bytes(8 * MIB)
        .host_functions(&host)
        .build(engine)?;
    // With the pages that are to be written, where the kernel copies them itself: a snapshot keeps them as its own.
    sandbox.call::<_, u64>("touch_pages", (16_u64,))?;
    let snapshot = sandbox.snapshot()?;
    let null = sandbox.function::<(), ()>("null")?;
    let call = median(
        effort.samples(1000),
        || Ok(()),
        |()| Ok(null.call(&mut sandbox, ())?),
    )?;
    figures.add_beside(format!("{name}_call_null_ns"), call, FLOOR);
    let restore = restore_dirty(&mut sandbox, &snapshot, 16, effort.samples(200))?;
    figures.add_beside(format!("{name}_restore_dirty_16_ns"), restore, FLOOR);
    Ok(())
}

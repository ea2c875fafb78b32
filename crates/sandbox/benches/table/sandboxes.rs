//! What sandboxes cost.

use std::fs;

use anyhow::{Context, bail};
use vellum_sandbox::{CowMode, Engine, GuestImage, HostFunctions, Sandbox, Snapshot};

use crate::bare::{BareSlots, BareVm};
use crate::figures::Figures;
use crate::ioctls;
use crate::measure::{Effort, median, pair};

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
    Ok(builder.build()?)
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

/// Restores after 0, 1, 16, 256 and 1024 dirty pages.
pub(crate) fn restores(
    engine: &Engine,
    effort: Effort,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let (mut sandbox, snapshot) = with_arena(engine, 8 * MIB)?;
    let clean = median(
        effort.samples(2000),
        || Ok(()),
        |()| Ok(sandbox.restore(&snapshot)?),
    )?;
    figures.add_beside("restore_clean_ns", clean, FLOOR);
    for pages in [1, 16, 256, 1024] {
        // A sandbox of its own, so that the remembered set is that of this figure.
        let (mut sandbox, snapshot) = with_arena(engine, 8 * MIB)?;
        let samples = effort.samples(1000);
        let floor = format!("copy_back_{pages}_ns");
        figures.add(&floor, copy_back(usize::try_from(pages)?, samples)?);
        let time = restore_dirty(&mut sandbox, &snapshot, pages, samples)?;
        figures.add_beside(format!("restore_dirty_{pages}_ns"), time, &floor);
    }
    Ok(())
}

/// The floor of a restore that copies pages back: the copies alone, in this process's own memory, after one word of each page
/// was changed.
fn copy_back(pages: usize, samples: usize) -> anyhow::Result<f64> {
    const PAGE_LEN_BYTES: usize = 4096;
    let pristine = vec![1_u8; pages * PAGE_LEN_BYTES];
    let memory = std::cell::RefCell::new(pristine.clone());
    median(
        samples,
        || {
            memory
                .borrow_mut()
                .iter_mut()
                .step_by(PAGE_LEN_BYTES)
                .for_each(|byte| *byte = 2);
            Ok(())
        },
        |()| {
            let mut memory = memory.borrow_mut();
            let copies = memory
                .chunks_mut(PAGE_LEN_BYTES)
                .zip(pristine.chunks(PAGE_LEN_BYTES));
            copies
                .for_each(|(page, original)| page.copy_from_slice(std::hint::black_box(original)));
            Ok(())
        },
    )
}

fn restore_dirty(
    sandbox: &mut Sandbox,
    snapshot: &Snapshot,
    pages: u64,
    samples: usize,
) -> anyhow::Result<f64> {
    let touch = sandbox.function::<(u64,), u64>("touch_pages")?;
    let sandbox = std::cell::RefCell::new(sandbox);
    median(
        samples,
        || Ok(touch.call(&mut sandbox.borrow_mut(), (pages,)).map(drop)?),
        |()| Ok(sandbox.borrow_mut().restore(snapshot)?),
    )
}

/// A restore and a call that writes pages: what a server does for each request.
pub(crate) fn cycles(engine: &Engine, effort: Effort, figures: &mut Figures) -> anyhow::Result<()> {
    for pages in [1, 16, 256, 1024] {
        let (mut sandbox, snapshot) = with_arena(engine, 8 * MIB)?;
        let touch = sandbox.function::<(u64,), u64>("touch_pages")?;
        let time = median(
            effort.samples(1000),
            || Ok(()),
            |()| {
                sandbox.restore(&snapshot)?;
                touch.call(&mut sandbox, (pages,))?;
                Ok(())
            },
        )?;
        figures.add_beside(format!("cycle_dirty_{pages}_ns"), time, FLOOR);
    }
    Ok(())
}

/// The same dirty set over growing heaps.
pub(crate) fn heaps(engine: &Engine, effort: Effort, figures: &mut Figures) -> anyhow::Result<()> {
    for (name, len_bytes) in [("1mib", MIB), ("64mib", 64 * MIB), ("1gib", 1024 * MIB)] {
        let (mut sandbox, snapshot) = with_arena(engine, len_bytes)?;
        let time = restore_dirty(&mut sandbox, &snapshot, 16, effort.samples(1000))?;
        figures.add_beside(format!("restore_heap_{name}_ns"), time, FLOOR);
    }
    Ok(())
}

/// Snapshots and new sandboxes.
pub(crate) fn creation(
    engine: &Engine,
    effort: Effort,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let (mut sandbox, snapshot) = with_arena(engine, 8 * MIB)?;
    let touch = sandbox.function::<(u64,), u64>("touch_pages")?;
    let sandbox = std::cell::RefCell::new(&mut sandbox);
    let time = median(
        effort.samples(200),
        || Ok(touch.call(&mut sandbox.borrow_mut(), (16,)).map(drop)?),
        |()| Ok(sandbox.borrow_mut().snapshot().map(drop)?),
    )?;
    figures.add("snapshot_dirty_16_ns", time);

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
    Ok(())
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

/// Private memory of each of many sandboxes of one snapshot.
pub(crate) fn footprint(
    engine: &Engine,
    effort: Effort,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let (_, snapshot) = with_arena(engine, 64 * MIB)?;
    let host = host_functions();
    let count = effort.samples(100);
    let before = private_kib()?;
    let mut sandboxes = Vec::new();
    for _ in 0..count {
        let mut sandbox = Sandbox::from_snapshot(engine, &snapshot, &host)?;
        sandbox.call::<_, ()>("null", ())?;
        sandboxes.push(sandbox);
    }
    let after = private_kib()?;
    let count = u32::try_from(count)?;
    figures.add("rss_per_sandbox_kib", (after - before) / f64::from(count));
    Ok(())
}

/// Memory of this process that it shares with nobody, from the kernel's own accounting.
fn private_kib() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/self/smaps_rollup")?;
    let mut total = 0.0;
    for name in ["Private_Clean:", "Private_Dirty:"] {
        let line = text
            .lines()
            .find(|line| line.starts_with(name))
            .context("no such line in smaps_rollup")?;
        let number = line
            .split_whitespace()
            .nth(1)
            .context("no number in smaps_rollup")?;
        total += number.parse::<f64>()?;
    }
    Ok(total)
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

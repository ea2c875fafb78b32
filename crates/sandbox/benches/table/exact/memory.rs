//! Restores, cycles of restore and call, and snapshots.

use vellum_sandbox::{Engine, GuestFn, Sandbox, Snapshot};

use super::meter::{Meter, Repeat};
use crate::bare::BareWriter;
use crate::sandboxes::{self, MIB};

/// A sandbox with an arena, its snapshot, and the functions that use it.
struct Subject {
    sandbox: Sandbox,
    snapshot: Snapshot,
    null: GuestFn<(), ()>,
    touch: GuestFn<(u64,), u64>,
}

impl Subject {
    fn new(engine: &Engine, arena_len_bytes: u64) -> anyhow::Result<Self> {
        let (sandbox, snapshot) = sandboxes::with_arena(engine, arena_len_bytes)?;
        let null = sandbox.function("null")?;
        let touch = sandbox.function("touch_pages")?;
        Ok(Self {
            sandbox,
            snapshot,
            null,
            touch,
        })
    }

    fn touch(&mut self, pages: u64) -> anyhow::Result<()> {
        Ok(self.touch.call(&mut self.sandbox, (pages,)).map(drop)?)
    }

    fn restore(&mut self) -> anyhow::Result<()> {
        Ok(self.sandbox.restore(&self.snapshot)?)
    }
}

pub(super) fn restores(engine: &Engine, meter: &mut Meter) -> anyhow::Result<()> {
    let once = Repeat::default();
    let mut subject = Subject::new(engine, 8 * MIB)?;
    meter.measure(
        "restore_clean",
        once,
        &mut subject,
        |subject| Ok(subject.null.call(&mut subject.sandbox, ())?),
        Subject::restore,
    )?;
    meter
        .measure(
            "call_after_restore",
            once,
            &mut subject,
            Subject::restore,
            |subject| Ok(subject.null.call(&mut subject.sandbox, ())?),
        )?
        .aim(9_000.0);
    for heap_mib in [8, 64, 256] {
        let mut subject = Subject::new(engine, heap_mib * MIB)?;
        let row = meter.measure(
            &format!("restore_dirty_16_heap_{heap_mib}mib"),
            once,
            &mut subject,
            |subject| subject.touch(16),
            Subject::restore,
        )?;
        row.aim(12_000.0);
    }
    Ok(())
}

pub(super) fn cycles(engine: &Engine, meter: &mut Meter) -> anyhow::Result<()> {
    for (pages, target) in [
        (1, 8_000.0),
        (16, 16_000.0),
        (256, 160_000.0),
        (1024, 600_000.0),
    ] {
        let mut bare = BareWriter::new(pages)?;
        let name = format!("bare_cycle_{pages}");
        let nothing = |_: &mut _| Ok(());
        meter.measure(
            &name,
            Repeat::default(),
            &mut bare,
            nothing,
            BareWriter::cycle,
        )?;
        let mut subject = Subject::new(engine, 8 * MIB)?;
        let row = meter.measure(
            &format!("cycle_dirty_{pages}"),
            Repeat::default(),
            &mut subject,
            |_| Ok(()),
            |subject| {
                subject.restore()?;
                subject.touch(pages)
            },
        )?;
        row.aim(target);
    }
    Ok(())
}

/// A snapshot after 16 pages were written since the last one, which the sandbox has gone on from.
pub(super) fn snapshots(engine: &Engine, meter: &mut Meter) -> anyhow::Result<()> {
    for heap_mib in [1, 8, 64, 256] {
        let mut subject = Subject::new(engine, heap_mib * MIB)?;
        let stamp = subject.sandbox.function::<(u64, u64), u64>("stamp_pages")?;
        let mut value = 0;
        let row = meter.measure(
            &format!("snapshot_dirty_16_heap_{heap_mib}mib"),
            Repeat::default(),
            &mut subject,
            |subject| {
                // Another value each time: a page that is as before need not be kept.
                value += 1;
                Ok(stamp.call(&mut subject.sandbox, (16, value)).map(drop)?)
            },
            |subject| {
                subject.snapshot = subject.sandbox.snapshot()?;
                Ok(())
            },
        )?;
        row.aim(150_000.0);
    }
    Ok(())
}

//! One operation, many times: how many instructions, and what happened in them.

use anyhow::Context;
use serde_json::json;

use crate::ioctls::{self, Watched};
use crate::profile;
use crate::statistics::Statistics;
use crate::system_calls::SystemCalls;
use crate::tsc;

/// Untimed first times: caches of the allocator and of the kernel are filled.
const WARM_UP: usize = 5;
/// Timed samples, of which the median counts: a few hold a timer interrupt of the kernel.
const SAMPLES: usize = 41;
/// How often events are counted. The least counts: what is more is not the operation's.
const COUNTINGS: usize = 3;

/// One operation's figures. Instructions are those of the whole machine: this program, its kernel and the guest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) instructions: f64,
    /// The least of the samples.
    pub(crate) least: f64,
    /// Those within `KVM_RUN`, the guest's included.
    pub(crate) in_run: f64,
    /// Those within other requests to KVM.
    pub(crate) in_other_ioctls: f64,
    pub(crate) ioctls: f64,
    pub(crate) system_calls: Option<f64>,
    pub(crate) exits: Option<f64>,
    pub(crate) faults: Option<f64>,
    pub(crate) target: Option<f64>,
}

/// How an operation is repeated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Repeat {
    pub(crate) samples: usize,
    /// How many units of work an operation is: its figures are divided by it.
    pub(crate) units: u32,
}

impl Default for Repeat {
    fn default() -> Self {
        Self {
            samples: SAMPLES,
            units: 1,
        }
    }
}

impl Repeat {
    /// Few samples, for what takes long.
    pub(crate) const SLOW: Self = Self {
        samples: 7,
        units: 1,
    };

    /// Figures for each of so many units.
    pub(crate) fn units(self, units: u32) -> Self {
        Self { units, ..self }
    }
}

/// Takes figures.
pub(crate) struct Meter {
    /// What reading the counter costs twice: the work of a sample is between two readings.
    overhead: u64,
    rows: Vec<Row>,
    /// The operation that is done between marks, for a profile. Nothing else is measured then.
    marked: Option<String>,
}

impl Meter {
    pub(crate) fn new(marked: Option<String>) -> anyhow::Result<Self> {
        let mut empty = Vec::new();
        for _ in 0..SAMPLES {
            empty.push(ticks(&mut (), &mut |()| Ok(()))?);
        }
        Ok(Self {
            overhead: median(&mut empty),
            rows: Vec::new(),
            marked,
        })
    }

    /// Measures `work`, each time after `prepare`, which is not measured.
    pub(crate) fn measure<S>(
        &mut self,
        name: &str,
        repeat: Repeat,
        state: &mut S,
        mut prepare: impl FnMut(&mut S) -> anyhow::Result<()>,
        mut work: impl FnMut(&mut S) -> anyhow::Result<()>,
    ) -> anyhow::Result<&mut Row> {
        if let Some(marked) = &self.marked {
            for _ in 0..WARM_UP {
                prepare(state)?;
                work(state)?;
            }
            if marked == name {
                prepare(state)?;
                profile::mark();
                work(state)?;
                profile::mark();
            }
            return self.unmeasured(name);
        }
        let mut samples = Vec::with_capacity(repeat.samples);
        for index in 0..WARM_UP.min(repeat.samples) + repeat.samples {
            prepare(state)?;
            let ticks = ticks(state, &mut work)?;
            if index >= WARM_UP.min(repeat.samples) {
                samples.push(ticks.saturating_sub(self.overhead));
            }
        }
        let each = |ticks: u64| each(ticks, repeat.units);
        let mut row = Row {
            name: name.to_owned(),
            instructions: each(median(&mut samples)),
            least: each(samples.iter().copied().min().unwrap_or_default()),
            ..Row::default()
        };
        let events = events(state, &mut prepare, &mut work)?;
        row.in_run = each(events.watched.run_ticks);
        row.in_other_ioctls = each(events.watched.other_ticks);
        row.ioctls = each(events.ioctls);
        row.system_calls = events.system_calls.map(each);
        row.exits = events.exits.map(each);
        row.faults = events.faults.map(each);
        eprintln!("  {name}: {:.3}", row.instructions);
        self.rows.push(row);
        self.rows.last_mut().context("just added")
    }

    fn unmeasured(&mut self, name: &str) -> anyhow::Result<&mut Row> {
        self.rows.push(Row {
            name: name.to_owned(),
            ..Row::default()
        });
        self.rows.last_mut().context("just added")
    }

    /// Adds what `more` costs above `less`, for each of `units`.
    pub(crate) fn difference(
        &mut self,
        name: &str,
        (more, less): (&str, &str),
        units: u32,
    ) -> anyhow::Result<&mut Row> {
        let (more, less) = (self.row(more)?.clone(), self.row(less)?.clone());
        let units = f64::from(units);
        let each = |more: f64, less: f64| (more - less) / units;
        let option = |more: Option<f64>, less: Option<f64>| Some(each(more?, less?));
        self.rows.push(Row {
            name: name.to_owned(),
            instructions: each(more.instructions, less.instructions),
            least: each(more.least, less.least),
            in_run: each(more.in_run, less.in_run),
            in_other_ioctls: each(more.in_other_ioctls, less.in_other_ioctls),
            ioctls: each(more.ioctls, less.ioctls),
            system_calls: option(more.system_calls, less.system_calls),
            exits: option(more.exits, less.exits),
            faults: option(more.faults, less.faults),
            target: None,
        });
        self.rows.last_mut().context("just added")
    }

    pub(crate) fn row(&self, name: &str) -> anyhow::Result<&Row> {
        let row = self.rows.iter().find(|row| row.name == name);
        row.with_context(|| format!("{name} was not measured"))
    }

    pub(crate) fn rows(&self) -> &[Row] {
        &self.rows
    }
}

impl Row {
    pub(crate) fn aim(&mut self, target: f64) {
        self.target = Some(target);
    }

    /// Whether the figure is above its target.
    pub(crate) fn misses(&self) -> bool {
        self.target.is_some_and(|target| self.instructions > target)
    }

    /// One line for programs.
    pub(crate) fn json(&self) -> String {
        json!({
            "name": self.name,
            "instructions": round(self.instructions),
            "least": round(self.least),
            "in_run": round(self.in_run),
            "in_other_ioctls": round(self.in_other_ioctls),
            "ioctls": round(self.ioctls),
            "system_calls": self.system_calls.map(round),
            "exits": self.exits.map(round),
            "faults": self.faults.map(round),
            "target": self.target.map(round),
        })
        .to_string()
    }
}

/// Thousandths are enough, and read the same in every run.
fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn each(count: u64, units: u32) -> f64 {
    // A benchmark counts far below 2^52.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let count = count as f64;
    count / f64::from(units)
}

fn ticks<S>(
    state: &mut S,
    work: &mut impl FnMut(&mut S) -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    let before = tsc::now();
    work(state)?;
    Ok(tsc::now() - before)
}

fn median(samples: &mut [u64]) -> u64 {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}

/// What happened while an operation was done once.
#[derive(Debug, Default)]
struct Events {
    watched: Watched,
    ioctls: u64,
    system_calls: Option<u64>,
    exits: Option<u64>,
    faults: Option<u64>,
}

fn events<S>(
    state: &mut S,
    prepare: &mut impl FnMut(&mut S) -> anyhow::Result<()>,
    work: &mut impl FnMut(&mut S) -> anyhow::Result<()>,
) -> anyhow::Result<Events> {
    let mut events = Vec::new();
    for _ in 0..COUNTINGS {
        let mut once = Events::default();
        prepare(state)?;
        once.watched = ioctls::watch(|| work(state))?;
        prepare(state)?;
        let before = ioctls::count();
        work(state)?;
        once.ioctls = ioctls::count() - before;
        prepare(state)?;
        if let Ok(counter) = SystemCalls::of_this_thread() {
            once.system_calls = Some(counter.during(|| work(state))?);
        }
        prepare(state)?;
        let (exits, faults) = vcpu_events(state, work)?;
        // The counters are those of one vCPU: they say nothing of an operation that makes another.
        if once.watched.slots.is_empty() {
            (once.exits, once.faults) = (exits, faults);
        }
        events.push(once);
    }
    let least = |of: fn(&Events) -> Option<u64>| events.iter().filter_map(of).min();
    Ok(Events {
        watched: Watched {
            run_ticks: least(|once| Some(once.watched.run_ticks)).unwrap_or_default(),
            other_ticks: least(|once| Some(once.watched.other_ticks)).unwrap_or_default(),
            slots: Vec::new(),
        },
        ioctls: least(|once| Some(once.ioctls)).unwrap_or_default(),
        system_calls: least(|once| once.system_calls),
        exits: least(|once| once.exits),
        faults: least(|once| once.faults),
    })
}

/// Exits and faults of the vCPU that was entered last.
fn vcpu_events<S>(
    state: &mut S,
    work: &mut impl FnMut(&mut S) -> anyhow::Result<()>,
) -> anyhow::Result<(Option<u64>, Option<u64>)> {
    let Ok(statistics) = Statistics::of_last_entered() else {
        work(state)?;
        return Ok((None, None));
    };
    let before = (statistics.exits()?, statistics.faults()?);
    work(state)?;
    let after = (statistics.exits()?, statistics.faults()?);
    Ok((Some(after.0 - before.0), Some(after.1 - before.1)))
}

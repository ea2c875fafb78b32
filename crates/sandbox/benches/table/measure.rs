//! Timing on a noisy machine: many samples, medians, and two things measured in turn where they are compared.

use std::time::Instant;

/// How many samples to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effort {
    Quick,
    Full,
}

impl Effort {
    /// `full` samples, or a few.
    pub(crate) fn samples(self, full: usize) -> usize {
        match self {
            Self::Quick => (full / 50).clamp(3, 20),
            Self::Full => full,
        }
    }
}

/// The median time of `work` in nanoseconds. `prepare` runs before each sample and is not timed.
pub(crate) fn median<S>(
    samples: usize,
    mut prepare: impl FnMut() -> anyhow::Result<S>,
    mut work: impl FnMut(S) -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    let mut times = Vec::with_capacity(samples);
    for _ in 0..samples {
        let state = prepare()?;
        let start = Instant::now();
        work(state)?;
        times.push(start.elapsed().as_nanos());
    }
    Ok(middle(times))
}

/// The median time of `work` for each subject, sampled in turn, so that a machine whose speed drifts treats all alike. `prepare` runs
/// before each sample and is not timed.
pub(crate) fn turns<S>(
    samples: usize,
    subjects: &mut [S],
    mut prepare: impl FnMut(&mut S) -> anyhow::Result<()>,
    mut work: impl FnMut(&mut S) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<f64>> {
    let mut times = vec![Vec::with_capacity(samples); subjects.len()];
    for _ in 0..samples {
        for (subject, times) in subjects.iter_mut().zip(&mut times) {
            prepare(subject)?;
            let start = Instant::now();
            work(subject)?;
            times.push(start.elapsed().as_nanos());
        }
    }
    Ok(times.into_iter().map(middle).collect())
}

/// Two medians, sampled in turn, so that a machine whose speed drifts treats both alike; and the median of the quotients of
/// neighbouring samples.
pub(crate) struct Pair {
    pub(crate) floor: f64,
    pub(crate) figure: f64,
    pub(crate) ratio: f64,
}

/// Measures `figure` in turn with `floor`.
pub(crate) fn pair(
    samples: usize,
    mut floor: impl FnMut() -> anyhow::Result<()>,
    mut figure: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Pair> {
    /// Operations that make one sample: enough to hide the clock, few enough not to hide a drift.
    const BATCH: u32 = 20;
    let (mut floors, mut figures, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..samples {
        let floor = batch(BATCH, &mut floor)?;
        let figure = batch(BATCH, &mut figure)?;
        floors.push(floor);
        figures.push(figure);
        ratios.push(figure / floor);
    }
    Ok(Pair {
        floor: middle_float(floors),
        figure: middle_float(figures),
        ratio: middle_float(ratios),
    })
}

fn batch(times: u32, work: &mut impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let start = Instant::now();
    for _ in 0..times {
        work()?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e9 / f64::from(times))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "nanoseconds of a benchmark are far below 2^52"
)]
fn middle(times: Vec<u128>) -> f64 {
    middle_float(times.into_iter().map(|time| time as f64).collect())
}

fn middle_float(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

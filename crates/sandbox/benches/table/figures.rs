//! Names and numbers, in the order in which they were measured.

use std::fmt::Write as _;

/// Stands in the table where a measured figure has its floor.
const EXACT: &str = "(counted)";

/// What a figure is to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    AtMost(f64),
    Exactly(f64),
}

impl Target {
    fn value(self) -> f64 {
        match self {
            Self::AtMost(value) | Self::Exactly(value) => value,
        }
    }

    /// Counts are quotients of whole numbers, so a thousandth is near enough.
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::Exactly(exact) => (value - exact).abs() < 0.001,
        }
    }
}

/// Measured figures, each with the figure that is its floor and the ratio that is aimed at.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    value: f64,
    floor: Option<String>,
    target: Option<Target>,
}

impl Figures {
    /// Adds a figure that stands alone.
    pub(crate) fn add(&mut self, name: impl Into<String>, value: f64) {
        self.push(name.into(), value, None);
    }

    /// Adds a number of events, which is exact.
    pub(crate) fn add_count(&mut self, name: impl Into<String>, value: f64) {
        self.push(name.into(), value, Some(EXACT.to_owned()));
    }

    /// Adds a figure that is to be compared with another one of the same run.
    pub(crate) fn add_beside(&mut self, name: impl Into<String>, value: f64, floor: &str) {
        self.push(name.into(), value, Some(floor.to_owned()));
    }

    fn push(&mut self, name: String, value: f64, floor: Option<String>) {
        eprintln!("  {name}: {value:.3}");
        self.rows.push(Row {
            name,
            value,
            floor,
            target: None,
        });
    }

    /// Sets what a figure is to be, if it was measured.
    pub(crate) fn aim(&mut self, name: &str, target: Target) {
        for row in self.rows.iter_mut().filter(|row| row.name == name) {
            row.target = Some(target);
        }
    }

    pub(crate) fn value(&self, name: &str) -> Option<f64> {
        self.rows
            .iter()
            .find(|row| row.name == name)
            .map(|row| row.value)
    }

    /// A table for people: figure, value, floor, ratio.
    pub(crate) fn table(&self) -> String {
        let mut table = format!(
            "\n{:<28} {:>14} {:>26} {:>8} {:>14}\n",
            "figure", "value", "floor", "ratio", "target"
        );
        for row in &self.rows {
            let floor = row.floor.as_deref().unwrap_or("");
            let ratio = row
                .floor
                .as_deref()
                .and_then(|floor| self.value(floor))
                .map_or(String::new(), |floor| format!("{:.2}", row.value / floor));
            let decimals = if row.value < 10.0 { 3 } else { 1 };
            let target = row.target.map_or(String::new(), |target| {
                let verdict = if target.is_met(row.value) {
                    "ok"
                } else {
                    "MISS"
                };
                format!("{:>14.2} {verdict}", target.value())
            });
            // Writing to a string cannot fail.
            let _ = writeln!(
                table,
                "{:<28} {:>14.decimals$} {:>26} {:>8} {target}",
                row.name, row.value, floor, ratio
            );
        }
        table
    }

    /// A flat object of numbers: figures, and targets under the names of the figures.
    pub(crate) fn json(&self) -> String {
        let line =
            |name: &str, suffix: &str, value: f64| format!("  \"{name}{suffix}\": {value:.3}");
        let mut rows = Vec::new();
        for row in &self.rows {
            rows.push(line(&row.name, "", row.value));
            rows.extend(
                row.target
                    .map(|target| line(&row.name, "_target", target.value())),
            );
        }
        format!("{{\n{}\n}}\n", rows.join(",\n"))
    }
}

//! Names and numbers, in the order in which they were measured.

use std::fmt::Write as _;

/// Stands in the table where a measured figure has its floor.
const EXACT: &str = "(counted)";

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
        self.rows.push(Row { name, value, floor });
    }

    fn value(&self, name: &str) -> Option<f64> {
        self.rows
            .iter()
            .find(|row| row.name == name)
            .map(|row| row.value)
    }

    /// A table for people: figure, value, floor, ratio.
    pub(crate) fn table(&self) -> String {
        let mut table = format!(
            "\n{:<28} {:>14} {:>26} {:>8}\n",
            "figure", "value", "floor", "ratio"
        );
        for row in &self.rows {
            let floor = row.floor.as_deref().unwrap_or("");
            let ratio = row
                .floor
                .as_deref()
                .and_then(|floor| self.value(floor))
                .map_or(String::new(), |floor| format!("{:.2}", row.value / floor));
            let decimals = if floor == EXACT { 3 } else { 1 };
            // Writing to a string cannot fail.
            let _ = writeln!(
                table,
                "{:<28} {:>14.decimals$} {:>26} {:>8}",
                row.name, row.value, floor, ratio
            );
        }
        table
    }

    /// A flat object of numbers.
    pub(crate) fn json(&self) -> String {
        let rows: Vec<String> = self
            .rows
            .iter()
            .map(|row| format!("  \"{}\": {:.3}", row.name, row.value))
            .collect();
        format!("{{\n{}\n}}\n", rows.join(",\n"))
    }
}

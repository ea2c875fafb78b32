//! Counts that are recorded in the repository, and the comparison with new ones.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

/// Where they are recorded, from the root of the workspace.
pub(super) const FILE: &str = "crates/sandbox/benches/exact-baseline.json";
/// By how much a count may grow before a check fails. Of a small number, such as that of system calls, that is not at all.
const TOLERANCE: f64 = 0.02;
/// What is compared of an operation. What else the benchmark prints of it says where these come from.
const COMPARED: [&str; 5] = ["instructions", "ioctls", "system_calls", "exits", "faults"];

/// Counts, and what they were counted on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Baseline {
    pub(super) platform: Platform,
    pub(super) counts: Counts,
}

/// What the counts depend on besides the program and its compiler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Platform {
    pub(super) kernel: String,
    pub(super) qemu: String,
}

/// The counts of each operation, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Counts(BTreeMap<String, BTreeMap<String, f64>>);

/// What changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Comparison {
    pub(super) same: usize,
    pub(super) better: Vec<String>,
    pub(super) worse: Vec<String>,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel {} on {}", self.kernel, self.qemu)
    }
}

impl Baseline {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text).context("not JSON")?;
        let text = |name: &str| -> Result<String> {
            let text = value.get(name).and_then(Value::as_str);
            Ok(text.with_context(|| format!("no text {name}"))?.to_owned())
        };
        let operations = value.get("operations").and_then(Value::as_object);
        let mut counts = Counts::default();
        for (name, operation) in operations.context("no object of operations")? {
            counts.add(name, operation)?;
        }
        Ok(Self {
            platform: Platform {
                kernel: text("kernel")?,
                qemu: text("qemu")?,
            },
            counts,
        })
    }

    /// As it is recorded: sorted, an operation a line.
    pub(super) fn json(&self) -> Result<String> {
        let Platform { kernel, qemu } = &self.platform;
        Ok(format!(
            "{{\n\"kernel\": {},\n\"qemu\": {},\n\"operations\": {}}}\n",
            json!(kernel),
            json!(qemu),
            self.counts.json()?
        ))
    }
}

impl Counts {
    /// Reads an operation a line.
    pub(super) fn parse<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Self> {
        let mut counts = Self::default();
        for line in lines {
            let operation: Value =
                serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
            let name = operation.get("name").and_then(Value::as_str);
            counts.add(name.context("an operation without a name")?, &operation)?;
        }
        if counts.0.is_empty() {
            bail!("the benchmark counted nothing");
        }
        Ok(counts)
    }

    fn add(&mut self, name: &str, operation: &Value) -> Result<()> {
        let mut values = BTreeMap::new();
        for what in COMPARED {
            match operation.get(what) {
                None | Some(Value::Null) => {}
                Some(value) => {
                    let value = value.as_f64();
                    let value = value.with_context(|| format!("{what} of {name} is no number"))?;
                    values.insert(what.to_owned(), value);
                }
            }
        }
        if !values.contains_key(COMPARED[0]) {
            bail!("{name} has no {}", COMPARED[0]);
        }
        if self.0.insert(name.to_owned(), values).is_some() {
            bail!("{name} is there twice");
        }
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// An object of operations, each a line.
    pub(super) fn json(&self) -> Result<String> {
        let mut lines = Vec::new();
        for (name, values) in &self.0 {
            let values: Map<String, Value> = values
                .iter()
                .map(|(what, value)| (what.clone(), json!(value)))
                .collect();
            lines.push(format!(
                "{}: {}",
                json!(name),
                serde_json::to_string(&values)?
            ));
        }
        Ok(format!("{{\n{}\n}}\n", lines.join(",\n")))
    }

    /// Compares new counts with these. An operation that is gone is worse: its count is not checked any more. A new one is neither.
    pub(super) fn compare(&self, current: &Self) -> Comparison {
        let mut comparison = Comparison::default();
        for (name, recorded) in &self.0 {
            let current = current.0.get(name);
            for (what, &old) in recorded {
                match current.and_then(|values| values.get(what)) {
                    None => comparison.worse.push(format!("{name}: no {what} any more")),
                    Some(&new) => comparison.add(name, what, old, new),
                }
            }
        }
        comparison
    }
}

impl Comparison {
    fn add(&mut self, name: &str, what: &str, old: f64, new: f64) {
        let line = || {
            let change = if old == 0.0 {
                String::new()
            } else {
                format!(" ({:+.1} %)", (new / old - 1.0) * 100.0)
            };
            format!("{name}: {what} {old} -> {new}{change}")
        };
        if new > old * (1.0 + TOLERANCE) {
            self.worse.push(line());
        } else if new < old * (1.0 - TOLERANCE) {
            self.better.push(line());
        } else {
            self.same += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(lines: &[&str]) -> Counts {
        Counts::parse(lines.iter().copied()).unwrap()
    }

    fn call(instructions: f64, ioctls: u32) -> Counts {
        counts(&[&format!(
            r#"{{"name":"call","instructions":{instructions},"ioctls":{ioctls},"exits":null,"least":1}}"#
        )])
    }

    #[test]
    fn what_grew_by_more_than_the_tolerance_is_worse_and_what_shrank_is_better() {
        let recorded = call(1000.0, 1);
        for (instructions, ioctls, same, better, worse) in [
            (1000.0, 1, 2, 0, 0),
            (1020.0, 1, 2, 0, 0),
            (1021.0, 1, 1, 0, 1),
            (979.0, 1, 1, 1, 0),
            (1000.0, 2, 1, 0, 1),
            (979.0, 2, 0, 1, 1),
        ] {
            let comparison = recorded.compare(&call(instructions, ioctls));
            let counted = (
                comparison.same,
                comparison.better.len(),
                comparison.worse.len(),
            );
            assert_eq!(counted, (same, better, worse), "{instructions} {ioctls}");
        }
    }

    #[test]
    fn an_operation_that_is_gone_is_worse_and_a_new_one_is_not() {
        let one = counts(&[r#"{"name":"one","instructions":1}"#]);
        let both = counts(&[
            r#"{"name":"one","instructions":1}"#,
            r#"{"name":"two","instructions":2}"#,
        ]);
        assert_eq!(both.compare(&one).worse, ["two: no instructions any more"]);
        assert_eq!(
            one.compare(&both),
            Comparison {
                same: 1,
                ..Comparison::default()
            }
        );
    }

    #[test]
    fn what_is_recorded_is_read_back() {
        let baseline = Baseline {
            platform: Platform {
                kernel: "6.1.0".into(),
                qemu: "QEMU \"7.2\"".into(),
            },
            counts: call(3134.5, 1),
        };
        assert_eq!(
            Baseline::parse(&baseline.json().unwrap()).unwrap(),
            baseline
        );
    }

    #[test]
    fn what_is_no_count_is_refused() {
        for lines in [
            &[][..],
            &["?"],
            &[r#"{"instructions":1}"#],
            &[r#"{"name":"a","ioctls":1}"#],
            &[r#"{"name":"a","instructions":"1"}"#],
            &[
                r#"{"name":"a","instructions":1}"#,
                r#"{"name":"a","instructions":1}"#,
            ],
        ] {
            assert!(Counts::parse(lines.iter().copied()).is_err(), "{lines:?}");
        }
    }
}

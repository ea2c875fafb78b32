//! The house rules that a machine can check.
//!
//! Each rule is a function from the sources (or the cargo metadata) to a list of violations. A violation that
//! is right in its place is listed in `xtask/house-rules.allow` with the reason; an entry there that matches
//! nothing is itself a violation, so the list cannot rot.

mod allow;
mod cfg_density;
mod crate_roots;
mod crates;
mod links;
mod machine_paths;
mod names;
mod quotes;
#[cfg(test)]
mod samples;
mod signatures;
mod size;
mod source;
mod tokens;
mod unsafe_code;

use std::fmt;

use anyhow::{Context, Result, bail};

use self::allow::AllowList;
use self::source::Sources;
use crate::process::progress;
use crate::workspace::Workspace;

/// One place that breaks one rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Violation {
    /// File relative to the workspace root.
    path: String,
    /// Line from 1, or 0 where the violation is about the whole file.
    line: usize,
    rule: &'static str,
    /// The item within the file, such as `Mapper::map`; empty for the whole file.
    item: String,
    message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        write!(f, ": [{}] {}", self.rule, self.message)
    }
}

/// Checks every rule that needs no build; prints each violation and fails if there is one.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let sources = Sources::read(workspace)?;
    let metadata = crates::metadata(workspace)?;
    let mut violations = all_violations(&sources, &metadata);

    let allowed = AllowList::read(workspace)?;
    let (accepted, unused) = allowed.apply(&mut violations);
    violations.extend(unused);
    violations.sort();
    for violation in &violations {
        println!("{violation}");
    }
    if !violations.is_empty() {
        bail!(
            "{} violation(s) of the house rules; an exception goes into {} with its reason",
            violations.len(),
            allow::FILE
        );
    }
    progress(&format!(
        "house rules hold in {} Rust files and {} other files ({accepted} listed exceptions)",
        sources.rust.len(),
        sources.other.len()
    ));
    Ok(())
}

fn all_violations(sources: &Sources, metadata: &serde_json::Value) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in &sources.rust {
        violations.extend(cfg_density::check(file));
        violations.extend(names::check(file));
        violations.extend(signatures::check(file));
        violations.extend(size::check(file));
        violations.extend(unsafe_code::check_comments(file));
    }
    violations.extend(unsafe_code::check_opt_in(&sources.rust));
    violations.extend(crate_roots::check(&sources.rust));
    violations.extend(crates::check(metadata));
    violations.extend(links::check(sources));
    violations.extend(quotes::check(sources));
    for (path, text) in &sources.other {
        violations.extend(crates::check_lints(path, text));
    }
    for (path, text) in sources.texts() {
        violations.extend(machine_paths::check(path, text));
    }
    violations
}

/// The memory-map page must be what the layout crate prints.
pub(crate) fn check_memory_map(workspace: &Workspace) -> Result<()> {
    const PAGE: &str = "docs/memory-map.md";
    const GENERATE: &str = "cargo run --quiet --package vellum-layout --example memory_map";
    let mut command = workspace.cargo();
    command.args(GENERATE.split(' ').skip(1));
    let generated = crate::process::capture(&mut command)?;
    let page = std::fs::read_to_string(workspace.root().join(PAGE))
        .with_context(|| format!("could not read {PAGE}; write it with `{GENERATE} > {PAGE}`"))?;
    if let Some(line) = first_difference(&page, &generated) {
        bail!(
            "{PAGE} differs from the layout crate at line {line}; write it with `{GENERATE} > {PAGE}`"
        );
    }
    progress(&format!("{PAGE} is what the layout crate prints"));
    Ok(())
}

/// The number, from 1, of the first line that differs.
fn first_difference(left: &str, right: &str) -> Option<usize> {
    if left == right {
        return None;
    }
    let common = left
        .lines()
        .zip(right.lines())
        .take_while(|(left, right)| left == right)
        .count();
    Some(common + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_different_line_is_named() {
        let rows = [
            ("a\nb\n", "a\nb\n", None),
            ("a\nb\n", "a\nc\n", Some(2)),
            ("a\n", "a\nb\n", Some(2)),
            ("", "a\n", Some(1)),
            ("a", "a\n", Some(2)),
        ];
        for (left, right, expected) in rows {
            assert_eq!(
                first_difference(left, right),
                expected,
                "{left:?} {right:?}"
            );
        }
    }

    #[test]
    fn a_violation_is_printed_with_its_place_and_rule() {
        let mut violation = Violation {
            path: "crates/a/src/lib.rs".into(),
            line: 7,
            rule: "size",
            item: "f".into(),
            message: "too long".into(),
        };
        assert_eq!(
            violation.to_string(),
            "crates/a/src/lib.rs:7: [size] too long"
        );
        violation.line = 0;
        assert_eq!(
            violation.to_string(),
            "crates/a/src/lib.rs: [size] too long"
        );
    }
}

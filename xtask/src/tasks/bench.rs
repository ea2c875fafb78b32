//! `cargo xtask bench`: the benchmark table, each figure beside its floor from the same run.

use std::fs;
use std::path::{Path, absolute};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::host::Kvm;
use crate::process::{self, progress};
use crate::workspace::Workspace;

/// What the JSON object holds of a hypervisor at least; nanoseconds unless named otherwise.
const FIGURES: [&str; 33] = [
    "floor_kvm_run_ns",
    "call_null_ns",
    "call_null_ratio",
    "host_call_ns",
    "host_call_ratio",
    "ioctls_per_call",
    "ioctls_per_host_call",
    "restore_clean_ns",
    "restore_dirty_1_ns",
    "restore_dirty_16_ns",
    "restore_dirty_256_ns",
    "restore_dirty_1024_ns",
    "restore_heap_1mib_ns",
    "restore_heap_64mib_ns",
    "restore_heap_spread",
    "restore_per_page_ns",
    "copy_back_per_page_ns",
    "fault_per_page_ns",
    "cycle_dirty_1_ns",
    "cycle_dirty_16_ns",
    "cycle_dirty_256_ns",
    "cycle_dirty_1024_ns",
    "snapshot_dirty_16_ns",
    "snapshot_heap_spread",
    "chain_pages_per_snapshot",
    "pool_take_return_ns",
    "create_from_snapshot_ns",
    "create_floor_ns",
    "pagetable_build_1gib_ns",
    "bytes_50mb_ns",
    "memcpy_50mb_ns",
    "rss_per_sandbox_kib",
    "kernel_per_sandbox_kib",
];

/// What it holds of the emulator, with or without a hypervisor.
const EMULATOR_FIGURES: [&str; 5] = [
    "emulator_start_ns",
    "emulator_call_null_ns",
    "emulator_mips",
    "emulator_mips_copy",
    "emulator_mips_sse",
];

/// Arguments that choose other things than times.
const UNTIMED: [&str; 3] = ["--counts", "--exact", "--profile"];

/// Runs the table in release mode, and of the emulator alone where there is no hypervisor; `json` is where the figures go as well.
pub(crate) fn run(workspace: &Workspace, json: Option<&Path>, args: &[String]) -> Result<()> {
    let is_timed = !args.iter().any(|arg| UNTIMED.contains(&arg.as_str()));
    let mut args = args.to_vec();
    let mut required = Vec::new();
    match Kvm::probe().problem() {
        None if is_timed => required.extend(FIGURES),
        None => {}
        Some(problem) if is_timed => {
            progress(&format!("SKIPPED all but the emulator: {problem}"));
            args.push("--emulator".to_owned());
        }
        Some(problem) => bail!("this benchmark needs a hypervisor: {problem}"),
    }
    // A benchmark runs in its package's directory; the caller meant their own.
    let json = json
        .map(absolute)
        .transpose()
        .context("no absolute path for the JSON file")?;
    let mut command = workspace.cargo();
    command.args([
        "bench",
        "--package",
        "vellum-sandbox",
        "--bench",
        "table",
        "--",
    ]);
    if let Some(json) = &json {
        command.arg("--json").arg(json);
    }
    command.args(args);
    process::run(&mut command).context("the benchmark did not finish")?;
    let mut speed = Vec::new();
    if is_timed {
        speed = emulator_speed(workspace)?;
        required.extend(EMULATOR_FIGURES);
    }
    let Some(json) = json else { return Ok(()) };
    let complete = || -> Result<usize> {
        let text = with_figures(&fs::read_to_string(&json)?, speed)?;
        let count = check_figures(&text, &required)?;
        fs::write(&json, text)?;
        Ok(count)
    };
    let count = complete().with_context(|| format!("in {}", json.display()))?;
    progress(&format!("{count} figures in {}", json.display()));
    Ok(())
}

/// How fast the emulator carries out its loops: names and numbers.
fn emulator_speed(workspace: &Workspace) -> Result<Vec<(String, f64)>> {
    let mut command = workspace.cargo();
    command.args(["bench", "--package", "vellum-emulator", "--bench", "speed"]);
    let mut figures = Vec::new();
    let passed = process::run_inspected(&mut command, |line| figures.extend(named_number(line)))?;
    if !passed {
        bail!("the benchmark of the emulator did not finish");
    }
    Ok(figures)
}

/// A line of a name and a number.
fn named_number(line: &str) -> Option<(String, f64)> {
    let (name, number) = line.split_once(' ')?;
    Some((name.to_owned(), number.parse().ok()?))
}

/// The object with more figures in it.
fn with_figures(text: &str, figures: Vec<(String, f64)>) -> Result<String> {
    let mut value: Value = serde_json::from_str(text).context("the figures are not JSON")?;
    let object = value
        .as_object_mut()
        .context("the figures are not a JSON object")?;
    object.extend(figures.into_iter().map(|(name, it)| (name, it.into())));
    Ok(format!("{value:#}\n"))
}

/// Checks that the text is a flat object of numbers with every required figure; returns how many it holds.
fn check_figures(text: &str, required: &[&str]) -> Result<usize> {
    let value: Value = serde_json::from_str(text).context("the figures are not JSON")?;
    let object = value
        .as_object()
        .context("the figures are not a JSON object")?;
    if let Some((name, _)) = object.iter().find(|(_, value)| !value.is_number()) {
        bail!("the figure {name} is not a number");
    }
    let missing: Vec<&str> = required
        .iter()
        .copied()
        .filter(|name| !object.contains_key(*name))
        .collect();
    if !missing.is_empty() {
        bail!("figures are missing: {}", missing.join(", "));
    }
    Ok(object.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> serde_json::Map<String, Value> {
        FIGURES
            .iter()
            .map(|name| ((*name).to_owned(), Value::from(1.5)))
            .collect()
    }

    #[test]
    fn a_flat_object_with_every_figure_and_more_passes() {
        let mut figures = complete();
        figures.insert("another_ns".into(), Value::from(7));
        assert_eq!(
            check_figures(&Value::from(figures).to_string(), &FIGURES).unwrap(),
            FIGURES.len() + 1
        );
    }

    #[test]
    fn lines_of_the_emulator_are_figures_beside_the_others() {
        let lines = ["emulator_mips 71.5", "running 0 tests", "", "emulator_mips"];
        let figures: Vec<_> = lines.into_iter().filter_map(named_number).collect();
        assert_eq!(figures, [("emulator_mips".to_owned(), 71.5)]);
        let text = with_figures(r#"{"a_ns": 1.25}"#, figures).unwrap();
        assert_eq!(check_figures(&text, &["a_ns", "emulator_mips"]).unwrap(), 2);
    }

    #[test]
    fn a_missing_figure_is_named() {
        let mut figures = complete();
        figures.remove("call_null_ns");
        let error = check_figures(&Value::from(figures).to_string(), &FIGURES).unwrap_err();
        assert_eq!(error.to_string(), "figures are missing: call_null_ns");
    }

    #[test]
    fn what_is_not_a_flat_object_of_numbers_is_refused() {
        let mut nested = complete();
        nested.insert("call_null_ns".into(), Value::from("12 ns"));
        for text in ["", "[1]", &Value::from(nested).to_string()] {
            assert!(check_figures(text, &FIGURES).is_err(), "{text}");
        }
    }
}

//! Exact counts: instructions, exits, faults and system calls of one operation, on a machine whose time-stamp counter counts
//! instructions. `cargo xtask vm-test --bench` makes such a machine.
//!
//! An operation is done between two readings of the counter, many times; what the readings themselves cost is subtracted, and
//! the median counts. Events are counted in repetitions of their own, because counting them costs instructions.

mod calls;
mod creation;
mod memory;
mod meter;
mod paging;

use std::fmt::Write as _;

use vellum_sandbox::Engine;

use meter::{Meter, Row};

/// Begins a line for programs.
const LINE: &str = "exact ";

/// Takes all figures, and prints them twice: a line of JSON for each, and a table. The operation that is to be `marked` is done once
/// between two marks, for a profile.
pub(crate) fn exact(engine: &Engine, marked: Option<String>) -> anyhow::Result<()> {
    let mut meter = Meter::new(marked)?;
    paging::page_tables(&mut meter)?;
    calls::calls(engine, &mut meter)?;
    memory::restores(engine, &mut meter)?;
    memory::cycles(engine, &mut meter)?;
    memory::snapshots(engine, &mut meter)?;
    creation::creation(engine, &mut meter)?;
    for row in meter.rows() {
        println!("{LINE}{}", row.json());
    }
    print!("{}", table(meter.rows()));
    Ok(())
}

/// A table for people.
fn table(rows: &[Row]) -> String {
    let mut table = format!(
        "\n{:<28} {:>12} {:>12} {:>6} {:>12} {:>10} {:>7} {:>7} {:>7} {:>7}\n",
        "operation",
        "instructions",
        "target",
        "",
        "in KVM_RUN",
        "ioctls in",
        "ioctls",
        "syscalls",
        "exits",
        "faults"
    );
    for row in rows {
        let target = row
            .target
            .map_or(String::new(), |target| format!("{target:.0}"));
        let verdict = match row.target {
            None => "",
            Some(_) if row.misses() => "MISS",
            Some(_) => "ok",
        };
        let count =
            |count: Option<f64>| count.map_or("-".to_owned(), |count| format!("{count:.1}"));
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "{:<28} {:>12.1} {:>12} {:>6} {:>12.1} {:>10.1} {:>7.1} {:>7} {:>7} {:>7}",
            row.name,
            row.instructions,
            target,
            verdict,
            row.in_run,
            row.in_other_ioctls,
            row.ioctls,
            count(row.system_calls),
            count(row.exits),
            count(row.faults),
        );
    }
    table
}

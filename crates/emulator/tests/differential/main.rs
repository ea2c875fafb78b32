//! The emulator against silicon: random instructions and states, run in ring 3 under KVM and in the emulator, and compared.
//!
//! The same guest runs on both, through the same trait. `VELLUM_DIFF_CASES` says how many cases to run, `VELLUM_DIFF_SEED` which.
//! Without KVM the test is skipped, visibly.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_lossless,
    clippy::items_after_statements,
    reason = "random numbers are cut to what is needed"
)]

mod cases;
mod compare;
mod guest;
mod random;

use std::collections::BTreeMap;
use std::io::Write;

use vellum_backend::Hypervisor;
use vellum_backend::kvm::{Kvm, OpenError};
use vellum_emulator::Emulator;

use crate::cases::{Case, Generator};
use crate::compare::difference;
use crate::guest::{BATCH_CASES, Guest, Outcome};

/// Cases of a plain `cargo test`.
const DEFAULT_CASES: u64 = 20_000;
/// Differences that are shown.
const SHOWN: usize = 12;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

fn kvm() -> Option<Kvm> {
    match Kvm::open() {
        Ok(kvm) => Some(kvm),
        Err(error @ (OpenError::Absent | OpenError::Permission)) => {
            // Written directly, because the harness hides what a passing test prints.
            let _ = writeln!(std::io::stderr(), "SKIPPED on kvm: {error}");
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

/// What a run found.
#[derive(Default)]
struct Findings {
    cases: u64,
    faults: u64,
    mnemonics: BTreeMap<String, u64>,
    /// Mnemonics of cases that differed.
    different: BTreeMap<String, u64>,
    shown: usize,
}

impl Findings {
    fn add(&mut self, case: &Case, native: &Outcome, emulated: &Outcome) {
        self.cases += 1;
        self.faults += u64::from(native.vector().is_some());
        for name in case.mnemonics() {
            *self.mnemonics.entry(name).or_default() += 1;
        }
        let Some(difference) = difference(case, native, emulated) else {
            return;
        };
        let name = case.mnemonics().join(" ");
        *self.different.entry(name).or_default() += 1;
        if self.shown < SHOWN {
            self.shown += 1;
            println!("{case}\n{difference}");
        }
    }
}

#[test]
fn random_instructions_do_the_same_as_on_the_processor() {
    let Some(kvm) = kvm() else { return };
    let cases = number("VELLUM_DIFF_CASES", DEFAULT_CASES);
    let mut generator = Generator::new(number("VELLUM_DIFF_SEED", 1));
    let emulator = Emulator::new();
    let mut native = Guest::new(&kvm);
    let mut emulated = Guest::new(&emulator as &dyn Hypervisor);
    let mut findings = Findings::default();
    while findings.cases < cases {
        let batch: Vec<Case> = (0..BATCH_CASES).map(|_| generator.case()).collect();
        let native_outcomes = native.run(&batch);
        let emulated_outcomes = emulated.run(&batch);
        for ((case, native), emulated) in batch.iter().zip(&native_outcomes).zip(&emulated_outcomes)
        {
            findings.add(case, native, emulated);
        }
    }
    let mismatches: u64 = findings.different.values().sum();
    println!(
        "{} cases, {} of them faulted, {} mnemonics, {mismatches} mismatches",
        findings.cases,
        findings.faults,
        findings.mnemonics.len()
    );
    println!("mnemonics: {:?}", findings.mnemonics);
    println!("rejected as not emulated: {:?}", generator.lacking());
    assert!(
        findings.mnemonics.len() > 50,
        "the generator reaches little"
    );
    assert!(findings.different.is_empty(), "{:?}", findings.different);
}

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
/// Of how many cases a software KVM may lose one: it does not survive every x87 exception that waits while it is entered.
const CASES_FOR_EACH_LOST: u64 = 1_000;
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
    vectors: BTreeMap<u64, u64>,
    /// Cases that differed once, and not when they ran again.
    unrepeated: u64,
    /// Cases that the processor's hypervisor did not survive.
    lost: u64,
}

impl Findings {
    fn add(&mut self, case: &Case, native: &Outcome) {
        self.cases += 1;
        if let Some(vector) = native.vector() {
            self.faults += 1;
            *self.vectors.entry(vector).or_default() += 1;
        }
        for name in case.mnemonics() {
            *self.mnemonics.entry(name).or_default() += 1;
        }
    }

    fn add_difference(&mut self, case: &Case, difference: &str) {
        let name = case.mnemonics().join(" ");
        *self.different.entry(name).or_default() += 1;
        if self.shown < SHOWN {
            self.shown += 1;
            println!("{case}\n{difference}");
        }
    }
}

/// Runs a batch on the processor, without the cases that its hypervisor does not survive.
fn run_natively(
    kvm: &Kvm,
    native: &mut Guest,
    batch: &mut Vec<Case>,
    findings: &mut Findings,
) -> Vec<Outcome> {
    loop {
        match native.run(batch) {
            Ok(outcomes) => return outcomes,
            Err((index, exit)) => {
                assert!(index < batch.len(), "{exit:?} behind the cases");
                println!("lost: {exit:?} in {}", batch[index]);
                findings.lost += 1;
                batch.remove(index);
                *native = Guest::new(kvm);
            }
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
        let mut batch: Vec<Case> = (0..BATCH_CASES).map(|_| generator.case()).collect();
        let native_outcomes = run_natively(&kvm, &mut native, &mut batch, &mut findings);
        let emulated_outcomes = emulated.run(&batch).expect("every exception has a handler");
        let mut differing = Vec::new();
        for ((case, native), emulated) in batch.iter().zip(&native_outcomes).zip(&emulated_outcomes)
        {
            findings.add(case, native);
            differing.extend(difference(case, native, emulated).map(|_| case));
        }
        for case in differing {
            // A software KVM may emulate any instruction when it interrupts a guest, and does not know them all.
            let alone = std::slice::from_ref(case);
            let outcomes = (native.run(alone), emulated.run(alone));
            let (Ok(native), Ok(emulated)) = outcomes else {
                continue;
            };
            match difference(case, &native[0], &emulated[0]) {
                Some(difference) => findings.add_difference(case, &difference),
                None => findings.unrepeated += 1,
            }
        }
    }
    let mismatches: u64 = findings.different.values().sum();
    println!(
        "{} cases, {} of them faulted, {} mnemonics, {mismatches} mismatches, {} not repeated, {} lost",
        findings.cases,
        findings.faults,
        findings.mnemonics.len(),
        findings.unrepeated,
        findings.lost
    );
    println!("exceptions: {:?}", findings.vectors);
    println!("mnemonics: {:?}", findings.mnemonics);
    println!("rejected as not emulated: {:?}", generator.lacking());
    assert!(
        findings.mnemonics.len() > 50,
        "the generator reaches little"
    );
    assert!(findings.lost <= 1 + findings.cases / CASES_FOR_EACH_LOST);
    assert!(findings.different.is_empty(), "{:?}", findings.different);
}

//! The emulator against a processor's ring 0: random privileged instructions, run under KVM and in the emulator, and compared.
//!
//! It needs a hypervisor that runs ring 0 on the processor; without one it is skipped, visibly. `cargo xtask vm-test` has one.
//! `VELLUM_DIFF_CASES` says how many cases to run, `VELLUM_DIFF_SEED` which.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(
    clippy::cast_possible_truncation,
    reason = "random numbers are cut to what is needed"
)]

mod cases;
mod machine;
#[path = "../differential/random.rs"]
#[expect(
    dead_code,
    clippy::cast_precision_loss,
    reason = "floating point is for the comparison in ring 3"
)]
mod random;

use std::collections::BTreeMap;
use std::io::Write;

use vellum_backend::kvm::{Kvm, OpenError};
use vellum_backend::{Exit, RingZero};
use vellum_emulator::Emulator;

use crate::cases::Generator;
use crate::machine::{Machine, Outcome};

/// Cases of a plain run: each is an entry of the guest, which an emulated processor takes a millisecond for.
const DEFAULT_CASES: u64 = 3_000;
/// Differences that are shown.
const SHOWN: usize = 20;

fn number(variable: &str, default: u64) -> u64 {
    let text = std::env::var(variable).ok();
    text.and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn kvm() -> Option<Kvm> {
    let reason = match Kvm::open() {
        Ok(kvm) if kvm.capabilities().ring_zero == RingZero::Native => return Some(kvm),
        Ok(_) => "it emulates ring 0".to_owned(),
        Err(error @ (OpenError::Absent | OpenError::Permission)) => error.to_string(),
        Err(error) => panic!("{error:?}"),
    };
    // Written directly, because the harness hides what a passing test prints.
    let _ = writeln!(std::io::stderr(), "SKIPPED on kvm: {reason}");
    None
}

#[test]
fn privileged_instructions_do_the_same_as_on_the_processor() {
    let Some(kvm) = kvm() else { return };
    let cases = number("VELLUM_DIFF_CASES", DEFAULT_CASES);
    let mut generator = Generator::new(number("VELLUM_DIFF_SEED", 1));
    let emulator = Emulator::new();
    let model = kvm.cpu_model(machine::PROFILE).expect("a model");
    let mut native = Machine::new(&kvm, &model);
    let mut emulated = Machine::new(&emulator, &model);
    let mut exits: BTreeMap<String, u64> = BTreeMap::new();
    let mut different = 0;
    for _ in 0..cases {
        let case = generator.case();
        let outcomes = (native.run(&case), emulated.run(&case));
        *exits.entry(outcomes.0.name()).or_default() += 1;
        let Some(difference) = outcomes.0.difference(&outcomes.1) else {
            continue;
        };
        different += 1;
        if different <= SHOWN {
            println!("{case}\n{difference}");
        }
    }
    let _ = writeln!(
        std::io::stderr(),
        "{cases} cases in ring 0, {different} mismatches, {exits:?}"
    );
    assert!(exits.len() > 6, "the generator reaches little");
    assert_eq!(different, 0);
}

impl Outcome {
    /// How the case ended.
    fn name(&self) -> String {
        match self.exit {
            Exit::IoOut {
                port: machine::HANDLER_PORT,
                ..
            } => format!("exception {}", self.vector()),
            Exit::IoOut { .. } => "done".to_owned(),
            exit => format!("{exit:?}"),
        }
    }
}

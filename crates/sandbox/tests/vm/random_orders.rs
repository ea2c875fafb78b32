//! Snapshots and restores in random orders, compared with full copies.
//!
//! The oracle knows nothing of layers, dirty pages or page tables: for each snapshot it holds a copy of all the memory that the program
//! of the test uses, and the guest's counter. Whatever is written, snapshotted, restored, forked and spoilt in whatever order, the memory
//! must be that of the oracle.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use vellum_layout::amd64::user;
use vellum_sandbox::{GuestImage, Sandbox, Snapshot};

use super::support::{HEAP_LEN_BYTES, Lab, add_to_counter, counter, host, in_each_mode};

const PAGES: u64 = 48;
const PAGE_LEN_BYTES: u64 = 4096;

/// One step of a program.
#[derive(Clone, Debug)]
enum Step {
    /// The guest writes to a page.
    Write { page: u64, value: u8 },
    /// The host writes across the end of a page.
    HostWrite { page: u64, value: u8 },
    /// The guest counts.
    Count(u64),
    /// A snapshot is taken.
    Snapshot,
    /// The sandbox goes to one of the snapshots.
    Restore(prop::sample::Index),
    /// The sandbox is replaced by one that is made from a snapshot.
    Fork(prop::sample::Index),
    /// The two sandboxes change places.
    Swap,
    /// The guest panics, and the sandbox is restored.
    Fail(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let page = 0..PAGES - 1;
    let any_snapshot = any::<prop::sample::Index>;
    let step = prop_oneof![
        6 => (page.clone(), any::<u8>()).prop_map(|(page, value)| Step::Write { page, value }),
        1 => (page, any::<u8>()).prop_map(|(page, value)| Step::HostWrite { page, value }),
        1 => (0..1000_u64).prop_map(Step::Count),
        3 => Just(Step::Snapshot),
        3 => any_snapshot().prop_map(Step::Restore),
        1 => any_snapshot().prop_map(Step::Fork),
        1 => Just(Step::Swap),
        1 => any_snapshot().prop_map(Step::Fail),
    ];
    vec(step, 40..80)
}

/// What a sandbox must hold.
#[derive(Clone, PartialEq, Eq)]
struct Contents {
    memory: Vec<u8>,
    counter: u64,
}

/// A sandbox, and what it must hold.
struct Pair {
    sandbox: Sandbox,
    expected: Contents,
}

/// A guest, and where in it there is memory that nothing but the test uses.
struct Subject<'a> {
    lab: &'a Lab,
    base: u64,
}

impl Subject<'_> {
    fn read(&self, sandbox: &mut Sandbox) -> Contents {
        let mut memory = vec![0; usize::try_from(PAGES * PAGE_LEN_BYTES).expect("small")];
        sandbox
            .read_memory(self.base, &mut memory)
            .expect("mapped, or zero on demand");
        Contents {
            memory,
            counter: counter(sandbox),
        }
    }

    fn check(&self, pair: &mut Pair, after: &Step) {
        let found = self.read(&mut pair.sandbox);
        assert_eq!(found.counter, pair.expected.counter, "{after:?}");
        let differs = |page: &usize| {
            let range = page * 4096..(page + 1) * 4096;
            found.memory[range.clone()] != pair.expected.memory[range]
        };
        let pages: Vec<usize> = (0..found.memory.len() / 4096).filter(differs).collect();
        assert!(pages.is_empty(), "pages {pages:?} differ after {after:?}");
    }

    fn run(&self, steps: &[Step]) {
        let mut first = self.lab.sandbox();
        let start = self.read(&mut first);
        let boot = first.snapshot().expect("taken");
        let second = Sandbox::from_snapshot(&self.lab.engine, &boot, &host()).expect("made");
        let [mut now, mut other] = [first, second].map(|sandbox| Pair {
            sandbox,
            expected: start.clone(),
        });
        let mut taken: Vec<(Snapshot, Contents)> = vec![(boot, start)];
        for step in steps {
            match step {
                Step::Write { page, value } => {
                    let offset = page * PAGE_LEN_BYTES + u64::from(*value) * 8;
                    let bytes = [*value; 24];
                    now.sandbox
                        .call::<_, ()>("poke", (self.base + offset, &bytes[..]))
                        .expect("called");
                    put(&mut now.expected, offset, &bytes);
                }
                Step::HostWrite { page, value } => {
                    self.host_write(&mut now, (page + 1) * PAGE_LEN_BYTES - 5, *value);
                }
                Step::Count(amount) => {
                    add_to_counter(&mut now.sandbox, *amount);
                    now.expected.counter += amount;
                }
                Step::Snapshot => {
                    let snapshot = now.sandbox.snapshot().expect("taken");
                    taken.push((snapshot, now.expected.clone()));
                }
                Step::Restore(index) => restore(&mut now, index.get(&taken)),
                Step::Fork(index) => {
                    let (snapshot, expected) = index.get(&taken);
                    let engine = &self.lab.engine;
                    now = Pair {
                        sandbox: Sandbox::from_snapshot(engine, snapshot, &host()).expect("made"),
                        expected: expected.clone(),
                    };
                }
                Step::Swap => std::mem::swap(&mut now, &mut other),
                Step::Fail(index) => {
                    let failed = now.sandbox.call::<_, ()>("do_panic", ("on purpose",));
                    failed.expect_err("it panics");
                    restore(&mut now, index.get(&taken));
                }
            }
            self.check(&mut now, step);
        }
        self.check(&mut other, &Step::Swap);
    }

    /// Pages that do not exist yet cannot be written by the host; the guest makes them first.
    fn host_write(&self, now: &mut Pair, offset: u64, value: u8) {
        let bytes = [value; 10];
        if now
            .sandbox
            .write_memory(self.base + offset, &bytes)
            .is_err()
        {
            now.sandbox
                .call::<_, ()>("poke", (self.base + offset, &bytes[..]))
                .expect("called");
        }
        put(&mut now.expected, offset, &bytes);
    }
}

fn restore(pair: &mut Pair, (snapshot, expected): &(Snapshot, Contents)) {
    pair.sandbox.restore(snapshot).expect("restored");
    pair.expected = expected.clone();
}

fn put(contents: &mut Contents, offset: u64, bytes: &[u8]) {
    let offset = usize::try_from(offset).expect("small");
    contents.memory[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// Runs random programs, the same ones every time.
fn run_programs(subject: &Subject<'_>, count: u32) {
    let config = Config {
        cases: count,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    TestRunner::new_with_rng(config, rng)
        .run(&steps(), |steps| {
            subject.run(&steps);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_user_guest_holds_what_a_full_copy_holds_in_any_order() {
    in_each_mode(|lab| {
        let base = user::HEAP_BASE.as_u64() + HEAP_LEN_BYTES / 2;
        run_programs(&Subject { lab, base }, 12);
    });
}

#[test]
fn a_kernel_holds_what_a_full_copy_holds_in_any_order() {
    in_each_mode(|lab| {
        let guests = [
            vellum_test_guests::amd64_kernel(),
            vellum_test_guests::i686_rust(),
        ];
        for elf in guests.into_iter().flatten() {
            let image = GuestImage::from_bytes(elf).expect("the guest is valid");
            let engine = lab.engine.clone();
            let lab = Lab { engine, image };
            let heap: u64 = lab.sandbox().call("heap_start", ()).expect("called");
            let base = (heap + HEAP_LEN_BYTES / 2) & !(PAGE_LEN_BYTES - 1);
            run_programs(&Subject { lab: &lab, base }, 4);
        }
    });
}

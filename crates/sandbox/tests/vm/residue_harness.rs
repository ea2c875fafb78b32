//! The differential test of restores: a random program P, a restore, a random program Q; and Q in a sandbox that is new.
//!
//! What Q reports, how it ends, what memory then holds and every register that the host can see must be the same in both.

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use vellum_abi::message::{MessageKind, MessageWriter};
use vellum_abi::value::ValueRef;
use vellum_backend::{StateGroup, VcpuState};
use vellum_sandbox::{
    CallOptions, Engine, GuestImage, HostFunctions, Pool, Sandbox, Snapshot, Value,
};

use crate::residue_watch::{Seen, Watch};

/// The guest function that runs a program.
const FUNCTION: &str = "run_operations";

/// So long may a program take that may not come back.
const SPOILER_TIMEOUT: Duration = Duration::from_millis(15);
/// So long may one that must.
const QUERY_TIMEOUT: Duration = Duration::from_mins(1);

/// One step of a program, as the guest reads it.
#[derive(Clone, Copy)]
pub(crate) struct Operation {
    pub(crate) letter: u8,
    pub(crate) selector: u8,
    pub(crate) value: u64,
}

impl fmt::Debug for Operation {
    /// On one line: a program has many.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = char::from(self.letter);
        write!(f, "{letter}{}({:#x})", self.selector, self.value)
    }
}

/// Which operations a guest has on this machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Menu {
    /// Letters and selectors of those that come back.
    changes: Vec<(u8, u8)>,
    /// Letters and selectors of those that do not, or not always.
    endings: Vec<(u8, u8)>,
    /// The operation that reports everything which can be reported.
    observation: u64,
}

/// How a sandbox gets from one program to the next.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// It is restored to the snapshot that it stands on.
    Back,
    /// It is restored to another snapshot, and from there to this one.
    OverAnother,
    /// It is restored to another snapshot, spoilt there, and restored to this one.
    OverAnotherSpoilt,
    /// It goes back into a pool, and another user takes it.
    Pool,
}

#[derive(Clone, Debug)]
struct Case {
    /// What the snapshot is taken after, unless that ends badly.
    setup: Vec<Operation>,
    spoilers: Vec<(Vec<Operation>, Way)>,
    query: Vec<Operation>,
}

/// What a program has come to.
#[derive(Debug, PartialEq)]
struct Outcome {
    /// The bytes that it returned, or the error.
    result: Result<Value, String>,
    is_ready: bool,
    memory: Vec<u8>,
}

/// A guest on a watched engine.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    engine: Engine,
    watch: Watch,
    image: GuestImage,
    host: HostFunctions,
    heap_len_bytes: u64,
    /// Memory that the host compares: its start, and its length in bytes.
    memory: (u64, usize),
    menu: Menu,
}

/// What is fixed about a subject.
pub(crate) struct Plan {
    /// The engine to make another of, which is watched.
    pub(crate) engine: Engine,
    pub(crate) image: GuestImage,
    pub(crate) host: HostFunctions,
    pub(crate) heap_len_bytes: u64,
    /// Where the heap starts, of which the host compares the first megabyte.
    pub(crate) heap: u64,
    /// Letters and selectors that the guest may be able to do and come back from.
    pub(crate) changes: Vec<(u8, u8)>,
    pub(crate) endings: Vec<(u8, u8)>,
    /// How many kinds of observation there are.
    pub(crate) observations: u32,
    /// Those that are not of the guest's own state.
    pub(crate) unseen: u64,
}

impl Subject {
    /// Finds out what the guest can do here.
    pub(crate) fn new(plan: Plan) -> Self {
        let watch = Watch::default();
        let hypervisor = watch.open(plan.engine.name());
        let engine = Engine::builder()
            .cow_mode(plan.engine.cow_mode())
            .hypervisor(hypervisor)
            .build();
        let mut subject = Self {
            engine: engine.expect("like the lab's"),
            watch,
            image: plan.image,
            host: plan.host,
            heap_len_bytes: plan.heap_len_bytes,
            memory: (plan.heap, 1 << 20),
            menu: Menu {
                endings: plan.endings,
                ..Menu::default()
            },
        };
        let mut sandbox = subject.sandbox();
        let boot = sandbox.snapshot().expect("taken");
        let mut works = |letter, selector, value| {
            let program = [Operation {
                letter,
                selector,
                value,
            }];
            let outcome = subject.run(&mut sandbox, &program, SPOILER_TIMEOUT * 10);
            sandbox.restore(&boot).expect("restored");
            outcome.result.is_ok()
        };
        let changes = plan.changes.into_iter();
        let changes = changes
            .filter(|&(letter, selector)| works(letter, selector, 0x40))
            .collect();
        let observation = (0..plan.observations)
            .map(|bit| 1 << bit)
            .filter(|part| works(b'o', 0, *part))
            .sum::<u64>();
        subject.menu.changes = changes;
        subject.menu.observation = observation & !plan.unseen;
        subject
    }

    pub(crate) fn menu(&self) -> &Menu {
        &self.menu
    }

    fn sandbox(&self) -> Sandbox {
        Sandbox::builder(&self.image)
            .heap_len_bytes(self.heap_len_bytes)
            .host_functions(&self.host)
            .build(&self.engine)
            .expect("built")
    }

    fn fresh(&self, snapshot: &Snapshot) -> Sandbox {
        Sandbox::from_snapshot(&self.engine, snapshot, &self.host).expect("made")
    }

    fn run(&self, sandbox: &mut Sandbox, program: &[Operation], timeout: Duration) -> Outcome {
        let bytes = program.iter().flat_map(|operation| {
            let head = [operation.letter, operation.selector];
            head.into_iter().chain(operation.value.to_le_bytes())
        });
        let arguments = [Value::Bytes(bytes.collect()), Value::Bytes(self.reply())];
        let options = CallOptions::new().timeout(timeout);
        let result = sandbox.call_dynamic(FUNCTION, &arguments, &options);
        let mut memory = vec![0; self.memory.1];
        let read = sandbox.read_memory(self.memory.0, &mut memory);
        memory.push(u8::from(read.is_ok()));
        Outcome {
            result: result.map_err(|error| format!("{error:?}")),
            is_ready: sandbox.is_ready(),
            memory,
        }
    }

    /// Runs a program under watch.
    fn query(&self, sandbox: &mut Sandbox, program: &[Operation]) -> (Outcome, Seen) {
        self.watch.look();
        let outcome = self.run(sandbox, program, QUERY_TIMEOUT);
        (outcome, self.watch.take().expect("the guest was entered"))
    }

    /// A reply as the guest library writes it, for a program that leaves behind the library's back.
    fn reply(&self) -> Vec<u8> {
        let mut exports = self.image.exports().iter();
        let index = exports.position(|function| function.name() == FUNCTION);
        let index = u32::try_from(index.expect("exported")).expect("few");
        let mut buffer = vec![0; 256];
        let mut writer =
            MessageWriter::new(&mut buffer, MessageKind::Reply, index, 1).expect("room");
        writer.push(ValueRef::Bytes(b"left")).expect("room");
        let len_bytes = writer.finish().expect("complete");
        buffer.truncate(len_bytes);
        buffer
    }

    /// A sandbox in the state that a program leaves, and the snapshot of it; the state after boot where that program ends badly.
    fn set_up(&self, boot: &Snapshot, setup: &[Operation]) -> (Sandbox, Snapshot) {
        let mut sandbox = self.fresh(boot);
        let _ = self.run(&mut sandbox, setup, SPOILER_TIMEOUT * 10);
        if !sandbox.is_ready() {
            sandbox.restore(boot).expect("restored");
        }
        let snapshot = sandbox.snapshot().expect("taken");
        (sandbox, snapshot)
    }

    fn check(&self, boot: &Snapshot, case: &Case) {
        let (mut sandbox, snapshot) = self.set_up(boot, &case.setup);
        let expected = self.query(&mut self.fresh(&snapshot), &case.query);
        for (spoiler, way) in &case.spoilers {
            let found = match way {
                Way::Pool => self.by_pool(&snapshot, spoiler, &case.query),
                way => {
                    let _ = self.run(&mut sandbox, spoiler, SPOILER_TIMEOUT);
                    if !matches!(way, Way::Back) {
                        sandbox.restore(boot).expect("restored");
                    }
                    if let Way::OverAnotherSpoilt = way {
                        let _ = self.run(&mut sandbox, spoiler, SPOILER_TIMEOUT);
                    }
                    sandbox.restore(&snapshot).expect("restored");
                    let found = self.query(&mut sandbox, &case.query);
                    sandbox.restore(&snapshot).expect("restored");
                    found
                }
            };
            self.compare(&found, &expected, *way);
        }
    }

    /// The query of the second user of a pool of one.
    fn by_pool(
        &self,
        snapshot: &Snapshot,
        spoiler: &[Operation],
        query: &[Operation],
    ) -> (Outcome, Seen) {
        let builder = Pool::builder(&self.engine, snapshot, &self.host);
        let pool = builder.ready(1).max_live(1).build().expect("made");
        let mut sandbox = pool.take().expect("ready");
        let _ = self.run(&mut sandbox, spoiler, SPOILER_TIMEOUT);
        drop(sandbox);
        // One that failed is healed in the background.
        while pool.metrics().parked == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        self.query(&mut pool.take().expect("healed"), query)
    }

    fn compare(&self, found: &(Outcome, Seen), expected: &(Outcome, Seen), way: Way) {
        let differences = self.differences(found, expected);
        assert!(
            differences.is_empty(),
            "{way:?}: {}",
            differences.join("; ")
        );
    }

    /// In what two runs of a program differ.
    fn differences(&self, found: &(Outcome, Seen), expected: &(Outcome, Seen)) -> Vec<String> {
        let ((outcome, seen), (fresh, seen_fresh)) = (found, expected);
        let mut differences = Vec::from_iter(difference_of(&outcome.result, &fresh.result));
        if outcome.is_ready != fresh.is_ready {
            differences.push("health".to_owned());
        }
        let differs = |at: &usize| outcome.memory[*at] != fresh.memory[*at];
        if let Some(at) = (0..outcome.memory.len()).find(differs) {
            differences.push(format!("memory at {at:#x}"));
        }
        if seen.exit != seen_fresh.exit {
            differences.push(format!("exit {:?}, {:?}", seen.exit, seen_fresh.exit));
        }
        let groups = StateGroup::ALL.into_iter().filter(|group| {
            // These two a user guest may get back by itself.
            !self.is_user() || !matches!(group, StateGroup::General | StateGroup::Xsave)
        });
        let looks = [
            (
                &seen.before,
                &seen_fresh.before,
                groups.collect(),
                "at the entry",
            ),
            (
                &seen.after,
                &seen_fresh.after,
                StateGroup::ALL.to_vec(),
                "at the first exit",
            ),
        ];
        for (found, fresh, groups, when) in looks {
            let groups: Vec<StateGroup> = groups;
            let [found, fresh] = [found, fresh].map(|state| self.comparable(state));
            let differing = found
                .differences(&fresh)
                .filter(|group| groups.contains(group));
            differences.extend(
                differing
                    .map(|group| format!("{group:?} {when}: {}", describe(group, &found, &fresh))),
            );
        }
        differences
    }

    /// A user guest sees neither CR3, whose bit 3 tells the host's table roots apart (PWT; Intel SDM volume 3, section 4.9.2), nor CR2,
    /// which holds another address where the pages of an earlier run are still there to be used again. Nor are there faults on such pages, after
    /// which some processors clear the low bits of null selectors (Intel SDM volume 2, `IRET`).
    fn comparable(&self, state: &VcpuState) -> VcpuState {
        let mut state = state.clone();
        if self.is_user() {
            state.special.cr3 &= !(1 << 3);
            state.special.cr2 = 0;
            let special = &mut state.special;
            for segment in [
                &mut special.ds,
                &mut special.es,
                &mut special.fs,
                &mut special.gs,
            ] {
                let is_null = segment.selector & !3 == 0;
                segment.selector *= u16::from(!is_null);
            }
            // The shadow of a `mov ss` before the last `out` is over after the first instruction of the page that resumes the guest,
            // and no interrupt could come in it.
            state.events.interrupt_shadow = 0;
        }
        state
    }

    fn is_user(&self) -> bool {
        self.image.kind() == vellum_sandbox::GuestKind::Amd64User
    }

    /// Lets a program of one operation spoil a sandbox that is not restored, and expects that each thing named is found to differ.
    pub(crate) fn expect_differences(&self, spoilers: &[(u8, u8, &str)]) {
        let boot = self.sandbox().snapshot().expect("taken");
        let query = [self.menu.observe()];
        let expected = self.query(&mut self.fresh(&boot), &query);
        for &(letter, selector, what) in spoilers {
            let mut sandbox = self.fresh(&boot);
            let spoiler = Operation {
                letter,
                selector,
                value: 0x0123_4567_89AB_CDE8,
            };
            let outcome = self.run(&mut sandbox, &[spoiler], QUERY_TIMEOUT);
            assert!(outcome.is_ready, "{spoiler:?}: {:?}", outcome.result);
            let found = self.query(&mut sandbox, &query);
            let differences = self.differences(&found, &expected);
            assert!(
                differences
                    .iter()
                    .any(|difference| difference.starts_with(what)),
                "{spoiler:?} left no difference of {what}: {differences:?}"
            );
        }
    }

    /// Runs random cases, the same ones every time.
    pub(crate) fn run_cases(self, count: u32) {
        let config = Config {
            cases: count,
            failure_persistence: None,
            max_shrink_iters: 2000,
            ..Config::default()
        };
        let boot = self.sandbox().snapshot().expect("taken");
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let cases = cases(&Arc::new(self.menu.clone()));
        TestRunner::new_with_rng(config, rng)
            .run(&cases, |case| {
                self.check(&boot, &case);
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Thousands of bytes in full tell nobody anything.
fn difference_of(found: &Result<Value, String>, fresh: &Result<Value, String>) -> Option<String> {
    if found == fresh {
        return None;
    }
    let (Ok(Value::Bytes(found)), Ok(Value::Bytes(fresh))) = (found, fresh) else {
        return Some(format!("result {}, {}", short(found), short(fresh)));
    };
    let at = (0..found.len().min(fresh.len())).find(|&at| found[at] != fresh[at])?;
    let line = at / 8 * 8..(at / 8 * 8 + 8).min(found.len());
    let lines = (&found[line.clone()], &fresh[line]);
    Some(format!("result at {at} of {}: {lines:x?}", found.len()))
}

fn short(result: &Result<Value, String>) -> String {
    format!("{result:?}").chars().take(200).collect()
}

fn describe(group: StateGroup, found: &VcpuState, fresh: &VcpuState) -> String {
    match group {
        StateGroup::General => format!("{:x?}\nfresh {:x?}", found.general, fresh.general),
        StateGroup::Special => format!("{:x?}\nfresh {:x?}", found.special, fresh.special),
        StateGroup::Xsave => {
            let bytes = found.xsave.as_bytes().iter().zip(fresh.xsave.as_bytes());
            let differing = bytes
                .enumerate()
                .filter(|(_, (found, fresh))| found != fresh);
            format!("{:x?}", differing.take(32).collect::<Vec<_>>())
        }
        StateGroup::Xcr0 => format!("{:x?}, fresh {:x?}", found.xcr0, fresh.xcr0),
        StateGroup::Debug => format!("{:x?}, fresh {:x?}", found.debug, fresh.debug),
        StateGroup::Msrs => format!("{:x?}, fresh {:x?}", found.msrs, fresh.msrs),
        StateGroup::Events => format!("{:x?}, fresh {:x?}", found.events, fresh.events),
    }
}

impl Menu {
    pub(crate) fn has(&self, letter: u8) -> bool {
        self.changes.iter().any(|(other, _)| *other == letter)
    }

    /// Whether everything in `parts` can be seen.
    pub(crate) fn sees(&self, parts: u64) -> bool {
        self.observation & parts == parts
    }

    fn observe(&self) -> Operation {
        Operation {
            letter: b'o',
            selector: 0,
            value: self.observation,
        }
    }
}

/// Values that find more than uniform ones: few bits, many bits, anything.
fn values() -> impl Strategy<Value = u64> {
    prop_oneof![
        2 => any::<u64>(),
        1 => 0..0x1_0000_u64,
        1 => (0..64_u32).prop_map(|bit| 1 << bit),
        1 => Just(u64::MAX),
    ]
}

fn operations(
    choices: &[(u8, u8)],
    count: std::ops::Range<usize>,
) -> impl Strategy<Value = Vec<Operation>> + use<> {
    let operation =
        (select(choices.to_vec()), values()).prop_map(|((letter, selector), value)| Operation {
            letter,
            selector,
            value,
        });
    vec(operation, count)
}

fn cases(menu: &Arc<Menu>) -> impl Strategy<Value = Case> + use<> {
    let changes = |count| operations(&menu.changes, count);
    let endings = || operations(&menu.endings, 0..2);
    let spoiler = (changes(0..12), endings()).prop_map(|(changes, ending)| {
        let mut program = changes;
        program.extend(ending);
        program
    });
    let way = prop_oneof![
        4 => Just(Way::Back),
        1 => Just(Way::OverAnother),
        1 => Just(Way::OverAnotherSpoilt),
        1 => Just(Way::Pool),
    ];
    // A snapshot after something that has left behind the library's back, too.
    let leaving = vec![(b'a', 0), (b'a', 1), (b'a', 2), (b'a', 3), (b'a', 4)];
    let setup = (changes(0..6), operations(&leaving, 0..2));
    let parts = (setup, vec((spoiler, way), 1..4), changes(0..5));
    let observe = menu.observe();
    parts.prop_map(move |((mut setup, leaving), spoilers, changes)| {
        setup.extend(leaving);
        let mut query = vec![observe];
        query.extend(changes);
        query.push(observe);
        Case {
            setup,
            spoilers,
            query,
        }
    })
}

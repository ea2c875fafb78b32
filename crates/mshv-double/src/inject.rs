//! Failures and losses on demand, so that every error path of a program can be walked, and so that a test can show that a step is needed.
//!
//! A plan belongs to the thread that makes it and counts that thread's requests only, so that tests run side by side. The double's own
//! requests to KVM are not counted.

use std::cell::{Cell, RefCell};

use crate::registers::low;

/// Whose requests are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Those on `/dev/mshv` and what comes from it.
    Mshv,
    /// Those on `/dev/kvm` and what comes from it.
    Kvm,
}

/// A request that was made while a plan was in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The request number of `ioctl`, or [`OPEN`].
    pub number: u64,
    /// The hypercall's code, for a request that is one.
    pub hypercall: Option<u16>,
}

/// The number under which opening the device is counted.
pub const OPEN: u64 = 0;

#[derive(Debug)]
struct Plan {
    target: Target,
    rule: Rule,
    made: Vec<Request>,
}

#[derive(Debug)]
enum Rule {
    Record,
    /// The request of this number, from 0, fails with this errno.
    FailAt(usize, i32),
    /// These requests are lost.
    Lose(fn(&Request) -> bool),
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Made,
    Failed(i32),
    /// It has no effect, and nobody says so.
    Lost,
}

/// A register, and what is stored in it in place of a value.
type Alteration = (u32, fn(u64) -> u64);

thread_local! {
    static ALTERATION: Cell<Option<Alteration>> = const { Cell::new(None) };
    static PLAN: RefCell<Option<Plan>> = const { RefCell::new(None) };
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `body` and returns with its result the requests that it made on this thread.
pub fn recorded<T>(target: Target, body: impl FnOnce() -> T) -> (T, Vec<Request>) {
    with_plan(target, Rule::Record, body)
}

/// Runs `body`, in which request number `index` (from 0) to `target` fails with `errno`, without having any effect. Returns with the result
/// the requests that were made.
pub fn failing<T>(
    target: Target,
    index: usize,
    errno: i32,
    body: impl FnOnce() -> T,
) -> (T, Vec<Request>) {
    with_plan(target, Rule::FailAt(index, errno), body)
}

/// Runs `body` as if the program did not make the requests that `is_lost` names: they succeed, and have no effect.
pub fn losing<T>(target: Target, is_lost: fn(&Request) -> bool, body: impl FnOnce() -> T) -> T {
    with_plan(target, Rule::Lose(is_lost), body).0
}

/// Runs `body` as if the program set `register` of a virtual processor to `alter(value)` wherever it sets it to `value`.
pub fn altering<T>(register: u32, alter: fn(u64) -> u64, body: impl FnOnce() -> T) -> T {
    let before = ALTERATION.replace(Some((register, alter)));
    let result = body();
    ALTERATION.set(before);
    result
}

/// What a program stores when it sets `register` to `value`.
pub(crate) fn altered(register: u32, value: u128) -> u128 {
    match ALTERATION.get() {
        Some((altered, alter)) if altered == register => alter(low(value)).into(),
        _ => value,
    }
}

fn with_plan<T>(target: Target, rule: Rule, body: impl FnOnce() -> T) -> (T, Vec<Request>) {
    let plan = Plan {
        target,
        rule,
        made: Vec::new(),
    };
    PLAN.with(|current| *current.borrow_mut() = Some(plan));
    let result = body();
    let plan = PLAN.with(|current| current.borrow_mut().take());
    (result, plan.map_or_else(Vec::new, |plan| plan.made))
}

/// Counts a request, and says what becomes of it.
pub(crate) fn judge(target: Target, request: Request) -> Verdict {
    if IS_INSIDE.get() {
        return Verdict::Made;
    }
    PLAN.with(|current| {
        let Ok(mut current) = current.try_borrow_mut() else {
            return Verdict::Made;
        };
        let Some(plan) = current.as_mut().filter(|plan| plan.target == target) else {
            return Verdict::Made;
        };
        let index = plan.made.len();
        plan.made.push(request);
        match plan.rule {
            Rule::FailAt(at, errno) if at == index => Verdict::Failed(errno),
            Rule::Lose(is_lost) if is_lost(&request) => Verdict::Lost,
            Rule::Record | Rule::FailAt(..) | Rule::Lose(_) => Verdict::Made,
        }
    })
}

/// Runs what the double does itself, uncounted.
pub(crate) fn uncounted<T>(body: impl FnOnce() -> T) -> T {
    let before = IS_INSIDE.replace(true);
    let result = body();
    IS_INSIDE.set(before);
    result
}

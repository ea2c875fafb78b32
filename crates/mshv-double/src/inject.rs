//! Failures on demand, so that every error path of a program can be walked.
//!
//! A plan belongs to the thread that makes it and counts that thread's requests only, so that tests run side by side. The double's own
//! requests to KVM are not counted.

use std::cell::RefCell;

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
    fail_at: Option<(usize, i32)>,
    made: Vec<Request>,
}

thread_local! {
    static PLAN: RefCell<Option<Plan>> = const { RefCell::new(None) };
    static IS_INSIDE: RefCell<bool> = const { RefCell::new(false) };
}

/// Runs `body` and returns with its result the requests that it made on this thread.
pub fn recorded<T>(target: Target, body: impl FnOnce() -> T) -> (T, Vec<Request>) {
    with_plan(target, None, body)
}

/// Runs `body`, in which request number `index` (from 0) to `target` fails with `errno`, without having any effect. Returns with the result
/// the requests that were made.
pub fn failing<T>(
    target: Target,
    index: usize,
    errno: i32,
    body: impl FnOnce() -> T,
) -> (T, Vec<Request>) {
    with_plan(target, Some((index, errno)), body)
}

fn with_plan<T>(
    target: Target,
    fail_at: Option<(usize, i32)>,
    body: impl FnOnce() -> T,
) -> (T, Vec<Request>) {
    let plan = Plan {
        target,
        fail_at,
        made: Vec::new(),
    };
    PLAN.with(|current| *current.borrow_mut() = Some(plan));
    let result = body();
    let plan = PLAN.with(|current| current.borrow_mut().take());
    (result, plan.map_or_else(Vec::new, |plan| plan.made))
}

/// Counts a request; the errno with which it is to fail, if it is.
pub(crate) fn count(target: Target, request: Request) -> Option<i32> {
    if IS_INSIDE.with(|inside| *inside.borrow()) {
        return None;
    }
    PLAN.with(|current| {
        let mut current = current.try_borrow_mut().ok()?;
        let plan = current.as_mut().filter(|plan| plan.target == target)?;
        let index = plan.made.len();
        plan.made.push(request);
        plan.fail_at
            .filter(|(at, _)| *at == index)
            .map(|(_, errno)| errno)
    })
}

/// Runs what the double does itself, uncounted.
pub(crate) fn uncounted<T>(body: impl FnOnce() -> T) -> T {
    let before = IS_INSIDE.with(|inside| inside.replace(true));
    let result = body();
    IS_INSIDE.with(|inside| *inside.borrow_mut() = before);
    result
}

//! Snapshots, restores, and sandboxes made from snapshots.

use std::cell::RefCell;

use divan::Bencher;
use vellum_sandbox::Sandbox;

use super::{engine, host, sandbox};

/// Pages that are written before what is measured.
const PAGES: [u64; 4] = [1, 16, 256, 1024];

#[divan::bench(args = PAGES)]
fn take(bencher: Bencher, pages: u64) {
    let sandbox = RefCell::new(sandbox());
    let stamp = sandbox.borrow().function::<(u64, u64), u64>("stamp_pages");
    let stamp = stamp.expect("typed");
    let mut value = 1;
    bencher
        .with_inputs(|| {
            value += 1;
            stamp.call(&mut sandbox.borrow_mut(), (pages, value))
        })
        .bench_local_values(|_| sandbox.borrow_mut().snapshot());
}

#[divan::bench(args = PAGES)]
fn restore(bencher: Bencher, pages: u64) {
    let sandbox = RefCell::new(sandbox());
    let snapshot = sandbox.borrow_mut().snapshot().expect("taken");
    let touch = sandbox.borrow().function::<(u64,), u64>("touch_pages");
    let touch = touch.expect("typed");
    bencher
        .with_inputs(|| touch.call(&mut sandbox.borrow_mut(), (pages,)))
        .bench_local_values(|_| sandbox.borrow_mut().restore(&snapshot));
}

#[divan::bench]
fn new_sandbox(bencher: Bencher) {
    let (engine, host) = (engine(), host());
    let snapshot = sandbox().snapshot().expect("taken");
    bencher.bench_local(|| Sandbox::from_snapshot(&engine, &snapshot, &host));
}

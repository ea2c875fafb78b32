//! Sandboxes from a pool.

use divan::Bencher;
use vellum_sandbox::Pool;

use super::{engine, host, sandbox};

/// Taking a sandbox, a null call, and giving it back; also from two threads, which share no lock.
#[divan::bench(threads = [1, 2])]
fn take_call_return(bencher: Bencher) {
    let mut parent = sandbox();
    let null = parent.function::<(), ()>("null").expect("typed");
    let snapshot = parent.snapshot().expect("taken");
    let pool = Pool::builder(&engine(), &snapshot, &host())
        .ready(4)
        .build();
    let pool = pool.expect("built");
    bencher.bench(|| {
        let mut sandbox = pool.take().expect("one is ready");
        null.call(&mut sandbox, ())
    });
}

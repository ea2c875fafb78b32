//! Calls with different arguments.

use divan::Bencher;
use divan::counter::BytesCount;

use super::sandbox;

#[divan::bench]
fn null(bencher: Bencher) {
    let mut sandbox = sandbox();
    let null = sandbox.function::<(), ()>("null").expect("typed");
    bencher.bench_local(|| null.call(&mut sandbox, ()));
}

#[divan::bench]
fn echo_i32(bencher: Bencher) {
    let mut sandbox = sandbox();
    let echo = sandbox.function::<(i32,), i32>("echo_i32").expect("typed");
    bencher.bench_local(|| echo.call(&mut sandbox, (7,)));
}

/// A call that calls the host once.
#[divan::bench]
fn host_call(bencher: Bencher) {
    let mut sandbox = sandbox();
    let add = sandbox.function::<(i32, i32), i32>("call_host_add");
    let add = add.expect("typed");
    bencher.bench_local(|| add.call(&mut sandbox, (40, 2)));
}

#[divan::bench(args = [64, 4096, 65_536, 1 << 20])]
fn bytes(bencher: Bencher, len_bytes: usize) {
    let mut sandbox = sandbox();
    let take = sandbox.function::<(&[u8],), u64>("len_bytes");
    let take = take.expect("typed");
    let bytes = vec![7; len_bytes];
    bencher
        .counter(BytesCount::new(len_bytes))
        .bench_local(|| take.call(&mut sandbox, (&bytes,)));
}

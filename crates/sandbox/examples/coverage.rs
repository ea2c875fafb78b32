//! What a guest's functions execute, block by block, in instructions that are the same on each run: the emulator as an instrument.
//!
//! `cargo run --release --package vellum-sandbox --example coverage`

use std::collections::BTreeSet;

use vellum_sandbox::{
    CallOptions, Engine, EngineKind, Error, GuestImage, HostFunctions, Sandbox, Value,
};

/// Calls in the order in which a fuzzer may try them.
fn inputs() -> [(&'static str, Vec<Value>); 4] {
    let add = |a, b| vec![Value::I32(a), Value::I32(b)];
    [
        ("add", add(1, 2)),
        ("add", add(40, 2)),
        ("greet", vec![Value::String("Vellum".into())]),
        ("call_host_add", add(20, 22)),
    ]
}

fn main() -> Result<(), Error> {
    let engine = Engine::builder().kind(EngineKind::Emulator).build()?;
    let image = GuestImage::from_bytes(vellum_test_guests::rust_user())?;
    let host = HostFunctions::new()
        .with("host_add", |a: i32, b: i32| a + b)
        .with("host_echo", |bytes: Vec<u8>| bytes)
        .with("host_fail", |text: String| Err::<(), _>(text));
    let mut sandbox = Sandbox::builder(&image)
        .host_functions(&host)
        .build(&engine)?;
    let start = sandbox.snapshot()?;

    let mut known = BTreeSet::new();
    for (function, arguments) in inputs() {
        sandbox.restore(&start)?;
        sandbox.trace_blocks();
        let before = sandbox.executed_instructions();
        // An input that makes the guest loop ends at the same instruction each time.
        let options = CallOptions::new().fuel(1_000_000);
        let result = sandbox.call_dynamic(function, &arguments, &options);
        let executed = sandbox.executed_instructions().zip(before);
        let instructions = executed.map_or(0, |(after, before)| after - before);
        let blocks = sandbox.traced_blocks();
        let new = blocks.iter().filter(|block| known.insert(**block)).count();
        println!(
            "{function:<14} {instructions:>6} instructions, {:>4} blocks, {new:>4} of them new: {result:?}",
            blocks.len()
        );
    }
    Ok(())
}

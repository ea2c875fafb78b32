//! The main job once, on a real guest: load, call, call back, snapshot, restore, fork, survive.
//!
//! `cargo xtask demo [-- --cow guest|host]`

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use vellum_sandbox::{
    CallOptions, CowMode, Engine, Error, GuestImage, HostFunctions, Sandbox, Snapshot,
};

/// Calls over which a null call is averaged.
const CALLS: u32 = 1000;
/// Sandboxes that are made from one snapshot.
const FORKS: u32 = 10;

#[derive(Parser)]
struct Options {
    /// Who copies pages on write: guest or host. By default what suits the hypervisor.
    #[arg(long, value_parser = ["guest", "host"])]
    cow: Option<String>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo failed: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Error> {
    let engine = engine(options.cow.as_deref())?;
    println!("engine      {engine}");
    let image = GuestImage::from_bytes(vellum_test_guests::rust_user())?;
    let (exports, imports) = (image.exports().len(), image.imports().len());
    println!("image       {exports} functions exported, {imports} host functions imported");

    let host = HostFunctions::new()
        .with("host_add", |a: i32, b: i32| a + b)
        .with("host_echo", |bytes: Vec<u8>| bytes)
        .with("host_fail", |text: String| -> Result<(), String> {
            Err(text)
        });
    let (mut sandbox, took) = timed(|| {
        Sandbox::builder(&image)
            .host_functions(&host)
            .build(&engine)
    })?;
    println!("sandbox     created and booted in {took:.1?}");

    calls(&mut sandbox)?;
    let snapshot = state(&mut sandbox)?;
    forks(&engine, &snapshot, &host)?;
    misbehaviour(&mut sandbox, &snapshot)
}

fn engine(cow: Option<&str>) -> Result<Engine, Error> {
    let builder = Engine::builder().chosen_by_environment();
    match cow {
        Some("guest") => builder.cow_mode(CowMode::GuestSide),
        Some(_) => builder.cow_mode(CowMode::HostSide),
        None => builder,
    }
    .build()
}

/// Values in, values out, and a call back to the host.
fn calls(sandbox: &mut Sandbox) -> Result<(), Error> {
    let add = sandbox.function::<(i32, i32), i32>("add")?;
    println!("call        add(40, 2) = {}", add.call(sandbox, (40, 2))?);
    let greeting: String = sandbox.call("greet", ("Vellum",))?;
    println!("call        greet(\"Vellum\") = {greeting:?}");
    let bytes = vec![1_u8; 50_000_000];
    let (sum, took) = timed(|| sandbox.call::<_, u64>("sum_bytes", (&bytes[..],)))?;
    println!("call        sum_bytes(50 MB of ones) = {sum} in {took:.1?}");
    let sum: i32 = sandbox.call("call_host_add", (20, 22))?;
    println!("host call   the guest asked the host for 20 + 22 = {sum}");
    let null = sandbox.function::<(), ()>("null")?;
    let ((), took) = timed(|| (0..CALLS).try_for_each(|_| null.call(sandbox, ())))?;
    println!(
        "call        null() takes {:.1?}, average of {CALLS}",
        took / CALLS
    );
    Ok(())
}

/// State that is changed and put back.
fn state(sandbox: &mut Sandbox) -> Result<Snapshot, Error> {
    let add = sandbox.function::<(u64,), u64>("counter_add")?;
    let before = add.call(sandbox, (5,))?;
    let (snapshot, took) = timed(|| sandbox.snapshot())?;
    println!("snapshot    taken at counter = {before}, in {took:.1?}");
    let changed = add.call(sandbox, (95,))?;
    let ((), took) = timed(|| sandbox.restore(&snapshot))?;
    let after: u64 = sandbox.call("counter_get", ())?;
    println!("restore     counter {changed} -> {after}, in {took:.1?}");
    assert_eq!((before, after), (5, 5), "a restore puts the counter back");
    Ok(snapshot)
}

/// Ten sandboxes from one snapshot, each with a state of its own.
fn forks(engine: &Engine, snapshot: &Snapshot, host: &HostFunctions) -> Result<(), Error> {
    let (mut forks, took) = timed(|| {
        (0..FORKS)
            .map(|_| Sandbox::from_snapshot(engine, snapshot, host))
            .collect::<Result<Vec<_>, _>>()
    })?;
    for (fork, by) in forks.iter_mut().zip(0..) {
        fork.call::<_, u64>("counter_add", (by * 10_u64,))?;
    }
    let counters = forks
        .iter_mut()
        .map(|fork| fork.call::<_, u64>("counter_get", ()))
        .collect::<Result<Vec<_>, _>>()?;
    println!(
        "fork        {FORKS} sandboxes in {:.1?} each; counters {counters:?}",
        took / FORKS
    );
    Ok(())
}

/// What a guest does wrong is an error of the call, and a restore heals it.
fn misbehaviour(sandbox: &mut Sandbox, snapshot: &Snapshot) -> Result<(), Error> {
    for function in ["overflow_stack", "read_null", "invalid_opcode"] {
        report(function, sandbox.call::<_, ()>(function, ()));
        sandbox.restore(snapshot)?;
    }
    let spin = sandbox.function::<(), ()>("spin")?;
    let options = CallOptions::new().timeout(Duration::from_millis(20));
    report("spin", spin.call_with(sandbox, (), &options));
    sandbox.restore(snapshot)?;
    let counter: u64 = sandbox.call("counter_get", ())?;
    println!("healed      counter = {counter}");
    Ok(())
}

fn report(function: &str, result: Result<(), Error>) {
    match result {
        Ok(()) => println!("survived    {function}() returned, which it should not"),
        Err(error) => println!("survived    {function}(): {error}"),
    }
}

fn timed<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<(T, Duration), Error> {
    let start = Instant::now();
    let value = work()?;
    Ok((value, start.elapsed()))
}

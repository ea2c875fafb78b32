//! The host program that the README shows, compiled and run.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::{env, io};

use vellum_sandbox::{CowMode, Engine, ErrorKind, GuestImage, HostFunctions, Sandbox};

fn host_program(elf: &Path) -> Result<(), vellum_sandbox::Error> {
    let engine = Engine::new()?;
    let image = GuestImage::from_file(elf)?;
    let host = HostFunctions::new()
        .with("host_add", |a: i32, b: i32| a + b)
        .with("host_echo", |bytes: Vec<u8>| bytes)
        .with("host_fail", |text: String| Err::<(), _>(text));
    let mut sandbox = Sandbox::builder(&image)
        .host_functions(&host)
        .build(&engine)?;

    let greeting: String = sandbox.call("greet", ("world",))?;
    assert_eq!(greeting, "Hello, world!");
    let add = sandbox.function::<(i32, i32), i32>("call_host_add")?;
    assert_eq!(add.call(&mut sandbox, (40, 2))?, 42); // the guest asked the host

    let ready = sandbox.snapshot()?;
    let count: u64 = sandbox.call("counter_add", (5_u64,))?;
    sandbox.restore(&ready)?;
    let restored: u64 = sandbox.call("counter_get", ())?;
    assert_eq!((count, restored), (5, 0)); // what the guest did is undone

    let mut sibling = Sandbox::from_snapshot(&engine, &ready, &host)?;
    assert_eq!(add.call(&mut sibling, (1, 2))?, 3);
    Ok(())
}

#[test]
fn the_host_program_of_the_readme_runs() {
    let elf = Path::new(env!("CARGO_TARGET_TMPDIR")).join("readme-guest.elf");
    fs::write(&elf, vellum_test_guests::rust_user()).expect("the guest can be written");
    match Engine::new() {
        Ok(engine) => {
            host_program(&elf).expect("the program of the README ends well");
            let cow = match engine.cow_mode() {
                CowMode::GuestSide => "guest",
                CowMode::HostSide => "host",
            };
            let name = engine.name();
            report(&format!("engine={name} cow={cow} suite=readme tests=1"));
        }
        Err(error) if error.kind() == ErrorKind::NoHypervisor => {
            for cow in ["guest", "host"] {
                report(&format!(
                    "engine=kvm cow={cow} suite=readme skipped={error:?}"
                ));
            }
        }
        Err(error) => panic!("{error:?}"),
    }
}

/// Tells what ran: `cargo xtask test` through a file, and whoever runs `cargo test` on standard error, which the test
/// harness does not capture when it is written to directly.
fn report(line: &str) {
    writeln!(io::stderr(), "ENGINE {line}").expect("standard error can be written");
    let Some(path) = env::var_os("VELLUM_TEST_REPORT") else {
        return;
    };
    let append = || -> io::Result<()> {
        writeln!(
            OpenOptions::new().create(true).append(true).open(path)?,
            "{line}"
        )
    };
    append().expect("the report can be written");
}
